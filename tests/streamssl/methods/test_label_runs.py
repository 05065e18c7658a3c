"""Methods with a memory of samples, and PatchMix, in whole runs: checkpoints and the trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from shards.crops import recipe as crops
from streamssl import checkpoint
from streamssl.config.methods.deepcluster_config import DeepClusterConfig
from streamssl.config.methods.patchmix_config import PatchMixConfig
from streamssl.config.methods.sela_config import SeLaConfig
from streamssl.config.methods.spcl_config import SpCLConfig
from streamssl.optim.optim_config import OptimConfig
from streamssl.training.train_state import build_state
from tests.streamssl.epochs import who
from tests.streamssl.tiny import TinyBackbone, built, images
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
    place = checkpoint.save(tmp_path, checkpoint.take(unbroken), config.method_name, keep=1)
    for value in restored.method.state_dict().values():
        value.add_(1)
    checkpoint.restore(place, restored, config.method_name)
    assert_same(unbroken, restored)
    ours, theirs = (train_on_noise(config, state, 3) for state in (unbroken, restored))
    assert [report.loss.item() for report in ours] == [report.loss.item() for report in theirs]
    assert_same(unbroken, restored)


@pytest.mark.parametrize("name", ["deepcluster", "sela", "spcl"])
def test_labels_are_made_in_full_precision(name: str) -> None:
    """In bfloat16 near neighbours and near centroids are a matter of luck."""
    torch.manual_seed(0)
    method = built(METHODS[name], TinyBackbone(), num_views=(2,), seed=0)
    keys = torch.arange(2 * BATCH)
    rows = torch.randn(len(method.memory.rows), len(keys), method.memory.rows.shape[2])
    method.memory.push(keys, F.normalize(rows, dim=2))
    seen: list[bool] = []
    label = "label" if name == "sela" else "cluster"
    made = getattr(method, label)

    def watch(*arguments: int) -> None:
        seen.append(torch.is_autocast_enabled("cpu"))
        made(*arguments)

    setattr(method, label, watch)
    step = 1 + 2 * (name == "spcl")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for each in (step, step + 1):
            output = method.loss([images(8, 16, each)], step=each, samples=who(range(4)))
    assert seen == [False] and output.loss.dtype == torch.float32
