"""Term journal: one writer at a time, the same entries for every reader."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.control.fencing import FencedError, TermJournal, newest_term
from shards.errors import UserError


def test_a_newer_term_fences_the_older_one(tmp_path):
    """Two Controls would make contradictory decisions."""
    folder = tmp_path / "journal"
    with TermJournal.open(folder) as old:
        assert old.append({"what": "a"})
        with TermJournal.open(folder) as new:
            assert (old.term, new.term, newest_term(folder)) == (1, 2, 2)
            with pytest.raises(
                FencedError, match="term 2 of this run has begun, and this is term 1"
            ):
                old.append({"what": "b"})
            assert new.read() == [{"what": "a"}]


def test_a_repeated_call_is_written_once(tmp_path):
    """A call is repeated when its answer gets lost, also to the next Control."""
    with TermJournal.open(tmp_path) as old:
        assert old.append({"what": "a"}, "call 1")
        assert not old.append({"what": "a"}, "call 1")
    with TermJournal.open(tmp_path) as new:
        assert not new.append({"what": "a"}, "call 1")
        assert [entry["what"] for entry in new.read()] == ["a"]


def test_a_torn_line_is_dropped_and_a_damaged_one_refused(tmp_path):
    """A kill tears only the last line; other damage would go unnoticed."""
    with TermJournal.open(tmp_path) as journal:
        journal.append({"what": "a"})
    path = tmp_path / "term-1.jsonl"
    path.write_bytes(path.read_bytes() + b'{"what": ')
    with TermJournal.open(tmp_path) as journal:
        assert journal.read() == [{"what": "a"}]
    path.write_bytes(path.read_bytes().replace(b'"a"}', b'"a"'))
    with pytest.raises(UserError, match=r"term-1\.jsonl is damaged in line 2"):
        TermJournal.open(tmp_path)


@pytest.mark.parametrize("line", [b"[]", b"7", b"{}", b'{"counts": 3}', b'{"counts": {"1": "x"}}'])
def test_a_damaged_first_line_is_refused(tmp_path, line):
    """The restart of a run would end in a TypeError inside the Control actor."""
    with TermJournal.open(tmp_path) as journal:
        journal.append({"what": "a"})
    path = tmp_path / "term-1.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes().partition(b"\n")[2])
    with pytest.raises(UserError, match=r"term-1\.jsonl is damaged in line 1"):
        TermJournal.open(tmp_path)


def test_a_term_without_a_first_line_hides_no_entries(tmp_path):
    """A Control may be killed between the creation of its file and the first line."""
    with TermJournal.open(tmp_path) as journal:
        journal.append({"what": "a"})
    (tmp_path / "term-2.jsonl").touch()
    with TermJournal.open(tmp_path) as journal:
        assert journal.term == 3 and journal.read() == [{"what": "a"}]


def test_an_unwritable_folder_is_named(tmp_path):
    """The user would not know which disk is full."""
    (tmp_path / "journal").write_text("a file")
    with pytest.raises(UserError, match="journal"):
        TermJournal.open(tmp_path / "journal")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), max_size=25))
def test_no_order_of_events_shows_two_readers_different_entries(tmp_path_factory, events):
    """FencedError processes may write at any moment: every reading must extend the one before."""
    folder = tmp_path_factory.mktemp("journal")
    journals, before = [TermJournal.open(folder)], []
    for what, number, torn in events:
        journal = journals[number % len(journals)]
        if what == 0:
            journals.append(TermJournal.open(folder))
        elif what == 1 and journal is not journals[-1]:
            with pytest.raises(FencedError):
                journal.append({"lost": number})
            # A write that was under way when the term ended still reaches the disk.
            with (folder / f"term-{journal.term}.jsonl").open("ab") as file:
                file.write(json.dumps({"lost": number}).encode() + (b"" if torn else b"\n"))
        else:
            journals[-1].append({"number": number}, f"call {number}" if what == 2 else None)
        now = journals[number % len(journals)].read()
        assert now[: len(before)] == before
        assert not any("lost" in entry for entry in now)
        before = now
    for journal in journals:
        with journal:
            pass
