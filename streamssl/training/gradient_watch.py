"""Gradient watch: tells when the norm of a gradient is far above those before it.

A spike comes before a loss that rises or is no longer finite.
"""

from collections import deque
from math import isfinite
from statistics import median

# The median is taken over this many steps; the first ones have norms of any size.
WINDOW = 100
_MIN_STEPS = 30
_TIMES = 100.0


class GradientWatch:
    """Watches the norm of the gradients, step after step; the first spike is told, once.

    Norms of 0, as before a first clustering, do not count. A resumed run starts anew. The remedy is
    from the settings of the run.
    """

    def __init__(self, base_lr: float, save_every: int) -> None:
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._base_lr, self._save_every = base_lr, save_every
        self._is_told = False

    def check(self, step: int, norm: float | None) -> tuple[str, ...]:
        """Take the norm of a finished step; return a sentence if it is a spike."""
        if norm is None or not isfinite(norm) or norm <= 0:
            return ()
        usual = median(self._norms) if len(self._norms) >= _MIN_STEPS else None
        self._norms.append(norm)
        if usual is None or norm < _TIMES * usual or self._is_told:
            return ()
        self._is_told = True
        return (
            f"warning: gradient_norm is {norm:.3g} at step {step}, {norm / usual:.0f} times "
            f"{usual:.3g}, its median over the {len(self._norms) - 1} steps before; one such step "
            f"may pass, but if the loss rises, {self._remedy(step)}",
        )

    def _remedy(self, step: int) -> str:
        lower = f"--optim.base-lr {self._base_lr / 5:.3g}"
        saved = (step - 1) // self._save_every * self._save_every
        if not saved:
            return f"give {lower} instead of {self._base_lr:g}, with a new --out"
        return (
            f"stop the run, and add --from step-{saved:08d} {lower} to the same command, instead "
            f"of {self._base_lr:g}"
        )
