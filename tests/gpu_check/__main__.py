"""Runs all parts of the check, each in a process of its own: `python -m tests.gpu_check`.

A part prints one line of JSON: its name, `ok`, and its numbers or its error. `ok` is null where a
package or the time is missing, so that the part could not run. A failure does not stop the others;
the exit code is 1 if there was one. This file needs Python alone, the parts need torch, and more.

With `--device cpu` every part runs in seconds on a tiny problem: that tests the program itself.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

# Modules, and the seconds that each may take; the last ones miss the least if time runs out.
PARTS = {
    "device_tests": 90,
    "view_rates": 40,
    "dali_rates": 75,
    "swav_rates": 100,
    "tar_rates": 90,
    "vit_rates": 40,
    "kernel_table": 45,
}
_MIN_SECONDS = 5.0
_CPU_SECONDS = 150  # others may keep the cores busy


def main() -> None:
    """Run the parts, print their lines, and exit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of the whole check")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", help="shards of JPEGs; by default they are made")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that this Python lacks")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(options.device, options.wheels, Path(folder))
        lines = []
        for name in options.only:
            limit = PARTS[name] if options.device == "cuda" else _CPU_SECONDS
            seconds = min(limit, ends - time.monotonic())
            line = {"part": name, **_run(name, seconds, options, environment)}
            lines.append(line)
            print(json.dumps(line), flush=True)
    raise SystemExit(any(line["ok"] is False for line in lines))


def _environment(device: str, wheels: Path | None, folder: Path) -> dict[str, str]:
    """Return the variables of the parts; `wheels` are unpacked into `folder`, not installed."""
    for wheel in sorted(wheels.glob("*.whl")) if wheels else ():
        zipfile.ZipFile(wheel).extractall(folder)
    paths = [str(Path(__file__).parents[2]), str(folder), os.environ.get("PYTHONPATH", "")]
    variables = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    if device == "cpu":
        variables |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return variables


def _run(
    name: str, seconds: float, options: argparse.Namespace, environment: dict[str, str]
) -> dict[str, object]:
    """Run one part; return its line without the name."""
    if seconds < _MIN_SECONDS:
        return {"ok": None, "skipped": f"no time left of {options.minutes} minutes"}
    given = json.dumps({"device": options.device, "data": options.data})
    command = [sys.executable, "-m", "tests.gpu_check.part", name, given]
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=environment, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"ok": False, "error": f"not done after {seconds:.0f} seconds"}
    try:
        result: dict[str, object] = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        return {"ok": False, "error": f"ended with code {process.returncode} and no result"}
    return result | {"seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    main()
