"""Admission: accepted or rejected with a reason, and the budget of rejects of a run."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import ImageCms

from shards.errors import BudgetExceeded, ConfigError
from shards.images.image_header import ImageHeader, read_image_header
from shards.records import Reject, Sample
from shards.samples.admission import admit, check_pixels, entropy
from shards.samples.admission_config import AdmissionConfig, check_budget
from shards.samples.image_member import IMAGE_EXTENSIONS, find_image
from tests.hostile import HEIGHT, KINDS, WIDTH, png_of, valid
from tests.noise import noise
from tests.shards.crops.made import encoded, made_pixels


def sample(**fields):
    return Sample(2, 1536, "a/7", {name.replace("_", "."): data for name, data in fields.items()})


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"jpg": b"1", "json": b"{}"}, b"1"),
        ({"json": b"{}", "webp": b"2"}, b"2"),
        ({"png": b"mask", "jpg": b"image"}, b"image"),
        ({"txt": b"words", "front_png": b"3"}, b"3"),
        ({"cls": b"1", "txt": b"words"}, None),
        ({"jpg": b""}, b""),
        ({}, None),
    ],
)
def test_image_member_is_found_by_extension(fields, found):
    """The mask or the caption would be decoded instead."""
    assert find_image(sample(**fields)) == found


def test_format_does_not_depend_on_the_extension():
    """Images with a wrong extension, which are common on the web, would be lost."""
    for extension in IMAGE_EXTENSIONS:
        image = admit(sample(**{extension: noise(20, 30)}), AdmissionConfig())
        assert isinstance(image, ImageHeader)
        assert (image.format, image.height, image.width) == ("png", 20, 30)


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({"txt": b"words", "cls": b"1"}, "no_image", "members: cls, txt"),
        ({}, "no_image", "members: nothing"),
        ({"jpg": b""}, "empty", "0 bytes"),
        ({"jpg": b"junk"}, "not_an_image", "begins with b'junk'"),
        ({"png": noise(7, 300)}, "too_small", "300x7, a side must have 8 pixels"),
        ({"png": noise(200, 300)}, "too_large", "300x200 is over 50000 pixels"),
        ({"png": noise(20, 30)[:40]}, "truncated", None),
    ],
)
def test_reject_names_sample_and_reason(fields, reason, detail):
    """The user could not find the rejected samples."""
    found = admit(sample(**fields), AdmissionConfig(max_pixels=50_000))
    assert isinstance(found, Reject)
    assert (found.shard, found.offset, found.key, found.reason) == (2, 1536, "a/7", reason)
    assert detail is None or found.detail == detail


@pytest.fixture(scope="module")
def files():
    """One good file of every kind."""
    return valid()


def refused(files, **policy):
    """Return the kinds that this policy rejects, by reason."""
    found = {}
    for kind, data in files.items():
        result = admit(sample(img=data), AdmissionConfig(**policy))
        if isinstance(result, Reject):
            found.setdefault(result.reason, set()).add(kind)
    return found


def having(*words):
    return {kind for kind in KINDS if any(word in kind for word in words)}


def test_every_kind_is_accepted_by_default(files):
    """Images of the web would be lost with the default settings."""
    assert refused(files) == {}


@pytest.mark.parametrize(
    ("policy", "reason", "kinds"),
    [
        ({"animated": "reject"}, "animated", having("animated", "pages", "images")),
        ({"alpha": "reject"}, "alpha", having("alpha", "ico_bitmap", "webp_animated")),
        ({"cmyk": "reject"}, "cmyk", having("cmyk")),
        ({"sixteen_bit": "reject"}, "bit_depth", having("16", "float")),
        ({"formats": ("png", "jpeg")}, "format", set(KINDS) - having("png_", "jpeg_") | {"png"}),
        ({"max_pixels": HEIGHT * WIDTH - 1}, "too_large", set(KINDS)),
        ({"min_side": HEIGHT + 1}, "too_small", set(KINDS)),
        ({"max_aspect_ratio": 1.3}, "aspect_ratio", set(KINDS)),
        ({"max_bytes": 60}, "too_many_bytes", set(KINDS)),
    ],
)
def test_policy_rejects_only_what_it_names(policy, reason, kinds, files):
    """A setting would do nothing, or reject other images too."""
    if reason == "format":
        formats = {kind: read_image_header(files[kind]).format for kind in KINDS}
        kinds = {kind for kind in KINDS if formats[kind] not in ("png", "jpeg")}
    assert refused(files, **policy) == {reason: kinds}


def test_colour_profile_is_ignored_or_converted_or_rejected():
    """The setting would do nothing."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(made_pixels(0, 20, 20), "JPEG", icc_profile=profile)
    for policy in ("ignore", "srgb"):
        image = admit(sample(jpg=data), AdmissionConfig(icc_profile=policy))
        assert isinstance(image, ImageHeader) and image.to_srgb == (policy == "srgb")
    found = admit(sample(jpg=data), AdmissionConfig(icc_profile="reject"))
    assert isinstance(found, Reject) and found.reason == "icc_profile"


