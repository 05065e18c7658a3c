"""Comparison with other loaders: `make bench-peers`, or `python -m tests.bench.peers`.

Every loader does the same work (`peering.work`) with the same number of workers, in its own
process, alternating with the others; medians are shown. Then each is killed with SIGKILL after some
batches and resumes by its documented means; the delivered names are compared with the data. The
order is compared between 1, 2 and 3 workers.
"""

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro

from shards.pack.image_entries import entries_from_synthetic
from shards.pack.pack import PackConfig, pack
from tests.bench.peering.convert import sample_places
from tests.bench.peering.work import Job

OURS = ("threads", "own_engine", "dataset", "readers")
LOADERS = (*OURS, "wds", "stateful", "mosaic", "lit", "raydata")
# Loaders of this project without a mode for bytes.
WITHOUT_BYTES = ("own_engine", "dataset", "readers")
CONVERTED = ("mosaic", "lit")
_MAX_SECONDS = 400


@dataclass(frozen=True, kw_only=True)
class Options:
    """`shards`: a folder of plain tars with .jpg members; None makes 1,200 images of 384 pixels.

    `python` is an interpreter with the peers installed. A loader is killed after `kill_after`
    committed batches, and takes `step_seconds` per batch, like a trainer.
    """

    shards: Path | None = None
    python: Path = Path(".venv-peers/bin/python")
    loaders: tuple[str, ...] = LOADERS
    workers: int = 2
    times: int = 3
    warm_up: int = 512
    images: int = 2048
    kill_after: int = 10
    step_seconds: float = 0.05
    json: bool = False


