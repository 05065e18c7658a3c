"""Synthetic labelled images for the demo and for tests: no download, any number.

A class is a silhouette filled with a texture, so a crop without the outline still shows the class.
Position, size, tilt, colours, background, clutter and noise are drawn independently of the label.
The mean colour carries no information about the class, and a pixel-wise comparison carries little.
No class is the mirror image of another.

Shape letters: S the side of the image in pixels.
"""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError

Plane = NDArray[np.floating[Any]]

MIN_SIZE = 16
JPEG_QUALITY = 90
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


# Silhouettes: (u, v) (S, S) in units of the object's radius -> approximate distance to the edge in
# the same unit, negative inside.


def _disc(u: Plane, v: Plane) -> Plane:
    return np.hypot(u, v) - 0.95


def _square(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u), np.abs(v)) - 0.82


def _triangle(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u) * 0.866 - v * 0.5, v) - 0.55


def _star(u: Plane, v: Plane) -> Plane:
    return np.hypot(u, v) - 0.74 - 0.3 * np.cos(5 * np.arctan2(u, v))


def _cross(u: Plane, v: Plane) -> Plane:
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 1, b - 0.42), np.maximum(b - 1, a - 0.42))


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(np.hypot(u, v) - 0.68) - 0.32


def _hexagon(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u) * 0.866 + np.abs(v) * 0.5, np.abs(v)) - 0.86


def _crescent(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.hypot(u, v) - 1, 0.62 - np.hypot(u - 0.62, v))


def _flower(u: Plane, v: Plane) -> Plane:
    return np.hypot(u, v) - 0.84 - 0.16 * np.cos(7 * np.arctan2(u, v))


def _heart(u: Plane, v: Plane) -> Plane:
    a = np.abs(u)
    lobe = np.hypot(a - 0.45, v + 0.35) - 0.5
    tip = np.maximum(a * 0.78 + v * 0.63 - 0.6, -0.35 - v)
    return np.minimum(lobe, tip)


# Textures: (x, y) (S, S) in periods of the texture -> mix of the two tones, 0 to 1. The slopes are
# soft to avoid aliasing when a crop is shrunk.


def _step(wave: Plane) -> Plane:
    return np.clip(wave * 1.6 + 0.5, 0, 1)


def _cos(turns: Plane) -> Plane:
    return np.cos(turns * np.float32(2 * np.pi))


def _stripes(x: Plane, _y: Plane) -> Plane:
    return _step(_cos(x))


def _checks(x: Plane, y: Plane) -> Plane:
    return _step(2 * _cos(x * 0.6) * _cos(y * 0.6))


def _dots(x: Plane, y: Plane) -> Plane:
    return _step(_cos(x) + _cos(y) - 0.7)


def _plain(x: Plane, _y: Plane) -> Plane:
    return np.ones_like(x)


def _rings(x: Plane, y: Plane) -> Plane:
    return _step(_cos(np.hypot(x, y)))


def _hatches(x: Plane, y: Plane) -> Plane:
    return _step(np.maximum(_cos(x * 0.8), _cos(y * 0.8)) - 0.6)


def _waves(x: Plane, y: Plane) -> Plane:
    return _step(_cos(y + 0.6 * np.abs((x * 0.5) % 1 - 0.5) * 4))


def _speckles(x: Plane, y: Plane) -> Plane:
    # Each wave bends the next one, so that no period is visible inside one object.
    a = x + 0.35 * _cos(0.43 * y) + 0.3 * _cos(0.71 * x + 0.5 * y)
    b = y + 0.35 * _cos(0.37 * a) + 0.3 * _cos(0.63 * y - 0.6 * a)
    return _step(_cos(0.55 * a + 0.5 * b) + _cos(0.5 * a - 0.62 * b))


def _spokes(x: Plane, y: Plane) -> Plane:
    return _step(np.cos(6 * np.arctan2(y, x)))


def _shading(x: Plane, y: Plane) -> Plane:
    return np.clip(0.5 + 0.22 * (x + y), 0, 1)


_CLASSES: dict[str, tuple[Callable[[Plane, Plane], Plane], Callable[[Plane, Plane], Plane]]] = {
    "striped disc": (_disc, _stripes),
    "checked square": (_square, _checks),
    "dotted triangle": (_triangle, _dots),
    "plain star": (_star, _plain),
    "ringed cross": (_cross, _rings),
    "hatched ring": (_ring, _hatches),
    "wavy hexagon": (_hexagon, _waves),
    "speckled crescent": (_crescent, _speckles),
    "spoked flower": (_flower, _spokes),
    "shaded heart": (_heart, _shading),
}
CLASS_NAMES = tuple(_CLASSES)
_DRAWINGS = tuple(_CLASSES.values())
# Textures with a centre keep it in the middle of the object, so their phase is not shifted.
_CENTRED = frozenset({_rings, _spokes, _shading})


