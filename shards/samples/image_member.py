"""Image member of a sample: found by its name, else by its first bytes.

A sample may hold several images, such as a photograph and its mask. The user then names the member
to train on; without a name the first of `IMAGE_EXTENSIONS` is taken.
"""

from typing import Final

from shards.images.image_header import has_image_magic
from shards.records import Sample

# The image member is searched in this order. Its format is detected from its bytes, not from here.
IMAGE_EXTENSIONS: Final = (
    *("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "jfif", "jpe"),
    *("jp2", "j2k", "ppm", "pgm", "ico", "img", "image", "heic", "heif", "hif", "jxl", "qoi"),
    *("psd", "pbm", "pnm", "jpf", "jpx", "j2c", "jpc"),
)
# Members of these names hold labels, text or numbers; their bytes are never searched for an image.
_OTHERS: Final = frozenset({"cls", "json", "txt", "caption", "npy", "npz", "id", "index", "url"})


def image_extension(extension: str) -> bool:
    """Return True if a member of this name is an image: 'jpg', or 'front.jpg'."""
    return extension.rpartition(".")[2] in IMAGE_EXTENSIONS


def image_members(sample: Sample) -> list[str]:
    """Return the members that can be images, the one that is used first."""
    fields = sample.fields
    usual = [extension for extension in IMAGE_EXTENSIONS if extension in fields]
    named = [name for name in fields if name not in IMAGE_EXTENSIONS and image_extension(name)]
    if usual or named:
        return usual + named
    # Members without a usable name: '000017', '000018.png?w=640'.
    others = (name for name in fields if name not in _OTHERS)
    return [name for name in others if has_image_magic(fields[name])]


def find_image(sample: Sample, wanted: tuple[str, ...] = ()) -> bytes | None:
    """Return the bytes of the image member; None if there is none. `wanted` as below."""
    found = find_image_member(sample, wanted)
    return None if found is None else sample.fields[found]


def find_image_member(sample: Sample, wanted: tuple[str, ...] = ()) -> str | None:
    """Return the extension of the image member; None if there is none.

    `wanted` names members in order of preference: 'image.png', or 'image' for any 'image.*'.
    """
    members = image_members(sample)
    if wanted:
        chosen = (name for want in wanted for name in members if is_named(name, want))
        return next(chosen, None)
    return members[0] if members else None


def is_named(member: str, wanted: str) -> bool:
    """Return True if `wanted` names a member: 'image.png' or 'image' names 'image.png'."""
    wanted = wanted.lower().lstrip(".")
    return member == wanted or member.startswith(f"{wanted}.")
