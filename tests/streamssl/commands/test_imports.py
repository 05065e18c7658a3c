"""Imports of each command: a command must not wait for the libraries of another."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

# Libraries whose import takes long.
HEAVY = {
    *("torch", "torchvision", "timm", "ray", "faiss", "plotly", "prometheus_client", "pandas"),
    *("pyarrow", "fsspec", "aiohttp", "cv2", "PIL", "numpy", "pydantic"),
}
OPTIONS = {"numpy", "pydantic", "PIL"}
SHARDS = {"pyarrow", "numpy", "cv2", "PIL", "fsspec", "aiohttp"}

# Heavy libraries that commands may import. DATA is a folder of shards, OUT a new folder. Commands
# of one row run in one process: each must also work without the libraries of the others.
ALLOWED = [
    (
        (
            *("--help", "evaluate knn --help", "demo --help", "status --help", "status DATA"),
            *("drill hang --help", "drill hang DATA", "monitor --help", "monitor"),
        ),
        set(),
    ),
    (("recipes", "pretrain --help", "pretrain swav-small --help"), OPTIONS),
    (("shards pack DATA OUT", "shards verify DATA", "shards stats DATA"), SHARDS),
    (("shards view DATA --out OUT.html",), SHARDS | OPTIONS),
    (("live DATA",), SHARDS | OPTIONS | {"plotly", "prometheus_client"}),
]
SCRIPT = """
import json, sys
from streamssl.cli import main
for command in sys.argv[1:]:
    try:
        code = main(command.split())
    except SystemExit as left:
        code = left.code or 0
    loaded = sorted({name.partition(".")[0] for name in sys.modules})
    print()
    print("LOADED", json.dumps([command, code, loaded]))
"""


def test_a_command_imports_only_its_own_libraries(synthetic_shards, tmp_path):
    """Torch, timm and Ray took 12 s and 1.25 GB before the first line of `--help`."""

    def unwanted(row):
        commands, allowed = row
        words = {"DATA": str(synthetic_shards), "OUT": str(tmp_path / "out")}
        for name, path in words.items():
            commands = [command.replace(name, path) for command in commands]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *commands],
            capture_output=True,
            text=True,
            timeout=55,
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("LOADED ")]
        assert len(lines) == len(commands), done.stderr
        for line in lines:
            command, code, loaded = json.loads(line.removeprefix("LOADED "))
            assert code in (0, 2), done.stderr
            if heavy := HEAVY & set(loaded) - allowed:
                return {command: heavy}
        return {}

    with ThreadPoolExecutor(2) as pool:
        assert [found for found in pool.map(unwanted, ALLOWED) if found] == []
