"""Micro-batches give the gradients of the whole batch, for losses over all of it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shards.crops import recipe as crops
from shards.errors import ConfigError
from streamssl.config.methods.byol_config import BYOLConfig
from streamssl.config.methods.moco_v3_config import MoCoV3Config
from streamssl.config.methods.patchmix_config import PatchMixConfig
from streamssl.config.methods.simclr_config import SimCLRConfig
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.run_config import RunConfig
from streamssl.execution.micro_batches import check_rows, split_into_micro_batches
from streamssl.modules.backbones import build_backbone
from streamssl.optim.optim_config import OptimConfig
from streamssl.training.learner import PretrainLearner
from tests.gloo_ranks import with_ranks
from tests.streamssl.tiny import images
from tests.streamssl.training.test_learner import build, learn, numbers_of
from tests.tinyrun import BACKBONE, tiny_moco, tiny_swav

# With layer norm each row is computed from its image alone.
NORMLESS = BackboneConfig(
    name="convnext_atto", options={"depths": (1, 0, 0, 1), "dims": (4, 4, 4, 8)}
)
TWO_SIZES = crops.swav(counts=(2, 1), sizes=(64, 32))
PLAIN = replace(BACKBONE, options={**BACKBONE.options, "drop_path_rate": 0.0})


def pair(method: Any) -> RunConfig:
    return tiny_moco(method=method, backbone=NORMLESS)


METHODS: dict[str, Callable[[], RunConfig]] = {
    "Sinkhorn, queue, two sizes": lambda: tiny_swav(backbone=NORMLESS, crops=TWO_SIZES),
    "queue, momentum copy": lambda: tiny_moco(backbone=NORMLESS),
    "negatives": lambda: pair(SimCLRConfig(dim=6)),
    "momentum copy": lambda: pair(BYOLConfig(dim=6, hidden_dim=16, momentum=0.9)),
    "negatives of a momentum copy": lambda: pair(MoCoV3Config(dim=6, hidden_dim=16, momentum=0.9)),
    "keys of the encoder itself": lambda: tiny_swav(
        method=PatchMixConfig(patch_size=8, dim=8, hidden_dim=16, keys="own"),
        backbone=NORMLESS,
        crops=TWO_SIZES,
    ),
}


def compare(found: PretrainLearner, expected: PretrainLearner) -> None:
    """Compare all that training changes, within the rounding of float64."""
    tensors = expected.state().tensors
    for name, value in found.state().tensors.items():
        torch.testing.assert_close(value, tensors[name], rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_train_as_the_whole_batch(name: str) -> None:
    """Losses, readings, weights, queues, copies: negatives of other micro-batches must count."""
    # LARC would scale the rounding of a bias before batch norm, whose gradient is 0.
    config = replace(METHODS[name](), optim=OptimConfig(name="sgd", base_lr=0.05))
    whole = build(config, torch.float64)
    parts = build(replace(config, micro_batches=4), torch.float64)
    for theirs, ours in zip(learn(None, whole, 4), learn(None, parts, 4), strict=True):
        assert numbers_of(ours) == pytest.approx(
            numbers_of(theirs), rel=1e-9, abs=1e-9, nan_ok=True
        )
    compare(parts, whole)


def resnet() -> nn.Module:
    """Return an encoder with batch norm and drop path, the same at each call."""
    torch.manual_seed(0)
    return build_backbone(BACKBONE, 32).double()


def backward(network: nn.Module, encode: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Propagate a loss over all pairs of rows; return the gradients."""
    torch.manual_seed(1)
    features = encode(images(12, 32, seed=2).double())
    (features @ features.T).logsumexp(dim=1).sum().backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def test_gradients_are_those_of_one_graph() -> None:
    """Each micro-batch must get its own features' gradients, statistics and random numbers."""
    one, other = resnet(), resnet()

    def in_one_graph(rows: Tensor) -> Tensor:
        features = torch.stack([one(rows[number::3]) for number in range(3)], dim=1)
        return features.flatten(0, 1)

    expected = backward(one, in_one_graph)
    split_into_micro_batches(other, 3)
    found = backward(other, other)
    assert len(found) == len(expected) > 20
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_running_statistics_move_once_by_the_mean_of_micro_batches() -> None:
    """The encoder runs six times a step, three of them again for its activations."""
    network, rows = resnet(), images(12, 32, seed=2).double()
    norm, convolution = network.bn1, network.conv1
    split_into_micro_batches(network, 3)
    backward(network, network)
    seen = [convolution(rows[number::3]) for number in range(3)]
    means = torch.stack([part.mean((0, 2, 3)) for part in seen])
    variances = torch.stack([part.var((0, 2, 3)) for part in seen])
    torch.testing.assert_close(norm.running_mean, 0.1 * means.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variances.mean(0))
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    "make", [tiny_swav, lambda **changes: tiny_moco(**changes)], ids=["swav", "moco"]
)
def test_micro_batches_do_not_depend_on_the_number_of_ranks(make: Any) -> None:
    """Batch norm of a micro-batch has the same samples on two ranks as on one."""
    config = make(backbone=PLAIN, micro_batches=2)
    if hasattr(config.method, "key_batch_norm_rows"):
        config = replace(config, method=replace(config.method, key_batch_norm_rows=4))
    alone = build(config, torch.float64)
    expected = learn(None, alone, 3)
    learners = [build(config, torch.float64) for _ in range(2)]
    for found in with_ranks(learn, 2, learners, [3] * 2):
        assert [one.loss for one in found] == pytest.approx(
            [one.loss for one in expected], abs=1e-11
        )
    assert len({learner.digest() for learner in learners}) == 1
    compare(learners[1], alone)


def test_a_run_that_spares_memory_resumes_bit_by_bit() -> None:
    """In bf16, with drop path, clipping and a budget of steps that may be left out."""
    config = tiny_swav(micro_batches=2, recompute=True, precision="bf16", max_skipped_steps=1)
    config = replace(config, optim=replace(config.optim, name="sgd", clip_norm=0.1))
    whole, first, second = build(config), build(config), build(config)
    learn(None, whole, 5), learn(None, first, 3)
    second.load(first.state())
    learn(None, second, 2)
    assert second.digest() == whole.digest() != first.digest()


def test_rows_of_a_trainer_must_divide() -> None:
    """Found before the run: 16 images of two trainers are eight each."""
    check_rows(8, 16, 2)
    with pytest.raises(
        ConfigError, match=r"each trainer has 4 images.* give --micro-batches 4, or"
    ):
        check_rows(8, 16, 4)
