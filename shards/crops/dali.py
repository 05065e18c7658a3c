"""The DALI engine: on a GPU for speed, on a CPU to test the same graph.

One graph decodes an image once and makes all its views. All randomness comes from the parameters,
so a crop does not depend on its batch, on the number of threads, or on earlier calls.

DALI decodes plain JPEGs. `images.decode.decode_stored` decodes all other images, those that DALI
refuses, and those that DALI would silently fill with grey; their pixels are fed to a second graph.
So both engines keep and reject the same images for the same reasons.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from shards.crops.engine import CropFailure, CroppedImages
from shards.crops.opencv import OpenCVEngine
from shards.crops.recipe import ORDERS, CropRecipe, Parameter, ViewGroup, pixel_boxes
from shards.errors import ConfigError
from shards.images.decode import ORIENTATION_STEPS, Pixels, decode_stored, stored_box
from shards.images.image_header import ImageError, ImageHeader

try:
    from nvidia.dali import Pipeline, fn, types
    from nvidia.dali import math as dali_math
except ImportError:  # DALI exists for Linux on x86-64 only
    Pipeline = None

# Columns of the whole numbers of a view.
_TOP, _LEFT, _HEIGHT, _WIDTH, _FLIP_ROWS, _FLIP_COLUMNS, _WINDOW = range(7)
_NUM_WHOLE = 7

# Columns of the fractions of a view. At most three linear colour operations precede the hue and
# three follow it; each is a matrix and a weight of the crop's mean grey.
_NUM_LINEAR_BEFORE_HUE = 3
_NUM_LINEAR = 2 * _NUM_LINEAR_BEFORE_HUE
_HUE, _SIGMA, _SOLARISE, _TRANSPOSE = range(4)
_MATRICES = 4
_MEAN_WEIGHTS = _MATRICES + 9 * (_NUM_LINEAR + 1)
_NUM_FRACTIONS = _MEAN_WEIGHTS + _NUM_LINEAR
_GREY_SLOT = _NUM_LINEAR

_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)
# A float32 result may be just below a whole level, and dropping the fraction would lose the level.
_TOLERANCE = 1e-3
# Bound on the pixels of a batch, because DALI never frees the memory of the largest batch. The
# OpenCV engine, which holds one image at a time, crops images with more pixels.
_MAX_PIXELS: Final = 1 << 25

Node = Any  # DALI publishes no type for an edge of its graph


class DaliEngine:
    """Executes the parameters of a recipe with DALI, as `recipe` defines them."""

    def __init__(
        self,
        recipe: CropRecipe,
        max_batch_size: int,
        device: Literal["cpu", "gpu"],
        num_threads: int,
    ) -> None:
        if Pipeline is None:
            raise ConfigError(
                "engine=dali, but DALI is not installed; it exists for Linux on x86-64: use the "
                "opencv engine, or install nvidia-dali-cuda130"
            )
        self.recipe = recipe
        self.max_batch_size = max_batch_size
        self._opencv = OpenCVEngine(recipe)
        self._pool = ThreadPoolExecutor(num_threads)
        self._encoded = _build(recipe, max_batch_size, device, num_threads, source="encoded")
        self._pixels = _build(recipe, max_batch_size, device, num_threads, source="pixels")

    def crop(self, images: Sequence[ImageHeader], parameters: NDArray[np.float32]) -> CroppedImages:
        """Return crops of N images from parameters (N, V, P); a bad image gives a failure."""
        ok = np.zeros(len(images), np.bool_)
        crops = tuple(
            np.empty((len(images), group.num_views, group.size, group.size, 3), np.uint8)
            for group in self.recipe.groups
        )
        sizes = np.array([image.height * image.width for image in images], np.int64)
        by_dali = [index for index, image in enumerate(images) if _is_for_dali(image)]
        for indices in self._batches(by_dali, sizes):
            self._crop_encoded(images, parameters, indices, ok, crops)
        failures: list[CropFailure] = []
        for indices in self._batches(np.flatnonzero(~ok).tolist(), sizes):
            failures += self._crop_pixels(images, parameters, indices, ok, crops)
        for index in np.flatnonzero(sizes > _MAX_PIXELS).tolist():
            cropped = self._opencv.crop([images[index]], parameters[index : index + 1])
            failures += [failure._replace(row=index) for failure in cropped.failures]
            ok[index] = cropped.ok[0]
            for array, output in zip(crops, cropped.crops, strict=True):
                array[index : index + len(output)] = output
        return CroppedImages(tuple(array[ok] for array in crops), ok, failures)

    def _batches(self, indices: list[int], sizes: NDArray[np.int64]) -> Iterator[list[int]]:
        """Yield batches of `indices` within the bounds, leaving out images that are too large."""
        batch: list[int] = []
        for index in indices:
            if sizes[index] > _MAX_PIXELS:
                continue
            if len(batch) == self.max_batch_size or sizes[[*batch, index]].sum() > _MAX_PIXELS:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _crop_encoded(
        self,
        images: Sequence[ImageHeader],
        parameters: NDArray[np.float32],
        indices: list[int],
        ok: NDArray[np.bool_],
        crops: tuple[NDArray[np.uint8], ...],
    ) -> None:
        """Decode and crop with DALI; images that DALI cannot decode stay not `ok`.

        One bad image fails its whole batch, often without naming the image, so the batch is halved
        until the image is alone.
        """
        chosen = [images[index] for index in indices]
        encoded = [np.frombuffer(image.data, np.uint8) for image in chosen]
        try:
            outputs = _run(self._encoded, encoded, parameters[indices], chosen)
        except RuntimeError:
            if len(indices) > 1:
                middle = len(indices) // 2
                for half in (indices[:middle], indices[middle:]):
                    self._crop_encoded(images, parameters, half, ok, crops)
            return
        *groups, shapes, foot_low, foot_high = outputs
        # An image that ends in grey, or has another size for DALI, is decoded again without DALI.
        sizes = np.array([image.stored_size for image in chosen])
        good = (shapes[:, :2] == sizes).all(axis=1) & ~((foot_low == 128) & (foot_high == 128))
        kept = np.array(indices)[good]
        ok[kept] = True
        for array, output in zip(crops, groups, strict=True):
            array[kept] = output[good]

    def _crop_pixels(
        self,
        images: Sequence[ImageHeader],
        parameters: NDArray[np.float32],
        indices: list[int],
        ok: NDArray[np.bool_],
        crops: tuple[NDArray[np.uint8], ...],
    ) -> list[CropFailure]:
        """Decode without DALI and crop with DALI; return images that cannot be decoded."""
        failures: list[CropFailure] = []
        decoded: list[Pixels] = []
        kept: list[int] = []
        for index, pixels in zip(
            indices, self._pool.map(_try, [images[index] for index in indices]), strict=True
        ):
            if isinstance(pixels, ImageError):
                failures.append(CropFailure(index, pixels.reason, pixels.detail))
            else:
                decoded.append(pixels)
                kept.append(index)
        if kept:
            chosen = [images[index] for index in kept]
            groups = _run(self._pixels, decoded, parameters[kept], chosen)
            ok[kept] = True
            for array, output in zip(crops, groups, strict=True):
                array[kept] = output
        return failures


def _is_for_dali(image: ImageHeader) -> bool:
    return image.format == "jpeg" and image.plain and not image.to_srgb


def _try(image: ImageHeader) -> Pixels | ImageError:
    try:
        return np.ascontiguousarray(decode_stored(image))
    except ImageError as error:
        return error


def _run(
    pipeline: Any,
    sources: Sequence[NDArray[np.uint8]],
    parameters: NDArray[np.float32],
    images: Sequence[ImageHeader],
) -> list[NDArray[Any]]:
    whole, fractions = _translate(parameters, images)
    pipeline.feed_input("source", list(sources))
    pipeline.feed_input("whole", list(whole))
    pipeline.feed_input("fractions", list(fractions))
    return [np.array(output.as_cpu().as_array()) for output in pipeline.run()]


def _translate(
    parameters: NDArray[np.float32], images: Sequence[ImageHeader]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Convert parameters (N, V, P) to the int32 and float32 columns (N, V, ...) of the graph.

    The graph crops the image as stored and turns the crop, which is cheaper than turning the image.
    """
    rows = parameters.reshape(-1, parameters.shape[-1])
    sizes = [(image.height, image.width) for image in images]
    upright = pixel_boxes(parameters, sizes).tolist()
    stored = [
        stored_box(box, image)
        for image, boxes in zip(images, upright, strict=True)
        for box in boxes
    ]
    boxes = np.array(stored, np.int32).reshape(-1, 4)
    turns = np.array([ORIENTATION_STEPS[image.orientation] for image in images])
    turns = np.repeat(turns, parameters.shape[1], axis=0)
    whole = np.zeros((len(rows), _NUM_WHOLE), np.int32)
    whole[:, _TOP : _LEFT + 1] = boxes[:, :2]
    whole[:, _HEIGHT : _WIDTH + 1] = boxes[:, 2:] - boxes[:, :2]
    whole[:, _FLIP_ROWS] = turns[:, 1]
    whole[:, _FLIP_COLUMNS] = turns[:, 2] != (rows[:, Parameter.FLIP] > 0)
    sigma = rows[:, Parameter.BLUR]
    # A window of one pixel does not blur; DALI still requires a positive deviation.
    whole[:, _WINDOW] = 2 * np.ceil(3 * sigma) + 1
    fractions = np.zeros((len(rows), _NUM_FRACTIONS), np.float32)
    fractions[:, _HUE] = rows[:, Parameter.HUE]
    fractions[:, _SIGMA] = np.where(sigma > 0, sigma, 1.0)
    fractions[:, _SOLARISE] = rows[:, Parameter.SOLARISE]
    fractions[:, _TRANSPOSE] = turns[:, 0]
    matrices = fractions[:, _MATRICES:_MEAN_WEIGHTS].reshape(len(rows), _NUM_LINEAR + 1, 3, 3)
    matrices[:] = np.eye(3)
    for row, slots, weights in zip(rows, matrices, fractions[:, _MEAN_WEIGHTS:], strict=True):
        _fill_slots(row, slots, weights)
    matrices[rows[:, Parameter.GREY] > 0, _GREY_SLOT] = _LUMA
    shape = parameters.shape[:2]
    return whole.reshape(*shape, -1), fractions.reshape(*shape, -1)


