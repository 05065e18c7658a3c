"""SwAV's crops by webdataset with torchvision on Pillow, and decoding alone, as measures of ours.

`python -m tests.bench.peering.swav_views webdataset|decode FOLDER WORKERS IMAGES` prints the images
a second as JSON, without the start of workers.
"""

import glob
import io
import itertools
import json
import random
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
import webdataset
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader
from torchvision import transforms

_BATCH = 64
_WARM_UP = 4  # batches
_SHUFFLE = 1000


def augmentation(size: int, scale: tuple[float, float]) -> Callable[[Image.Image], torch.Tensor]:
    """Return the views of SwAV (arXiv:2006.09882, appendix A) as torchvision makes them."""
    jitter = transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)
    blur = transforms.Lambda(_blur)
    found: Callable[[Image.Image], torch.Tensor] = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([blur], p=0.5),
            transforms.PILToTensor(),
        ]
    )
    return found


def _blur(image: Image.Image) -> Image.Image:
    """Blur with Pillow, as SwAV's own code does."""
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class Views:
    """Makes all views of an image: two of 224 pixels and six of 96."""

    def __init__(self) -> None:
        large, small = augmentation(224, (0.14, 1.0)), augmentation(96, (0.05, 0.14))
        self._views = [large] * 2 + [small] * 6

    def __call__(self, data: bytes) -> list[torch.Tensor]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return [view(image) for view in self._views]


def by_webdataset(shards: list[str], workers: int, images: int) -> float:
    """Return images a second of a DataLoader with worker processes."""
    samples = webdataset.WebDataset(
        shards, shardshuffle=len(shards), nodesplitter=webdataset.shardlists.single_node_only,
        workersplitter=None, empty_check=False, seed=0,
    )  # fmt: skip
    views = Views()
    crops = samples.shuffle(_SHUFFLE).to_tuple("jpg;jpeg").map(lambda sample: views(sample[0]))
    batched = crops.batched(
        _BATCH, collation_fn=lambda rows: list(map(torch.stack, zip(*rows, strict=True)))
    )
    loader = DataLoader(
        batched.repeat(), batch_size=None, num_workers=workers, worker_init_fn=_one_core
    )
    batches = iter(loader)
    for _ in range(_WARM_UP):
        next(batches)
    began, done = time.monotonic(), 0
    while done < images:
        done += len(next(batches)[0])
    return done / (time.monotonic() - began)


def by_decoding(shards: list[str], workers: int, images: int) -> float:
    """Return images a second of a decoder that keeps nothing, on threads, from memory."""
    files = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            named = (member for member in tar if member.name.endswith((".jpg", ".jpeg")))
            files += [tar.extractfile(member).read() for member in named]  # type: ignore[union-attr]
    cv2.setNumThreads(1)
    rows = itertools.islice(itertools.cycle(files), images)
    with ThreadPoolExecutor(workers) as pool:
        began = time.monotonic()
        done = sum(1 for _ in pool.map(_decode, rows, chunksize=16))
        return done / (time.monotonic() - began)


def _decode(data: bytes) -> None:
    cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def _one_core(_: int) -> None:
    torch.set_num_threads(1)


def main() -> None:
    """Measure once and print."""
    way, pattern, workers, images = sys.argv[1:]
    measure = {"webdataset": by_webdataset, "decode": by_decoding}[way]
    rate = measure(sorted(glob.glob(pattern)), int(workers), int(images))
    print(json.dumps({"images_per_second": round(rate, 1)}))


if __name__ == "__main__":
    main()
