"""Rendezvous: the ranks of one generation, a process group that survives a hanging peer.

A group of torch waits for its time-out when a peer hangs, and nothing ends that wait: `abort` of
gloo does not. Here every wait is a series of short ones, with a check in between whether Control
ended the generation. An operation that still hangs then is left to a thread of its own.

Nothing is registered with torch: the default group stays unset, and functions of
`torch.distributed` take a `Ranks` as their `group`. Ranks of two generations never meet, since each
generation has names of its own in the store of its rank 0.
"""

import secrets
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.protocol.messages import Doing
from cluster.torch_internals import (
    PrefixStore,
    TCPStore,
    open_gloo,
    open_nccl,
    open_tcp_store,
    set_timeout,
)
from cluster.trainers.rank_store import RankStore, RankStoreServer

Backend = Literal["gloo", "nccl"]

_CHECK_PERIOD: Final = timedelta(milliseconds=50)


class GenerationOver(Exception):
    """The ranks of this generation cannot go on together; the next one tries the step again."""


class GenerationWatch(Protocol):
    """The source of news whether a generation goes on; see `Heartbeat`."""

    doing: Doing

    def check(self) -> None:
        """Raise GenerationOver if Control has ended the generation."""


@dataclass(frozen=True, slots=True)
class RankInfo:
    """A rank of a generation, and the address of the store of its rank 0, secret included."""

    generation: int
    rank: int
    world: int
    address: str


class RendezvousStore:
    """The store at which others find this process when it is rank 0. Open while it is held."""

    def __init__(self, host: str) -> None:
        self._server = RankStoreServer(host)
        self.host = host
        self.address = self._server.address