def _fill_slots(
    row: NDArray[np.float32], matrices: NDArray[np.float32], weights: NDArray[np.float32]
) -> None:
    """Put one view's linear colour operations, in their order, before and after its hue."""
    slot = 0
    for operation in ORDERS[int(row[Parameter.ORDER])]:
        factor = row[operation]
        if operation == Parameter.HUE:
            slot = _NUM_LINEAR_BEFORE_HUE
            continue
        matrices[slot] = factor * np.eye(3)
        if operation == Parameter.CONTRAST:
            weights[slot] = 1 - factor
        elif operation == Parameter.SATURATION:
            matrices[slot] += (1 - factor) * _LUMA
        slot += 1


def _build(
    recipe: CropRecipe,
    max_batch_size: int,
    device: Literal["cpu", "gpu"],
    num_threads: int,
    source: Literal["encoded", "pixels"],
) -> Any:
    """Build a pipeline from `source`, `whole` and `fractions` to the crops of every group.

    For an encoded source it also returns the decoded shape, and the minimum and maximum of the last
    row of the image.
    """
    pipeline = Pipeline(
        batch_size=max_batch_size,
        num_threads=num_threads,
        device_id=0 if device == "gpu" else None,
        prefetch_queue_depth=1,
    )
    with pipeline:
        whole = fn.external_source(name="whole", dtype=types.INT32, ndim=2)
        fractions = fn.external_source(name="fractions", dtype=types.FLOAT, ndim=2)
        checks: list[Node] = []
        if source == "encoded":
            image = _decode(fn.external_source(name="source", dtype=types.UINT8, ndim=1), device)
            foot = image[-1:, :, :]
            checks = [image.shape(), fn.reductions.min(foot), fn.reductions.max(foot)]
        else:
            image = fn.external_source(name="source", dtype=types.UINT8, ndim=3, layout="HWC")
            image = image.gpu() if device == "gpu" else image
        outputs: list[Node] = []
        view = 0
        for group in recipe.groups:
            crops = []
            for _ in range(group.num_views):
                crops.append(_view(image, group, whole[view], fractions[view], device))
                view += 1
            outputs.append(fn.stack(*crops, axis=0))
        pipeline.set_outputs(*outputs, *checks)
    pipeline.build()
    return pipeline


