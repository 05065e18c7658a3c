"""SeLa-v2 as a whole: labels are a transport under which prototypes have equal shares."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from streamssl.config.methods.sela_config import SeLaConfig
from streamssl.methods.sela import RunningPotentials, SeLa, solve_transport
from streamssl.modules.sample_memory import NO_LABEL, sample_keys
from tests.streamssl.epochs import (
    classes_apart,
    coloured,
    in_epochs,
    patterned,
    run,
    who,
)
from tests.streamssl.tiny import TinyBackbone, built

SMALL = {"num_prototypes": (4, 3), "dim": 6, "hidden_dim": 16, "exponent": 5.0}
EPOCHS = SeLaConfig(**SMALL, memory=32, label_steps=4)  # type: ignore[arg-type]
STREAM = SeLaConfig(**SMALL, mode="stream", memory=32, label_steps=8)  # type: ignore[arg-type]
MODES = pytest.mark.parametrize("config", [EPOCHS, STREAM], ids=["epochs", "stream"])


def build(config: SeLaConfig = EPOCHS, seed: int = 0) -> SeLa:
    torch.manual_seed(seed)
    return built(config, TinyBackbone(), num_views=(2, 1), seed=seed)


def views(numbers: list[int], step: int) -> list[Tensor]:
    return [coloured(numbers, 2, 16, step), coloured(numbers, 1, 8, 500 + step)]


def train(method: SeLa, steps: range, lr: float = 0.1) -> list[float]:
    return run(method, steps, views=views, numbers=in_epochs(32, 8), lr=lr)


def plain_transport(p: Tensor, exponent: float, num: int) -> Tensor:
    """Rows and columns in turn, as one would write it on a blackboard."""
    plan = p.double() ** exponent
    for _ in range(num):
        plan = plan / plan.sum(dim=0) / plan.shape[1]
        plan = plan / plan.sum(dim=1, keepdim=True) / plan.shape[0]
    return plan


def test_plan_equals_that_of_the_plain_iteration() -> None:
    """Both marginals must hold, and labels be the best columns."""
    p = torch.softmax(torch.randn(30, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    found = solve_transport(p.log(), exponent=4.0, tolerance=1e-9)
    expected = plain_transport(p, 4.0, found.num_iterations)
    torch.testing.assert_close(found.plan_NK, expected)
    torch.testing.assert_close(expected.sum(dim=0), torch.full((5,), 0.2).double())
    assert torch.equal(found.labels_N, expected.argmax(dim=1)) and found.error <= 1e-9


def test_confident_predictions_do_not_underflow() -> None:
    """P^25 of them is 0 even in float64; the authors' code divides by it."""
    scores = 200.0 * torch.eye(4, 3).double()
    found = solve_transport(torch.log_softmax(scores, dim=1), exponent=25.0, tolerance=0.1)
    assert found.plan_NK.isfinite().all() and found.labels_N[:3].tolist() == [0, 1, 2]


@MODES
def test_nothing_is_learned_before_the_first_labels(config: SeLaConfig) -> None:
    """The first epoch only fills the memory."""
    method = build(config)
    before = [parameter.clone() for parameter in method.backbone.parameters()]
    assert train(method, range(4)) == [0.0] * 4
    for parameter, old in zip(method.backbone.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_every_prototype_has_equally_many_samples() -> None:
    """Unequal shares would let the encoder collapse."""
    method = build()
    train(method, range(4))
    method.label()
    for number, num in enumerate(EPOCHS.num_prototypes):
        counts = torch.bincount(method.labels.labels[number], minlength=num)
        assert counts.min() >= 32 // num - 4 and counts.sum() == 32


def test_labels_stay_with_their_samples_for_an_epoch() -> None:
    """Prototypes move in between; labels must not."""
    method = build()
    train(method, range(5))
    keys = sample_keys(who(range(32)).ids)
    before = method.labels.look_up(keys)
    train(method, range(5, 8))
    assert torch.equal(method.labels.look_up(keys), before) and (before >= 0).all()


def test_running_potentials_keep_shares_equal_while_features_drift() -> None:
    """Small batches must not make the shares unequal between two solutions."""
    generator = torch.Generator().manual_seed(0)
    balance = RunningPotentials(8)
    counts = torch.zeros(8, dtype=torch.int64)
    for step in range(300):
        drift = torch.linspace(-3.0, 3.0, 8) * min(1.0, step / 100)
        log_q = 2.0 * torch.randn(6, 8, generator=generator).double() + drift
        labels = balance.label_(log_q, group=None)
        counts += torch.bincount(labels, minlength=8) * (step >= 200)
    assert counts.sum() == 600 and counts.min() > 45 and counts.max() < 110


def test_in_a_stream_the_label_comes_from_another_crop() -> None:
    """New samples must have labels, and no crop predicts its own."""
    method = build(STREAM)
    train(method, range(9))
    scores = [torch.randn(12, num) for num in STREAM.num_prototypes]
    for head, labels in enumerate(method._targets(scores, sample_keys(who(range(90, 94)).ids))):
        labels = labels.view(3, 4)
        assert (labels[head] == NO_LABEL).all() and (labels[2] >= 0).all()


@MODES
def test_prototypes_are_learned(config: SeLaConfig) -> None:
    """By gradient, unlike DeepCluster's centroids."""
    method = build(config)
    train(method, range(9))
    before = F.normalize(method.prototypes[0].weight.detach(), dim=1)
    train(method, range(9, 12))
    assert (F.normalize(method.prototypes[0].weight.detach(), dim=1) - before).abs().max() > 1e-4


@MODES
def test_it_learns_to_separate_patterns(config: SeLaConfig) -> None:
    """Crops of one class must become similar, for any colour."""
    method = build(config)

    def encode(crops: Tensor) -> Tensor:
        return method.projection(method.backbone(crops))

    def of(numbers: list[int], step: int) -> list[Tensor]:
        return [patterned(numbers, 2, 16, step), patterned(numbers, 1, 8, 500 + step)]

    before = classes_apart(encode)
    run(method, range(120), views=of, numbers=in_epochs(32, 8), lr=0.05)
    assert classes_apart(encode) > before + 0.1
