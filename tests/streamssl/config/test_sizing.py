"""Sizes that follow from the batch and the data are those that authors chose where they did."""

from dataclasses import replace

import pytest
import torch

from streamssl.config.parts.size_rules import max_drift, max_prototypes, num_queued
from streamssl.config.run_config import RunConfig, flatten, from_fields, to_fields
from streamssl.config.sizing import Sizing, size
from streamssl.recipes import RECIPES

IMAGENET, CIFAR, MARKET = 1_281_167, 50_000, 12_936


def sized(
    name: str, batch: int, num_samples: int | None = None, by_hand: tuple[str, ...] = (), **given
) -> RunConfig:
    recipe = RECIPES[name]()
    method = replace(recipe.method, **given)
    stream = replace(recipe.stream, batch_size=batch)
    config = replace(recipe, method=method, stream=stream, sizes="auto")
    return size(config, Sizing(recipe=recipe, by_hand=frozenset(by_hand), num_samples=num_samples))


def settings(config: RunConfig) -> dict[str, object]:
    """Return all settings without their origins."""
    return flatten(to_fields(replace(config, origins={})))


@pytest.mark.parametrize(
    ("name", "batch", "num_samples"),
    [
        ("swav", 256, IMAGENET),
        ("swav-large-batch", 4096, IMAGENET),
        ("moco-v2", 256, IMAGENET),
        ("mochi", 256, IMAGENET),
        ("deepcluster-v2", 4096, IMAGENET),
        ("sela-v2", 4096, IMAGENET),
        ("spcl", 64, MARKET),
        *((name, RECIPES[name]().stream.batch_size, None) for name in RECIPES),
    ],
)
def test_a_recipe_is_unchanged_at_its_own_batch_and_data(
    name: str, batch: int, num_samples: int | None
) -> None:
    """A rule that does not give what authors ran where they ran it is none."""
    assert settings(sized(name, batch, num_samples)) == settings(RECIPES[name]())


def test_both_batches_of_swav_follow_from_one_rule() -> None:
    """0.6 at 256 with a queue, 4.8 at 4096 without, frozen for an epoch."""
    large, small = sized("swav", 4096, IMAGENET), sized("swav-large-batch", 256, IMAGENET)
    published_large, published_small = RECIPES["swav-large-batch"](), RECIPES["swav"]()
    assert large.method == published_large.method
    assert large.optim.base_lr == pytest.approx(4.8)
    assert small.optim.base_lr == pytest.approx(0.6)
    assert small.schedule.final_lr == pytest.approx(0.0006)
    assert small.method.queue.capacity == published_small.method.queue.capacity
    assert small.method.freeze_steps == published_small.method.freeze_steps


def test_a_queue_of_one_batch_starts_at_once() -> None:
    """As the authors' 2,560 rows at a batch of 2560."""
    queue = sized("swav", 2560, IMAGENET).method.queue
    assert (queue.capacity, queue.start_step) == (2560, 0)


def test_a_queue_without_a_recipe_starts_by_drift() -> None:
    """0.175 for an epsilon of 0.05: scores then move by less, on average."""
    queue = sized("swav-large-batch", 256).method.queue
    assert (queue.start_step, queue.max_drift) == (0, 0.175)
    assert sized("swav-small", 64, CIFAR).method.queue.max_drift == 0.0594
    entries = torch.nn.functional.normalize(torch.randn(2000, 128), dim=1)
    prototypes = torch.nn.functional.normalize(torch.randn(300, 128), dim=1)
    noise = torch.nn.functional.normalize(torch.randn(2000, 128), dim=1)
    noise -= (noise * entries).sum(1, keepdim=True) * entries
    cosine = 1 - max_drift(0.05, 128)
    moved = cosine * entries + (1 - cosine**2) ** 0.5 * torch.nn.functional.normalize(noise, dim=1)
    change = (moved - (moved * entries).sum(1, keepdim=True) * entries) @ prototypes.T
    assert change.std().item() == pytest.approx(0.05, rel=0.05)