def _decode(encoded: Node, device: Literal["cpu", "gpu"]) -> Node:
    # The hardware decoder would take some images of a batch, with slightly different pixels, and
    # there are two ways to upsample chroma: both are pinned. EXIF was read earlier.
    return fn.decoders.image(
        encoded,
        device="mixed" if device == "gpu" else "cpu",
        output_type=types.RGB,
        hw_decoder_load=0.0,
        jpeg_fancy_upsampling=True,
        adjust_orientation=False,
    )


def _view(
    image: Node, group: ViewGroup, whole: Node, fractions: Node, device: Literal["cpu", "gpu"]
) -> Node:
    """Make one view (S, S, 3) uint8, with the steps of the definition in `recipe`."""
    # Arguments of operators are on the CPU, operands of expressions where the pixels are.
    operands = fractions.gpu() if device == "gpu" else fractions
    crop = fn.slice(
        image, start=whole[_TOP : _LEFT + 1], shape=whole[_HEIGHT : _WIDTH + 1], axes=(0, 1)
    )
    crop = fn.resize(
        crop, size=(group.size, group.size), interp_type=types.INTERP_LINEAR, antialias=True
    )
    transpose = fn.cast(operands[_TRANSPOSE], dtype=types.UINT8)
    transposed = fn.transpose(crop, perm=(1, 0, 2), transpose_layout=False)
    crop = fn.cast(crop * (1 - transpose) + transposed * transpose, dtype=types.UINT8)
    crop = fn.reinterpret(crop, layout="HWC")
    crop = fn.flip(crop, vertical=whole[_FLIP_ROWS], horizontal=whole[_FLIP_COLUMNS])
    if group.jitter is not None:
        for slot in range(_NUM_LINEAR_BEFORE_HUE):
            crop = _linear(crop, fractions, operands, slot)
        crop = _turn_hue(crop, operands[_HUE])
        for slot in range(_NUM_LINEAR_BEFORE_HUE, _NUM_LINEAR):
            crop = _linear(crop, fractions, operands, slot)
    if group.grey_probability > 0:
        grey = fn.coord_transform(crop, M=_matrix(fractions, _GREY_SLOT), dtype=types.FLOAT)
        crop = dali_math.floor(grey + 0.5)
    crop = fn.cast(crop, dtype=types.UINT8)
    if group.blur_probability > 0:
        crop = fn.gaussian_blur(crop, sigma=fractions[_SIGMA], window_size=whole[_WINDOW])
    if group.solarise_probability > 0:
        bright = fn.cast(crop >= 128, dtype=types.FLOAT) * operands[_SOLARISE]
        crop = fn.cast(crop + bright * (255.0 - 2.0 * crop), dtype=types.UINT8)
    return crop