def make_image(seed: int, index: int, label: int, size: int) -> NDArray[np.uint8]:
    """Return image `index` of set `seed`, of class `label`: uint8 RGB (S, S, 3). Pure."""
    rng = _generator("picture", seed, index)
    back, first, second = _draw_colours(rng)
    image = _draw_background(rng, back, size)
    mask, tone = _draw_object(rng, label, size)
    fill = second + tone[..., None] * (first - second)
    image += mask[..., None] * (fill - image)
    image += rng.standard_normal((size, size, 3), np.float32) * rng.uniform(1, 5)
    return np.clip(image, 0, 255).astype(np.uint8)


def encode_jpeg(image: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """Encode uint8 RGB (S, S, 3) as JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, buffer = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "the JPEG encoder failed on a synthetic image"
    return buffer.tobytes()


def iter_images(
    num: int, *, seed: int = 0, size: int = 48, num_classes: int = len(CLASS_NAMES)
) -> Iterator[tuple[str, bytes, int]]:
    """Yield (key, JPEG bytes, label) `num` times, with the labels of `balanced_labels`."""
    labels = balanced_labels(num, seed=seed, num_classes=num_classes)
    check_size(size)
    for index, label in enumerate(labels.tolist()):
        yield f"{index:08d}", encode_jpeg(make_image(seed, index, label, size)), label


def balanced_labels(num: int, *, seed: int, num_classes: int) -> NDArray[np.int64]:
    """Return `num` labels in an order given by `seed`; class sizes differ by one at most."""
    if num < 1:
        raise ConfigError(f"{num} synthetic images requested; at least 1 is needed; raise it")
    if not 1 <= num_classes <= len(CLASS_NAMES):
        raise ConfigError(
            f"{num_classes} synthetic classes requested; 1 to {len(CLASS_NAMES)} exist; "
            f"choose a number in that range"
        )
    return _generator("order", seed, num).permutation(num) % num_classes


def check_size(size: int) -> None:
    """Raise ConfigError if the side is too short for the textures."""
    if size < MIN_SIZE:
        raise ConfigError(
            f"synthetic images of {size} pixels requested; the textures need {MIN_SIZE} or more; "
            f"raise the size"
        )


def _generator(purpose: str, seed: int, index: int) -> np.random.Generator:
    # The key is a digest, not seed + index: neighbouring seeds must not share images.
    key = blake2b(f"{purpose}/{seed}/{index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, "<u8")))


def _draw_colours(rng: np.random.Generator) -> Plane:
    """Draw the colours of background and two tones: (3, 3) float32 RGB rows on 0 to 255.

    Their greys differ by at least 45, so the object survives conversion to grey and colour jitter.
    Their order of brightness is random.
    """
    low, high = rng.uniform(45, 80, 2)
    middle = rng.uniform(30 + low, 225 - high)
    tones = rng.permutation(np.array([middle - low, middle + high], np.float32))
    greys = np.array([middle, *tones], np.float32)
    chroma = rng.uniform(-45, 45, (3, 3)).astype(np.float32)
    chroma -= (chroma @ _LUMA)[:, None]
    return greys[:, None] + chroma


def _draw_background(rng: np.random.Generator, colour: Plane, size: int) -> Plane:
    """Draw a gradient around `colour` with blobs and lines on it: (S, S, 3) float32."""
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    down, across = rng.uniform(-40, 40, (2, 3)).astype(np.float32)
    sky = colour + ramp[:, None, None] * down + ramp[None, :, None] * across
    image = np.clip(sky, 0, 255).astype(np.uint8)  # OpenCV antialiases bytes only
    for _ in range(rng.integers(2, 6)):
        x0, y0, x1, y1 = rng.integers(0, size, 4).tolist()
        paint = (colour + rng.uniform(-55, 55, 3)).tolist()
        if rng.random() < 0.5:
            cv2.line(image, (x0, y0), (x1, y1), paint, max(1, size // 32), cv2.LINE_AA)
        else:
            radius = round(size * rng.uniform(0.04, 0.16))
            cv2.circle(image, (x0, y0), radius, paint, cv2.FILLED, cv2.LINE_AA)
    return image.astype(np.float32)


def _draw_object(rng: np.random.Generator, label: int, size: int) -> tuple[Plane, Plane]:
    """Draw the coverage by the object, and the share of its first tone: two (S, S), 0 to 1."""
    silhouette, texture = _DRAWINGS[label]
    radius = rng.uniform(0.32, 0.48)
    slack = max(0.0, 0.5 - 0.7 * radius)
    angle, squeeze, period = rng.uniform(-0.6, 0.6), rng.uniform(0.85, 1.18), rng.uniform(0.15, 0.2)
    centre, phase = rng.uniform(-slack, slack, 2), rng.uniform(0, 20, 2).astype(np.float32)
    flip = np.float32(rng.choice((-1, 1)))

    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    x, y = (ramp - np.float32(centre[0]))[None, :] * flip, (ramp - np.float32(centre[1]))[:, None]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (cos * x + sin * y) * np.float32(squeeze), cos * y - sin * x
    distance = silhouette(u / np.float32(radius), v / np.float32(radius))
    mask = np.clip(0.5 - distance * np.float32(radius * size), 0, 1)
    shift = (0.0, 0.0) if texture in _CENTRED else phase
    return mask, texture(u / np.float32(period) + shift[0], v / np.float32(period) + shift[1])