def test_costly_formats_have_a_smaller_limit(files):
    """An image of ordinary size would take gigabytes, or a minute."""
    for kind, factor in (("jpeg", 1), ("webp_animated", 2), ("jpeg_cmyk", 2), ("jpeg2000", 3)):
        enough = HEIGHT * WIDTH * factor
        assert isinstance(
            admit(sample(img=files[kind]), AdmissionConfig(max_pixels=enough)), ImageHeader
        )
        assert isinstance(
            admit(sample(img=files[kind]), AdmissionConfig(max_pixels=enough - 1)), Reject
        )


def half_black(shape=(80, 120)):
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[:, : shape[1] // 2] = 255
    return pixels


@pytest.mark.parametrize(
    ("pixels", "low", "high"),
    [
        (np.full((80, 120, 3), 77, np.uint8), 0.0, 0.0),
        (half_black(), 1.0, 1.0),
        (made_pixels(0, 200, 300), 6.0, 8.0),
        (np.random.default_rng(0).integers(120, 136, (800, 800, 3), np.uint8), 0.0, 2.5),
    ],
    ids=["plain", "halves", "image", "noise"],
)
@pytest.mark.parametrize("format_", ["PNG", "JPEG"])
def test_entropy_measures_visible_content(pixels, low, high, format_):
    """Plain paper with grain would be accepted, or a photograph rejected."""
    bits = entropy(read_image_header(encoded(pixels, format_)))
    assert low - 0.05 <= bits <= high + 0.4 * (format_ == "JPEG")


def test_blank_images_are_rejected_if_configured():
    """Placeholders and empty scans, common on the web, would be trained on."""
    blank = read_image_header(encoded(np.full((300, 300, 3), 250, np.uint8)))
    image = read_image_header(encoded(made_pixels(0, 300, 300)))
    config = AdmissionConfig(min_entropy=2.0)
    assert check_pixels(blank, AdmissionConfig()) is None
    assert check_pixels(blank, config) == ("blank", "0.00 bits of entropy, at least 2 are required")
    assert check_pixels(image, config) is None
    broken = replace(image, data=b"no image")
    assert check_pixels(broken, config)[0] == "undecodable"


def test_entropy_depends_on_the_background():
    """A drawing that is plain black without its transparency would be accepted."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[16:48, 16:48, 3] = 255
    data = png_of(pixels, colour=6)
    config = AdmissionConfig(min_entropy=0.5)
    for alpha, blank in (("white", False), ("drop", True)):
        image = admit(sample(png=data), replace(config, alpha=alpha))
        assert isinstance(image, ImageHeader)
        assert (check_pixels(image, config) is not None) == blank


def test_limits_are_inclusive():
    """An image of exactly the minimum side or the maximum pixels would be rejected."""
    config = AdmissionConfig(min_side=8, max_pixels=8 * 100, max_aspect_ratio=12.5)
    assert isinstance(admit(sample(png=noise(8, 100)), config), ImageHeader)
    assert isinstance(admit(sample(png=noise(8, 101)), config), Reject)
    assert isinstance(admit(sample(png=noise(7, 100)), config), Reject)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_side": 0}, "min_side=0 and max_pixels=100000000 admit no image; .* at least 1"),
        ({"min_side": 100, "max_pixels": 9999}, "max_pixels=9999 admit no image; .* its square"),
        ({"max_reject_fraction": 1.5}, r"max_reject_fraction=1\.5; it must be from 0 to 1"),
        ({"max_reject_fraction": -0.1}, r"max_reject_fraction=-0\.1; it must be from 0 to 1"),
        ({"max_reject_fraction": float("nan")}, "max_reject_fraction=nan; it must be"),
        ({"probation": -1}, "probation=-1; it must be at least 0"),
        ({"formats": ("png", "eps")}, "formats=eps; supported are jpeg, png, .*; choose"),
        ({"max_aspect_ratio": 0.5}, r"max_aspect_ratio=0\.5; it must be at least 1, .*; raise it"),
        ({"max_aspect_ratio": float("nan")}, "max_aspect_ratio=nan"),
        ({"max_bytes": 0}, "max_bytes=0; it must be at least 1"),
        ({"min_entropy": 9}, "min_entropy=9; it must be from 0 to 8 bits; 0 switches it off"),
        ({"predicate": "mine.keep"}, "predicate='mine.keep'; .*'package.module:function'; corr"),
        ({"predicate": "os:system()"}, "predicate='os:system\\(\\)'"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    """A run that accepts no image would end after an hour."""
    with pytest.raises(ConfigError, match=message):
        AdmissionConfig(**fields)


def test_budget_is_a_share_of_the_decided_samples():
    """A run would end one reject too early or too late."""
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


def test_budget_does_not_apply_during_probation():
    """The first ten samples would end a run."""
    config = AdmissionConfig(max_reject_fraction=0.0, probation=50)
    check_budget(config, 0, {"empty": 49})
    with pytest.raises(BudgetExceeded):
        check_budget(config, 49, {"empty": 1})
    check_budget(replace(config, max_reject_fraction=1.0), 0, {"empty": 10**6})
