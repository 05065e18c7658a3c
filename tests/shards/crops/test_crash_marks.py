"""CrashMarks: chunks of a crash are known at the next start, others are not."""

import multiprocessing
import os
import signal
import threading

import pytest

from shards.crops.crash_marks import CrashMarks
from shards.records import Chunk

A, B = Chunk(0, 0, 512), Chunk(3, 4096, 8192)


def die_with(path, *chunks):
    """Die as a decoder kills a trainer whose threads hold these chunks."""
    with CrashMarks(path) as marks:
        hold(marks, list(chunks))


def hold(marks, chunks):
    if not chunks:
        os.kill(os.getpid(), signal.SIGKILL)
    with marks.in_hand(chunks[0]):
        hold(marks, chunks[1:])


def crash(path, *chunks):
    process = multiprocessing.get_context("spawn").Process(target=die_with, args=(path, *chunks))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def deaths(path, chunk):
    """Return the crashes of this chunk; the marks stay."""
    marks = CrashMarks(path)
    marks.__enter__()
    with marks.in_hand(chunk) as found:
        return found


def test_crashes_of_a_chunk_are_counted_across_restarts(tmp_path):
    """A chunk that causes crashes could not be told from one that was there by chance."""
    path = tmp_path / "run" / ".crashes"
    crash(path, A, B)
    crash(path, B)
    assert deaths(path, B) == 2
    assert deaths(path, A) == 0


def test_a_normal_end_removes_the_file(tmp_path):
    """Chunks would be suspected after every exception."""
    path = tmp_path / "run" / ".crashes"
    with pytest.raises(KeyboardInterrupt), CrashMarks(path) as marks, marks.in_hand(A) as before:
        assert before == 0 and path.exists()
        raise KeyboardInterrupt
    assert not path.parent.exists()
    path.parent.mkdir()
    with CrashMarks(path):
        (path.parent / "config.toml").touch()
    assert [file.name for file in path.parent.iterdir()] == ["config.toml"]


def test_finished_chunks_are_not_marked(tmp_path):
    """Everything would be cropped slowly after a power cut."""
    path = tmp_path / ".crashes"
    marks = CrashMarks(path)
    marks.__enter__()
    with marks.in_hand(A):
        pass
    with marks.in_hand(B):
        content = path.read_bytes()  # as after a crash
    path.write_bytes(content)
    assert (deaths(path, A), deaths(path, B)) == (0, 0)  # the first start emptied the file
    path.write_bytes(content)
    assert deaths(path, B) == 1


def test_every_thread_has_its_own_line(tmp_path):
    """Threads would overwrite each other, or the file would grow."""
    path = tmp_path / ".crashes"
    with CrashMarks(path) as marks:
        barrier = threading.Barrier(4)

        def work(number):
            for turn in range(50):
                with marks.in_hand(Chunk(number, turn, turn + 1)):
                    pass
            with marks.in_hand(Chunk(number, 7, 8)):
                barrier.wait(20)
                barrier.wait(20)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        barrier.wait(20)
        lines = path.read_text().splitlines()
        barrier.wait(20)
        for thread in threads:
            thread.join()
    assert sorted(line.split() for line in lines) == [[str(n), "7", "0"] for n in range(3)]


def test_a_damaged_file_does_not_prevent_a_start(tmp_path):
    """The marks only help, so they must not stop a run."""
    path = tmp_path / ".crashes"
    path.write_bytes(b"\xff\xfe\n1 2\nx y z\n" + b"3 4096 1\n")
    assert deaths(path, B) == 2
