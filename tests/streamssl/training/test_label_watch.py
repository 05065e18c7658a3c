"""LabelWatch: labels that end, and labels that no two images of a batch share."""

from dataclasses import replace

import pytest

from streamssl.config.methods.supcon_config import SupConConfig
from streamssl.training.health import HealthWatch
from tests.tinyrun import tiny_moco

SUPCON = replace(tiny_moco(), method=SupConConfig(dim=8), label="meta.kind")  # two crops a sample


def said(readings: list[dict[str, float]], **changes: object) -> list[str]:
    """Return what a run is told of these readings, one step each."""
    watch = HealthWatch(replace(SUPCON, **changes))
    steps = enumerate(readings, start=1)
    return [text for step, found in steps for text in watch.check(step, found).messages]


def rows(*labelled: float, others: float = 1.0) -> list[dict[str, float]]:
    """Return readings of two crops, with `others` images of the same label for each image."""
    return [{"labelled": share, "positives": 1 + 2 * others} for share in labelled]


@pytest.mark.parametrize("without", ["positives", "nothing"])
def test_labels_that_end_are_told_once(without: str) -> None:
    """A run would train for days on shards without labels, and its loss would look normal."""
    found = rows(*[1.0] * 40, *[0.0] * 100)
    (text,) = said([{k: v for k, v in row.items() if k != without} for row in found])
    assert text.startswith("warning: labels at step 70: labelled is 0, no sample of the last 30")
    assert "the label 'meta.kind'" in text and "name another --label" in text


def test_labels_that_come_back_are_told_once() -> None:
    """A sorted set would fill the terminal, or a user would stop a run that learns again."""
    period = [*[0.0] * 30, *[0.25] * 30]
    warning, over = said(rows(*period * 4))
    assert "at step 30: " in warning and over == (
        "step 31: labelled is 0.00833, samples have labels again"
    )


@pytest.mark.parametrize(
    ("others", "is_told"), [(0.0, True), (0.005, True), (0.016, False), (3.0, False)]
)
def test_labels_that_no_image_shares_are_told_once(others: float, is_told: bool) -> None:
    """A class for every image makes SupCon the same as SimCLR, without a word."""
    found = said(rows(*[1.0] * 100, others=others))
    assert len(found) == is_told
    for text in found:
        assert f"at step 30: positives is {1 + 2 * others:.3g}, of which 1 of the same" in text
        assert "'meta.kind'" in text and "raise --stream.batch-size" in text


def test_one_label_in_a_thousand_is_no_fault() -> None:
    """Fine-tuning on one percent of the labels would warn, since most batches have none."""
    shares = [1 / 16 if step % 6 == 0 else 0.0 for step in range(200)]
    assert said([{"labelled": share} for share in shares]) == []


def test_runs_without_a_label_are_not_watched() -> None:
    """DeepCluster labels nothing before its first clustering; SupCon without labels is SimCLR."""
    assert said(rows(*[0.0] * 100, others=0.0), label="") == []