def test_a_small_batch_gets_fewer_prototypes_and_a_lower_epsilon() -> None:
    """16 batches of 16 rows cannot separate 3,000 prototypes."""
    method = sized("swav", 16, IMAGENET).method
    assert (method.num_prototypes, method.queue.capacity, method.epsilon) == (187, 240, 0.03)


@pytest.mark.parametrize("batch", [1, 7, 16, 64, 256, 1000, 2560, 4095, 4096, 10_000])
def test_rows_and_prototypes_fit_together(batch: int) -> None:
    """About 4,096 rows for 3,000, in at most 15 whole batches."""
    num = min(3000, max_prototypes(16 * batch, None))
    queued = num_queued(num, batch)
    assert queued % batch == 0 and queued <= 15 * batch
    assert (queued + batch) * 3000 >= 0.99 * num * 4096 or num == 2
    assert queued == 0 or (queued - batch + batch) * 3000 < num * 4096 + 3000


def test_small_data_gets_small_sizes() -> None:
    """CIFAR-10: about 512 prototypes, 4,096 keys, frozen for a pass."""
    method = sized("swav", 256, CIFAR).method
    assert (method.num_prototypes, method.freeze_steps) == (500, 196)
    assert sized("moco-v2", 256, CIFAR).method.queue.capacity == 4096
    assert sized("mochi", 256, CIFAR).method.num_hardest == 64
    labels = sized("deepcluster-v2", 512, CIFAR).method
    assert (labels.memory, labels.num_prototypes, labels.cluster_steps) == (CIFAR, (500,) * 3, 98)


def test_the_queue_of_moco_is_fitted_to_the_batch() -> None:
    """Whole batches replace whole batches."""
    assert sized("moco-v2", 96, IMAGENET).method.queue.capacity == 65_472


@pytest.mark.parametrize(
    ("name", "batch", "rate"),
    [
        ("moco-v2", 128, 0.015),
        ("moco-v3", 1024, 2.4),
        ("byol", 512, 0.4),
        ("simclr-stream", 256, 1.2),
        ("swav-large-batch", 256, 0.6),
    ],
)
def test_the_rate_follows_the_batch_as_authors_scale_it(name: str, batch: int, rate: float) -> None:
    """Linearly; by the root for SimCLR; along both published points for LARC."""
    assert sized(name, batch).optim.base_lr == pytest.approx(rate)


def test_values_given_by_hand_win_and_affect_the_others() -> None:
    """The queue must fit the given prototypes."""
    hand = ("method.num_prototypes", "method.epsilon")
    config = sized("swav", 64, IMAGENET, hand, num_prototypes=100, epsilon=0.5)
    assert (config.method.num_prototypes, config.method.epsilon) == (100, 0.5)
    assert config.method.queue.capacity == 128
    assert config.origins["method.num_prototypes"] == "by hand"
    assert config.origins["method.queue.capacity"].startswith("in whole batches: 64 rows")


def test_every_derived_value_has_an_origin() -> None:
    """config.toml must keep both, and be a run again."""
    config = sized("swav", 64, IMAGENET)
    assert config.sizes == "given"
    assert {"optim.base_lr", "method.num_prototypes", "method.queue.start_step"} <= set(
        config.origins
    )
    assert from_fields(to_fields(config)) == config
    assert "origins" not in to_fields(RECIPES["swav"]())


def test_sizes_do_not_depend_on_the_length_of_a_run() -> None:
    """Otherwise a resumed run could not be made longer."""
    for name, build in RECIPES.items():
        recipe = build()
        both = [
            size(
                replace(recipe, sizes="auto", num_steps=num),
                Sizing(recipe=recipe, num_samples=CIFAR),
            )
            for num in (100_000, 2_000_000)
        ]
        assert replace(both[0], num_steps=1) == replace(both[1], num_steps=1), name
