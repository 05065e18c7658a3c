"""MoCo as a whole: queue, momentum copy, shuffled batch norm."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.config.methods.moco_config import MoCoConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.methods.moco import MoCo, contrast_with_queue
from streamssl.modules.feature_queue import FeatureQueue
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.optimizers import build_optimizer
from tests.streamssl.tiny import TinyBackbone, built, images

CONFIG = MoCoConfig(dim=6, momentum=0.9, key_batch_norm_rows=4, queue=QueueConfig(capacity=24))


def build(norm: nn.Module | None = None, seed: int = 0) -> MoCo:
    torch.manual_seed(seed)
    return built(CONFIG, TinyBackbone(norm=norm), num_views=(2,), seed=seed)


def train(method: MoCo, steps: range) -> list[float]:
    optimizer = build_optimizer(
        OptimConfig(name="sgd", base_lr=0.1), method.parameters_to_optimise()
    )
    losses = []
    for step in steps:
        optimizer.zero_grad()
        output = method.loss([images(24, 8, step)], step=step)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    return losses


def test_v1_and_v2_differ_in_head_and_temperature_only() -> None:
    """One configuration must describe both papers."""
    v1 = MoCoConfig(head="linear", temperature=0.07)
    assert isinstance(built(v1, TinyBackbone(), num_views=(1, 1)).head, nn.Linear)
    v2 = built(MoCoConfig(), TinyBackbone(), num_views=(2,))
    assert [type(layer) for layer in v2.head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert v2.head[2].in_features == 12


def test_keys_enter_the_queue_after_the_loss_in_sample_order() -> None:
    """The queue of a step must hold no key of that step."""
    method = build()
    crops = images(24, 8, 0)
    noise = method.queue.rows.clone()
    method.loss([crops], step=0)
    expected = F.normalize(method.key_encoder(crops[12:]), dim=1)
    torch.testing.assert_close(method.queue.rows[:12], expected)
    assert torch.equal(method.queue.rows[12:], noise[12:])
    assert method.queue.steps.tolist() == [0] * 12 + [-1] * 12


def test_the_copy_moves_before_keys_are_encoded() -> None:
    """Its parameters after a step are the average with this step's encoder."""
    method = build()
    with torch.no_grad():
        method.backbone.linear.weight += 1.0
    before = method.key_encoder.network[0].linear.weight.clone()
    method.loss([images(24, 8, 0)], step=0)
    after = method.key_encoder.network[0].linear.weight
    torch.testing.assert_close(after, 0.9 * before + 0.1 * method.backbone.linear.weight.detach())


def test_two_groups_of_one_view_are_one_group_of_two() -> None:
    """Views of different sizes come as two groups."""
    crops = images(24, 8, 0)
    together = build().loss([crops], step=0).loss
    apart = build().loss([crops[:12], crops[12:]], step=0).loss
    assert torch.equal(together, apart)


def test_keys_are_normalised_in_small_shuffled_groups() -> None:
    """A key must not share batch norm statistics with its query."""
    method, seen = build(norm=nn.BatchNorm2d(3)), []
    norm = method.key_encoder.network[0].norm
    norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    crops = images(24, 8, 0)
    method.loss([crops], step=1)
    assert [len(rows) for rows in seen] == [4, 4, 4]
    encoded = torch.cat(seen)
    assert not torch.equal(encoded, crops[12:])
    assert sorted(encoded.sum((1, 2, 3)).tolist()) == sorted(crops[12:].sum((1, 2, 3)).tolist())


def test_shuffling_changes_with_the_step_and_is_undone() -> None:
    """With fixed statistics shuffled keys must equal plain ones."""
    method, firsts = build(norm=nn.BatchNorm2d(3)), []
    norm = method.key_encoder.network[0].norm.eval()
    norm.running_mean, norm.running_var = torch.zeros(3), torch.ones(3)
    norm.register_forward_hook(lambda _, inputs, __: firsts.append(inputs[0].sum().item()))
    crops = images(24, 8, 0)
    for step in range(2):
        method.loss([crops], step=step)
    assert firsts[:3] != firsts[3:6]
    expected = F.normalize(method.key_encoder(crops[12:]), dim=1)
    torch.testing.assert_close(method.queue.rows[12:], expected)


def test_a_small_batch_is_still_split_in_two() -> None:
    """One group of all keys would share statistics with the queries."""
    method, seen = build(norm=nn.BatchNorm2d(3)), []
    norm = method.key_encoder.network[0].norm
    norm.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    method.loss([images(8, 8, 0)], step=1)
    assert seen == [2, 2]


def test_a_capacity_that_the_batch_does_not_divide_is_refused() -> None:
    """The message has the nearest capacity that fits."""
    queue = FeatureQueue(24, 6)
    with pytest.raises(ConfigError, match=r"capacity=24.*batch of 7.*multiple.*set it to 21"):
        contrast_with_queue(
            torch.randn(7, 6), torch.randn(7, 6), queue, temperature=0.2, step=0, group=None
        )


def test_only_the_query_encoder_is_trained() -> None:
    """The copy must be in the state dict, and not in the optimizer."""
    method = build()
    trained = {id(parameter) for parameter in method.parameters_to_optimise()}
    assert trained == {id(p) for part in (method.backbone, method.head) for p in part.parameters()}
    assert any(name.startswith("key_encoder.") for name in method.state_dict())


def test_readings_of_a_step_are_in_range() -> None:
    """An accuracy outside [0, 1] would mislead."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = build().loss([images(24, 8, 0)], step=0)
    assert output.loss.dtype == torch.float32
    assert 0.0 <= float(output.readings["contrast_accuracy"]) <= 1.0
