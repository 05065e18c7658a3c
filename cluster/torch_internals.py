"""Private names of torch that this project uses, in one file. Checked with torch 2.11 to 2.15.

After an upgrade of torch, `tests/cluster/test_torch_internals.py` says which one is missing.
"""

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar, cast

import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.distributed import (  # type: ignore[attr-defined]
    PrefixStore,
    ProcessGroup,
    Store,
    TCPStore,
)
from torch.nn.modules import _functions

__all__ = [
    "PRIVATE_NAMES",
    "PrefixStore",
    "Store",
    "TCPStore",
    "open_gloo",
    "open_nccl",
    "num_writes",
    "open_tcp_store",
    "outside_graphs",
    "set_timeout",
    "sync_batch_norm",
]

Function = TypeVar("Function", bound=Callable[..., Any])

PRIVATE_NAMES: Final = (
    "distributed.Store",
    "distributed.PrefixStore",
    "distributed.TCPStore",
    "distributed.ProcessGroupGloo._Options",
    "distributed.ProcessGroupGloo._set_default_timeout",
    "distributed.ProcessGroupGloo._allgather_base",
    "distributed.ProcessGroupGloo.create_device",
    "nn.modules._functions.SyncBatchNorm",
    "nn.modules.batchnorm._BatchNorm",
    "Tensor._version",
    "_compile._disable_dynamo",
)
"""Names below `torch` without a promise of stability."""


def open_tcp_store(host: str, timeout: timedelta) -> tuple[Any, int]:
    """Open a store of torch on a free port of `host`; return both.

    Without a socket of ours it would listen on every address of the machine.
    """
    listener = socket.create_server((host, 0), family=_family(host))
    port: int = listener.getsockname()[1]
    store = TCPStore(
        host,
        port,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def open_gloo(store: Any, rank: int, world: int, host: str, timeout: timedelta) -> Any:
    """Connect the ranks of a gloo group; this process listens on the address `host`."""
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timeout
    # By default gloo listens on the address that the host name resolves to.
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    return dist.ProcessGroupGloo(store, rank, world, options)


def open_nccl(store: Any, rank: int, world: int, timeout: timedelta) -> Any:
    """Connect the ranks of an NCCL group."""
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(store, rank, world, options)


def set_timeout(backend: Any, timeout: timedelta) -> None:
    """Set the time-out of all later collectives of a group."""
    backend._set_default_timeout(timeout)


def outside_graphs(function: Function) -> Function:
    """Let `torch.compile` leave this function as it is; it cannot trace collectives of our groups.

    Unlike `torch.compiler.disable`, it imports the compiler at the first call only.
    """
    return cast(Function, _disable_dynamo(function))


def num_writes(x: Tensor) -> int:
    """Return how often `x` was overwritten."""
    return x._version


def sync_batch_norm(x: Tensor, norm: Any, momentum: float, group: ProcessGroup) -> Tensor:
    """Normalise `x` on a GPU by the statistics of all ranks. `norm` is a batch norm of torch."""
    normalised: Tensor = _functions.SyncBatchNorm.apply(
        x,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        momentum,
        group,
        group.size(),
    )
    return normalised
