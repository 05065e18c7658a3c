"""The DALI engine: on a GPU for speed, on a CPU to test the same graph.

One graph decodes an image once, and crops and resizes all its views; a `view_finisher` executes the
other steps on the same device. All randomness comes from the parameters, so a crop does not depend
on its batch, on the number of threads, or on earlier calls.

DALI decodes plain JPEGs. `images.decode.decode_stored` decodes all other images, those that DALI
refuses, and those that DALI would silently fill with grey; their pixels are fed to a second graph.
So all engines keep and reject the same images for the same reasons.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from shards.crops.engine import CropFailure, CroppedImages
from shards.crops.native import NativeEngine
from shards.crops.recipe import CropRecipe, ViewGroup, pixel_boxes
from shards.crops.view_finisher import NativeFinisher, ResizedViews, ViewFinisher
from shards.errors import ConfigError
from shards.images.decode import Pixels, decode_stored, stored_box
from shards.images.image_header import ImageError, ImageHeader
from shards.records import CropArray
from shards.samples.synthetic_images import encode_jpeg

try:
    from nvidia.dali import Pipeline, fn, types
except ImportError:  # DALI exists for Linux on x86-64 only
    Pipeline = None

# Batches of a graph under way: one is decoded while the one before is finished.
_DEPTH: Final = 2
# Bound on the pixels of a batch, because DALI never frees the memory of the largest batch. The
# native engine, which holds one image at a time, crops images with more pixels.
_MAX_PIXELS: Final = 1 << 25
_FILL: Final = 128  # the grey of missing data
_PLAIN_SIDE: Final = 16

Node = Any  # DALI publishes no type for an edge of its graph
Source = Literal["encoded", "pixels"]


class DaliEngine:
    """Executes the parameters of a recipe with DALI, as `recipe` defines them.

    `finisher` decides the device; None finishes on the CPU.
    """

    def __init__(
        self,
        recipe: CropRecipe,
        max_batch_size: int,
        num_threads: int,
        finisher: ViewFinisher | None = None,
    ) -> None:
        if Pipeline is None:
            raise ConfigError(
                "engine=dali, but DALI is not installed; it exists for Linux on x86-64: use the "
                "native engine, or install nvidia-dali-cuda130"
            )
        self.recipe = recipe
        self.max_batch_size = max_batch_size
        self._finisher = finisher or NativeFinisher(recipe)
        self._native = NativeEngine(recipe)
        self._pool = ThreadPoolExecutor(num_threads)
        self._encoded, self._pixels = (
            _Graph(recipe, max_batch_size, self._finisher, num_threads, source)
            for source in ("encoded", "pixels")
        )

    def crop(self, images: Sequence[ImageHeader], parameters: NDArray[np.float32]) -> CroppedImages:
        """Return crops of N images from parameters (N, V, P); a bad image gives a failure.

        The crops are on the device of the finisher.
        """
        batch = _Batch(images, parameters, self._finisher.allocate(len(images)))
        sizes = np.array([image.height * image.width for image in images], np.int64)
        by_dali = [index for index, image in enumerate(images) if _is_for_dali(image)]
        failures: list[CropFailure] = []
        try:
            self._crop_encoded(batch, self._batches(by_dali, sizes))
            left = np.flatnonzero(~batch.ok).tolist()
            failures += self._crop_pixels(batch, self._batches(left, sizes))
            for index in np.flatnonzero(sizes > _MAX_PIXELS).tolist():
                cropped = self._native.crop([images[index]], parameters[index : index + 1])
                failures += [failure._replace(row=index) for failure in cropped.failures]
                batch.ok[index] = cropped.ok[0]
                if cropped.ok[0]:
                    self._finisher.place(cropped.on_host(), index, batch.out)
        finally:
            self._encoded.drain()
            self._pixels.drain()
        crops = batch.out
        if not batch.ok.all():
            crops = self._finisher.select(crops, np.flatnonzero(batch.ok))
        return CroppedImages(crops, batch.ok, failures)

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

    def _crop_encoded(self, batch: "_Batch", parts: Iterator[list[int]]) -> None:
        """Decode and crop with DALI; images that DALI cannot decode stay not `ok`.

        One bad image fails its whole part, often without naming the image, so a part that failed
        is halved until the image is alone.
        """
        failed: deque[list[int]] = deque()
        for indices in parts:
            if self._encoded.is_full:
                self._take_encoded(batch, failed)
            sources = [np.frombuffer(batch.images[index].data, np.uint8) for index in indices]
            self._encoded.send(sources, batch, indices)
        while not self._encoded.is_empty:
            self._take_encoded(batch, failed)
        while failed:
            indices = failed.popleft()
            middle = len(indices) // 2
            halves = (indices[:middle], indices[middle:]) if middle else ()
            self._crop_encoded(batch, iter(halves))

    def _take_encoded(self, batch: "_Batch", failed: deque[list[int]]) -> None:
        """Finish the oldest part under way, or append it to `failed`."""
        indices, outputs = self._encoded.receive()
        if outputs is None:
            failed.append(indices)
            return
        *groups, shapes, foot_low, foot_high = outputs
        shapes, foot_low, foot_high = map(_on_host, (shapes, foot_low, foot_high))
        # An image that ends in grey, or has another size for DALI, is decoded again without DALI.
        # Its views are finished, too, and then overwritten or left out.
        sizes = np.array([batch.images[index].stored_size for index in indices])
        good = (shapes[:, :2] == sizes).all(axis=1) & ~((foot_low == _FILL) & (foot_high == _FILL))
        self._finish(batch, indices, groups)
        batch.ok[np.array(indices)[good]] = True

    def _crop_pixels(self, batch: "_Batch", parts: Iterator[list[int]]) -> list[CropFailure]:
        """Decode without DALI and crop with DALI; return images that cannot be decoded."""
        failures: list[CropFailure] = []
        for indices in parts:
            images = [batch.images[index] for index in indices]
            decoded: dict[int, Pixels] = {}
            for index, pixels in zip(indices, self._pool.map(_try, images), strict=True):
                if isinstance(pixels, ImageError):
                    failures.append(CropFailure(index, pixels.reason, pixels.detail))
                else:
                    decoded[index] = pixels
            if self._pixels.is_full:
                self._take_pixels(batch)
            if decoded:
                self._pixels.send(list(decoded.values()), batch, list(decoded))
        while not self._pixels.is_empty:
            self._take_pixels(batch)
        return failures

    def _take_pixels(self, batch: "_Batch") -> None:
        indices, outputs = self._pixels.receive(must_work=True)
        assert outputs is not None
        self._finish(batch, indices, outputs)
        batch.ok[indices] = True

    def _finish(self, batch: "_Batch", indices: list[int], groups: Sequence[Any]) -> None:
        on_gpu = self._finisher.device == "gpu"
        dense = [group.as_tensor() if on_gpu else group.as_array() for group in groups]
        views = ResizedViews(
            groups=dense,
            parameters=batch.parameters[indices],
            orientations=[batch.images[index].orientation for index in indices],
            images=np.array(indices, np.int64),
        )
        self._finisher.finish(views, batch.out)


class _Batch:
    """Images under way, and their crops: those that are `ok` are in place in `out`."""

    def __init__(
        self,
        images: Sequence[ImageHeader],
        parameters: NDArray[np.float32],
        out: tuple[CropArray, ...],
    ) -> None:
        self.images, self.parameters, self.out = images, parameters, out
        self.ok = np.zeros(len(images), np.bool_)


class _Graph:
    """A pipeline of DALI from images to resized views, with up to `_DEPTH` batches under way.

    For an encoded source it also returns the decoded shapes, and the minimum and maximum of the
    last row of each image.
    """

    def __init__(
        self,
        recipe: CropRecipe,
        max_batch_size: int,
        finisher: ViewFinisher,
        num_threads: int,
        source: Source,
    ) -> None:
        self._stream = finisher.stream
        self._under_way: deque[list[int]] = deque()
        self._pipeline = _build(recipe, max_batch_size, finisher.device, num_threads, source)
        self._fill(recipe.num_views, source)

    @property
    def is_full(self) -> bool:
        return len(self._under_way) == _DEPTH

    @property
    def is_empty(self) -> bool:
        return not self._under_way

    def send(self, sources: Sequence[NDArray[np.uint8]], batch: _Batch, indices: list[int]) -> None:
        """Begin a batch; `sources` are of the images at `indices`."""
        images = [batch.images[index] for index in indices]
        self._feed(sources, _stored_boxes(batch.parameters[indices], images))
        self._pipeline.schedule_run()
        self._under_way.append(indices)

    def receive(self, *, must_work: bool = False) -> tuple[list[int], Sequence[Any] | None]:
        """Return the indices of the oldest batch and its outputs; None if DALI failed.

        The outputs are valid until the next call. Raises RuntimeError if it `must_work`.
        """
        indices = self._under_way.popleft()
        try:
            self._pipeline.release_outputs()
            return indices, self._pipeline.share_outputs(self._stream)
        except RuntimeError:
            if must_work:
                raise
            return indices, None

    def drain(self) -> None:
        """Drop what is under way: nothing, unless a batch ended with an error."""
        while self._under_way:
            self.receive()

    def _fill(self, num_views: int, source: Source) -> None:
        """Run on a plain image: the first run of a pipeline runs as often as it is deep."""
        plain = np.zeros((_PLAIN_SIDE, _PLAIN_SIDE, 3), np.uint8)
        if source == "encoded":
            plain = np.frombuffer(encode_jpeg(plain), np.uint8)
        boxes = np.ones((1, num_views, 4), np.int32)
        for _ in range(_DEPTH):
            self._feed([plain], boxes)
            self._under_way.append([])
        self._pipeline.schedule_run()
        while self._under_way:
            self.receive(must_work=True)

    def _feed(self, sources: Sequence[NDArray[np.uint8]], boxes: NDArray[np.int32]) -> None:
        self._pipeline.feed_input("source", list(sources))
        self._pipeline.feed_input("boxes", list(boxes))


def _is_for_dali(image: ImageHeader) -> bool:
    return image.format == "jpeg" and image.plain and not image.to_srgb


def _try(image: ImageHeader) -> Pixels | ImageError:
    try:
        return np.ascontiguousarray(decode_stored(image))
    except ImageError as error:
        return error


def _on_host(output: Any) -> NDArray[Any]:
    return np.array(output.as_cpu().as_array())


def _stored_boxes(
    parameters: NDArray[np.float32], images: Sequence[ImageHeader]
) -> NDArray[np.int32]:
    """Return boxes (N, V, 4) of images as stored: top, left, height, width.

    The graph crops the image as stored; the crop is turned, which is cheaper than the image.
    """
    upright = pixel_boxes(parameters, [(image.height, image.width) for image in images])
    stored = [
        [stored_box(box, image) for box in boxes]
        for image, boxes in zip(images, upright.tolist(), strict=True)
    ]
    corners = np.array(stored, np.int32)
    corners[..., 2:] -= corners[..., :2]
    return corners


def _build(
    recipe: CropRecipe,
    max_batch_size: int,
    device: Literal["cpu", "gpu"],
    num_threads: int,
    source: Source,
) -> Any:
    """Build a pipeline from `source` and `boxes` to the resized views of every group."""
    pipeline = Pipeline(
        batch_size=max_batch_size,
        num_threads=num_threads,
        device_id=0 if device == "gpu" else None,
        prefetch_queue_depth=_DEPTH,
    )
    with pipeline:
        boxes = fn.external_source(name="boxes", dtype=types.INT32, ndim=2)
        checks: list[Node] = []
        if source == "encoded":
            image = _decode(fn.external_source(name="source", dtype=types.UINT8, ndim=1), device)
            foot = image[-1:, :, :]
            checks = [image.shape(), fn.reductions.min(foot), fn.reductions.max(foot)]
        else:
            image = fn.external_source(name="source", dtype=types.UINT8, ndim=3, layout="HWC")
            image = image.gpu() if device == "gpu" else image
        outputs: list[Node] = []
        first = 0
        for group in recipe.groups:
            views = range(first, first + group.num_views)
            outputs.append(fn.stack(*(_view(image, group, boxes[v]) for v in views), axis=0))
            first = views.stop
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


def _view(image: Node, group: ViewGroup, box: Node) -> Node:
    """Crop and resize one view (S, S, 3) uint8, as stored."""
    crop = fn.slice(image, start=box[:2], shape=box[2:], axes=(0, 1))
    return fn.resize(
        crop, size=(group.size, group.size), interp_type=types.INTERP_LINEAR, antialias=True
    )
