"""Start of a run, and memory of its processes: `python -m tests.bench.start --checkouts . ../old`.

    none, local   seconds from the command to the first finished step, with threads and with Ray
    reader        seconds of a reader in a new process, until it can crop
    isolated      seconds of the process that isolates decoder crashes, from within a reader

The checkouts take turns, since other work on the machine changes by the minute: only figures of one
call compare. Memory and CPU seconds are those of each process at the first step: RSS counts shared
pages in every process, PSS shares them out.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import tyro

from tests.bench.made_shards import shards_or_made

Part = Literal["none", "local", "reader"]

_MIB = 1 << 20
_MADE_IMAGES, _MADE_SIDE = 2000, 48
_PATIENCE = 300.0
# Libraries that neither readers nor Control need.
_HEAVY = ("torch", "timm", "torchvision", "faiss", "plotly", "pandas", "scipy", "tyro", "rich")

# Runs in each checkout. A Ray of one core: the first reader takes the worker that Ray has started
# ahead, the second one needs a new process.
_READER = """
import functools, importlib, json, os, sys, time

def first(*places):
    # What a checkout has at one of these places, the newest first.
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    print("CANNOT none of", *places)
    sys.exit()

import ray
ray_session = first("cluster.driver.ray_session:ray_session", "cluster.session:ray_session")
Reader = first("cluster.readers.reader_actor:Reader", "cluster.readers:Reader")
CropJob = first("shards.crops.sample_cropper:CropJob", "shards.cropper:CropJob")
AdmissionConfig = first(
    "shards.samples.admission_config:AdmissionConfig", "shards.admission:AdmissionConfig"
)
build_engine = first("streamssl.runs.crop_job:build_engine", "streamssl.opening:build_engine")
RECIPES = first("streamssl.recipes:RECIPES")
# Found here, where a failure can still be told, and imported by the actor.
isolation = first(
    "shards.crops.isolated_process:IsolatedProcess", "shards.isolation:Isolation"
).__module__
images = first(
    "shards.samples.synthetic_images:encode_jpeg", "shards.synthetic:encode_jpeg"
).__module__

config = RECIPES["swav-small"]()
job = CropJob(
    recipe=config.crops, seed=0, admission=AdmissionConfig(), build_engine=build_engine(config)
)

def look(heavy):
    import psutil
    used = psutil.Process().memory_full_info()
    names = {name.partition(".")[0] for name in sys.modules}
    cpu = time.process_time()
    heavy = sorted(names & set(heavy))
    return {"rss": used.rss, "pss": used.pss, "cpu_seconds": cpu, "heavy": heavy}

def isolate(actor, isolation, images):
    import importlib
    from shards.records import Sample
    import psutil
    images, isolation = map(importlib.import_module, (images, isolation))
    make = getattr(images, "make_image", None) or images.make_picture
    begin = getattr(isolation, "IsolatedProcess", None) or isolation.Isolation
    sample = Sample(0, 0, "a", {"jpg": images.encode_jpeg(make(0, 0, 0, 64))})
    began = time.monotonic()
    with begin(actor._job) as process:
        process.crop([sample], 0)
        seconds = time.monotonic() - began
        # The server of forks, the child that it made, and the tracker of resources: the largest.
        family = psutil.Process().children(recursive=True)
        used = max((one.memory_full_info() for one in family), key=lambda one: one.rss)
        cpu = sum(one.cpu_times().user for one in family)
    return {"seconds": seconds, "rss": used.rss, "pss": used.pss, "cpu_seconds": cpu}

with ray_session("local", 1, 64 << 20):
    put = ray.put(job)
    first = Reader.remote("r0", "nobody", put)
    ray.get(first.start.remote())
    began = time.monotonic()
    second = Reader.options(num_cpus=0).remote("r1", "nobody", put)
    ray.get(second.start.remote())
    found = {"seconds": time.monotonic() - began}
    found |= ray.get(second.__ray_call__.remote(lambda _, heavy: look(heavy), sys.argv[1].split()))
    other = ray.get(second.__ray_call__.remote(isolate, isolation, images))
    print("FOUND", json.dumps([found, other]))
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """`shards` None makes 2,000 images first. Each checkout is a folder with the whole project."""

    checkouts: tuple[Path, ...] = (Path(),)
    parts: tuple[Part, ...] = ("none", "local", "reader")
    shards: str | None = None
    recipe: str = "swav-small"
    readers: int = 2
    rounds: int = 3


@dataclass(frozen=True)
class Use:
    """Memory of a process in bytes, and CPU seconds."""

    rss: int
    pss: int
    cpu_seconds: float


@dataclass(frozen=True)
class Figure:
    """Seconds of a start, and what each process used by then."""

    seconds: float
    used: dict[str, Use]
    note: str = ""


