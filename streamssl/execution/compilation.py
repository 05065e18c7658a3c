"""Compilation of encoders by torch.compile, and a check that the machine has a compiler."""

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shards.errors import ConfigError

# Sizes of trial inputs; each is compiled anew, since torch keeps what it compiled on the disk.
_NUM_SIZES = 1_000_003
_REMEDY = "give --no-compile (a run that has checkpoints also needs --from)"
# Modules of the errors of a compilation; those of the network itself are others.
_COMPILERS = ("torch._dynamo", "torch._inductor")


@functools.cache
def check_compiler(kind: str) -> None:
    """Compile a line for this kind of device. Raises ConfigError if this machine cannot."""

    def line(x: Tensor) -> Tensor:
        return (x + 1).sin()

    x = torch.ones(1 + time.time_ns() % _NUM_SIZES, device=kind)
    try:
        torch.compile(line, dynamic=False)(x)
    except Exception as error:  # torch, Triton and compilers raise errors of any kind
        raise ConfigError(
            f"compile=True, but a trial of torch.compile failed here ({_first_line(error)}); it "
            "needs a C++ compiler with OpenMP and the headers of Python on every machine that "
            f"trains: install them (Debian: apt-get install g++ python3-dev), or {_REMEDY}"
        ) from error


def compile_network(network: nn.Module) -> None:
    """Let a network be compiled in training, in place; names of its tensors do not change."""
    network.forward = CompiledForward(network)


class CompiledForward:
    """A `forward` that is compiled for each size of its input.

    A network in evaluation mode encodes few images seldom: to compile that would not pay.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._plain: Callable[[Tensor], Tensor] = network.forward
        self._compiled: Callable[[Tensor], Tensor] = torch.compile(network.forward, dynamic=False)

    def __call__(self, rows: Tensor) -> Tensor:
        if not self._network.training:
            return self._plain(rows)
        try:
            return self._compiled(rows)
        except Exception as error:
            if not type(error).__module__.startswith(_COMPILERS):
                raise
            raise ConfigError(
                f"compile=True with a {type(self._network).__name__}, which torch.compile cannot "
                f"compile here ({_first_line(error)}): {_REMEDY}"
            ) from error


def _first_line(error: Exception) -> str:
    """Return the kind of an error and the first line of its text."""
    lines = (text for text in str(error).splitlines() if text.strip())
    return f"{type(error).__name__}: {next(lines, '')[:200]}"
