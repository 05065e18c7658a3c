"""One loader in its own process: `python -m tests.bench.peering.child TASK LOADER JOB`.

convert   write the shards in the loader's own format
speed     images per second after a warm-up, and the time to the first batch
deliver   log one epoch batch by batch, and save the state of the loader in a file
"""

import importlib
import importlib.metadata
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.peering.work import Job, use_one_core


def speed(loader: Any, began: float, options: dict[str, Any]) -> dict[str, float]:
    """Measure images per second after a warm-up, across epochs."""
    batches = _endless(loader)
    first, _ = next(batches)
    first_batch_seconds = time.monotonic() - began
    warm = len(first)
    while warm < options["warm_up"]:
        warm += len(next(batches)[0])
    start, count = time.monotonic(), 0
    while count < options["images"]:
        count += len(next(batches)[0])
    seconds = time.monotonic() - start
    return {"first_batch_seconds": first_batch_seconds, "images_per_second": count / seconds}


def deliver(loader: Any, options: dict[str, Any]) -> dict[str, int]:
    """Log every batch, then save the state that follows it, which commits the batch."""
    state, count = Path(options["state"]), 0
    if options["resume"] and state.exists():
        loader.load(json.loads(state.read_text())["state"])
    with open(options["log"], "a") as log:
        for number, (names, _) in enumerate(loader.epoch(), start=1):
            log.write(json.dumps(names) + "\n")
            log.flush()
            draft = state.with_suffix(".draft")
            draft.write_text(json.dumps({"batches": number, "state": loader.state()}))
            os.replace(draft, state)
            count += len(names)
            time.sleep(options["step_seconds"])
    return {"images": count}


def _endless(loader: Any) -> Iterator[Any]:
    if hasattr(loader, "endless"):
        return iter(loader.endless())
    return itertools.chain.from_iterable(loader.epoch() for _ in itertools.count())


def main() -> None:
    """Do one task and print what came of it as the last line."""
    task, name, text = sys.argv[1:]
    options = json.loads(text)
    module = importlib.import_module(f"tests.bench.peering.{name}")
    use_one_core()
    job = Job(**{**options.pop("job"), "ordered": task == "deliver"})
    began = time.monotonic()
    if task == "convert":
        module.convert(job)
        found: dict[str, Any] = {"seconds": time.monotonic() - began}
    elif task == "speed":
        found = speed(module.Loader(job), began, options)
    else:
        found = dict(deliver(module.Loader(job), options))
    found |= {"version": importlib.metadata.version(module.PACKAGE), "resume": module.RESUME}
    sys.stdout.write("\n" + json.dumps(found) + "\n")
    sys.stdout.flush()
    # Whatever threads a loader has left behind must not keep the next one waiting.
    os._exit(0)


if __name__ == "__main__":
    main()
