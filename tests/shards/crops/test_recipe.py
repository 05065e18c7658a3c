"""Recipe: distributions as in torchvision; parameters depend only on the sample."""

from hashlib import blake2b

import numpy as np
import pytest
import torch
from torchvision.transforms import ColorJitter, RandomResizedCrop

from shards.crops.recipe import (
    MAX_SIDE,
    ORDERS,
    ColourJitter,
    CropRecipe,
    Parameter,
    ViewGroup,
    byol,
    cifar,
    draw,
    moco_v2,
    pixel_boxes,
    swav,
)
from shards.errors import ConfigError

NUM_DRAWS = 4000


def draws(recipe, size, num=NUM_DRAWS, seed=0):
    ids = np.stack([np.arange(num) % 7, np.arange(num) * 512], axis=1)
    return draw(recipe, seed, np.zeros(num), ids, np.broadcast_to(size, (num, 2)))


def assert_same_distribution(ours, theirs):
    """Two-sample Kolmogorov-Smirnov at a level of one in a thousand; seeds are fixed."""
    ours, theirs = np.sort(ours), np.sort(theirs)
    places = np.concatenate([ours, theirs])
    gap = np.abs(
        np.searchsorted(ours, places, "right") / len(ours)
        - np.searchsorted(theirs, places, "right") / len(theirs)
    ).max()
    assert gap < 1.95 * np.sqrt(1 / len(ours) + 1 / len(theirs))


class FakeImage:
    """An image for `RandomResizedCrop.get_params`, which reads only its size."""

    def __init__(self, height, width):
        self.shape = (3, height, width)


@pytest.fixture
def torchvision_boxes(monkeypatch):
    """A function that draws boxes (N, 4) with torchvision, as y0, x0, y1, x1."""

    monkeypatch.setattr(
        "torchvision.transforms.functional.get_dimensions", lambda image: image.shape
    )

    def boxes(size, scale, ratio, num=NUM_DRAWS):
        torch.manual_seed(0)
        image = FakeImage(*size)
        rows = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(num)]
        top, left, height, width = np.array(rows).T
        return np.stack([top, left, top + height, left + width], axis=1)

    return boxes


@pytest.mark.parametrize(
    ("size", "scale"),
    [((375, 500), (0.14, 1.0)), ((333, 90), (0.05, 0.14)), ((64, 64), (0.14, 1.0))],
)
def test_boxes_are_distributed_as_in_torchvision(size, scale, torchvision_boxes):
    """Crops would show other parts of images than in the papers."""
    recipe = CropRecipe((ViewGroup(num_views=1, size=32, scale=scale),))
    ours = pixel_boxes(draws(recipe, size), np.broadcast_to(size, (NUM_DRAWS, 2)))[:, 0]
    theirs = torchvision_boxes(size, scale, (3 / 4, 4 / 3))
    for measure in (
        lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
        lambda box: (box[:, 3] - box[:, 1]) / (box[:, 2] - box[:, 0]),
        lambda box: box[:, 0],
        lambda box: box[:, 3],
    ):
        assert_same_distribution(measure(ours), measure(theirs))


@pytest.mark.parametrize("size", [(10, 400), (400, 10), (1, 1), (1, 3), (3, 1)])
def test_the_central_box_is_that_of_torchvision(size, torchvision_boxes):
    """Panoramas and tiny images would crash or give other crops."""
    scale = (0.9, 1.0)
    recipe = CropRecipe((ViewGroup(num_views=1, size=32, scale=scale),))
    ours = pixel_boxes(draws(recipe, size, 200), np.broadcast_to(size, (200, 2)))[:, 0]
    theirs = {tuple(row) for row in torchvision_boxes(size, scale, (3 / 4, 4 / 3), 50).tolist()}
    assert {tuple(row) for row in ours.tolist()} == theirs