def first_step(checkout: Path, options: Options, shards: str, where: str) -> Figure:
    """Start a run, and end it after its first step."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = ["-m", "streamssl.cli", "pretrain", options.recipe, "--data", shards]
        command += ["--out", str(out), "--cluster", where, "--readers", str(options.readers)]
        log = Path(folder) / "log"
        with log.open("w") as file:
            began = time.monotonic()
            process = psutil.Popen(
                [sys.executable, *command], cwd=checkout, env=_variables(checkout), stdout=file,
                stderr=file,
            )  # fmt: skip
            try:
                while not _has_step(out):
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() - began < _PATIENCE, log.read_text()
                    time.sleep(0.02)
                seconds = time.monotonic() - began
                return Figure(seconds, used_by(process))
            finally:
                _end(process)


def _has_step(out: Path) -> bool:
    try:
        return b"\n" in (out / "metrics.jsonl").read_bytes()
    except OSError:
        return False


def used_by(process: psutil.Process) -> dict[str, Use]:
    """Return what a process and its descendants used, by a short name."""
    found: dict[str, Use] = {}
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            memory, cpu = one.memory_full_info(), one.cpu_times()
            name = "driver" if one is process else _name(one.cmdline())
            same = sum(known.partition(" ")[0] == name for known in found)
            use = Use(memory.rss, memory.pss, cpu.user + cpu.system)
            found[f"{name} {same + 1}" if same else name] = use
    return found


def _name(words: list[str]) -> str:
    """Return the name of an actor, or the file that a process of Ray runs."""
    if words and words[0].startswith("ray::"):
        return words[0].removeprefix("ray::").partition(".")[0]
    files = [Path(word).name for word in words if word.endswith(".py") or "/" in word]
    return next((name for name in files if not name.startswith("python")), "other")


def reader(checkout: Path) -> tuple[Figure, Figure] | str:
    """Start a reader in a new process, and in it the process that isolates crashes.

    Return in words why that cannot be done with a checkout whose modules have unknown names.
    """
    done = subprocess.run(
        [sys.executable, "-c", _READER, " ".join(_HEAVY)],
        cwd=checkout, env=_variables(checkout), capture_output=True, text=True, check=False,
        timeout=_PATIENCE,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FOUND ", "CANNOT "))]
    assert lines, done.stderr
    if lines[0].startswith("CANNOT "):
        return lines[0].removeprefix("CANNOT ")
    figures = []
    for name, one in zip(("reader", "isolated"), json.loads(lines[0][6:]), strict=True):
        used = {name: Use(one["rss"], one["pss"], one["cpu_seconds"])}
        figures.append(Figure(one["seconds"], used, " ".join(one.get("heavy", ()))))
    return figures[0], figures[1]


def _variables(checkout: Path) -> dict[str, str]:
    """Return the environment of a command: compiled modules are kept, as in every installation."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(checkout.resolve()), "RAY_USAGE_STATS_ENABLED": "0"}


def _end(process: psutil.Process) -> None:
    """Ask a run to stop, and kill what has not ended after a while."""
    family = [process, *process.children(recursive=True)]
    with suppress(psutil.Error):
        process.terminate()
    _, alive = psutil.wait_procs(family, timeout=60)
    for one in alive:
        with suppress(psutil.Error):
            one.kill()


def main() -> None:
    """Measure in turn; print a line for each start, then medians and memory of each checkout."""
    options = tyro.cli(Options)
    found: dict[tuple[str, str], list[Figure]] = defaultdict(list)
    with shards_or_made(options.shards, _MADE_IMAGES, _MADE_SIDE) as shards:
        for number in range(options.rounds):
            for checkout in options.checkouts:
                for part in options.parts:
                    if part != "reader":
                        figures = {part: first_step(checkout, options, shards, part)}
                    elif isinstance(pair := reader(checkout), str):
                        print(f"round {number + 1}  reader    not measured, {pair}  {checkout}")
                        continue
                    else:
                        figures = dict(zip(("reader", "isolated"), pair, strict=True))
                    for name, figure in figures.items():
                        found[name, str(checkout)].append(figure)
                        print(f"round {number + 1}  {name:<9} {figure.seconds:6.1f} s  {checkout}")
    for (name, checkout), figures in sorted(found.items()):
        seconds = statistics.median(one.seconds for one in figures)
        print(f"\n{name}: {seconds:.1f} s, median of {len(figures)}, {checkout} {figures[-1].note}")
        for process, use in figures[-1].used.items():
            sizes = f"RSS {use.rss / _MIB:6.0f} MiB   PSS {use.pss / _MIB:6.0f} MiB"
            print(f"    {process:<24} {sizes}   CPU {use.cpu_seconds:5.1f} s")


if __name__ == "__main__":
    main()
