"""Undo copy: the part of a method's state that a loss changes, as it was before the step.

The optimizer changes the trained parameters only after the last collective of a step, so a step
that breaks before it has changed buffers and a few parameters, which are copied.
"""

import torch
from torch import Tensor, nn

from cluster.torch_internals import num_writes
from shards.errors import ConfigError
from streamssl.methods.base import Method


class UndoCopy:
    """Copies of buffers, and of the parameters that `Method.changed_by_loss` returns."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._copies: dict[str, Tensor] = {}
        self._unchanged: list[tuple[str, nn.Parameter, int]] = []

    @property
    def num_bytes(self) -> int:
        """Size of the copies."""
        return sum(copy.nbytes for copy in self._copies.values())

    def take(self) -> None:
        """Copy what the next loss may change. Memory of earlier copies is used again."""
        changed = {id(parameter) for parameter in self._method.changed_by_loss()}
        self._unchanged = [
            (name, parameter, num_writes(parameter))
            for name, parameter in self._method.named_parameters(remove_duplicate=False)
            if id(parameter) not in changed
        ]
        left_out = {name for name, *_ in self._unchanged}
        now = {
            name: value for name, value in self._method.state_dict().items() if name not in left_out
        }
        if self._copies.keys() != now.keys():
            self._copies = {name: value.clone() for name, value in now.items()}
        elif now:
            torch._foreach_copy_(list(self._copies.values()), list(now.values()))

    def check(self) -> None:
        """Raise ConfigError if the loss has changed a parameter that is not copied."""
        for name, parameter, version in self._unchanged:
            if num_writes(parameter) != version:
                kind = type(self._method).__name__
                raise ConfigError(
                    f"the loss of {kind} changes {name}, which {kind}.changed_by_loss does not "
                    "return; a step of it could not be undone: return it there, or give "
                    "--trainers 1 and --max-skipped-steps 0"
                )

    def restore(self) -> None:
        """Put back what `take` copied."""
        self._method.load_state_dict(self._copies, strict=False)

    def drop(self) -> None:
        """Free the copies."""
        self._copies, self._unchanged = {}, []
