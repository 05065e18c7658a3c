"""Rules of the house: imports go downward, fences hold, names and sentences are plain."""

import ast
import re
import sys
import tomllib
from collections import Counter, defaultdict

import pytest

from tests.house import (
    FILES,
    PLANES,
    ROOT,
    all_imports,
    circles,
    drawing,
    first_imports,
    folder_graph,
    imported,
    imported_names,
    module_name,
    trees,
)

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 80
MAX_MODULES_IN_A_FOLDER = 15
# Test lines for each source line; more tests are not better tests.
MAX_TEST_RATIO = 0.9

# Libraries that only some files may import; patterns are of paths from the root.
FENCES = {
    "ray": r"cluster/.*",
    "prometheus_client": r"cluster/monitoring/exposition\.py",
    "plotly": r"cluster/monitoring/live/page_files\.py",
    "grafana_foundation_sdk": r"cluster/monitoring/grafana/dashboards\.py",
    "fsspec": r"shards/stores/.*",
    "s3fs": r"shards/stores/.*",
    "gcsfs": r"shards/stores/.*",
    "adlfs": r"shards/stores/.*",
    "boto3": r"shards/stores/.*",
    "botocore": r"shards/stores/.*",
    "aiohttp": r"shards/stores/.*",
    "requests": r"shards/stores/.*",
    "nvidia": r"shards/crops/dali\.py",
    "torch": (
        r"(shards/dataloader/(tensors|crop_dataset|torch_finisher|view_kernel)|cluster/(torch_internals|protocol/learner"
        r"|trainers/\w+))\.py|streamssl/.*"
    ),
    "triton": r"shards/dataloader/(view_kernel|torch_finisher)\.py",
    "argparse": r"(.*/cli|streamssl/commands/argument_parser)\.py",
    "importlib": r"shards/crops/kernel/build\.py",
    "setuptools": r"shards/crops/kernel/build\.py",
    "ctypes": r"shards/crops/kernel/crop_kernel\.py",
    "pickle": r"(?!)",
    "subprocess": r"(cluster/monitoring/prometheus_server|shards/crops/kernel/compile)\.py",
}
# Private APIs of other libraries; an upgrade may remove them, so each has one file.
PRIVATE_APIS = {
    r"ray\._private|ray\._raylet|ray_constants|autoscaler_pb2|ray\.core\.generated": (
        "cluster/ray_internals.py"
    ),
    r"from tyro import _|from tyro\._": "streamssl/commands/argument_parser.py",
    r"_functions\.SyncBatchNorm|import SyncBatchNorm|ProcessGroupGloo\._Options": (
        "cluster/torch_internals.py"
    ),
}
# Modules with which processes begin, and libraries that these must not wait for, nor hold.
TRAINING = {
    *("torch", "timm", "torchvision", "pyarrow", "pydantic", "fsspec", "aiohttp", "faiss"),
    *("plotly", "rich", "tyro", "safetensors", "webdataset"),
}
NOT_LOADED = {
    "cluster.readers.reader_actor": TRAINING,
    "cluster.control.control_actor": TRAINING,
    "shards.crops.isolated_process": TRAINING,
    "streamssl.runs.crop_job": TRAINING,  # in which a reader finds its engine
    "streamssl.pretrain.run": {"ray"},  # with --cluster none
}
# Files that may import inside functions: a command loads what it needs, a store its client.
LATE_IMPORTS = (
    r"(shards/stores/\w+|streamssl/(cli|demo|commands/\w+|pretrain/run_gallery"
    r"|pretrain/run|runs/(crop_job|decode_placement|logs/tensorboard_log)))\.py"
)


def where(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def test_planes_import_downward_only():
    """The data plane would need a cluster, the cluster a method of learning."""
    upward = [
        f"{module} -> {other}"
        for module, others in all_imports().items()
        for other in others
        if PLANES.index(other.partition(".")[0]) > PLANES.index(module.partition(".")[0])
    ]
    assert upward == []


def test_neither_modules_nor_folders_import_in_a_circle():
    """A module or folder on a circle cannot be read or tested alone."""
    assert circles(first_imports()) == {}
    assert circles(folder_graph()) == {}


def test_no_folder_is_a_drawer():
    """A newcomer must be able to guess the folder of a thing, and read its list of files."""
    sizes = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert {str(folder): n for folder, n in sizes.items() if n > MAX_MODULES_IN_A_FOLDER} == {}


def test_file_and_class_names_are_unique():
    """A search for a name must find one thing."""
    names = defaultdict(list)
    for path in FILES:
        if path.name != "__init__.py":
            names[path.relative_to(ROOT).parts[0], path.name].append(path)
    assert {name: found for name, found in names.items() if len(found) > 1} == {}
    bodies = [node for tree in trees().values() for node in tree.body]
    classes = Counter(node.name for node in bodies if isinstance(node, ast.ClassDef))
    assert [name for name, count in classes.items() if count > 1] == []


def test_bounds_are_named_max_and_min():
    """One search must find every bound."""
    found = {
        name
        for path in FILES
        for name in re.findall(r"\b_?(?:most|least|MOST|LEAST)_(?!common\b)\w+", path.read_text())
    }
    assert found == set()


# First words that make a docstring a riddle: it must begin with a verb or a noun.
RIDDLES = {
    *("What", "Who", "Whom", "Whose", "Whether", "Where", "Whoever", "Whatever", "All", "Nothing"),
    *("Those", "That", "Which", "How", "Behind", "Beyond"),
}


def test_docstrings_begin_with_a_verb_or_a_noun():
    """A reader must learn from the first word what kind of thing is described."""
    riddles = []
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = (ast.get_docstring(node) or "").split()
                if words and words[0].rstrip(",.:") in RIDDLES:
                    riddles.append(f"{path.relative_to(ROOT)}: {' '.join(words[:6])}")
    assert riddles == []


def test_every_field_of_a_dataclass_is_read():
    """A field that is only written costs every reader, and a counter that nobody reads is a lie."""
    read = Counter()
    declared = []
    golden = (ROOT / "tests" / "golden_checks").glob("*.py")  # compare intermediate values, too
    readers = {path: ast.parse(path.read_text()) for path in golden}
    for path, tree in {**trees(), **readers}.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read[node.attr] += 1
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read[node.value] += 1
            elif isinstance(node, ast.ClassDef) and any(
                "dataclass" in ast.dump(decorator) for decorator in node.decorator_list
            ):
                declared += [
                    (f"{path.relative_to(ROOT)}: {node.name}.{field.target.id}", field.target.id)
                    for field in node.body
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
                ]
    assert [where for where, name in declared if not read[name]] == []


def test_private_apis_of_other_libraries_have_one_door():
    """An upgrade that removes a private API must break one file."""
    outside = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in (*FILES, *sorted((ROOT / "tests").rglob("*.py")))
        for pattern, door in PRIVATE_APIS.items()
        if path.relative_to(ROOT).as_posix() not in (door, "tests/test_architecture.py")
        and (match := re.search(pattern, path.read_text()))
    ]
    assert outside == []


