"""Images of every supported kind, and random damage to them."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from tests.shards.crops.made import made_pixels

Pixels = NDArray[np.uint8]
Maker = Callable[[Pixels], bytes]


def saved(format_: str, mode: str = "RGB", **options: object) -> Maker:
    """Return an encoder of Pillow in this mode."""

    def make(pixels: Pixels) -> bytes:
        file = io.BytesIO()
        _in_mode(pixels, mode).save(file, format_, **options)
        return file.getvalue()

    return make


def animated(format_: str, mode: str = "RGB", **options: object) -> Maker:
    """Return an encoder of three frames, of which only the first is upright."""

    def make(pixels: Pixels) -> bytes:
        frames = [_in_mode(np.rot90(pixels, 2 * turns), mode) for turns in (0, 1, 1)]
        frames[2] = frames[2].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        file = io.BytesIO()
        frames[0].save(file, format_, save_all=True, append_images=frames[1:], **options)
        return file.getvalue()

    return make


def _in_mode(pixels: Pixels, mode: str) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if mode == "I;16":
        return Image.fromarray(pixels[..., 1].astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(pixels[..., 1].astype(np.float32) / 255)
    if mode in ("RGBA", "LA"):
        image = image.convert(mode[:-1])
        # Opaque, half and fully transparent from left to right.
        image.putalpha(Image.fromarray(steps(pixels.shape[:2])))
        return image
    return image.quantize(32) if mode == "P" else image.convert(mode)


def steps(size: tuple[int, ...]) -> Pixels:
    """Return opacity 255, 128 and 0 in three columns of equal width."""
    columns = np.array([255, 128, 0], np.uint8)[np.arange(size[1]) * 3 // size[1]]
    return np.broadcast_to(columns, size[:2]).copy()


def deep(format_: str, channels: int = 3) -> Maker:
    """Return an encoder of OpenCV with sixteen bits per channel: RGB, or RGB and opacity."""

    def make(pixels: Pixels) -> bytes:
        stack = pixels[..., ::-1]
        if channels == 4:
            stack = np.dstack([stack, steps(pixels.shape)])
        return bytes(cv2.imencode(format_, stack.astype(np.uint16) * 257)[1])

    return make


def swapping_profile() -> bytes:
    """Return a colour profile that swaps the red and green of sRGB."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"\0s\0R\0G\0B", b"\0o\0d\0d\0!")
    return profile.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")


def png_chunk(name: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


def png_of(pixels: Pixels, *, colour: int = 2, interlaced: bool = False, **extra: bytes) -> bytes:
    """Encode 8-bit samples (H, W, C) as PNG, with additional chunks."""
    height, width = pixels.shape[:2]
    # Passes of Adam7: first row and column, step of rows and columns.
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
              (1, 0, 2, 1)] if interlaced else [(0, 0, 1, 1)]  # fmt: skip
    rows = b"".join(
        b"\0" + row.tobytes()
        for top, left, down, right in passes
        for row in pixels[top::down, left::right]
        if row.size
    )
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlaced)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            *(png_chunk(name.encode(), body) for name, body in extra.items()),
            png_chunk(b"IDAT", zlib.compress(rows)),
            png_chunk(b"IEND", b""),
        ]
    )


def _bmp_rle(pixels: Pixels) -> bytes:
    """Encode a BMP with run lengths."""
    grey = pixels[::-1, :, 1]
    rows = []
    for row in grey:
        ends = np.flatnonzero(np.append(row[1:] != row[:-1], True))
        runs = np.diff(ends, prepend=-1)
        rows.append(b"".join(bytes((run, row[end])) for run, end in zip(runs, ends, strict=True)))
    body = b"\0\0".join(rows) + b"\0\1"
    palette = b"".join(bytes((level, level, level, 0)) for level in range(256))
    height, width = grey.shape
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    start = 14 + len(info) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + info + palette + body


def _qoi(pixels: Pixels) -> bytes:
    rows = np.concatenate([np.full((*pixels.shape[:2], 1), 254, np.uint8), pixels], axis=2)
    height, width = pixels.shape[:2]
    return b"qoif" + struct.pack(">IIBB", width, height, 3, 0) + rows.tobytes() + bytes(7) + b"\1"


