"""Where the stream goes on: one sequencer at a time, and when it has to be another one.

The plans of a sequencer begin at a step and only ever go on. A generation that begins before that
step, because nobody was left who had a newer state, needs one that begins there; so does the first
generation of a new Control.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cluster.control.sequencer import Sequencer, SequencerConfig
from cluster.leases.lease_table import LeaseTable
from cluster.membership.members import Generation
from cluster.protocol.messages import Plans
from shards.records import Cursor
from shards.samples.admission import AdmissionConfig
from shards.stream.batch_stream import StreamConfig
from shards.stream.journal import Journal
from shards.stream.manifest import Manifest
from shards.stream.order import Order


class Planning:
    """The lease table of a Control, and the sequencer that fills it. A context.

    `on_change` is called from any thread. Not for several threads at once otherwise.
    """

    def __init__(
        self,
        table: LeaseTable,
        manifest: Manifest,
        order: Order,
        stream: StreamConfig,
        admission: AdmissionConfig,
        config: SequencerConfig,
        journal: Journal,
        on_change: Callable[[], None],
    ) -> None:
        self.table = table
        self._manifest, self._order = manifest, order
        self._stream, self._admission, self._config = stream, admission, config
        self._journal, self._on_change = journal, on_change
        self._sequencer: Sequencer | None = None
        self._stack = ExitStack()
        self._files = ExitStack()
        self._start = 0
        self._followed = 0

    def begin(self, step: int, cursor: Cursor | None) -> None:
        """Plan from `cursor` on, the place behind `step` batches."""
        self._stack.close()
        self._sequencer = Sequencer(
            self.table,
            self._manifest.shards,
            self._order,
            self._stream,
            self._admission,
            self._config,
            journal=self._journal,
            cursor=cursor,
            step=step,
            on_change=self._on_change,
        )
        self._start = step
        self._stack.enter_context(self._sequencer)

    def follow(self, generation: Generation | None) -> bool:
        """Begin anew where a generation needs it; whether that was so."""
        if generation is None or generation.number == self._followed:
            return False
        self._followed = generation.number
        if self._sequencer is not None and generation.start >= self._start:
            return False
        self.begin(generation.start, generation.cursor)
        return True

    def committed(self, step: int) -> None:
        """No step up to this one is needed again."""
        if self._sequencer is not None and step > self._start:
            self._start = step
            self._sequencer.committed(step)

    def plans(self, first: int, count: int) -> Plans:
        """What is planned of it by now. Raises what ended the stream."""
        if self._sequencer is None:
            return Plans(self.table.term, (), {})
        return self._sequencer.plans(first, count)

    @contextmanager
    def leases(self) -> Iterator[LeaseTable]:
        """The table, and what follows from what is done to it."""
        if self._sequencer is None:
            yield self.table
        else:
            with self._sequencer.leases() as table:
                yield table

    def keep(self, path: Path) -> None:
        """From now on what is learned is on disk before it takes effect."""
        self._files.enter_context(self._journal.keep_in(path))

    @property
    def max_bytes(self) -> int:
        """What readers may hold together."""
        return self._config.max_bytes(self._stream)

    def status(self) -> dict[str, int]:
        """How far planning and training are."""
        return {} if self._sequencer is None else dict(self._sequencer.status())

    def close(self) -> None:
        self._stack.close()
        self._files.close()

    def __enter__(self) -> "Planning":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