class Run:
    """Process of a loader: its result, and the peak memory of its process tree."""

    def __init__(self, options: Options, task: str, name: str, fields: dict[str, Any]) -> None:
        command = [str(options.python.absolute()), "-m", "tests.bench.peering.child"]
        # Files, not pipes: a worker that outlives its parent would keep a pipe open.
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [*command, task, name, json.dumps(fields)],
            stdout=self._output,
            stderr=self._errors,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.peak_bytes = 0
        self._seen: set[psutil.Process] = set()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def result(self) -> dict[str, Any]:
        """Return the last line that the process printed. Raises RuntimeError with its errors."""
        try:
            self.process.wait(_MAX_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"no result after {_MAX_SECONDS} s; {self._last_errors()}") from None
        self._end()
        if self.process.returncode:
            raise RuntimeError(f"exit status {self.process.returncode}; {self._last_errors()}")
        self._output.seek(0)
        return dict(json.loads(self._output.read().strip().rpartition("\n")[2]))

    def kill(self) -> None:
        """Kill the process and its workers at once, as a lost machine would."""
        self._seen.update(_tree(self.process.pid))
        self.process.kill()
        self.process.wait()
        self._end()

    def _end(self) -> None:
        """Kill workers that outlive their parent, or they would disturb the next run."""
        self._done.set()
        self._watcher.join()
        for process in psutil.process_iter():
            try:
                if process in self._seen or os.getsid(process.pid) == self.process.pid:
                    process.kill()
            except (psutil.Error, OSError):
                continue

    def _last_errors(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return " | ".join(lines[-3:])

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self._seen.update(_tree(self.process.pid))
            self.peak_bytes = max(self.peak_bytes, _tree_bytes(self.process.pid))


def _tree(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _tree_bytes(pid: int) -> int:
    """Return the memory of a process tree; shared pages count once."""
    total = 0
    try:
        processes = [psutil.Process(pid), *_tree(pid)]
    except psutil.Error:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


class Bench:
    """Measurements of all loaders on one folder of shards."""

    def __init__(self, options: Options, folder: Path, scratch: Path) -> None:
        self.options, self.folder, self.scratch = options, folder, scratch
        self.places = sample_places(folder)
        self.names = list(self.places.values())
        assert len(set(self.names)) == len(self.names), "names of samples must be unique"
        self.results: dict[str, dict[str, Any]] = {name: {} for name in options.loaders}

    def run(self) -> None:
        """Measure everything; a failing loader gives a row with its errors."""
        for step in (self._convert, self._speeds, self._kills, self._orders):
            step()

    def _job(self, name: str, **changes: Any) -> dict[str, Any]:
        job = Job(
            folder=str(self.folder),
            converted=str(self.scratch / name),
            mode=changes.get("mode", "crop"),
            workers=changes.get("workers", self.options.workers),
        )
        return asdict(job)

    def _try(self, name: str, task: str, fields: dict[str, Any]) -> tuple[dict[str, Any], int]:
        run = Run(self.options, task, name, fields)
        try:
            return run.result(), run.peak_bytes
        except RuntimeError as error:
            self.results[name].setdefault("errors", []).append(f"{task}: {error}")
            return {}, 0

    def _convert(self) -> None:
        for name in set(CONVERTED) & set(self.options.loaders):
            found, _ = self._try(name, "convert", {"job": self._job(name)})
            self.results[name]["convert_seconds"] = found.get("seconds")

    def _speeds(self) -> None:
        warm_up, images = self.options.warm_up, self.options.images
        readings: dict[str, list[float]] = {}
        for _ in range(self.options.times):  # alternating, so that a busy minute affects all
            for name in self.options.loaders:
                for mode in ("crop",) if name in WITHOUT_BYTES else ("crop", "bytes"):
                    # Bytes take little time, so more of them are measured.
                    times = 1 if mode == "crop" else 8
                    fields = {"warm_up": times * warm_up, "images": times * images}
                    job = self._job(name, mode=mode)
                    found, peak = self._try(name, "speed", {"job": job, **fields})
                    if not found:
                        continue
                    self.results[name] |= {k: found[k] for k in ("version", "resume")}
                    for key in ("images_per_second", "first_batch_seconds"):
                        readings.setdefault(f"{name} {mode} {key}", []).append(found[key])
                    readings.setdefault(f"{name} {mode} peak_bytes", []).append(peak)
        for key, values in readings.items():
            name, mode, reading = key.split()
            self.results[name][f"{mode}_{reading}"] = statistics.median(values)
            self.results[name][f"{mode}_{reading}_all"] = values

    def _kills(self) -> None:
        for name in self.options.loaders:
            log, state = self.scratch / f"{name}.log", self.scratch / f"{name}.state"
            fields = {
                "job": self._job(name),
                "log": str(log),
                "state": str(state),
                "step_seconds": self.options.step_seconds,
            }
            run = Run(self.options, "deliver", name, {**fields, "resume": False})
            deadline = time.monotonic() + _MAX_SECONDS
            while len(_read(log)) < self.options.kill_after and time.monotonic() < deadline:
                if run.process.poll() is not None:
                    break
                time.sleep(0.02)
            run.kill()
            committed = self._committed(log, state)
            if not committed:
                self.results[name].setdefault("errors", []).append("nothing was delivered")
                continue
            for key, workers in (("", 0), ("_one_more", 1)):
                again, copy = self.scratch / f"{name}{key}.log", self.scratch / f"{name}{key}.copy"
                again.unlink(missing_ok=True)
                shutil.copyfile(state, copy)
                job = self._job(name, workers=self.options.workers + workers)
                changes = {"log": str(again), "state": str(copy), "resume": True, "step_seconds": 0}
                found, _ = self._try(name, "deliver", {**fields, **changes, "job": job})
                account = self._account(committed, _read(again)) if found else {"lost": "fails"}
                self.results[name] |= {f"{what}{key}": n for what, n in account.items()}

    def _committed(self, log: Path, state: Path) -> list[list[str]]:
        """Return the batches up to the saved state; the log may have one more."""
        saved = json.loads(state.read_text())["batches"] if state.exists() else 0
        return _read(log)[:saved]

    def _account(self, committed: list[list[str]], after: list[list[str]]) -> dict[str, Any]:
        """Count lost and repeated samples of one epoch, over both processes."""
        counts = Counter(
            self.places.get(name, name) for batch in [*committed, *after] for name in batch
        )
        return {
            "committed": sum(map(len, committed)),
            "delivered_after": sum(map(len, after)),
            "lost": sum(counts[name] == 0 for name in self.names),
            "repeated": sum(count - 1 for count in counts.values() if count > 1),
        }

    def _orders(self) -> None:
        for name in self.options.loaders:
            orders = []
            for index, workers in enumerate((1, 2, 3, self.options.workers)):
                log = self.scratch / f"{name}-{index}.order"
                fields = {"log": str(log), "state": str(log.with_suffix(".state"))}
                mode = "crop" if name in WITHOUT_BYTES else "bytes"
                job = self._job(name, workers=workers, mode=mode)
                self._try(
                    name, "deliver", {"job": job, **fields, "resume": False, "step_seconds": 0}
                )
                orders.append([self.places.get(n, n) for batch in _read(log) for n in batch])
            whole = [sorted(order) == sorted(self.names) for order in orders]
            self.results[name] |= {
                "same_order": all(order == orders[0] for order in orders[:3]) and all(whole),
                "same_again": orders[1] == orders[3] and bool(orders[1]),
                "epoch_complete": all(whole),
            }


def _read(log: Path) -> list[list[str]]:
    """Return the whole lines of a log: the committed batches."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [json.loads(line) for line in lines]


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    head = (
        *("loader", "version", "conversion", "crops/s", "bytes/s", "first batch", "memory"),
        *("after SIGKILL: lost / repeated", "resumed with one more worker: lost / repeated"),
        *("same order, 1/2/3 workers", "same order again"),
    )
    rows = [head, ("---",) * len(head)]
    for name, found in results.items():
        rows.append(
            (
                name,
                str(found.get("version", "-")),
                _number(found.get("convert_seconds"), "{:.1f} s", "none needed"),
                _number(found.get("crop_images_per_second"), "{:.0f}"),
                _number(found.get("bytes_images_per_second"), "{:.0f}"),
                _number(found.get("crop_first_batch_seconds"), "{:.2f} s"),
                _number(found.get("crop_peak_bytes"), "{:,.0f} MB", scale=1e-6),
                *(
                    f"{found.get(f'lost{key}', '-')} / {found.get(f'repeated{key}', '-')}"
                    for key in ("", "_one_more")
                ),
                "yes" if found.get("same_order") else "no",
                "yes" if found.get("same_again") else "no",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float | None, form: str, none: str = "-", scale: float = 1.0) -> str:
    return none if value is None else form.format(value * scale)


def main() -> None:
    """Measure once; print the table, then the problems of single loaders."""
    options = tyro.cli(Options)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.shards
        if folder is None:
            folder = Path(scratch) / "made"
            pack(entries_from_synthetic(1200, size=384), folder, PackConfig(samples_per_shard=100))
        bench = Bench(options, folder.absolute(), Path(scratch))
        bench.run()
    if options.json:
        print(json.dumps(bench.results, indent=1))
    print(table(bench.results))
    for name, found in bench.results.items():
        print(
            f"{name}: resume: {found.get('resume')}; committed {found.get('committed')}, "
            f"after {found.get('delivered_after')}; epoch complete: {found.get('epoch_complete')}"
        )
        for error in found.get("errors", []):
            print(f"{name}: {error}")


if __name__ == "__main__":
    main()
