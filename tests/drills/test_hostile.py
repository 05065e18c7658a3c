"""Real and synthetic broken images, read as in a run: no process dies, no good image is lost."""

import csv
import io
import json
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from shards.images.image_header import ImageError, read_image_header
from shards.samples.admission_config import AdmissionConfig
from tests.hostile import KINDS
from tests.shards.crops.made import encoded, made_pixels, shared_files
from tests.tars import make_tar

ROOT = Path(__file__).parents[2]
CORPORA = ("nasty-a.tar", "made-a.tar")
MAX_BYTES = 2 << 30
ADMISSION = AdmissionConfig()
# Allowed reasons for files that cannot be decoded, by a part of the category name.
REASONS = {
    "zero-byte": {"empty"},
    "not-an-image": {"not_an_image"},
    "leading-junk": {"not_an_image"},
    "unsupported": {"not_an_image", "broken_header"},
    "heif": {"not_an_image", "broken_header", "ok"},  # without and with pillow-heif
    "12bit": {"undecodable"},
    "lossless": {"undecodable"},
    "header-only": {"truncated"},
    "missing-eoi": {"truncated"},
    "truncated": {"truncated", "undecodable"},
    "bomb": {"too_large", "truncated", "not_an_image"},
}
OTHER_REASONS = {"broken_header", "truncated", "undecodable", "not_an_image"}


@dataclass(frozen=True)
class Hostile:
    """A file of a corpus, with the fields of its manifest."""

    corpus: str
    name: str
    categories: str
    good: bool  # Pillow decoded all of it
    data: bytes


def corpus(name: str) -> list[Hostile]:
    """Return all files of an archive; skips the test without it."""
    files = shared_files(name)
    rows = csv.DictReader(
        io.StringIO(files.pop("MANIFEST.tsv").decode()), delimiter="\t", quoting=csv.QUOTE_NONE
    )
    return [
        Hostile(
            name,
            row["file"],
            row.get("categories") or row["category"],
            row["pillow13_result"].startswith(("ok", "warn")),
            files[row["file"]],
        )
        for row in rows
    ]


def child(*arguments: object, timeout: float, marks: Path | None = None) -> dict[str, Any]:
    """Run a child of the drills and return its report; its death fails with the file name."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.drills.decoder_child", *map(str, arguments)],
        capture_output=True,
        cwd=ROOT,
        timeout=timeout,
        check=False,
    )
    about = marks.read_text().rstrip() if marks is not None and marks.exists() else ""
    errors = done.stderr.decode(errors="replace")[-3000:]
    assert done.returncode == 0, f"status {done.returncode} at {about}: {errors}"
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.fixture(scope="module")
def hostile() -> dict[str, Hostile]:
    """Every file of both corpora, by its key in the tars."""
    files = [file for name in CORPORA for file in corpus(name)]
    return {f"bad{number:04}": file for number, file in enumerate(files)}


@pytest.fixture(scope="module")
def tars(hostile: dict[str, Hostile], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars in which every hostile file has good images next to it."""
    folder = tmp_path_factory.mktemp("hostile")
    good = [encoded(made_pixels(seed, 40, 50)) for seed in range(8)]
    for name in CORPORA:
        members = []
        for key, file in hostile.items():
            if file.corpus == name:
                members += [(f"{key}.jpg", file.data), (f"good{key}.jpg", good[len(key) % 8])]
        (folder / name).write_bytes(make_tar(members))
    return folder


@pytest.fixture(scope="module")
def read_by(tars: Path) -> Any:
    """Return a function that reads the tars with one engine, once per module."""
    reports: dict[str, dict[str, Any]] = {}

    def read(engine: str) -> dict[str, Any]:
        if engine not in reports:
            reports[engine] = child("stream", engine, tars, timeout=900)
        return reports[engine]

    return read


ENGINES = ["native", "dali"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_no_good_image_is_lost_next_to_bad_ones(engine, hostile, read_by):
    """A broken image would cost its neighbours, the reader, or the memory of the machine."""
    report = read_by(engine)
    assert report["num_samples"] == 2 * len(hostile)
    assert report["num_rows"] == 2 * len(hostile) - len(report["verdicts"])
    assert not [key for key in report["verdicts"] if key.startswith("good")]
    assert report["peak_bytes"] < MAX_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_every_file_gets_the_right_reason(engine, hostile, read_by):
    """Good images would be lost, bad ones used, or rejects counted under a wrong reason."""
    verdicts = read_by(engine)["verdicts"]
    wrong = []
    for key, file in hostile.items():
        verdict = verdicts.get(key, "ok")
        allowed = right_verdicts(file)
        if verdict not in allowed:
            wrong.append(f"{file.name} ({file.categories}): {verdict}, not {sorted(allowed)}")
    assert wrong == []


@pytest.mark.slow
def test_both_engines_reject_the_same_files(hostile, read_by):
    """The training data would depend on the engine."""
    assert read_by("native")["verdicts"] == read_by("dali")["verdicts"]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["native", "dali"])
