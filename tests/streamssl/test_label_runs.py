"""Methods with a memory of samples, and PatchMix, in whole runs: checkpoints and the trainer."""

from pathlib import Path
from typing import Any

import pytest

from shards.crops import recipe as crops
from streamssl import checkpoint
from streamssl.methods.deepcluster import DeepClusterConfig
from streamssl.methods.patchmix import PatchMixConfig
from streamssl.methods.sela import SeLaConfig
from streamssl.methods.spcl import SpCLConfig
from streamssl.optim import OptimConfig
from streamssl.run import build_state
from tests.tinyrun import BATCH, CPU, assert_same, tiny_swav, train_on_noise

SMALL: dict[str, Any] = {"num_prototypes": (6, 4), "dim": 8, "hidden_dim": 16}
METHODS: dict[str, Any] = {
    "deepcluster": DeepClusterConfig(**SMALL, memory=2 * BATCH, cluster_steps=2),
    "deepcluster stream": DeepClusterConfig(
        **SMALL, mode="stream", memory=2 * BATCH, cluster_steps=2
    ),
    "sela": SeLaConfig(**SMALL, memory=2 * BATCH, label_steps=2),
    "sela stream": SeLaConfig(**SMALL, mode="stream", memory=2 * BATCH, label_steps=2),
    "spcl": SpCLConfig(memory=2 * BATCH, k1=8, k2=3, cluster_steps=2, fill_steps=1),
    "patchmix": PatchMixConfig(patch_size=8, dim=8, hidden_dim=16),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_restored_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Everything is in the checkpoint, by a place and type that a file can hold."""
    config = tiny_swav(
        method=METHODS[name],
        crops=crops.swav(counts=(2, 2), sizes=(32, 16)),
        optim=OptimConfig(name="adamw", base_lr=1e-3, weight_decay=0.1),
    )
    unbroken, restored = build_state(config, CPU), build_state(config, CPU)
    train_on_noise(config, unbroken, 3)
    place = checkpoint.save(tmp_path, unbroken, config.method_name, keep=1)
    for value in restored.method.state_dict().values():
        value.add_(1)
    checkpoint.restore(place, restored, config.method_name)
    assert_same(unbroken, restored)
    ours, theirs = (train_on_noise(config, state, 3) for state in (unbroken, restored))
    assert [report.loss.item() for report in ours] == [report.loss.item() for report in theirs]
    assert_same(unbroken, restored)
