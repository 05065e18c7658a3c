"""Recomputation: blocks of an encoder keep their inputs, and compute the rest again in backward.

Activation checkpointing: Chen et al., arXiv:1604.06174. Memory holds the inputs of all blocks and
the activations of one. It costs one more forward pass of the blocks. Gradients, running statistics
and random numbers (drop path) are the same bit by bit.
"""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cluster.torch_internals import num_writes
from shards.errors import ConfigError
from streamssl.execution.running_statistics import kept_statistics

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# A convolution with its norm has two: little memory to spare, and many of them.
_MIN_LAYERS = 3


def recompute_blocks(encoder: nn.Module) -> None:
    """Let all blocks of an encoder be computed again in backward, in place."""
    for block in find_blocks(encoder):
        block.forward = RecomputedBlock(block)


def find_blocks(encoder: nn.Module) -> list[nn.Module]:
    """Return the outermost modules that occur at least twice and have at least three layers.

    They are residual blocks and the blocks of transformers. Containers and stages are none: to
    compute one of them again would take the memory of all its blocks.
    """
    counts = Counter(type(module) for module in encoder.modules())
    found: list[nn.Module] = []

    def search(module: nn.Module) -> None:
        for child in module.children():
            kind = type(child)
            is_stage = kind in _CONTAINERS or kind.__name__.endswith("Stage")
            if counts[kind] > 1 and not is_stage and _num_layers(child) >= _MIN_LAYERS:
                found.append(child)
            else:
                search(child)

    search(encoder)
    return found


def check_blocks(encoder: nn.Module, name: str, crops: Tensor) -> None:
    """Raise ConfigError unless the blocks of an encoder can be computed again.

    A block whose input is overwritten later would get other numbers the second time.
    """
    blocks = find_blocks(encoder)
    inputs: list[tuple[str, Tensor, int]] = []
    if not blocks:
        raise ConfigError(
            f"recompute=True with backbone {name!r}, which has no blocks that occur twice; leave "
            "out --recompute, and give --micro-batches 2 or more to spare memory"
        )

    def note(block: nn.Module, given: tuple[Any, ...]) -> None:
        tensors = (value for value in given if isinstance(value, Tensor))
        inputs.extend((type(block).__name__, tensor, num_writes(tensor)) for tensor in tensors)

    hooks = [block.register_forward_pre_hook(note) for block in blocks]
    with torch.no_grad():
        encoder(crops)
    for hook in hooks:
        hook.remove()
    changed = [kind for kind, tensor, before in inputs if num_writes(tensor) != before]
    if changed:
        raise ConfigError(
            f"recompute=True with backbone {name!r}, whose {changed[0]} overwrites its input, from "
            "which it cannot be computed again; leave out --recompute, and give --micro-batches 2 "
            "or more to spare memory"
        )


class RecomputedBlock:
    """A `forward` that runs the one before it, and again in backward."""

    def __init__(self, block: nn.Module) -> None:
        self._block, self._forward = block, block.forward

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*inputs, **options)
        return checkpoint(
            self._forward, *inputs, use_reentrant=False, context_fn=self._contexts, **options
        )

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of the first and of the second pass, which must not count."""
        return nullcontext(), kept_statistics(self._block)


def _num_layers(module: nn.Module) -> int:
    """Return the number of modules with parameters of their own."""
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())
