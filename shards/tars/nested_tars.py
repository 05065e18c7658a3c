"""Could what is inside a member of a tar be taken for members of the tar itself?

A chunk takes a header for one of the shard's own if the chain from there holds over all of the
chunk. Of headers inside a member, those of a tar inside the tar, that is so in three cases only:
the member covers the chunk; or their chain leads out of the member and on; or the member is the
last one, with nothing behind it but zeros. The chunk that holds the member can tell.
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

# What is no part of a sample is looked into as far as this.
_MAX_OTHER_BYTES = 1 << 24


class NestedTarScan:
    """Looks into the members of one chunk. `leap`: a later chunk could be deceived.

    Also counts the links of the chunk, which have no inside at all.
    """

    def __init__(self, window: ReadWindow, chunk: Chunk) -> None:
        self._window, self._chunk = window, chunk
        # What covers a later chunk ends here or behind.
        self._next_stop = min(2 * chunk.stop - chunk.start, window.size)
        # With no chunk behind this one there is nobody to deceive.
        self._asked = chunk.stop < window.size
        self._last: TarMember | None = None
        self._last_hides = False
        self.leap = False
        self.num_links = 0

    def passed(self, member: TarMember) -> None:
        """A member of the walk. If it is part of a sample, `read` or `unread` may follow."""
        self._last, self._last_hides = member, member.hides
        if not self._chunk.start <= member.start < self._chunk.stop:
            return
        self.num_links += member.link
        self.leap |= self._asked and member.hides
        if not member.regular and member.num_bytes > _MAX_OTHER_BYTES:
            self.unread(member)
        elif not member.regular and member.num_bytes:
            self.read(member, self._window.get(member.data_start, member.data_stop))

    def read(self, member: TarMember, data: bytes) -> None:
        """The bytes of the member that was passed last."""
        if not self._asked or self.leap:
            return
        inner = [member.data_start + at for at in header_offsets(data)]
        if self._ends_with_header(member):
            inner.append(member.end - BLOCK)
        if inner:
            self._last_hides = True
            covers = member.end >= self._next_stop
            self.leap = covers or any(self._leads_out(offset, member) for offset in inner)

    def unread(self, member: TarMember) -> None:
        """A member whose bytes nobody looks at."""
        self.leap |= self._asked and member.end > self._chunk.stop

    def ended(self) -> None:
        """There was nothing more in the file than the members that were passed."""
        if self._last is not None and self._last_hides:
            self.unread(self._last)

    def _ends_with_header(self, member: TarMember) -> bool:
        """Whether the data ends within a block that is a header together with its padding."""
        if member.num_bytes % BLOCK <= CHECKSUM:
            return False
        return is_header(self._window.get(member.end - BLOCK, member.end))

    def _leads_out(self, offset: int, member: TarMember) -> bool:
        try:
            return read_member(self._window.get, offset).end >= member.end
        except TarHeaderError:
            return False