class Ranks(dist.ProcessGroup):
    """The process group of one generation, as one of its ranks sees it.

    On NCCL a collective waits on the device, and a reader of its result must call `check`
    afterwards. `beside` is a second connection of the same ranks: collectives there run beside
    those of this group, and may begin before or after them.
    """

    def __init__(
        self,
        backend: Any,
        stores: Any,
        kind: Backend,
        info: RankInfo,
        watch: GenerationWatch,
        beside: "Ranks | None" = None,
    ) -> None:
        super().__init__(info.rank, info.world)
        self._backend, self._kind, self._watch = backend, kind, watch
        self._stores = stores  # the backend uses them, and does not hold them
        self.beside = beside
        self.device = torch.device("cuda" if kind == "nccl" else "cpu")

    @classmethod
    def join(
        cls,
        info: RankInfo,
        watch: GenerationWatch,
        *,
        host: str,
        kind: Backend,
        connect_seconds: float,
        collective_seconds: float,
    ) -> "Ranks":
        """Meet the other ranks. `host` is an address of this process that they can reach.

        Raises GenerationOver when one of them does not come, or when Control ended the generation.
        """
        connect = timedelta(seconds=connect_seconds)
        before, watch.doing = watch.doing, "peers"
        try:
            store = RankStore(info.address, f"g{info.generation}")
            _await_all(store, info, watch)
            if kind == "nccl":
                held, (first, second) = _device_stores(store, info, host, connect)
                stores = [store, held, first, second]
                backends = [
                    open_nccl(each, info.rank, info.world, connect) for each in (first, second)
                ]
            else:
                second = RankStore(info.address, f"g{info.generation} beside")
                stores = [store, second]
                backends = [
                    open_gloo(each, info.rank, info.world, host, connect) for each in stores
                ]
        except (OSError, RuntimeError) as error:
            reason = _first_line(error)
            raise GenerationOver(f"not all ranks came together ({reason})") from error
        finally:
            watch.doing = before
        for backend in backends:
            set_timeout(backend, timedelta(seconds=collective_seconds))
        watch.check()
        beside = cls(backends[1], stores, kind, info, watch)
        return cls(backends[0], stores, kind, info, watch, beside)

    def check(self) -> None:
        """Raise GenerationOver if results of collectives may be invalid."""
        self._watch.check()

    def abort(self) -> None:
        """End operations on the device. Called by another thread when the generation is over."""
        backend = self._backend
        if self._kind == "nccl" and backend is not None:
            backend.abort()
        if self.beside is not None:
            self.beside.abort()

    def close(self) -> None:
        """Leave without waiting: a hanging operation ends with its peer or its time-out."""
        held = [self._backend, self._stores]
        self._backend = self._stores = None

        def leave() -> None:
            held.pop(0)
            held.clear()  # only then: the backend may use the stores while it ends

        threading.Thread(target=leave, name="leave", daemon=True).start()
        if self.beside is not None:
            self.beside.close()

    # Functions of `torch.distributed` call these by position, and only `wait` for the result.
    def allreduce(self, tensors: Any, options: Any = None) -> Any:  # type: ignore[override]
        return self._begun(self._backend.allreduce(tensors, options))

    def allgather(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
        return self._begun(self._backend.allgather(outputs, inputs, options))

    def _allgather_base(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        return self._begun(self._backend._allgather_base(output, input, opts))

    all_gather_single = _allgather_base  # its name in newer versions of torch

    def broadcast(self, tensors: Any, options: Any = None) -> Any:  # type: ignore[override]
        return self._begun(self._backend.broadcast(tensors, options))

    def _get_backend_name(self) -> str:
        return self._kind

    def _begun(self, work: Any) -> "_Collective":
        return _Collective(work, self._watch, on_device=self._kind == "nccl")


class _Collective:
    """The handle of one collective. Its `wait` checks the generation every 50 ms."""

    def __init__(self, work: Any, watch: GenerationWatch, *, on_device: bool) -> None:
        self._work, self._watch, self._on_device = work, watch, on_device

    def is_completed(self) -> bool:
        return bool(self._work.is_completed())

    def wait(self, timeout: object = None) -> bool:  # noqa: ARG002 - Control decides instead
        if self._on_device:
            return bool(self._work.wait())
        before, self._watch.doing = self._watch.doing, "peers"
        try:
            while not self._ended_soon():
                self._watch.check()
        finally:
            self._watch.doing = before
        return True

    def _ended_soon(self) -> bool:
        """Return True if the collective ended within one period. Raises GenerationOver."""
        try:
            self._work.wait(_CHECK_PERIOD)
        except RuntimeError:
            if not self._work.is_completed():
                return False
            self._raise_failure()  # it may have ended well right after the period
        return True

    def _raise_failure(self) -> None:
        try:
            self._work.wait()
        except RuntimeError as error:
            raise GenerationOver(f"a peer was lost ({_first_line(error)})") from error


def _device_stores(
    store: Any, info: RankInfo, host: str, timeout: timedelta
) -> tuple[Any, list[Any]]:
    """Return a store of torch itself, and parts of it for two groups of NCCL.

    The threads of NCCL can use no other store.

    It listens on the address of rank 0 only, until the generation ends. Its keys have a prefix that
    only ranks know, though not from a client that lists them: docs/security.md says what is left.
    """
    if info.rank == 0:
        found, port = open_tcp_store(host, timeout)
        prefix = secrets.token_hex(16)
        store.set("device", f"{host}|{port}|{prefix}")
    else:
        store.wait(["device"], timeout)  # `get` would wait for minutes
        address, port, prefix = store.get("device").decode().split("|")
        found = TCPStore(address, int(port), is_master=False, timeout=timeout)
    return found, [PrefixStore(f"{prefix}{name}", found) for name in ("", " beside")]


def _await_all(store: Any, info: RankInfo, watch: GenerationWatch) -> None:
    """Wait for all ranks without a time-out: they may be waiting for a machine."""
    if store.add("here", 1) == info.world:
        store.set("all", "1")
    while True:
        watch.check()
        try:
            store.wait(["all"], 4 * _CHECK_PERIOD)
        except dist.DistNetworkError:
            raise
        except dist.DistStoreError:  # not all yet
            continue
        return


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
