"""MoCo as a whole: queue, momentum copy, shuffled batch norm."""

import pytest
import torch
from torch import Tensor, nn
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
    """One configuration holds both papers."""
    v1 = MoCoConfig(head="linear", temperature=0.07)
    assert isinstance(built(v1, TinyBackbone(), num_views=(1, 1)).head, nn.Linear)
    v2 = built(MoCoConfig(), TinyBackbone(), num_views=(2,))
    assert [type(layer) for layer in v2.head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert v2.head[2].in_features == 12


def test_keys_enter_the_queue_in_sample_order_after_they_were_used() -> None:
    """The queue of a step holds no key of that step; afterwards its first slots do."""
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
    """Views of different sizes may come apart."""
    crops = images(24, 8, 0)
    together = build().loss([crops], step=0).loss
    apart = build().loss([crops[:12], crops[12:]], step=0).loss
    assert torch.equal(together, apart)


def test_keys_are_normalised_in_small_shuffled_groups() -> None:
    """Statistics of a key must not come from the companions of its query."""
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
    """With fixed statistics batch norm has no companions, so shuffled keys equal plain ones."""
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
    """One group of all keys would hide nothing."""
    method, seen = build(norm=nn.BatchNorm2d(3)), []
    norm = method.key_encoder.network[0].norm
    norm.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    method.loss([images(8, 8, 0)], step=1)
    assert seen == [2, 2]


def test_a_capacity_that_the_batch_does_not_divide_is_refused() -> None:
    """Found, allowed, remedy: the nearest capacity that fits."""
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


def test_a_restored_method_goes_on_bit_for_bit() -> None:
    """Encoder, copy, batch norm of both, and the queue with its place."""
    method = build(norm=nn.BatchNorm2d(3))
    train(method, range(3))
    restored = build(norm=nn.BatchNorm2d(3))
    restored.load_state_dict(method.state_dict())
    assert train(restored, range(3, 6)) == train(method, range(3, 6))
    for name, value in method.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


def test_nothing_is_drawn_from_the_global_generator() -> None:
    """A step's randomness depends on seed and step alone."""
    method = build(norm=nn.BatchNorm2d(3))
    before: Tensor = torch.get_rng_state()
    method.loss([images(24, 8, 0)], step=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_autocast_keeps_the_loss_in_float32() -> None:
    """Logits are divided by a small temperature: half precision would show."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = build().loss([images(24, 8, 0)], step=0)
    assert output.loss.dtype == torch.float32
    assert 0.0 <= float(output.readings["contrast_accuracy"]) <= 1.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"momentum": 1.5}, "momentum=1.5"),
        ({"dim": 0}, "dim=0"),
        ({"queue": QueueConfig(capacity=8, start_step=4)}, "no loss without its queue"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], words: str) -> None:
    """Before any work is done."""
    with pytest.raises(ConfigError, match=words):
        MoCoConfig(**settings)  # type: ignore[arg-type]


def test_moco_takes_exactly_two_views() -> None:
    """A query and a key."""
    with pytest.raises(ConfigError, match=r"num_views=\(2, 6\).*two views"):
        built(MoCoConfig(), TinyBackbone(), num_views=(2, 6))