def _matrix(fractions: Node, slot: int) -> Node:
    start = _MATRICES + 9 * slot
    return fn.reshape(fractions[start : start + 9], shape=(3, 3))


def _linear(crop: Node, fractions: Node, operands: Node, slot: int) -> Node:
    """Apply a matrix, add the crop's mean grey times a weight, clamp, drop the fraction."""
    mean = fn.reductions.mean(crop, axes=(0, 1))
    grey = sum(float(_LUMA[channel]) * mean[channel] for channel in range(3))
    mean_grey = dali_math.floor(grey + 0.5)
    mapped = fn.coord_transform(crop, M=_matrix(fractions, slot), dtype=types.FLOAT)
    mapped = mapped + mean_grey * operands[_MEAN_WEIGHTS + slot]
    return dali_math.floor(dali_math.clamp(mapped, 0.0, 255.0) + _TOLERANCE)


def _turn_hue(crop: Node, turns: Node) -> Node:
    """Turn the hue of the HSV hexcone and round the result. Zero turns are exact."""
    red, green, blue = (crop[:, :, channel : channel + 1] for channel in range(3))
    value = dali_math.max(dali_math.max(red, green), blue)
    chroma = value - dali_math.min(dali_math.min(red, green), blue)
    # Chroma is whole, so 1 replaces 0 only if all differences are 0.
    safe = dali_math.max(chroma, 1.0)
    is_red = fn.cast(red == value, dtype=types.FLOAT)
    is_green = fn.cast(green == value, dtype=types.FLOAT)
    from_green = is_green * ((blue - red) / safe + 2.0)
    from_blue = (1.0 - is_green) * ((red - green) / safe + 4.0)
    sector = is_red * (green - blue) / safe + (1.0 - is_red) * (from_green + from_blue)
    sector = sector + turns * 6.0
    channels = []
    for offset in (5.0, 3.0, 1.0):
        place = sector + offset
        place = place - dali_math.floor(place / 6.0) * 6.0
        ramp = dali_math.clamp(dali_math.min(place, 4.0 - place), 0.0, 1.0)
        channels.append(dali_math.floor(value - chroma * ramp + 0.5))
    return fn.cat(*channels, axis=2)
