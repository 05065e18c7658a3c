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

# Command line -> heavy libraries that it may import. DATA is a folder of shards.
ALLOWED = {
    "--help": set(),
    "recipes": OPTIONS,
    "pretrain --help": OPTIONS,
    "pretrain swav-small --help": OPTIONS,
    "evaluate knn --help": set(),
    "status --help": set(),
    "status DATA": set(),
    "drill hang DATA": set(),
    "monitor": set(),
    "live DATA": SHARDS | OPTIONS | {"plotly", "prometheus_client"},
    "demo --help": set(),
    "shards pack DATA OUT": SHARDS,
    "shards verify DATA": SHARDS,
    "shards stats DATA": SHARDS,
    "shards view DATA --out SHEET.html": SHARDS | OPTIONS,
}
SCRIPT = """
import json, sys
from streamssl.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as left:
    code = left.code or 0
print()
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_a_command_imports_only_its_own_libraries(synthetic_shards, tmp_path):
    """Torch, timm and Ray took 12 s and 1.25 GB before the first line of `--help`."""

    def heavy_imports(command):
        words = [
            word.replace("DATA", str(synthetic_shards))
            .replace("OUT", str(tmp_path / "out"))
            .replace("SHEET", str(tmp_path / "sheet"))
            for word in command.split()
        ]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *words],
            capture_output=True,
            text=True,
            timeout=55,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        code, modules = json.loads(done.stdout.splitlines()[-1])
        assert code in (0, 2), done.stderr
        return HEAVY & set(modules)

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(ALLOWED, pool.map(heavy_imports, ALLOWED), strict=True))
    assert {
        name: found[name] - ALLOWED[name] for name in ALLOWED if found[name] - ALLOWED[name]
    } == {}
