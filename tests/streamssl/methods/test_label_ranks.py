"""Methods with a memory of samples, and PatchMix: two processes compute what one computes."""

from typing import Any

import pytest
import torch
from torch.distributed import ProcessGroup

from streamssl.config.methods.deepcluster_config import DeepClusterConfig
from streamssl.config.methods.patchmix_config import PatchMixConfig
from streamssl.config.methods.sela_config import SeLaConfig
from streamssl.config.methods.spcl_config import SpCLConfig
from streamssl.methods.base import Method
from streamssl.modules.batch_norm import enter_group, share_batch_norm
from tests.golden_checks.ranks import run_ranks
from tests.streamssl.epochs import coloured, in_epochs, run
from tests.streamssl.tiny import TinyBackbone, built

BATCH, STEPS = 8, 7
SMALL = {"num_prototypes": (4, 3), "dim": 6, "hidden_dim": 8}
METHODS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "deepcluster": (DeepClusterConfig(**SMALL, memory=16, cluster_steps=2), (2, 1)),
    "deepcluster stream": (
        DeepClusterConfig(**SMALL, mode="stream", memory=20, cluster_steps=3),
        (2, 1),
    ),
    "sela": (SeLaConfig(**SMALL, memory=16, label_steps=2, exponent=3.0, tolerance=1.0), (2, 1)),
    "sela stream": (
        SeLaConfig(**SMALL, mode="stream", memory=20, label_steps=3, exponent=3.0, tolerance=1.0),
        (2, 1),
    ),
    "spcl": (SpCLConfig(memory=16, k1=6, k2=2, cluster_steps=2, fill_steps=2), (1,)),
    "spcl window": (SpCLConfig(memory=12, k1=6, k2=2, cluster_steps=2, fill_steps=1), (2,)),
    "spcl domains": (
        SpCLConfig(memory=12, k1=6, k2=2, cluster_steps=2, fill_steps=1, source_classes=4),
        (2,),
    ),
    "patchmix": (
        PatchMixConfig(patch_size=4, num_mixed=3, dim=6, hidden_dim=8, momentum=0.9),
        (1, 1, 2),
    ),
    "patchmix alone": (
        PatchMixConfig(patch_size=4, dim=6, hidden_dim=8, keys="own"),
        (2,),
    ),
}


def build(name: str, group: ProcessGroup | None) -> Method:
    """With batch norm over all ranks, as a trainer has it."""
    torch.manual_seed(0)
    config, num_views = METHODS[name]
    method = built(
        config, TinyBackbone(), num_views=num_views, seed=3, num_steps=STEPS, group=group
    )
    method.double()
    share_batch_norm(method)
    enter_group(method, group)
    return method


def in_source(number: int) -> int:
    """Six of sixteen samples have one of three labels; ranks have different shares of them."""
    return number % 3 if number < 6 else -1


def everything(group: ProcessGroup | None) -> dict[str, Any]:
    """Losses and the whole state of every method after some steps."""
    found = {}
    for name, (_, num_views) in METHODS.items():
        method = build(name, group)

        def views(numbers: list[int], step: int, num_views: Any = num_views) -> list[torch.Tensor]:
            sizes = [8 if place < 2 else 4 for place in range(len(num_views))]
            return [
                coloured(numbers, num, size, 10 * step + place).double()
                for place, (num, size) in enumerate(zip(num_views, sizes, strict=True))
            ]

        label = in_source if name == "spcl domains" else None
        numbers = in_epochs(16, BATCH)
        losses = run(method, range(STEPS), views=views, numbers=numbers, lr=0.02, label=label)
        found[name] = {"losses": losses, **method.state_dict()}  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return everything(None)


@pytest.fixture(scope="module")
def together() -> list[dict[str, Any]]:
    return run_ranks(everything, 2)


@pytest.mark.parametrize("name", METHODS)
def test_ranks_compute_what_one_process_computes(
    name: str, alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    """Losses, weights, memory, clusters and labels: otherwise the number of GPUs is a setting."""
    for each in together:
        torch.testing.assert_close(each[name], alone[name], rtol=1e-9, atol=1e-11)


def test_something_was_learned_from_labels(alone: dict[str, Any]) -> None:
    """The comparison would prove little if every label were missing."""
    for name in ("deepcluster", "deepcluster stream", "sela", "sela stream"):
        losses = alone[name]["losses"]
        assert losses[0] == 0.0 and min(losses[-4:]) > 0.02, name
