"""Operations of a step, as torch counts them."""

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def flops_of(call: Callable[[], object]) -> int:
    """Return the operations of a call; a multiply-add counts twice."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
