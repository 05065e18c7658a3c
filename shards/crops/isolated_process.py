"""Crop samples one by one in a child process, so that a decoder crash costs one image.

Decoders are C code that runs on untrusted data. A chunk that crashed a process is cropped here. An
image that crashes the child, hangs it or exhausts its memory is rejected as `kills_decoder`, and
the digest of its bytes goes to quarantine.
"""

import atexit
import faulthandler
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np

from shards.crops.engine import use_one_core
from shards.crops.sample_cropper import (
    CropJob,
    CroppedSamples,
    SampleCropper,
    image_digest,
    no_crops,
)
from shards.errors import DecoderLost
from shards.records import Reject, Sample
from shards.samples.admission import reject
from shards.stop_signals import ignore_stop_signals, stop_signals_blocked

# The largest image that admission accepts takes a few seconds.
_SECONDS_PER_SAMPLE: Final = 60.0
# A new process imports the engine first.
_SECONDS_TO_START: Final = 180.0
_SECONDS_OF_GRACE: Final = 10.0
# An image is rejected after this many crashes: a single one may be due to a machine without
# memory, or to a signal that was sent to all processes of a run.
_TRIALS: Final = 2
# Memory limit of a child, on top of its size at the start. A pixel is decoded to three bytes, and
# no step of an engine holds ten copies.
_MEMORY_BYTES: Final = 4 << 30
_BYTES_PER_PIXEL: Final = 32


class IsolatedProcess:
    """A child process that crops, restarted after every crash. Use as a context.

    `crop` returns the same as `SampleCropper.crop`, except for images that crash the child or take
    longer than `seconds_per_sample`. Raises DecoderLost if a child dies before its first image.
    """

    def __init__(self, job: CropJob, seconds_per_sample: float = _SECONDS_PER_SAMPLE) -> None:
        self._job = replace(job, subset=None)  # the caller has selected the samples
        self._seconds = seconds_per_sample
        self._child: _DecoderChild | None = None

    def crop(self, samples: Sequence[Sample], epoch: int) -> CroppedSamples:
        """Return every sample as a row of crops or as a reject."""
        rows = [no_crops(self._job)]
        labels = [np.empty(0, np.int64)]
        rejects: list[Reject] = []
        deaths: dict[str, str] = {}
        for sample in samples:
            digest = image_digest(sample, self._job.admission)
            answer = deaths.get(digest) or self._crop_one(sample, epoch)
            if isinstance(answer, CroppedSamples):
                rows.append(answer.crops)
                if answer.labels is not None:
                    labels.append(answer.labels)
                rejects += answer.rejects
            else:
                deaths[digest] = answer
                rejects.append(reject(sample, self._job.admission, "kills_decoder", answer))
        crops = tuple(np.concatenate(group) for group in zip(*rows, strict=True))
        rows_of_labels = np.concatenate(labels) if self._job.label else None
        return CroppedSamples(crops, tuple(rejects), tuple(deaths), rows_of_labels)

    def _crop_one(self, sample: Sample, epoch: int) -> CroppedSamples | str:
        """Return the crops of a sample, or the cause of the last crash."""
        answer: CroppedSamples | str = ""
        for _ in range(_TRIALS):
            if self._child is None:
                self._child = _DecoderChild(self._job, self._seconds)
            answer = self._child.crop(sample, epoch)
            if isinstance(answer, CroppedSamples):
                return answer
            self._child = None
        return answer

    def __enter__(self) -> "IsolatedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.end()


class _DecoderChild:
    """The parent's handle of one child process."""

    def __init__(self, job: CropJob, seconds: float) -> None:
        # A fork of this process would copy locks of threads that do not run in the child. The fork
        # server imports the engine once, so a restart takes milliseconds.
        context = multiprocessing.get_context("forkserver")
        build = getattr(job.build_engine, "func", job.build_engine)  # of a partial
        context.set_forkserver_preload(["__main__", __name__, build.__module__])
        self._pipe, theirs = context.Pipe()
        self._seconds = seconds
        self._process = context.Process(
            target=_serve, args=(theirs, job, seconds), name="isolated-crops", daemon=True
        )
        with stop_signals_blocked():  # the fork server starts here, too
            self._process.start()
        # A child that its caller did not end: at the exit multiprocessing sends SIGTERM to it, and
        # waits for ever.
        atexit.register(self._process.kill)
        theirs.close()  # so that the pipe ends when the child ends
        answer = self._receive(_SECONDS_TO_START)
        if isinstance(answer, str):
            raise DecoderLost(
                f"the process that isolates decoder crashes could not start: it {answer}; it must "
                "crop a plain image first: check the engine and the memory of this machine"
            )

    def crop(self, sample: Sample, epoch: int) -> CroppedSamples | str:
        """Return the crops of a sample, or the cause of the crash."""
        try:
            self._pipe.send((sample, epoch))
        except OSError:
            return self.end()
        return self._receive(self._seconds)

    def _receive(self, seconds: float) -> CroppedSamples | str:
        began = time.monotonic()
        try:
            answer = self._pipe.recv() if self._pipe.poll(seconds + _SECONDS_OF_GRACE) else None
        except (EOFError, OSError):
            answer = None
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, CroppedSamples):
            return answer
        death = self.end()
        over = time.monotonic() - began >= seconds
        return f"took more than {seconds:g} s" if over else death

    def end(self) -> str:
        """End the process; return the cause of its end."""
        self._pipe.close()
        atexit.unregister(self._process.kill)
        self._process.join(0 if self._process.exitcode is not None else 1)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        code = self._process.exitcode
        assert code is not None
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"left with status {code}"


def _serve(pipe: Connection, job: CropJob, seconds: float) -> None:
    """Send `CroppedSamples` for every sample until the parent closes the pipe."""
    ignore_stop_signals()  # the parent handles Ctrl-C of a terminal
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    use_one_core()
    nowhere = open(os.devnull, "w")  # noqa: SIM115 - open for as long as the process lives
    try:
        cropper = SampleCropper(job)
        _limit_memory(job)
        if not cropper.try_out():
            raise DecoderLost(
                "the engine cannot crop a plain image, so it would reject all images; check its "
                "installation"
            )
        pipe.send(CroppedSamples((), ()))
        while True:
            sample, epoch = pipe.recv()
            # A watchdog that works without the interpreter lock, and without the parent.
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            outcome = cropper.crop([sample], epoch)
            faulthandler.cancel_dump_traceback_later()
            pipe.send(outcome)
    except (EOFError, ConnectionError):  # the parent has ended
        return
    except MemoryError:
        raise  # the exit of this process reports it
    except Exception as error:  # a bug of this code: the parent raises it
        pipe.send(error)


def _limit_memory(job: CropJob) -> None:
    """Limit the memory that one image can take."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = max(_MEMORY_BYTES, _BYTES_PER_PIXEL * job.admission.max_pixels)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + room
    if hard_limit == resource.RLIM_INFINITY or limit < hard_limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard_limit))
