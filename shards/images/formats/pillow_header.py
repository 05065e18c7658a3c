"""Headers that Pillow reads, without decoding a pixel."""

import io

from PIL import ImageFile

from shards.images.formats.common import ORIENTATION_TAG, ImageError


def open_with_pillow(
    plugin: type[ImageFile.ImageFile], data: bytes
) -> tuple[ImageFile.ImageFile, int, int]:
    """Return an image opened by a Pillow plugin, its number of frames, and its orientation.

    Plugins are used directly, because `Image.open` refuses large sizes without reporting them.
    """
    try:
        image = plugin(io.BytesIO(data))
        num_frames = int(getattr(image, "n_frames", 1))
        orientation = int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception as error:
        # On broken files the plugins raise OSError, SyntaxError, ValueError, TypeError, KeyError,
        # IndexError, OverflowError, NotImplementedError, struct.error and more, all alike.
        raise ImageError("broken_header", f"{type(error).__name__}: {error}") from error
    return image, num_frames, orientation
