"""Journal: entries are on disk before they take effect, and every resume reads them."""

import pytest

from shards.errors import CursorMismatch, UserError
from shards.records import Chunk, Cursor, Turn
from shards.stream.journal import Journal
from shards.stream.mixture import parse_weights

HALVES, THIRDS = parse_weights([1, 1]), parse_weights([1, 2])


def read(path, order="o", *, replace_other=False):
    return Journal.read(path, "m", order, replace_other=replace_other)


@pytest.fixture
def path(tmp_path):
    """The path of a journal with an entry of every kind."""
    path = tmp_path / "journal.jsonl"
    journal = Journal("m", "o")
    journal.add_weights(HALVES, 0)
    with journal.keep_in(path):
        assert journal.add_irregular(3, 11)
        assert journal.add_quarantine("d1", 12)
    return path


def test_entries_are_read_again(path):
    """A resumed run would read other samples."""
    journal = read(path)
    assert [(entry.kind, entry.block, entry.value) for entry in journal.entries] == [
        ("weights", 0, "1/2 1/2"),
        ("irregular", 11, 3),
        ("quarantine", 12, "d1"),
    ]
    assert len(path.read_text().splitlines()) == 4


def test_an_entry_is_on_disk_when_it_takes_effect(tmp_path):
    """A process that is killed right after would not find it."""
    journal = Journal("m", "o")
    with journal.keep_in(tmp_path / "j"):
        journal.add_irregular(1, 5)
        assert read(tmp_path / "j").entries == journal.entries
    journal.add_irregular(2, 5)  # after the context: in memory only
    assert len(read(tmp_path / "j").entries) == 1


def test_adding_a_known_entry_does_nothing(path):
    """Steps that are repeated after a crash would write everything twice."""
    journal, before = read(path), path.read_bytes()
    with journal.keep_in(path):
        assert not journal.add_irregular(3, 11) and not journal.add_irregular(3, 19)
        assert not journal.add_quarantine("d1", 40) and not journal.add_weights(HALVES, 7)
    assert path.read_bytes() == before


@pytest.mark.parametrize("torn", [None, b"\0\0\0\0"])
def test_a_torn_last_line_is_dropped_and_overwritten(path, torn):
    """A power cut in the middle of a line would cost the run."""
    whole, entries = path.read_bytes(), read(path).entries
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length] if torn is None else whole + torn)
        journal = read(path)
        num_whole = whole[:length].count(b"\n") - 1 if torn is None else 3
        assert journal.entries == entries[: max(0, num_whole)]
        with journal.keep_in(path):
            journal.add_irregular(9, 20)
        assert read(path).entries == journal.entries


def turns(*shards):
    return [Turn(Chunk(shard, 0, 4096), 2) for shard in shards]


def test_entries_take_effect_from_their_block_on(path):
    """Chunks before the discovery must be read the same way again."""
    journal = read(path)
    assert journal.amend(10, turns(1, 3)) == turns(1, 3)
    one, other = journal.amend(11, turns(1, 3))
    assert [one.chunk.walked, other.chunk.walked] == [False, True]
    assert (other.chunk.start, other.chunk.stop, other.epoch) == (0, 4096, 2)
    assert [journal.amend(b, turns(0))[0].quarantine for b in (11, 12)] == [
        frozenset(),
        frozenset({"d1"}),
    ]
    # A quarantine only saves time: the turn stays equal, so it is not requested again.
    assert journal.amend(12, turns(0)) == turns(0)


def test_the_count_of_a_cursor_ignores_later_entries(path):
    """Repeated steps would save other cursors than the first time."""
    journal = read(path)
    places = [(0, 0), (0, 1), (10, 0), (10, 1), (11, 0), (12, 0), (12, 1), (99, 0)]
    assert [journal.count(*place) for place in places] == [1, 1, 1, 2, 2, 2, 3, 3]


def test_the_latest_weights_are_in_effect(path):
    """A run that resumes with other weights would not get them."""
    journal = read(path)
    assert journal.add_weights(THIRDS, 20) and journal.weights == [(0, HALVES), (20, THIRDS)]
    assert not journal.add_weights(THIRDS, 25)
    assert journal.add_weights(HALVES, 15) and journal.weights == [(0, HALVES), (15, HALVES)]
    assert journal.add_weights(THIRDS, 0) and journal.weights == [(0, THIRDS)]


def test_a_journal_that_lost_entries_of_the_cursor_is_refused(path):
    """Without the entries, other samples would follow."""
    journal = read(path)
    place = Cursor(manifest="m", order="o", block=12, slot=1, journal=3)
    journal.check(place)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        CursorMismatch, match=r"knows 3 entries of the journal, which has 2; .*: put journal"
    ):
        read(path).check(place)


def test_a_journal_of_another_order_is_refused_or_replaced(path):
    """Row 3 of other data is another shard."""
    with pytest.raises(CursorMismatch, match=r"belongs to other data or another order; put back"):
        read(path, "other")
    fresh = read(path, "other", replace_other=True)
    assert fresh.entries == ()
    with fresh.keep_in(path):
        fresh.add_irregular(7, 1)
    assert [entry.value for entry in read(path, "other").entries] == [7]


WRONG = '{"kind": "weights", "block": 1, "weights": "1/0 x"}'


@pytest.mark.parametrize("line", ["{}", '{"kind": "new", "block": 1}', "junk", "[]", '"x"', WRONG])
def test_damage_in_the_middle_is_refused(path, line):
    """A run that continues without an entry trains on other samples."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(CursorMismatch, match=r"damaged in line 3 .*: put back a copy, or give"):
        read(path)


def test_two_processes_cannot_write_one_journal(path):
    """Entries of one process would be lost."""
    journal, other = read(path), read(path)
    with other.keep_in(path):
        other.add_irregular(8, 30)
    journal.add_irregular(9, 30)
    with (
        pytest.raises(UserError, match=r"written by another process .*: start the same comm"),
        journal.keep_in(path),
    ):
        pass
    assert read(path).entries == other.entries


def test_a_journal_that_cannot_be_written_ends_the_run(tmp_path):
    """A run that continues without the entry breaks the next resume."""
    with (
        pytest.raises(
            UserError, match=r"j cannot be written: its folder was removed .*; put it back, then"
        ),
        Journal("m", "o").keep_in(tmp_path / "no folder" / "j"),
    ):
        pass
