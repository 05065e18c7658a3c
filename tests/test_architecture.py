"""What must never bend: planes import downward, nothing goes in circles, fences hold."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLANES = ("shards", "cluster", "streamssl")
# Each plane may import itself and those before it in PLANES.
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 80


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(path for plane in PLANES for path in (ROOT / plane).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MODULES = {module_name(path) for path in FILES}

# What may be imported in which files only; patterns are of paths from the root.
FENCES = {
    "ray": r"cluster/.*",
    "prometheus_client": r"cluster/metrics/exposition\.py",
    "plotly": r"cluster/live/serving\.py",
    "grafana_foundation_sdk": r"cluster/metrics/dashboards\.py",
    "fsspec": r"shards/stores/.*",
    "s3fs": r"shards/stores/.*",
    "gcsfs": r"shards/stores/.*",
    "adlfs": r"shards/stores/.*",
    "boto3": r"shards/stores/.*",
    "botocore": r"shards/stores/.*",
    "aiohttp": r"shards/stores/.*",
    "requests": r"shards/stores/.*",
    "nvidia": r"shards/crops/dali\.py",
    "torch": r"(shards/crops|cluster|streamssl)/.*",
    "argparse": r".*/cli\.py",
    "importlib": r"(?!)",
    "pickle": r"(?!)",
    "subprocess": r"cluster/monitor\.py",
}


def imported(tree):
    """Dotted names of everything that a file imports, with the node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node


def own_module(name):
    """The module of ours that an imported name lies in, if it does."""
    while name:
        if name in MODULES:
            return name
        name = name.rpartition(".")[0]
    return None


GRAPH = {
    module_name(path): {own_module(name) for name, _ in imported(tree)} - {None}
    for path, tree in TREES.items()
}


def where(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def test_planes_import_downward_only():
    """The data plane would need a cluster, the cluster a method of learning."""
    upward = [
        f"{module} -> {other}"
        for module, others in GRAPH.items()
        for other in others
        if PLANES.index(other.partition(".")[0]) > PLANES.index(module.partition(".")[0])
    ]
    assert upward == []


def test_no_imports_go_in_a_circle():
    """Of a circle, no file can be read, or tested, alone."""
    graph = {module: others - {module} for module, others in GRAPH.items()}
    while free := [module for module, others in graph.items() if not others & set(graph)]:
        for module in free:
            del graph[module]
    assert graph == {}


@pytest.mark.parametrize("library", FENCES)
def test_a_library_is_known_only_behind_its_fence(library):
    """What everybody imports, nobody can replace."""
    outside = [
        where(path, node)
        for path, tree in TREES.items()
        for name, node in imported(tree)
        if name.split(".")[0] == library
        and not re.fullmatch(FENCES[library], path.relative_to(ROOT).as_posix())
    ]
    assert outside == []


def test_imports_stand_at_the_top_of_a_file():
    """An import inside a function is a circle in hiding."""
    inside = [
        where(path, node)
        for path, tree in TREES.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for _, node in imported(function)
    ]
    assert inside == []


def test_the_environment_and_the_arguments_are_read_in_command_lines_only():
    """A setting from nowhere cannot be tested, and is in no saved config."""
    forbidden = {("os", "environ"), ("os", "getenv"), ("os", "putenv"), ("sys", "argv")}
    found = [
        where(path, node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in forbidden
        and path.name != "cli.py"
    ]
    assert found == []


def test_nothing_is_evaluated_or_run_from_a_string():
    """Names in data must never become code."""
    found = [
        where(path, node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "__import__"))
            or (isinstance(node.func, ast.Attribute) and node.func.attr in ("system", "popen"))
        )
    ]
    assert found == []


def test_only_command_lines_print():
    """A library that prints cannot be used in another program."""
    found = [
        where(path, node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and path.name not in ("cli.py", "demo.py")
    ]
    assert found == []


def test_files_and_functions_fit_in_one_sitting():
    """Nothing grows beyond reading by one reasonable change at a time."""
    long = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for path in FILES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES
    ]
    long += [
        f"{where(path, node)} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def test_every_file_says_what_it_is_for():
    """The first line is the table of contents."""
    silent = [
        str(path.relative_to(ROOT))
        for path, tree in TREES.items()
        if tree.body and not ast.get_docstring(tree)
    ]
    assert silent == []


def test_every_import_is_a_stated_dependency():
    """What happens to be installed here is missing there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = {re.split(r"[^a-z0-9-]", line)[0] for line in project["dependencies"]}
    assert any("grafana-foundation-sdk" in one for one in project["optional-dependencies"]["dev"])
    names = {"faiss": "faiss-cpu", "cv2": "opencv-python-headless", "PIL": "pillow",
             "nvidia": "nvidia-dali-cuda130"}  # fmt: skip
    used = {
        name.split(".")[0]
        for tree in TREES.values()
        for name, _ in imported(tree)
        if name.split(".")[0] not in (*PLANES, *sys.stdlib_module_names)
    } - {"grafana_foundation_sdk"}  # what writes the dashboards; runs do without
    missing = {
        name for name in used if names.get(name, name.replace("_", "-").lower()) not in stated
    }
    assert missing == set()


def test_the_version_is_that_of_the_changelog():
    """A release would be described under another name."""
    changelog = ROOT / "CHANGELOG.md"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    entry = re.search(r"^## \[?v?(\d+\.\d+\.\d+)", changelog.read_text(), re.MULTILINE)
    assert entry is not None and entry[1] == version


def test_the_documents_name_the_chores_that_exist():
    """The first command that a newcomer types must not be `No rule to make target`."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        document.name: set(re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(), re.MULTILINE))
        for document in ROOT.glob("*.md")
    }
    assert {name: found - targets for name, found in named.items() if found - targets} == {}
    chores = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    assert len(chores) > 5 and [chore for chore in chores if f"make {chore}" not in readme] == []


@pytest.mark.parametrize("plane", PLANES)
def test_the_map_of_a_plane_names_every_file(plane):
    """A file that is on no map is found by accident."""
    text = (ROOT / plane / "README.md").read_text()
    files = [path.relative_to(ROOT / plane) for path in (ROOT / plane).rglob("*.py")]
    known = {name for name in files if name.name in text or f"\n{name.parent.name}/" in text}
    assert {str(name) for name in files if name.name != "__init__.py"} <= {*map(str, known)}
