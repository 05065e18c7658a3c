"""Optimizers: one step by hand, zero norms, who is spared."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from shards.errors import ConfigError
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.optimizers import LARC, LARS, build_optimizer, set_rates, split_vectors


def parameter(*values: float, grad: tuple[float, ...] | None = None) -> nn.Parameter:
    result = nn.Parameter(torch.tensor(values, dtype=torch.float64)[None])
    result.grad = None if grad is None else torch.tensor(grad, dtype=torch.float64)[None]
    return result


def test_larc_scales_the_gradient_and_its_decay_together() -> None:
    """apex: (g + wd p) * trust |p| / (|g| + wd |p|)."""
    p = parameter(3.0, 4.0, grad=(0.0, 2.0))
    LARC([p], 0.5, weight_decay=0.1, trust_coefficient=0.01).step()
    rate = 0.01 * 5.0 / (2.0 + 0.1 * 5.0 + 1e-8)
    expected = torch.tensor([3.0 - 0.5 * rate * 0.3, 4.0 - 0.5 * rate * 2.4], dtype=torch.float64)
    torch.testing.assert_close(p.data[0], expected)


def test_larc_uses_the_plain_gradient_if_a_norm_is_zero() -> None:
    """Without decay: biases start like this."""
    zero, still = parameter(0.0, 0.0, grad=(1.0, 2.0)), parameter(1.0, 1.0, grad=(0.0, 0.0))
    LARC([zero, still], 0.5, weight_decay=0.1).step()
    assert zero.tolist() == [[-0.5, -1.0]] and still.tolist() == [[1.0, 1.0]]


def test_larc_clips_the_rate_at_that_of_sgd() -> None:
    """With `clip` a step is at most as long as that of SGD."""
    p, plain = parameter(3.0, 4.0, grad=(0.0, 1e-4)), parameter(3.0, 4.0, grad=(0.0, 1e-4))
    LARC([p], 0.5, trust_coefficient=1.0, clip=True).step()
    torch.optim.SGD([plain], 0.5).step()
    torch.testing.assert_close(p, plain)


def test_a_parameter_without_gradient_has_no_momentum_and_no_decay() -> None:
    """A frozen prototype must not move."""
    frozen, free = parameter(1.0, 2.0), parameter(1.0, 2.0, grad=(1.0, 1.0))
    for optimizer in (LARC([frozen, free], 0.1, weight_decay=1.0), LARS([frozen, free], 0.1)):
        optimizer.step()
        assert frozen not in optimizer.state
    assert frozen.tolist() == [[1.0, 2.0]]


def test_lars_does_not_scale_or_decay_vectors() -> None:
    """Biases and norms move by the plain gradient."""
    weight = parameter(3.0, 4.0, grad=(0.0, 2.0))
    bias = nn.Parameter(torch.ones(2, dtype=torch.float64))
    bias.grad = torch.tensor([0.5, -0.5], dtype=torch.float64)
    config = OptimConfig(name="lars", base_lr=1.0, weight_decay=0.1, trust_coefficient=0.01)
    build_optimizer(config, [weight, bias]).step()
    assert bias.tolist() == [0.5, 1.5]
    added = torch.tensor([0.3, 2.4], dtype=torch.float64)
    expected = torch.tensor([3.0, 4.0], dtype=torch.float64) - 0.05 * added / added.norm()
    torch.testing.assert_close(weight.data[0], expected)


def test_the_forms_of_lars_differ_only_after_the_rate_changed() -> None:
    """Classic momentum keeps the old rate in its buffer."""

    def two_steps(second_lr: float, **form: str) -> Tensor:
        p = parameter(3.0, 4.0, grad=(1.0, 2.0))
        optimizer = LARS([p], 1.0, **form)  # type: ignore[arg-type]
        optimizer.step()
        optimizer.param_groups[0]["lr"] = second_lr
        optimizer.step()
        return p.data

    torch.testing.assert_close(two_steps(1.0), two_steps(1.0, momentum_form="classic"))
    changed = two_steps(0.1) - two_steps(0.1, momentum_form="classic")
    assert changed.abs().max() > 1e-4


def test_optimizers_are_restored_exactly() -> None:
    """Momentum must be in the state dict."""
    for name in ("larc", "lars"):
        p, q = (parameter(3.0, 4.0, grad=(1.0, 2.0)) for _ in range(2))
        config = OptimConfig(name=name, base_lr=0.1)  # type: ignore[arg-type]
        first, second = build_optimizer(config, [p]), build_optimizer(config, [q])
        first.step()
        q.data.copy_(p.data)
        second.load_state_dict(deepcopy(first.state_dict()))
        first.step()
        second.step()
        assert torch.equal(p, q)


def test_fused_adamw_moves_as_the_plain_one() -> None:
    """In any order of the memory, and if a parameter gets its first gradient later."""
    torch.manual_seed(0)
    shapes, config = ((6, 4, 3, 3), (6,), (5, 6)), OptimConfig(name="adamw", base_lr=0.01)
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    ours[0].data = ours[0].data.contiguous(memory_format=torch.channels_last)
    fused = build_optimizer(config, ours)
    options = {"betas": config.betas, "weight_decay": config.weight_decay, "foreach": False}
    plain = torch.optim.AdamW(split_vectors(theirs, weight_decay=1e-6), 0.01, **options)  # type: ignore[arg-type]
    for step in range(4):
        for one, other in zip(ours, theirs, strict=True):
            if step or one.ndim > 1:
                one.grad = torch.empty_like(one).copy_(gradient := torch.randn(one.shape))
                other.grad = gradient.clone()
        fused.step(), plain.step()
    assert fused.defaults["fused"]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_every_optimizer_lowers_a_loss() -> None:
    """From settings to a step."""
    for name, lr in (("sgd", 0.1), ("adamw", 0.05), ("larc", 0.5), ("lars", 0.5)):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))
        config = OptimConfig(name=name, base_lr=lr, trust_coefficient=0.1)  # type: ignore[arg-type]
        optimizer, x = build_optimizer(config, network.parameters()), torch.randn(16, 4)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (network(x) - 1.0).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0], name


def test_empty_parameter_groups_are_omitted() -> None:
    """A network of matrices has one group."""
    assert len(split_vectors([parameter(1.0)], weight_decay=0.1)) == 1


def test_wrong_settings_are_refused() -> None:
    """Found, allowed, remedy."""
    with pytest.raises(ConfigError, match=r"'larz'.*sgd, adamw, larc and lars.*choose one"):
        OptimConfig(name="larz")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="base_lr=-1"):
        OptimConfig(base_lr=-1.0)
    with pytest.raises(ConfigError, match="nesterov=True"):
        LARS([parameter(1.0)], 0.1, nesterov=True)


def test_weight_decay_follows_half_a_cosine() -> None:
    """PatchMix: from 0.04 to 0.4; vectors keep 0."""
    config = OptimConfig(name="adamw", weight_decay=0.04, final_weight_decay=0.4)
    tensors = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    optimizer = build_optimizer(config, tensors)
    found = []
    for progress in (0.0, 0.5, 1.0):
        set_rates(optimizer, 0.1, config.weight_decay_at(progress))
        found += [group["weight_decay"] for group in optimizer.param_groups]
    assert found == pytest.approx([0.04, 0.0, 0.22, 0.0, 0.4, 0.0])
    with pytest.raises(ConfigError, match=r"final_weight_decay=0.4 with weight_decay=0.0"):
        OptimConfig(weight_decay=0.0, final_weight_decay=0.4)