def test_colour_factors_are_distributed_as_in_torchvision():
    """Colours would change more or less than the recipe says."""

    torch.manual_seed(0)
    jitter = ColorJitter(0.8, 0.8, 0.8, 0.2)
    theirs = [
        ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for _ in range(NUM_DRAWS)
    ]
    rows = draws(swav(), (300, 300))[:, 0]
    on = rows[rows[:, Parameter.SATURATION] != 1]
    assert abs(len(on) / NUM_DRAWS - 0.8) < 0.03
    for place, column in enumerate(ORDERS[0], start=1):
        assert_same_distribution(on[:, column], np.array([draw[place] for draw in theirs]))
    order = np.bincount(on[:, Parameter.ORDER].astype(int), minlength=len(ORDERS))
    assert order.min() > 0.6 * len(on) / len(ORDERS)
    assert order.max() < 1.4 * len(on) / len(ORDERS)


def test_a_view_without_jitter_has_neutral_factors():
    """A view without jitter would change colour."""
    rows = draws(swav(), (300, 300)).reshape(-1, len(Parameter))
    off = rows[(rows[:, Parameter.SATURATION] == 1) & (rows[:, Parameter.HUE] == 0)]
    assert len(off) > 0.15 * len(rows)
    assert (off[:, Parameter.ORDER : Parameter.GREY] == (0, 1, 1, 1, 0)).all()


@pytest.mark.parametrize(
    ("column", "probability"), [(Parameter.FLIP, 0.5), (Parameter.GREY, 0.2), (Parameter.BLUR, 0.5)]
)
def test_events_have_their_probability(column, probability):
    """A probability would be wrong, or the same event for all views of a sample."""
    happened = draws(swav(), (300, 300))[..., column] > 0
    assert np.abs(happened.mean(axis=0) - probability).max() < 0.04
    assert np.abs(np.corrcoef(happened.T) - np.eye(8)).max() < 0.06


def test_blur_is_uniform_in_its_range():
    """The blur would be weaker or stronger than in the paper."""
    sigma = draws(swav(), (300, 300))[..., Parameter.BLUR]
    drawn = sigma[sigma > 0]
    assert drawn.min() >= 0.1 and drawn.max() <= 2
    assert_same_distribution(drawn, np.random.default_rng(0).uniform(0.1, 2, NUM_DRAWS))


def test_byol_treats_its_two_views_differently():
    """Both views would be blurred and solarised alike."""
    rows = draws(byol(), (300, 300))
    assert (rows[:, 0, Parameter.BLUR] > 0).all()
    assert abs((rows[:, 1, Parameter.BLUR] > 0).mean() - 0.1) < 0.02
    assert not rows[:, 0, Parameter.SOLARISE].any()
    assert abs(rows[:, 1, Parameter.SOLARISE].mean() - 0.2) < 0.03


@pytest.mark.parametrize("side", [1, 2, 3, 7, 255, 4097, 65535, MAX_SIDE])
def test_relative_boxes_are_exact(side):
    """A box would be a pixel off in float32."""
    starts = np.unique(np.linspace(0, side - 1, 5000).astype(np.int64))
    parameters = np.zeros((len(starts), 1, len(Parameter)), np.float32)
    for column, value in ((Parameter.Y0, starts), (Parameter.Y1, starts + 1)):
        parameters[:, 0, column] = value / side
    boxes = pixel_boxes(parameters, np.full((len(starts), 2), side))[:, 0]
    assert (boxes[:, 0] == starts).all()
    assert (boxes[:, 2] == starts + 1).all()


