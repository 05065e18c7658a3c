"""Names of formats that are not read here, each with a remedy, for the details of rejects."""

import re
from dataclasses import dataclass
from typing import Final

# A prolog may be long, so this many bytes are searched.
_HEAD: Final = 4096
_CONVERT = "convert it to PNG"
_FETCH = "an error page was saved in place of the image; fetch it again"
_PIXELS = "save its pixels as PNG or TIFF"
_DEVELOP = "develop it to TIFF or JPEG, such as `dcraw -w -T FILE`"
_UNPACK = "unpack it, and pack the images in it"
_FRAMES = "take its frames as images, such as `ffmpeg -i FILE %06d.png`"
_NO_IMAGE = "there is no image in it"


@dataclass(frozen=True, slots=True)
class ForeignFormat:
    """A format that is not read here: its name with an article, and what the user can do.

    Members of the names `extensions` hold it. A `side_car` describes an image, and is expected
    beside one.
    """

    name: str
    remedy: str
    magic: bytes = b"(?!)"
    extensions: tuple[str, ...] = ()
    side_car: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.remedy}"


# Text may begin with a byte order mark, and XML with a prolog, comments and a document type.
_PROLOG = (
    rb"(?is)\A(?:\xef\xbb\xbf)?(?:\s+|<\?xml[^>]*>|<\?[^>]*\?>|<!--.*?-->"
    rb"|<!doctype\s+(?:svg|[\w:]*:svg)[^\[>]*(?:\[.*?\]\s*)?>)*"
)
JPEG_LS: Final = ForeignFormat("JPEG-LS", _CONVERT, extensions=("jls",))
# The first that matches names the format, so special cases stand before general ones.
_FOREIGN: Final = (
    ForeignFormat(
        "a Git LFS pointer",
        "run `git lfs pull` in the repository, and pack again",
        rb"version https://git-lfs",
    ),
    ForeignFormat(
        "an SVG drawing",
        "draw it as PNG, such as `rsvg-convert FILE -o FILE.png`",
        _PROLOG + rb"<(?:\w+:)?svg[\s/>]",
        ("svg",),
    ),
    ForeignFormat(
        "an HTML page",
        _FETCH,
        rb"(?is)\A(?:\xef\xbb\xbf)?(?:\s+|<\?xml[^>]*>|<!--.*?-->)*"
        rb"<(?:!doctype\s+html|html|head|body|meta|title|script)\b",
        ("html", "htm"),
    ),
    ForeignFormat(
        "an XML answer of a store", _FETCH, _PROLOG + rb"<(?:error|listbucketresult)[\s>]"
    ),
    ForeignFormat("an XML document", _NO_IMAGE, _PROLOG + rb"<[\w?!]", ("xml",), side_car=True),
    ForeignFormat(
        "DICOM",
        "save its pixels as PNG; `pydicom.dcmread(FILE).pixel_array` reads them",
        rb"(?s).{128}DICM|\x02\0\0\0UL\x04\0",
        ("dcm", "dicom", "ima"),
    ),
    ForeignFormat("a NumPy array", _PIXELS, rb"\x93NUMPY", ("npy",)),
    ForeignFormat(
        "an archive of NumPy arrays", _PIXELS, rb"(?s)PK\x03\x04.{26}[^\0]{1,200}\.npy", ("npz",)
    ),
    ForeignFormat("a PDF", "save its pages as PNG, such as `pdftoppm -png FILE PAGE`", rb"%PDF-",
                  ("pdf",)),
    ForeignFormat(
        "PostScript", "draw it as PNG, such as `gs -sDEVICE=png16m -o FILE.png FILE`",
        rb"%!PS|\xc5\xd0\xd3\xc6", ("ps", "eps", "ai"),
    ),
    ForeignFormat("a ZIP archive", _UNPACK, rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", ("zip",)),
    ForeignFormat("gzip data", "unpack it with `gunzip`, and pack again", rb"\x1f\x8b",
                  ("gz", "tgz", "svgz")),
    ForeignFormat("bzip2 data", "unpack it with `bunzip2`, and pack again", rb"BZh[1-9]1AY&SY",
                  ("bz2",)),
    ForeignFormat("xz data", "unpack it with `unxz`, and pack again", rb"\xfd7zXZ\0", ("xz",)),
    ForeignFormat("Zstandard data", "unpack it with `unzstd`, and pack again",
                  rb"\x28\xb5\x2f\xfd", ("zst",)),
    ForeignFormat("a 7z archive", _UNPACK, rb"7z\xbc\xaf\x27\x1c", ("7z",)),
    ForeignFormat("a RAR archive", _UNPACK, rb"Rar!\x1a\x07", ("rar",)),
    ForeignFormat("a tar", _UNPACK, rb"(?s).{257}ustar", ("tar",)),
    ForeignFormat("a Canon raw file", _DEVELOP, rb"(?s)....ftypcrx |II\x1a\0\0\0HEAPCCDR",
                  ("cr2", "cr3", "crw")),
    ForeignFormat(
        "a camera's raw file", _DEVELOP, rb"FUJIFILMCCD-RAW|IIRO|IIRS|MMOR|IIU\0|FOVb|\0MRM",
        ("nef", "arw", "dng", "raf", "orf", "rw2", "pef", "srw", "x3f", "raw"),
    ),
    ForeignFormat("an MP4 or QuickTime video", _FRAMES,
                  rb"(?s)....(?:ftyp|moov|mdat|wide)", ("mp4", "mov", "m4v", "3gp")),
    ForeignFormat("a WebM or Matroska video", _FRAMES, rb"\x1a\x45\xdf\xa3", ("webm", "mkv")),
    ForeignFormat("an AVI video", _FRAMES, rb"(?s)RIFF....AVI ", ("avi",)),
    ForeignFormat("an MPEG video", _FRAMES, rb"(?s)\0\0\x01[\xba\xb3]|G.{187}G.{187}G",
                  ("mpg", "mpeg", "ts")),
    ForeignFormat("a Flash or Ogg video", _FRAMES, rb"FLV\x01|OggS", ("flv", "ogv")),
    ForeignFormat("sound", _NO_IMAGE, rb"(?s)RIFF....WAVE|ID3|fLaC", ("wav", "mp3", "flac", "ogg")),
    ForeignFormat("OpenEXR", _CONVERT, rb"\x76\x2f\x31\x01", ("exr",)),
    ForeignFormat("Radiance HDR", _CONVERT, rb"#\?(?:RADIANCE|RGBE)", ("hdr", "pic")),
    ForeignFormat("JPEG XR", "convert it to PNG, such as `JxrDecApp -i FILE -o FILE.tif`",
                  rb"II\xbc[\0\x01]", ("jxr", "wdp", "hdp")),
    JPEG_LS,
    ForeignFormat("FITS", _PIXELS, rb"SIMPLE  =", ("fits", "fit", "fts")),
    ForeignFormat("HDF5", _PIXELS, rb"\x89HDF\r\n\x1a\n", ("h5", "hdf5", "nc")),
    ForeignFormat("a MATLAB file", _PIXELS, rb"MATLAB 5\.0", ("mat",)),
    ForeignFormat("NIfTI", _PIXELS, rb"(?s).{344}(?:n\+1|ni1)\0", ("nii",)),
    ForeignFormat("NRRD", _PIXELS, rb"NRRD000", ("nrrd",)),
    ForeignFormat("pickled Python objects", _PIXELS, rb"(?s)\x80[\x02-\x05].", ("pkl", "pickle")),
    ForeignFormat("a PyTorch file", _PIXELS, extensions=("pt", "pth", "pyd")),
    ForeignFormat("Parquet", "`streamssl shards pack FILE OUT` packs its images", rb"PAR1",
                  ("parquet",)),
    ForeignFormat("Arrow", _PIXELS, rb"ARROW1", ("arrow", "feather")),
    ForeignFormat("PAM", "convert it to PNG, such as `pamtopng FILE > FILE.png`", rb"P7\s",
                  ("pam",)),
    ForeignFormat("DDS", _CONVERT, rb"DDS ", ("dds",)),
    ForeignFormat("TGA", _CONVERT, extensions=("tga",)),
    ForeignFormat("BPG", "convert it to PNG, such as `bpgdec FILE`", rb"BPG\xfb", ("bpg",)),
    ForeignFormat("DjVu", "convert it to TIFF, such as `ddjvu -format=tiff FILE FILE.tif`",
                  rb"AT&TFORM", ("djvu",)),
    ForeignFormat("an Apple icon", _CONVERT, rb"icns", ("icns",)),
    ForeignFormat("an AppleDouble file", "leave out files whose names begin with `._`",
                  rb"\0\x05\x16\x07"),
    ForeignFormat("text in base64", "decode it, such as `base64 -d FILE`",
                  rb"(?:data:image/|/9j/4|iVBORw0KGgo)", ("b64",)),
    ForeignFormat("only zeros", "its copy or download has failed; fetch it again",
                  rb"\0{64}\0*\Z"),
    ForeignFormat("JSON", _NO_IMAGE, rb"\s*(?:\{\s*[\"}]|\[\s*[\[{\"\d])", ("json", "jsonl"),
                  side_car=True),
    ForeignFormat("text", _NO_IMAGE, rb"(?:[\t\n\r -~]|[\xc3-\xf4][\x80-\xbf]+){16,}\Z",
                  ("txt", "csv", "cls"), side_car=True),
)  # fmt: skip
_PATTERNS: Final = tuple((re.compile(format_.magic), format_) for format_ in _FOREIGN)
_BY_EXTENSION: Final = {name: format_ for format_ in _FOREIGN for name in format_.extensions}
_UTF16: Final = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


def foreign_format(data: bytes) -> ForeignFormat | None:
    """Return the format of bytes that are no supported image, or None if it is unknown."""
    head = data[:_HEAD]
    if encoding := _UTF16.get(head[:2]):
        head = head[2:].decode(encoding, "replace").encode("utf-8")
    elif len(data) > _HEAD and not any(head):
        head = head if data.count(0) == len(data) else b""
    return next((format_ for magic, format_ in _PATTERNS if magic.match(head)), None)


def foreign_member(extension: str, data: bytes) -> ForeignFormat | None:
    """Return the format of a member that is no image, by its bytes, else by its name.

    The result is None for an unknown format and for members that only describe an image.
    """
    by_name = _BY_EXTENSION.get(extension.rpartition(".")[2])
    found = (foreign_format(data), by_name)
    return next((format_ for format_ in found if format_ and not format_.side_car), None)