def _plain_ppm(pixels: Pixels) -> bytes:
    height, width = pixels.shape[:2]
    words = " ".join(map(str, pixels.ravel().tolist()))
    return f"P3\n# made by hand\n{width} {height}\n255\n{words}\n".encode()


# Every supported kind of file. Kinds that change the pixels have it in their name: grey, alpha,
# one_bit, palette. `LOSSY` in the tests lists the lossy ones.
KINDS: dict[str, Maker] = {
    "jpeg": saved("JPEG", quality=92),
    "jpeg_444": saved("JPEG", quality=92, subsampling=0),
    "jpeg_progressive": saved("JPEG", quality=92, progressive=True),
    "jpeg_restarts": saved("JPEG", quality=92, restart_marker_blocks=3),
    "jpeg_grey": saved("JPEG", "L", quality=92),
    "jpeg_cmyk": saved("JPEG", "CMYK", quality=92),
    "jpeg_images": animated("MPO", quality=92),
    "png": saved("PNG"),
    "png_grey": saved("PNG", "L"),
    "png_one_bit": saved("PNG", "1"),
    "png_palette": saved("PNG", "P"),
    "png_interlaced": lambda pixels: png_of(pixels, interlaced=True),
    "png_alpha": saved("PNG", "RGBA"),
    "png_grey_alpha": saved("PNG", "LA"),
    "png_palette_alpha": saved("PNG", "P", transparency=bytes(range(0, 256, 8))),
    "png_key_alpha": lambda pixels: png_of(pixels, tRNS=struct.pack(">HHH", *pixels[0, 0])),
    "png_16": deep(".png"),
    "png_16_grey": saved("PNG", "I;16"),
    "png_16_alpha": deep(".png", 4),
    "png_animated": animated("PNG"),
    "png_animated_alpha": animated("PNG", "RGBA"),
    "webp": saved("WEBP", quality=92),
    "webp_lossless": saved("WEBP", lossless=True),
    "webp_alpha": saved("WEBP", "RGBA", lossless=True, exact=True),
    "webp_lossy_alpha": saved("WEBP", "RGBA", quality=92, exact=True),
    "webp_animated": animated("WEBP", lossless=True),
    "gif_palette": saved("GIF", "P"),
    "gif_palette_alpha": saved("GIF", "P", transparency=3),
    "gif_palette_animated": animated("GIF"),
    "avif": saved("AVIF", quality=92),
    "avif_alpha": saved("AVIF", "RGBA", quality=92),
    "avif_animated": animated("AVIF", quality=92),
    "bmp": saved("BMP"),
    "bmp_palette": saved("BMP", "P"),
    "bmp_32": saved("BMP", "RGBA"),
    "bmp_grey_runs": _bmp_rle,
    "tiff": saved("TIFF"),
    "tiff_deflate": saved("TIFF", compression="tiff_adobe_deflate"),
    "tiff_lzw": saved("TIFF", compression="tiff_lzw"),
    "tiff_alpha": saved("TIFF", "RGBA"),
    "tiff_cmyk": saved("TIFF", "CMYK"),
    "tiff_16": deep(".tiff"),
    "tiff_16_grey": saved("TIFF", "I;16"),
    "tiff_float_grey": saved("TIFF", "F"),
    "tiff_pages": animated("TIFF"),
    "jpeg2000": saved("JPEG2000"),
    "jpeg2000_stream": saved("JPEG2000", no_jp2=True),
    "jpeg2000_alpha": saved("JPEG2000", "RGBA"),
    "jpeg2000_16_grey": saved("JPEG2000", "I;16"),
    "ppm": saved("PPM"),
    "ppm_grey": saved("PPM", "L"),
    "ppm_16_grey": saved("PPM", "I;16"),
    "ppm_plain": _plain_ppm,
    "ppm_float_grey": saved("PPM", "F"),
    "ico_alpha": saved("ICO", "RGBA", sizes=[(64, 48)]),
    "ico": saved("ICO", sizes=[(64, 48)]),
    "ico_bitmap": saved("ICO", sizes=[(64, 48)], bitmap_format="bmp"),
    "qoi": _qoi,
}
HEIGHT, WIDTH = 48, 64


def image_pixels(seed: int = 0) -> Pixels:
    """Return a smooth image that lossy formats change little."""
    return cv2.GaussianBlur(made_pixels(seed, HEIGHT, WIDTH), (0, 0), 2)