def test_boxes_are_inside_the_image_and_not_empty():
    """An engine would read outside an image."""
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(0, np.log(5000), (2000, 2))).astype(int)
    ids = np.stack([np.zeros(2000, int), np.arange(2000)], axis=1)
    boxes = pixel_boxes(draw(swav(), 1, np.zeros(2000), ids, sizes), sizes)
    assert (boxes[..., :2] >= 0).all()
    assert (boxes[..., 2:] <= sizes[:, None]).all()
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_parameters_do_not_depend_on_the_batch():
    """A crop could not be made again, or would change with the number of readers."""
    ids = np.array([[0, 0], [3, 512], [3, 1024], [9, 10**12]])
    sizes = np.array([[30, 40], [500, 375], [64, 64], [1200, 800]])
    epochs = np.array([0, 1, 1, 70000])
    whole = draw(swav(), 5, epochs, ids, sizes)
    order = [2, 0, 3, 1]
    np.testing.assert_array_equal(
        whole[order], draw(swav(), 5, epochs[order], ids[order], sizes[order])
    )
    for row in range(4):
        alone = draw(swav(), 5, epochs[row], ids[row], sizes[row])
        np.testing.assert_array_equal(alone[0], whole[row])


def test_more_views_do_not_change_earlier_views():
    """Adding small crops to a recipe would change its large ones."""
    few, many = swav(counts=(2,), sizes=(224,), scales=((0.14, 1.0),)), swav()
    np.testing.assert_array_equal(draws(few, (300, 400), 50), draws(many, (300, 400), 50)[:, :2])


def test_seed_epoch_shard_and_offset_change_the_parameters():
    """Two samples, or two epochs, would have the same crops."""
    rows = [
        draw(moco_v2(), seed, epoch, (shard, offset), (300, 400))
        for seed in (0, 1)
        for epoch in (0, 1)
        for shard in (0, 1)
        for offset in (0, 1)
    ]
    boxes = {tuple(row[0, :, :4].ravel().tolist()) for row in rows}
    assert len(boxes) == 16


def test_the_parameters_are_frozen():
    """A later version would train on other crops with the same seed."""
    rows = draw(swav(), 42, [0, 3], [[0, 0], [17, 123456]], [[375, 500], [480, 640]])
    quantised = np.rint(rows.astype(np.float64) * 1e4).astype("<i4")
    digest = blake2b(quantised.tobytes(), digest_size=8).hexdigest()
    assert digest == "11f1f3140d3b796f"


def test_recipes_count_their_views_and_bytes():
    """Buffers would be too small."""
    assert swav().num_views == 8
    assert swav().num_bytes == 3 * (2 * 224**2 + 6 * 96**2)
    small = cifar(counts=(2, 4), sizes=(32, 16), scales=((0.2, 1.0), (0.05, 0.2)))
    assert small.num_views == 6
    assert all(group.blur_probability == 0 for group in small.groups)


def test_recipes_have_different_digests():
    """A cursor would be accepted with another recipe."""
    digests = {swav().digest, moco_v2().digest, byol().digest, cifar().digest, swav().digest}
    assert len(digests) == 4
    assert all(len(digest) == 32 for digest in digests)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_views": 0}, "num_views=0; allowed is 1"),
        ({"size": 0}, "size=0"),
        ({"scale": (0.5, 0.2)}, "smaller bound first"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"grey_probability": 1.5}, "grey_probability=1.5; allowed is 0.0 to 1.0"),
        ({"blur_sigma": (-1.0, 2.0)}, "blur_sigma"),
        ({"flip": float("nan")}, "flip=nan"),
    ],
)
def test_invalid_groups_are_refused(fields, message):
    """The error would appear when the stream runs."""
    with pytest.raises(ConfigError, match=message):
        ViewGroup(**{"num_views": 2, "size": 32, "scale": (0.2, 1.0), **fields})


def test_other_invalid_settings_are_refused():
    """The error would appear when the stream runs."""
    with pytest.raises(ConfigError, match=r"hue=0\.6; allowed is 0\.0 to 0\.5"):
        ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.6)
    with pytest.raises(ConfigError, match="at least 1 group"):
        CropRecipe(())
    with pytest.raises(ConfigError, match="equally long"):
        swav(counts=(2, 6), sizes=(224,))
    with pytest.raises(ConfigError, match="seed=-1"):
        draw(swav(), -1, 0, (0, 0), (3, 3))
