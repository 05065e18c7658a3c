"""Batch planner: keeps a sequencer that begins where the trainers continue.

The plans of a sequencer begin at a step and only go forward. A generation that begins before that
step, because no survivor has a newer state, needs a new sequencer; so does the first generation of
a new Control.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cluster.control.sequencer import Sequencer, SequencerSpec
from cluster.leases.lease_table import LeaseTable
from cluster.membership.members import Generation
from cluster.protocol.messages import Plans
from shards.records import Cursor


class BatchPlanner:
    """The lease table of a Control, and the sequencer that fills it. A context.

    `on_change` is called from any thread. The methods are called from one thread.
    """

    def __init__(
        self, table: LeaseTable, spec: SequencerSpec, on_change: Callable[[], None]
    ) -> None:
        self.table, self._spec, self._on_change = table, spec, on_change
        self._sequencer: Sequencer | None = None
        self._sequencer_stack = ExitStack()
        self._journal_stack = ExitStack()
        self._start = 0
        self._generation = 0

    def begin(self, step: int, cursor: Cursor | None) -> None:
        """Plan from `cursor` on, the position after `step` batches."""
        self._sequencer_stack.close()
        sequencer = Sequencer(self.table, self._spec, cursor, step, self._on_change)
        self._sequencer = self._sequencer_stack.enter_context(sequencer)
        self._start = step

    def follow(self, generation: Generation | None) -> None:
        """Begin again if a new generation needs steps before the first planned one."""
        if generation is None or generation.number == self._generation:
            return
        self._generation = generation.number
        if self._sequencer is None or generation.start < self._start:
            self.begin(generation.start, generation.cursor)

    def commit(self, step: int) -> None:
        """Drop the plans of steps up to this one."""
        if self._sequencer is not None and step > self._start:
            self._start = step
            self._sequencer.commit(step)

    def plans(self, first: int, count: int) -> Plans:
        """Return the present plans among these steps. Raises the error that ended the stream."""
        if self._sequencer is None:
            return Plans(self.table.term, (), {})
        return self._sequencer.plans(first, count)

    @contextmanager
    def leases(self) -> Iterator[LeaseTable]:
        """Lend the table; its results go to the sequencer afterwards."""
        if self._sequencer is None:
            yield self.table
        else:
            with self._sequencer.leases() as table:
                yield table

    def keep_journal(self, path: Path) -> None:
        """Write discoveries to this file, each before it takes effect."""
        self._journal_stack.enter_context(self._spec.journal.keep_in(path))

    def restore_journal(self) -> None:
        """Write the file of discoveries again if somebody removed it."""
        self._spec.journal.restore()

    @property
    def max_bytes(self) -> int:
        """Bytes that all readers together may hold."""
        return self._spec.config.max_bytes(self._spec.stream)

    @property
    def num_planned(self) -> int:
        """Steps that are planned, counted from the first step of the run."""
        return 0 if self._sequencer is None else self._sequencer.num_planned

    def close(self) -> None:
        self._sequencer_stack.close()
        self._journal_stack.close()

    def __enter__(self) -> "BatchPlanner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