@cache
def valid() -> dict[str, bytes]:
    """Return one image of 48 x 64 pixels in every kind."""
    return {name: make(image_pixels()) for name, make in KINDS.items()}


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Damage a file one to four times."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(_DAMAGES)(rng, data)
    return data


def _flip_bits(rng: random.Random, data: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 30))):
        if spoilt:
            spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def _flip_header_bits(rng: random.Random, data: bytes) -> bytes:
    return _flip_bits(rng, data[:200]) + data[200:]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _delete(rng: random.Random, data: bytes) -> bytes:
    start, stop = _range(rng, data)
    return data[:start] + data[stop:]


def _duplicate(rng: random.Random, data: bytes) -> bytes:
    start, stop = _range(rng, data)
    return data[:stop] + data[start:stop] * rng.choice((1, 1, 20)) + data[stop:]


def _overwrite(rng: random.Random, data: bytes) -> bytes:
    start, stop = _range(rng, data)
    fill = rng.choice((bytes(stop - start), b"\xff" * (stop - start), rng.randbytes(stop - start)))
    return data[:start] + fill + data[stop:]


def _range(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 4, 40, 400)))


def _swap_header(rng: random.Random, data: bytes) -> bytes:
    """Replace the beginning by that of another kind of file."""
    other = rng.choice(sorted(_OTHERS))
    length = rng.choice((4, 12, 40, 200))
    return _OTHERS[other][:length] + data[rng.choice((0, length)) :]


_SIZES = (0, 1, 7, 255, 256, 5000, 9000, 16383, 32768, 65535, 1 << 22, (1 << 31) - 1, (1 << 32) - 1)


def _change_size(rng: random.Random, data: bytes) -> bytes:
    """Replace the height or width where it is found."""
    side, wrong = rng.choice((HEIGHT, WIDTH)), rng.choice(_SIZES)
    forms = [form for form in (">I", "<I", ">H", "<H") if wrong < 1 << 8 * struct.calcsize(form)]
    form = rng.choice(forms or [">I"])
    for true in (side, side - 1):
        found = data.find(struct.pack(form, true), 4, 1000)
        if found >= 0:
            return repair_png(
                data[:found] + struct.pack(form, wrong) + data[found + struct.calcsize(form) :]
            )
    return data


def _change_length(rng: random.Random, data: bytes) -> bytes:
    """Replace four or two bytes by a wrong length."""
    if len(data) < 8:
        return data
    place = rng.randrange(min(len(data), 2000) - 4)
    wrong = rng.choice((0, 1, 2, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(data), 2 * len(data)))
    form = rng.choice((">I", "<I") if wrong > 0xFFFF else (">I", "<I", ">H", "<H"))
    return data[:place] + struct.pack(form, wrong) + data[place + struct.calcsize(form) :]


def _flip_and_repair(rng: random.Random, data: bytes) -> bytes:
    """Flip bits and repair the checksums, which reaches deeper code for PNG."""
    return repair_png(_flip_bits(rng, data))


def repair_png(data: bytes) -> bytes:
    """Repair the checksums of the chunks of a PNG."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    repaired, place = bytearray(data), 8
    while place + 12 <= len(repaired):
        (length,) = struct.unpack_from(">I", repaired, place)
        end = place + 8 + length
        if end + 4 > len(repaired):
            break
        repaired[end : end + 4] = struct.pack(">I", zlib.crc32(repaired[place + 4 : end]))
        place = end + 4
    return bytes(repaired)


_DAMAGES = (
    _flip_bits,
    _flip_header_bits,
    _flip_header_bits,
    _cut,
    _delete,
    _duplicate,
    _overwrite,
    _swap_header,
    _change_size,
    _change_size,
    _change_length,
    _flip_and_repair,
)
_OTHERS = {
    name: KINDS[name](image_pixels(1))
    for name in ("jpeg", "png", "webp", "gif_palette", "bmp", "tiff", "jpeg2000", "ico", "avif")
}


def mutations(first: int, last: int) -> Iterator[tuple[int, str, bytes]]:
    """Yield number, kind and bytes of the mutations [first, last); each number is reproducible."""
    whole = valid()
    names = sorted(whole)
    for number in range(first, last):
        rng = random.Random(number)
        name = names[number % len(names)]
        yield number, name, mutate(rng, whole[name])
