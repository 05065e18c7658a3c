"""Detection of members whose content could be taken for members of the tar itself.

A chunk accepts a header if the chain of headers from there holds over the whole chunk. Headers
inside a member, those of a nested tar, pass this test in three cases only: the member covers the
chunk; or their chain leads out of the member and continues; or the member is the last one, followed
by zeros only. The chunk in which the member begins can detect all three.
"""

from shards.records import Chunk
from shards.tars.headers import (
    BLOCK,
    CHECKSUM,
    TarHeaderError,
    TarMember,
    header_offsets,
    is_header,
    read_member,
)
from shards.tars.read_window import ReadWindow

# Larger members that belong to no sample are not scanned.
_MAX_SCAN_BYTES = 1 << 24


class NestedTarScan:
    """Scan of the members of one chunk. `needs_walk`: later chunks could take inner headers for
    headers of the shard. Also counts the links and the hidden files of the chunk.
    """

    def __init__(self, window: ReadWindow, chunk: Chunk) -> None:
        self._window, self._chunk = window, chunk
        # A member that covers the next chunk ends at or after this offset.
        self._next_stop = min(2 * chunk.stop - chunk.start, window.size)
        # The last chunk can mislead no later chunk.
        self._is_relevant = chunk.stop < window.size
        self._last: TarMember | None = None
        self._last_hides_headers = False
        self.needs_walk = False
        self.num_links = self.num_hidden = 0

    @property
    def stop(self) -> int:
        """End of the member that was visited last; 0 before the first."""
        return 0 if self._last is None else self._last.end

    def visit(self, member: TarMember) -> None:
        """Visit the next member. For a member of a sample, call `scan` or `skip` too."""
        self._last, self._last_hides_headers = member, member.hides_headers
        if not self._chunk.start <= member.start < self._chunk.stop:
            return
        self.num_links += member.link
        self.num_hidden += member.hidden
        self.needs_walk |= self._is_relevant and member.hides_headers
        if not member.regular and member.num_bytes > _MAX_SCAN_BYTES:
            self.skip(member)
        elif not member.regular and member.num_bytes:
            self.scan(member, self._window.get(member.data_start, member.data_stop))

    def scan(self, member: TarMember, data: bytes) -> None:
        """Scan the bytes of the member that was visited last."""
        if not self._is_relevant or self.needs_walk:
            return
        inner = [member.data_start + at for at in header_offsets(data)]
        if self._ends_with_header(member):
            inner.append(member.end - BLOCK)
        if inner:
            self._last_hides_headers = True
            covers = member.end >= self._next_stop
            self.needs_walk = covers or any(self._leads_out(offset, member) for offset in inner)

    def skip(self, member: TarMember) -> None:
        """Skip the bytes of a member; if it reaches beyond the chunk, assume hidden headers."""
        self.needs_walk |= self._is_relevant and member.end > self._chunk.stop

    def finish(self) -> None:
        """End the walk at the end of the file."""
        if self._last is not None and self._last_hides_headers:
            self.skip(self._last)

    def _ends_with_header(self, member: TarMember) -> bool:
        """Return True if the last block, data and padding together, is a header."""
        if member.num_bytes % BLOCK <= CHECKSUM:
            return False
        return is_header(self._window.get(member.end - BLOCK, member.end))

    def _leads_out(self, offset: int, member: TarMember) -> bool:
        try:
            return read_member(self._window.get, offset).end >= member.end
        except TarHeaderError:
            return False
