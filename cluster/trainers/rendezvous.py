"""The ranks of one generation: a process group that can be given up while it waits for a peer.

A group of torch waits for its time-out when a peer hangs, and nothing ends that wait: `abort` of
gloo does not. Here every wait for peers is cut in short ones, with a look in between whether
Control has given the generation up. What still hangs then is left to a thread of its own.

Nothing is registered with torch: the default group stays unset, functions of `torch.distributed`
take a `Ranks` as their `group`, and the ranks of one generation never meet those of another, since
both the store of rank 0 and the names in it are theirs alone.
"""

import socket
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from cluster.protocol.messages import Doing

Backend = Literal["gloo", "nccl"]

_LOOK: Final = timedelta(milliseconds=50)  # between two looks at whether the generation goes on
_KNOCK_SECONDS: Final = 2.0


class GenerationOver(Exception):
    """The ranks of this generation cannot go on together; the next one tries the step again."""


class Watch(Protocol):
    """Who knows whether a generation goes on; see `Pulse`."""

    doing: Doing

    def check(self) -> None:
        """Raise GenerationOver if Control has given the generation up."""


@dataclass(frozen=True, slots=True)
class Place:
    """A rank of a generation, and where its rank 0 waits for the others: "host:port"."""

    generation: int
    rank: int
    world: int
    address: str


class Door:
    """Where the others find this process when it is rank 0. Open as long as the process lives."""

    def __init__(self, host: str) -> None:
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        self.host = host
        self.address = f"{host}:{self._store.port}"


class Ranks(dist.ProcessGroup):
    """One rank's end of a generation. `check` tells whether all that was sent has arrived.

    On gloo a collective waits at once, also when it was asked for as asynchronous and is waited
    for later. On NCCL it waits on the device, and whoever reads a result must then `check`.
    """

    def __init__(self, backend: Any, kind: Backend, place: Place, watch: Watch) -> None:
        super().__init__(place.rank, place.world)
        self._backend, self._kind, self._watch = backend, kind, watch
        self.device = torch.device("cuda" if kind == "nccl" else "cpu")

    @classmethod
    def join(
        cls,
        place: Place,
        watch: Watch,
        *,
        host: str,
        kind: Backend,
        connect_seconds: float,
        collective_seconds: float,
    ) -> "Ranks":
        """Meet the others. `host` is the address that this process can be reached at.

        Raises GenerationOver when one of them does not come, or Control gave up.
        """
        connect = timedelta(seconds=connect_seconds)
        before, watch.doing = watch.doing, "peers"
        try:
            store = PrefixStore(f"g{place.generation}", _knock(place.address, connect))
            _gather(store, place, watch)
            backend = _connect(store, place, host, kind, connect)
        except (OSError, RuntimeError) as error:
            reason = _first_line(error)
            raise GenerationOver(f"not all ranks came together ({reason})") from error
        finally:
            watch.doing = before
        backend._set_default_timeout(timedelta(seconds=collective_seconds))
        watch.check()
        return cls(backend, kind, place, watch)

    def check(self) -> None:
        """Raise GenerationOver if what was computed with the others may be worth nothing."""
        self._watch.check()

    def abort(self) -> None:
        """From another thread, when the generation is over: end what runs on the device."""
        backend = self._backend
        if self._kind == "nccl" and backend is not None:
            backend.abort()

    def close(self) -> None:
        """Leave without waiting: an operation that hangs ends with its peer, or its time-out."""
        held = [self._backend]
        self._backend = None
        threading.Thread(target=held.clear, name="leave", daemon=True).start()

    # Functions of `torch.distributed` call these by place, and use `wait` alone of what they get.
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

    def _begun(self, work: Any) -> "_Operation":
        return _Operation(work, self._watch, on_device=self._kind == "nccl")


class _Operation:
    """What a collective gives: waited for in short looks."""

    def __init__(self, work: Any, watch: Watch, *, on_device: bool) -> None:
        self._work, self._watch, self._on_device = work, watch, on_device

    def is_completed(self) -> bool:
        return bool(self._work.is_completed())

    def wait(self, timeout: object = None) -> bool:  # noqa: ARG002 - as in torch; ours is Control
        if self._on_device:
            return bool(self._work.wait())
        before, self._watch.doing = self._watch.doing, "peers"
        try:
            while not self._looked():
                self._watch.check()
        finally:
            self._watch.doing = before
        return True

    def _looked(self) -> bool:
        """Whether it ended within one look."""
        try:
            self._work.wait(_LOOK)
        except RuntimeError:
            if not self._work.is_completed():
                return False
            self._settle()  # it may have ended well right after the look did
        return True

    def _settle(self) -> None:
        try:
            self._work.wait()
        except RuntimeError as error:
            raise GenerationOver(f"a peer was lost ({_first_line(error)})") from error


def _knock(address: str, timeout: timedelta) -> Any:
    """The store of rank 0. A dead one is refused at once, where the store would try on."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()
    return TCPStore(host.strip("[]"), int(port), is_master=False, timeout=timeout)


def _gather(store: Any, place: Place, watch: Watch) -> None:
    """Wait until all are there, however long that takes: they may be waiting for a machine."""
    if store.add("here", 1) == place.world:
        store.set("all", "1")
    while True:
        watch.check()
        try:
            store.wait(["all"], 4 * _LOOK)
        except dist.DistNetworkError:
            raise
        except dist.DistStoreError:  # not all yet
            continue
        return


def _connect(store: Any, place: Place, host: str, kind: Backend, timeout: timedelta) -> Any:
    if kind == "nccl":
        chosen = dist.ProcessGroupNCCL.Options()
        chosen._timeout = timeout
        return dist.ProcessGroupNCCL(store, place.rank, place.world, chosen)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timeout
    # Left to itself, gloo listens on whatever address the host's own name stands for.
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    return dist.ProcessGroupGloo(store, place.rank, place.world, options)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
