"""Admission: kept or rejected, once, with a reason; and how many rejects a run may spend."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from shards.admission import (
    PICTURE_EXTENSIONS,
    AdmissionConfig,
    admit,
    check_budget,
    picture_bytes,
    reject,
)
from shards.errors import BudgetExceeded, ConfigError
from shards.picture import Picture
from shards.records import Reject, Sample


def png(height, width):
    return cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes()


def sample(**fields):
    return Sample(2, 1536, "a/7", {name.replace("_", "."): data for name, data in fields.items()})


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"jpg": b"1", "json": b"{}"}, b"1"),
        ({"json": b"{}", "webp": b"2"}, b"2"),
        ({"png": b"mask", "jpg": b"picture"}, b"picture"),
        ({"txt": b"words", "front_png": b"3"}, b"3"),
        ({"cls": b"1", "txt": b"words"}, None),
        ({"jpg": b""}, b""),
        ({}, None),
    ],
)
def test_the_picture_is_found_by_the_extension(fields, found):
    """The mask or the caption would be decoded in its place."""
    assert picture_bytes(sample(**fields)) == found


@pytest.mark.parametrize("extension", PICTURE_EXTENSIONS)
def test_what_the_bytes_are_does_not_depend_on_the_extension(extension):
    """Half of the web's .jpg files are something else."""
    picture = admit(sample(**{extension: png(20, 30)}), AdmissionConfig())
    assert isinstance(picture, Picture)
    assert (picture.format, picture.height, picture.width) == ("png", 20, 30)


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({"txt": b"words", "cls": b"1"}, "no_picture", "members: cls, txt"),
        ({}, "no_picture", "members: nothing"),
        ({"jpg": b""}, "empty", "0 bytes"),
        ({"jpg": b"<html>"}, "not_a_picture", "begins with b'<html>'"),
        ({"png": png(7, 300)}, "too_small", "300x7, a side must have 8 pixels"),
        ({"png": png(200, 300)}, "too_large", "300x200 is over 50000 pixels"),
        ({"png": png(20, 30)[:40]}, "truncated", None),
    ],
)
def test_every_reject_says_which_sample_and_why(fields, reason, detail):
    """A count without a reason cannot be acted on."""
    found = admit(sample(**fields), AdmissionConfig(max_pixels=50_000))
    assert isinstance(found, Reject)
    assert (found.shard, found.offset, found.key, found.reason) == (2, 1536, "a/7", reason)
    assert detail is None or found.detail == detail


def test_limits_are_inclusive():
    """A picture of exactly the least side, or exactly the most pixels, is welcome."""
    config = AdmissionConfig(min_side=8, max_pixels=8 * 100)
    assert isinstance(admit(sample(png=png(8, 100)), config), Picture)
    assert isinstance(admit(sample(png=png(8, 101)), config), Reject)
    assert isinstance(admit(sample(png=png(7, 100)), config), Reject)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_side": 0}, "min_side=0 and max_pixels=100000000 admit no picture; .* at least 1"),
        ({"min_side": 100, "max_pixels": 9999}, "max_pixels=9999 admit no picture; .* its square"),
        ({"max_reject_fraction": 1.5}, r"max_reject_fraction=1\.5; it must be from 0 to 1"),
        ({"max_reject_fraction": -0.1}, r"max_reject_fraction=-0\.1; it must be from 0 to 1"),
        ({"max_reject_fraction": float("nan")}, "max_reject_fraction=nan; it must be"),
        ({"probation": -1}, "probation=-1; it must be at least 0"),
    ],
)
def test_admission_that_cannot_work_is_refused(fields, message):
    """A run that admits nothing should not need an hour to say so."""
    with pytest.raises(ConfigError, match=message):
        AdmissionConfig(**fields)


def test_the_budget_is_a_share_of_what_was_decided():
    """One reject too many ends the run, one less does not."""
    config = AdmissionConfig(max_reject_fraction=0.25, probation=100)
    check_budget(config, 74, {"empty": 20, "truncated": 5})
    check_budget(config, 75, {"empty": 20, "truncated": 5})
    with pytest.raises(BudgetExceeded) as caught:
        check_budget(config, 74, {"truncated": 5, "empty": 21})
    assert str(caught.value) == (
        "26 of 100 samples were rejected, more than 25%; look at the data, or raise "
        "--admission.max-reject-fraction\n  empty            21\n  truncated        5"
    )
    assert caught.value.reasons == {"empty": 21, "truncated": 5}


def test_within_the_probation_nothing_is_too_much():
    """The first ten samples of a run prove nothing."""
    config = AdmissionConfig(max_reject_fraction=0.0, probation=50)
    check_budget(config, 0, {"empty": 49})
    with pytest.raises(BudgetExceeded):
        check_budget(config, 49, {"empty": 1})
    check_budget(replace(config, max_reject_fraction=1.0), 0, {"empty": 10**6})


def test_a_reject_names_its_sample():
    """It is all that is left of it."""
    assert reject(sample(), "undecodable", "why") == Reject(2, 1536, "a/7", "undecodable", "why")
