"""The journal of a run: one writer at a time, the same entries for whoever reads."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.control.fencing import FencedError, TermJournal, newest_term
from shards.errors import UserError


def test_a_newer_term_fences_the_older_one(tmp_path):
    """Two Controls would decide two things."""
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


def test_a_call_that_is_repeated_is_written_once(tmp_path):
    """Calls are answered at least once; also across a change of terms."""
    with TermJournal.open(tmp_path) as old:
        assert old.append({"what": "a"}, "call 1")
        assert not old.append({"what": "a"}, "call 1")
    with TermJournal.open(tmp_path) as new:
        assert not new.append({"what": "a"}, "call 1")
        assert [entry["what"] for entry in new.read()] == ["a"]


def test_a_line_that_was_torn_is_dropped_and_a_damaged_one_refused(tmp_path):
    """A kill tears the last line only; anything else is a damaged disk."""
    with TermJournal.open(tmp_path) as journal:
        journal.append({"what": "a"})
    path = tmp_path / "term-1.jsonl"
    path.write_bytes(path.read_bytes() + b'{"what": ')
    with TermJournal.open(tmp_path) as journal:
        assert journal.read() == [{"what": "a"}]
    path.write_bytes(path.read_bytes().replace(b'"a"}', b'"a"'))
    with pytest.raises(UserError, match=r"term-1\.jsonl is damaged in line 2"):
        TermJournal.open(tmp_path)


def test_a_term_that_died_before_its_first_line_is_no_term_of_entries(tmp_path):
    """A kill between making the file and writing to it."""
    with TermJournal.open(tmp_path) as journal:
        journal.append({"what": "a"})
    (tmp_path / "term-2.jsonl").touch()
    with TermJournal.open(tmp_path) as journal:
        assert journal.term == 3 and journal.read() == [{"what": "a"}]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    """The user must learn which disk is full."""
    (tmp_path / "journal").write_text("a file")
    with pytest.raises(UserError, match="journal"):
        TermJournal.open(tmp_path / "journal")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), max_size=25))
def test_in_any_order_of_events_nobody_reads_what_another_did_not(tmp_path_factory, events):
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
            # What it had under way when it was fenced reaches the disk all the same.
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
