"""Micro-batches: an encoder sees a part of the rows at a time, its loss sees all of them.

Gradient caching: Gao et al., arXiv:2101.06983, section 3.2. Forward encodes one micro-batch after
the other and keeps no activations. The loss of all features gives the gradient of each feature.
Backward encodes every micro-batch again, and propagates these gradients. So losses with negatives,
assignments or queues are those of the whole batch, and memory holds the activations of one
micro-batch. It costs one more forward pass.

An encoder without batch norm computes what it computes for the whole batch, but for rounding. Batch
norm in the encoder sees one micro-batch at a time, that of a head sees the whole batch. Running
statistics change once in a step. Random layers draw other numbers than for the whole batch.

Micro-batch m of M has rows m, m + M, m + 2 M, ...: the same samples for any number of ranks, if
each rank's rows divide by M.

Shape letters: N rows of a call, S pixels, D feature, M micro-batches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shards.errors import ConfigError
from streamssl.execution.running_statistics import StatisticsMean, kept_statistics


def check_rows(num_micro_batches: int, batch_size: int, num_trainers: int) -> None:
    """Raise ConfigError unless the rows of each trainer divide into equal micro-batches."""
    if (
        batch_size % num_trainers
        or not (num_rows := batch_size // num_trainers) % num_micro_batches
    ):
        return
    fitting = max(n for n in range(1, num_micro_batches) if num_rows % n == 0)
    raise ConfigError(
        f"--micro-batches {num_micro_batches} with {num_trainers} trainers and a batch of "
        f"{batch_size}; each trainer has {num_rows} images, which must divide into equal parts: "
        f"give --micro-batches {fitting}, or another --stream.batch-size"
    )


def split_into_micro_batches(network: nn.Module, num: int) -> None:
    """Let an encoder (N, 3, S, S) -> (N, D) run on `num` micro-batches, in place."""
    network.forward = MicroBatches(network, num)


class MicroBatches:
    """A `forward` that runs the one before it on micro-batches."""

    def __init__(self, network: nn.Module, num: int) -> None:
        self._network, self._num = network, num
        self._forward: Callable[[Tensor], Tensor] = network.forward

    def __call__(self, rows: Tensor) -> Tensor:
        num = min(self._num, len(rows))
        if num <= 1:
            return self._forward(rows)
        parameters = self.trained()
        if not (parameters and torch.is_grad_enabled()):
            return self.encode(rows, num, [])
        features: Tensor = _CachedGradients.apply(self, num, rows, *parameters)
        return features

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that get a gradient."""
        return [parameter for parameter in self._network.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def encode(self, rows: Tensor, num: int, states: list["_RandomState"]) -> Tensor:
        """Return the features (N, D) without a graph; append the random state of each pass."""
        mean, parts = StatisticsMean(self._network), []
        for number in range(num):
            states.append(_RandomState(rows.device))
            with mean.pass_():
                parts.append(self._forward(_part(rows, number, num)))
        mean.store()
        features = parts[0].new_empty(len(rows), *parts[0].shape[1:])
        for number, part in enumerate(parts):
            features[number::num] = part
        return features

    def propagate(
        self,
        rows: Tensor,
        gradient_ND: Tensor,
        states: Sequence["_RandomState"],
        precision: AbstractContextManager[object],
    ) -> list[Tensor | None]:
        """Return the gradients of the trained parameters from those of the features.

        `precision` is that of the first passes.
        """
        parameters, num = self.trained(), len(states)
        sums: list[Tensor | None] = [None] * len(parameters)
        with kept_statistics(self._network):
            for number, state in enumerate(states):
                with state.again(), precision, torch.enable_grad():
                    features = self._forward(_part(rows, number, num))
                found = torch.autograd.grad(
                    features, parameters, gradient_ND[number::num], allow_unused=True
                )
                _add(sums, found)
        return sums


class _CachedGradients(torch.autograd.Function):
    """Encode in forward without a graph; encode again in backward, one micro-batch at a time.

    The parameters are inputs, so that each gets its gradient at once, as without micro-batches.
    """

    @staticmethod
    def forward(ctx: Any, encoder: MicroBatches, num: int, rows: Tensor, *_: Tensor) -> Tensor:
        assert not rows.requires_grad, "a gradient to images"
        device = rows.device.type
        ctx.encoder, ctx.states = encoder, []
        ctx.autocast = torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
        )
        ctx.save_for_backward(rows)
        return encoder.encode(rows, num, ctx.states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        found = ctx.encoder.propagate(rows, gradient_ND, ctx.states, ctx.autocast)
        return None, None, None, *found


class _RandomState:
    """State of torch's random numbers before a pass."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._host = torch.get_rng_state()
        self._on_devices = [torch.cuda.get_rng_state(device) for device in self._devices]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw the same numbers again inside the block; those after it are not affected."""
        with torch.random.fork_rng([device.index or 0 for device in self._devices]):
            torch.set_rng_state(self._host)
            for device, state in zip(self._devices, self._on_devices, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


def _part(rows: Tensor, number: int, num: int) -> Tensor:
    """Return a copy of one micro-batch, images with channels last."""
    is_image = rows.ndim == 4
    layout = torch.channels_last if is_image else torch.contiguous_format
    return rows[number::num].contiguous(memory_format=layout)


def _add(sums: list[Tensor | None], found: Sequence[Tensor | None]) -> None:
    """Add gradients to their sums; the first ones are copied, since they may share memory."""
    both = [(own, new) for own, new in zip(sums, found, strict=True) if own is not None]
    added = [(own, new) for own, new in both if new is not None]
    if added:
        torch._foreach_add_([own for own, _ in added], [new for _, new in added])
    for place, new in enumerate(found):
        if sums[place] is None and new is not None:
            sums[place] = new.clone()
