"""A compiled encoder computes what it computes without; a machine without a compiler is told."""

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from streamssl.cli import main
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.execution.compilation import check_compiler, compile_network, compiled
from streamssl.execution.micro_batches import split_into_micro_batches
from tests.streamssl.tiny import TinyBackbone, built, images

pytestmark = pytest.mark.slow
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = (
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    return nn.Sequential(*parts).double()


@needs_compiler
@pytest.mark.parametrize("num", [1, 3])
def test_a_compiled_encoder_has_the_same_gradients_and_statistics(num: int) -> None:
    """In float64 an error of the graph is larger than rounding; micro-batches run it, too."""
    plain, compiled = network(), network()
    compile_network(compiled)
    for each in (plain, compiled):
        if num > 1:
            split_into_micro_batches(each, num)
        for seed in range(2):
            features = each(images(12, 8, seed).double())
            (features @ features.T).logsumexp(dim=1).sum().backward()
    for (name, ours), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11, msg=name)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for (name, ours), theirs in zip(compiled.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11, msg=name)


@needs_compiler
def test_a_compiled_loss_has_the_same_gradients() -> None:
    """Sinkhorn and the swapped prediction, without a queue and with one."""
    config = SwAVConfig(
        num_prototypes=6, dim=4, hidden_dim=8, queue=QueueConfig(capacity=16), freeze_steps=0
    )
    torch.manual_seed(0)
    plain = built(config, TinyBackbone(), num_views=(3,)).double()
    fast = deepcopy(plain)
    fast.compile_loss(compiled)
    for step in range(4):
        rows = images(24, 8, step).double()
        ours, theirs = (method.loss([rows], step=step) for method in (fast, plain))
        assert float(ours.readings["queue_used"]) == (step > 1)
        torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-10, atol=1e-12)
        ours.loss.backward(), theirs.loss.backward()
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_a_machine_without_a_compiler_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the first step would end in a traceback, after the data was read."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    check_compiler.cache_clear()
    words = ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "run"), "--compile"]
    assert main(["pretrain", "swav-small", *words]) == 2
    said = capsys.readouterr().err
    assert "a trial of torch.compile failed here" in said and "or give --no-compile" in said
    assert "Traceback" not in said and not (tmp_path / "run").exists()
