"""JPEGs without a fault: pixels by simplejpeg, with the bits of OpenCV in nine tenths of its time.

Both call libjpeg-turbo with the same settings. simplejpeg makes each warning an error: such files,
and kinds of JPEG that it does not know, are left to OpenCV. So it never decides if an image is
accepted, and adds no pixels that OpenCV would not give.
"""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from shards.images.formats.common import ImageHeader

# With smaller images, a stronger reduction may give the same size and would be taken.
_MIN_SIDE = 16


def decode_faultless(image: ImageHeader, reduction: int) -> NDArray[np.uint8] | None:
    """Decode a JPEG at 1 / `reduction` of its size, rounded up, to RGB (H, W, 3).

    None for another format, and if libjpeg-turbo reports anything or finds another size.
    """
    height, width = image.stored_size
    if image.format != "jpeg" or image.cmyk or (reduction > 1 and max(height, width) < _MIN_SIDE):
        return None
    rows, columns = -(-height // reduction), -(-width // reduction)
    pixels = np.empty((rows, columns, 3), np.uint8)
    try:
        decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            image.data,
            "RGB",
            min_height=rows,
            min_width=columns,
            min_factor=reduction,
            buffer=pixels,
            strict=True,
        )
    except ValueError:
        return None
    return decoded if decoded.shape == pixels.shape else None