def test_the_drawing_of_the_architecture_is_the_code():
    """A drawing that is not checked is wrong after a month."""
    assert (ROOT / "docs" / "architecture.md").read_text() == drawing()


def test_tests_are_shorter_than_what_they_test():
    """Fewer, sharper tests: each line of test is maintained, too."""
    source = sum(len(path.read_text().splitlines()) for path in FILES)
    tests = sum(
        len(path.read_text().splitlines())
        for path in (ROOT / "tests").rglob("*.py")
        if "bench" not in path.parts
    )
    assert tests <= MAX_TEST_RATIO * source


@pytest.mark.parametrize("library", FENCES)
def test_a_library_is_known_only_behind_its_fence(library):
    """A library that every file imports cannot be replaced."""
    outside = [
        where(path, node)
        for path, names in imported_names().items()
        for name, node in names
        if name.split(".")[0] == library
        and not re.fullmatch(FENCES[library], path.relative_to(ROOT).as_posix())
    ]
    assert outside == []


@pytest.mark.parametrize("start", NOT_LOADED)
def test_a_process_begins_without_the_libraries_that_it_never_calls(start):
    """A reader took five seconds and 760 MB for torch, and a run in one process waited for Ray."""
    loaded, left = {}, {start: start}
    while left:
        module, chain = left.popitem()
        loaded[module] = chain
        left |= {one: f"{one} < {chain}" for one in first_imports()[module] if one not in loaded}
    heavy = [
        f"{name} < {loaded[module_name(path)]}"
        for path, names in imported_names().items()
        for name, node in names
        if module_name(path) in loaded
        and node in trees()[path].body
        and name.split(".")[0] in NOT_LOADED[start]
    ]
    assert heavy == []


def test_imports_stand_at_the_top_of_a_file():
    """An import inside a function hides a circle; only `LATE_IMPORTS` have them, to start fast."""
    inside = [
        where(path, node)
        for path, tree in trees().items()
        if not re.fullmatch(LATE_IMPORTS, path.relative_to(ROOT).as_posix())
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
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in forbidden
        and path.name != "cli.py"
        # Ray itself reads tokens and addresses from the environment, and nowhere else.
        and path != ROOT / "cluster" / "ray_access.py"
        # A command of the build.
        and path != ROOT / "shards" / "crops" / "kernel" / "compile.py"
    ]
    assert found == []


def test_nothing_is_evaluated_or_run_from_a_string():
    """Names in data must never become code."""
    found = [
        where(path, node)
        for path, tree in trees().items()
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
        for path, tree in trees().items()
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
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def test_every_file_says_what_it_is_for():
    """The first line is the table of contents."""
    silent = [
        str(path.relative_to(ROOT))
        for path, tree in trees().items()
        if tree.body and not ast.get_docstring(tree)
    ]
    assert silent == []


def test_every_import_is_a_stated_dependency():
    """A library that is installed here by chance is missing elsewhere."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, build = settings["project"], settings["build-system"]
    extras = project["optional-dependencies"]
    lines = [
        *build["requires"],
        *project["dependencies"],
        *(one for name in extras for one in extras[name]),
    ]
    stated = {re.split(r"[^a-z0-9-]", line)[0] for line in lines}
    names = {"faiss": "faiss-cpu", "cv2": "opencv-python-headless", "PIL": "pillow",
             "nvidia": "nvidia-dali-cuda130", "pillow_jxl": "pillow-jxl-plugin"}  # fmt: skip
    used = {
        name.split(".")[0]
        for tree in trees().values()
        for name, _ in imported(tree)
        if name.split(".")[0] not in (*PLANES, *sys.stdlib_module_names)
    }
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
