"""Images of noise."""

import cv2
import numpy as np


def noise(height: int, width: int, extension: str = ".png", seed: int = 0) -> bytes:
    """Encode an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(extension, pixels)[1].tobytes()
