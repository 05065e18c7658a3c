"""Compilation of encoders and losses by torch.compile, and a trial of the compiler."""

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from shards.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])

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


def compiled(function: Function) -> Function:
    """Return a function that is compiled at its first call for each size of its inputs.

    It raises ConfigError if that fails.
    """
    # The compiler itself reads the gradient of an input that has none.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    chosen = torch.compile(function, dynamic=False)

    @functools.wraps(function)
    def call(*inputs: Any, **options: Any) -> Any:
        try:
            return chosen(*inputs, **options)
        except Exception as error:
            if not type(error).__module__.startswith(_COMPILERS):
                raise
            raise ConfigError(
                f"compile=True, but {function.__qualname__} cannot be compiled here "
                f"({_first_line(error)}): {_REMEDY}"
            ) from error

    return cast(Function, call)


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
        self._compiled = compiled(self._plain)

    def __call__(self, rows: Tensor) -> Tensor:
        return (self._compiled if self._network.training else self._plain)(rows)


def _first_line(error: Exception) -> str:
    """Return the kind of an error and the first line of its text."""
    lines = (text for text in str(error).splitlines() if text.strip())
    return f"{type(error).__name__}: {next(lines, '')[:200]}"