def test_largest_accepted_images_need_less_than_two_gigabytes(engine, tmp_path):
    """A few kilobytes of blank image would fill the memory of a reader."""
    side = int(ADMISSION.max_pixels**0.5)
    made = {
        "jpeg": blank(side, "RGB", "JPEG", subsampling=0),
        "progressive": blank(side, "RGB", "JPEG", subsampling=0, progressive=True),
        "cmyk": blank(7000, "CMYK", "JPEG", progressive=True),
        "alpha": blank(side, "RGBA", "PNG"),
        "deep": blank(side, "I;16", "PNG"),
        "gif": blank(side, "P", "GIF"),
        "tiff": blank(side, "RGBA", "TIFF", compression="tiff_adobe_deflate"),
        "webp": blank(7000, "RGBA", "WEBP", lossless=True, method=0, save_all=True,
                      append_images=[Image.new("RGBA", (7000, 7000), (9, 9, 9, 9))]),
        "jpeg2000": blank(5700, "RGBA", "JPEG2000"),
        "avif": blank(side, "RGB", "AVIF", speed=10),
    }  # fmt: skip
    (tmp_path / "large.tar").write_bytes(make_tar([(f"{k}.img", v) for k, v in made.items()]))
    report = child("stream", engine, tmp_path, 1, timeout=900)
    assert report["verdicts"] == {}
    assert report["num_rows"] == len(made)
    assert report["peak_bytes"] < MAX_BYTES


def blank(side: int, mode: str, format_: str, **options: Any) -> bytes:
    """Encode a large blank image, which takes few bytes."""
    file = io.BytesIO()
    Image.new(mode, (side, side)).save(file, format_, **options)
    return file.getvalue()


def right_verdicts(file: Hostile) -> set[str]:
    """Return the right verdicts for a file, from the result of Pillow and its category.

    A file that Pillow decodes is accepted, unless a policy rejects it. Other files are rejected for
    a reason of their category.
    """
    size, pixels = decode_with_pillow(file.data)
    refused = policy_reasons(size)
    if pixels is None:
        reasons = [found for part, found in REASONS.items() if part in file.categories]
        rejected = set.union(*reasons) if reasons else OTHER_REASONS
        # Pillow fails on parts without pixels, such as a colour profile.
        return rejected | refused | ({"ok"} if opencv_decodes(file.data) and not refused else set())
    allowed = refused or {"ok"}
    if not file.good:
        # The first image is valid, later frames or layers are not.
        allowed |= {"broken_header"}
    if file.data.startswith(b"\xff\xd8") and (is_filled(pixels) or is_interrupted(file.data)):
        # Data are missing: decoders fill the rest, and only some report it.
        allowed |= {"truncated", "undecodable"}
    return allowed


def decode_with_pillow(data: bytes) -> tuple[tuple[int, int], np.ndarray | None]:
    """Return size and pixels of the first image by Pillow; bombs are not decoded."""
    try:
        image = read_image_header(data)
        size = (image.width, image.height)
    except ImageError:
        size = (100, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as pil_image:
                size = pil_image.size
                if size[0] * size[1] > ADMISSION.max_pixels:
                    return size, None
                pil_image.load()
                return size, np.asarray(pil_image.convert("RGBA").convert("RGB"))
        except Exception:
            return size, None


def policy_reasons(size: tuple[int, int]) -> set[str]:
    """Return the reasons of the default settings against an image of this size."""
    short, long = sorted(size)
    return {
        reason
        for reason, refused in (
            ("too_small", short < ADMISSION.min_side),
            ("aspect_ratio", long > ADMISSION.max_aspect_ratio * short),
            ("too_large", short * long > ADMISSION.max_pixels),
        )
        if refused
    }


def is_filled(pixels: np.ndarray) -> bool:
    """Return True if most of an image is the grey that decoders fill in."""
    return bool((pixels == 128).all(axis=-1).mean() > 0.5)


def is_interrupted(data: bytes) -> bool:
    """Return True if the last scan of a JPEG does not end with the end-of-image marker."""
    end = re.search(rb"\xff[^\x00\xff\xd0-\xd7]", data[data.rfind(b"\xff\xda") + 2 :])
    return end is None or end[0] != b"\xff\xd9"


def opencv_decodes(data: bytes) -> bool:
    if not data.startswith((b"\xff\xd8", b"\x89PNG", b"RIFF")):
        return False
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None


def check_fuzz(first: int, last: int, marks: Path, timeout: float) -> None:
    """Read the mutations [first, last) in a child, which must only report verdicts."""
    report = child("fuzz", first, last, marks, timeout=timeout, marks=marks)
    assert report["faults"] == []
    verdicts = report["verdicts"]
    assert sum(verdicts.values()) == last - first
    # Damage that is too heavy or too light tests nothing.
    assert 0.1 < verdicts["ok"] / (last - first) < 0.6
    assert set(report["formats"]) == {kind.partition("_")[0] for kind in KINDS}
    assert report["peak_bytes"] < MAX_BYTES
    seconds, number = report["slowest"]
    assert seconds < 10, f"mutation {number} took {seconds:.1f} s"


@pytest.mark.slow
def test_mutated_images_only_give_verdicts(tmp_path):
    """A broken file would crash or hang a reader, or be kept by one engine only."""
    check_fuzz(0, 400, tmp_path / "marks", timeout=55)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(5))
def test_ten_thousand_mutated_images_only_give_verdicts(part, share, tmp_path):
    """Rare damage would crash or hang a reader."""
    check_fuzz(2000 * part, 2000 * part + round(2000 * share), tmp_path / "marks", timeout=600)
