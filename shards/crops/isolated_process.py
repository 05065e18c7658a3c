"""Samples are cropped one by one in a process of their own, so that an image kills no other.

A decoder is C that runs on the data of strangers. Where it took its process along, the chunk is
done here: whatever an image does to the child, crash it, hang it or eat its memory, costs that
image alone, which is rejected as `kills_decoder` and named by the digest of its bytes.
"""

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

# The largest image that admission lets in takes a few seconds.
_SECONDS_PER_SAMPLE: Final = 60.0
# A new process imports the engine first.
_SECONDS_TO_START: Final = 180.0
_SECONDS_OF_GRACE: Final = 10.0
# An image is accused when it was the end of this many children: one may have died of a machine
# without memory, or of a signal to all processes of a run.
_TRIALS: Final = 2
# What a child may take besides what it has when it begins. Pixels are decoded to three bytes, and
# no step of an engine holds them ten times.
_MEMORY_BYTES: Final = 4 << 30
_BYTES_PER_PIXEL: Final = 32


class IsolatedProcess:
    """A child process that crops, and is started again whenever it dies. Use as a context.

    `crop` gives what `SampleCropper.crop` would, had nothing died. A sample may take
    `seconds_per_sample`. Raises DecoderLost when a child dies with no image to blame.
    """

    def __init__(self, job: CropJob, seconds_per_sample: float = _SECONDS_PER_SAMPLE) -> None:
        self._job = replace(job, subset=None)  # samples that come here are selected already
        self._seconds = seconds_per_sample
        self._child: _Child | None = None

    def crop(self, samples: Sequence[Sample], epoch: int) -> CroppedSamples:
        """Every sample as a row of crops or as a reject."""
        rows = [no_crops(self._job)]
        labels = [np.empty(0, np.int64)]
        rejects: list[Reject] = []
        deaths: dict[str, str] = {}
        for sample in samples:
            digest = image_digest(sample)
            answer = deaths.get(digest) or self._crop_one(sample, epoch)
            if isinstance(answer, CroppedSamples):
                rows.append(answer.crops)
                if answer.labels is not None:
                    labels.append(answer.labels)
                rejects += answer.rejects
            else:
                deaths[digest] = answer
                rejects.append(reject(sample, "kills_decoder", answer))
        crops = tuple(np.concatenate(group) for group in zip(*rows, strict=True))
        asked = np.concatenate(labels) if self._job.label else None
        return CroppedSamples(crops, tuple(rejects), tuple(deaths), asked)

    def _crop_one(self, sample: Sample, epoch: int) -> CroppedSamples | str:
        """The crops of a sample, or how children died of it."""
        answer: CroppedSamples | str = ""
        for _ in range(_TRIALS):
            if self._child is None:
                self._child = _Child(self._job, self._seconds)
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


class _Child:
    """One child process, as its parent sees it."""

    def __init__(self, job: CropJob, seconds: float) -> None:
        # Not a fork of this process: that would copy the locks of threads which do not run there.
        # It is forked from a server that imports the engine once, so a new one takes no seconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
        self._pipe, theirs = context.Pipe()
        self._seconds = seconds
        self._process = context.Process(
            target=_serve, args=(theirs, job, seconds), name="isolation", daemon=True
        )
        self._process.start()
        theirs.close()  # so that the end of the child is the end of the pipe
        answer = self._receive(_SECONDS_TO_START)
        if isinstance(answer, str):
            raise DecoderLost(
                f"a process for images that kill decoders could not start: it {answer}; it must "
                "crop a plain image first: look at the engine and the memory of this machine"
            )

    def crop(self, sample: Sample, epoch: int) -> CroppedSamples | str:
        """The crops of a sample, or how the child died of it."""
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
        """Make sure that it is gone; what it died of."""
        self._pipe.close()
        self._process.join(0 if self._process.exitcode is not None else 1)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        code = self._process.exitcode
        assert code is not None
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"left with status {code}"


def _serve(pipe: Connection, job: CropJob, seconds: float) -> None:
    """The child's side: an `CroppedSamples` for every sample, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    use_one_core()
    nowhere = open(os.devnull, "w")  # noqa: SIM115 - open for as long as the process lives
    try:
        cropper = SampleCropper(job)
        _limit_memory(job)
        if not cropper.try_out():
            raise DecoderLost(
                "the engine cannot crop a plain image; it must, or all images would be "
                "rejected: look at its installation"
            )
        pipe.send(CroppedSamples((), ()))
        while True:
            sample, epoch = pipe.recv()
            # A watch that needs no help of the interpreter, nor of a parent that may be gone.
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            outcome = cropper.crop([sample], epoch)
            faulthandler.cancel_dump_traceback_later()
            pipe.send(outcome)
    except (EOFError, BrokenPipeError):
        return
    except MemoryError:
        raise  # of this process: its end is the answer
    except Exception as error:  # a bug of ours: the parent raises it, as if nobody were isolated
        pipe.send(error)


def _limit_memory(job: CropJob) -> None:
    """Let no image take the memory of the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = max(_MEMORY_BYTES, _BYTES_PER_PIXEL * job.admission.max_pixels)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + room
    if most == resource.RLIM_INFINITY or wanted < most:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))
