"""Advice: every remedy of a warning can be typed, and is none that the run has already taken."""

import re
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch

from shards.errors import ConfigError
from streamssl.commands.pretrain import parse_pretrain
from streamssl.config.methods.spcl_config import SpCLConfig
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.run_config import RunConfig, check_same, flatten, from_fields, to_fields
from streamssl.optim.optim_config import OptimConfig
from streamssl.recipes import RECIPES
from streamssl.training.advice import advice
from streamssl.training.collapse_limits import LIMITS
from streamssl.training.gradient_watch import GradientWatch
from streamssl.training.health import HealthWatch
from streamssl.training.image_spread import LIMIT, image_spread
from tests.tinyrun import tiny_swav

_OPTION = re.compile(r"(--(?:method|optim|sizes|schedule)[a-z.-]*) ((?:[\d.e-]+ ?|auto)+)")
_ANY = re.compile(r"--[a-z][a-z.-]*")
PLACES = {"--out", "--data", "--image-member"}  # the user knows their values


def typed(text: str) -> list[list[str]]:
    """Return the words of each option that a sentence names with its value."""
    return [[name, *values.split()] for name, values in _OPTION.findall(text)]


def told(config: RunConfig, **found: float) -> str:
    """Return the sentence of a third check in a row with these readings."""
    watch = HealthWatch(config)
    start = max(50, config.schedule.warmup_steps, config.num_steps // 100) // 10 * 10 + 10
    looks = [watch.check(step, found) for step in range(start - 50, start + 30, 10)]
    (message,) = looks[-1].messages
    return message


ONE_OF_EACH = {build().method_name: name for name, build in RECIPES.items()}


@pytest.mark.parametrize("name", ONE_OF_EACH.values())
def test_every_option_that_advice_names_works_when_typed(name: str) -> None:
    """A user would type an option that the method does not have, or one that changes nothing."""
    recipe = RECIPES[name]()
    sentences = advice(recipe)
    assert sentences.keys() == {limit.reading for limit in LIMITS}
    options: dict[str, list[str]] = {}
    for text in [*sentences.values(), *spikes(recipe)]:
        found = {words[0]: words for words in typed(text)}
        assert found.keys() == set(_ANY.findall(text)) - PLACES, text
        options |= found
    words = [word for option in options.values() for word in option]
    parsed = parse_pretrain([name, "--data", "x", "--out", "y", "--image-member", "jpg", *words])
    before, after = flatten(to_fields(recipe)), flatten(to_fields(parsed.run))
    changed = {field for field in after if after[field] != before.get(field)}
    asked = {option[2:].replace("-", "_") for option in options}
    assert changed == asked | {"admission.image_member"}
    for option in options.values():  # each alone is refused by a resume, as the sentence says
        field = option[0][2:].replace("-", "_")
        with pytest.raises(ConfigError, match="give a new --out"):
            check_same(recipe, from_fields(set_field(to_fields(recipe), field, after[field])))


def set_field(tables: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return the tables of a run with one other value."""
    *parents, last = name.split(".")
    table = tables
    for parent in parents:
        table = table[parent]
    table[last] = value
    return tables


def spikes(config: RunConfig) -> tuple[str, ...]:
    watch = GradientWatch(config.optim.base_lr, config.save_every)
    return [watch.check(step, 1.0 if step < 40 else 200.0) for step in range(41)][-1]


def test_at_ln_k_prototypes_and_sizes_come_first() -> None:
    """3,000 prototypes for batches of 64 are the usual cause, and no rate mends them."""
    text = told(RECIPES["swav-stream"](), loss_over_plateau=1.0)
    assert [words[:2] for words in typed(text)[:2]] == [
        ["--method.num-prototypes", text.split("num-prototypes ")[1].split()[0]],
        ["--sizes", "auto"],
    ]
    assert "with a new --out" in text


@pytest.mark.parametrize(
    ("epsilon", "is_named"), [(1.0, True), (0.05, True), (0.03, False), (0.001, False)]
)
@pytest.mark.parametrize("reading", ["loss_over_plateau", "codes_certainty"])
def test_a_low_epsilon_is_not_lowered(reading: str, epsilon: float, is_named: bool) -> None:
    """At 0.001 the advice would send a user the wrong way."""
    config = tiny_swav(method=SwAVConfig(num_prototypes=12, epsilon=epsilon))
    text = told(config, **{reading: 1.0 if reading == "loss_over_plateau" else 0.0})
    assert ("epsilon" in text) == is_named


def settings(name: str, **changes: Any) -> RunConfig:
    """Return a recipe with other settings of its method."""
    config = RECIPES[name]()
    return replace(config, method=replace(config.method, **changes))


@pytest.mark.parametrize(
    ("config", "reading", "absent"),
    [
        (replace(RECIPES["swav"](), origins={"a": "b"}), "loss_over_plateau", "--sizes"),
        (settings("moco-v2", momentum=0.9999), "feature_std", "momentum"),
        (settings("patchmix", keys="own", momentum=0.1), "feature_std", "momentum"),
        (settings("spcl-stream", momentum=0.0), "assignments_used", "momentum"),
        (settings("simclr", temperature=0.05), "loss_over_plateau", "temperature"),
        (settings("spcl-stream", epsilon=0.05), "assignments_used", "epsilon"),
        (settings("swav", num_prototypes=2), "loss_over_plateau", "prototypes"),
    ],
)
def test_what_is_done_already_is_not_advised(config: RunConfig, reading: str, absent: str) -> None:
    """A user who has followed the advice would read it again."""
    assert absent not in advice(config)[reading]


def test_settings_beyond_the_published_ones_lead_back() -> None:
    """The setting that is at fault must be among the remedies."""
    slow = settings("moco-v2", momentum=0.5, temperature=2.0)
    assert {"--method.momentum", "--method.temperature"} <= {
        words[0] for words in typed(advice(slow)["loss_over_plateau"])
    }
    wide = replace(tiny_swav(), method=SpCLConfig(epsilon=0.95))
    assert ["--method.epsilon", "0.6"] in typed(advice(wide)["assignments_used"])
    still = tiny_swav(optim=OptimConfig(name="adamw", base_lr=1e-9))
    assert ["--optim.base-lr", "0.0001"] in typed(advice(still)["loss_over_plateau"])


def crops_of(kind: str, rows: int = 64, seed: int = 3) -> list[torch.Tensor]:
    """Return two crops of each image: of blank ones, copies of one, or different ones."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 3, 16, 16)
    parts = [torch.randn(shape, generator=generator).cumsum(3) * 0.05 for _ in range(2)]
    if kind == "blank":
        return [torch.zeros(2 * rows, 3, 16, 16)]
    if kind == "plain":  # one colour for all images, changed by each crop
        return [torch.randn(2 * rows, 3, 1, 1, generator=generator).expand(-1, -1, 16, 16)]
    if kind == "copies":
        return [torch.cat(parts)]
    own = torch.randn(rows, 3, 1, 1, generator=generator)
    return [torch.cat([part + own for part in parts])]


@pytest.mark.parametrize(
    ("kind", "is_alike"),
    [("blank", True), ("plain", True), ("copies", True), ("different", False)],
)
def test_images_that_are_all_alike_are_the_cause(kind: str, is_alike: bool) -> None:
    """No setting helps a run on copies of one image; a user would try them all."""
    found = [image_spread(crops_of(kind, seed=seed), 64) for seed in range(20)]
    spread = fmean(float(one) for one in found if one is not None)
    assert (spread < LIMIT) == is_alike
    halves = list(crops_of(kind, seed=0)[0].split(64))  # crops that differ are two groups of one
    assert image_spread(halves, 64) == found[0]
    text = told(tiny_swav(), loss_over_plateau=1.0, image_spread=spread)
    assert ("the images look all alike: image_spread is" in text) == is_alike
    assert "--method.num-prototypes 6 instead of 12" in text


def test_one_crop_or_a_few_images_have_no_spread() -> None:
    """A reading of chance would blame good images."""
    views = crops_of("different")
    assert image_spread([views[0][:64]], 64) is None
    assert image_spread([views[0][:8]], 4) is None


@pytest.mark.parametrize(
    ("save_every", "remedy"),
    [
        (50, "add --from step-00000100 --optim.base-lr 0.1 to the same command, instead of 0.5"),
        (112, "give --optim.base-lr 0.1 instead of 0.5, with a new --out"),
    ],
)
def test_a_gradient_a_hundred_times_its_median_is_told_once(save_every: int, remedy: str) -> None:
    """It comes before a loss that is lost, and nobody watches the chart at that moment."""
    watch = GradientWatch(0.5, save_every)
    norms = [0.0] * 50 + [1.0, 1.2, 0.8] * 20 + [99.0, float("inf"), 101.0, 1.0, 500.0]
    said = {step: found for step, norm in enumerate(norms) if (found := watch.check(step, norm))}
    assert list(said) == [112]
    (text,) = said[112]
    assert text.startswith("warning: gradient_norm is 101 at step 112, 101 times 1, its median")
    assert text.endswith(remedy)


def test_first_steps_have_any_norm() -> None:
    """The first gradients of a network may be a thousand times larger, or smaller."""
    watch = GradientWatch(0.5, 1000)
    assert [watch.check(step, 10.0**step) for step in range(30)] == [()] * 30
