"""Import graph of the project; `python -m tests.house > docs/architecture.md` draws it."""

import ast
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLANES = ("shards", "cluster", "streamssl")

_HEAD = """# Architecture

Generated from the imports by `python -m tests.house > docs/architecture.md`; a test compares them.

Imports go downward only: `streamssl` > `cluster` > `shards`. Inside a plane each folder imports
only folders that stand below it here. A folder of another plane is named in full. Files in the root
of a plane stand for themselves.
"""


def module_name(path: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(path for plane in PLANES for path in (ROOT / plane).rglob("*.py"))
MODULES = {module_name(path): path for path in FILES}


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """Return the parsed source of each file; parsing takes a second, so only tests call it."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imported(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the dotted name of everything that a tree imports, with its node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node


def own_module(name: str) -> str | None:
    """Return the module of the project in which an imported name lies, if any."""
    while name:
        if name in MODULES:
            return name
        name = name.rpartition(".")[0]
    return None


def folder_of(module: str) -> str:
    """Return the folder of a module; a file in the root of a plane stands for itself."""
    if MODULES[module].name == "__init__.py" or module.count(".") == 1:
        return module
    return module.rpartition(".")[0]


@functools.cache
def imported_names() -> dict[Path, list[tuple[str, ast.AST]]]:
    """Return everything that each file imports, imports inside functions included."""
    return {path: list(imported(tree)) for path, tree in trees().items()}


def first_imports() -> dict[str, set[str]]:
    """Return the imports of each module at the top of its file: what must be loaded before it."""
    return {
        module_name(path): {
            own
            for name, node in names
            if node in trees()[path].body and (own := own_module(name)) and own != module_name(path)
        }
        for path, names in imported_names().items()
    }


def all_imports() -> dict[str, set[str]]:
    """Return every import of every module, those inside functions included."""
    return {
        module_name(path): {own_module(name) for name, _ in names} - {None}
        for path, names in imported_names().items()
    }  # type: ignore[return-value]


def folder_graph() -> dict[str, set[str]]:
    """Return which folders each folder imports, imports inside functions included."""
    graph: dict[str, set[str]] = {}
    for module, others in all_imports().items():
        found = graph.setdefault(folder_of(module), set())
        found |= {folder_of(other) for other in others} - {folder_of(module)}
    return graph


def circles(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the nodes that lie on a circle, or lead to one, with their targets."""
    left = {node: others - {node} for node, others in graph.items()}
    while free := [node for node, others in left.items() if not others & set(left)]:
        for node in free:
            del left[node]
    return left


def depths(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Return for each node the length of the longest import chain that starts at it."""
    found: dict[str, int] = {}

    def depth(node: str) -> int:
        if node not in found:
            others = [other for other in graph[node] if other in graph and other != node]
            found[node] = 1 + max(map(depth, others), default=0)
        return found[node]

    for node in graph:
        depth(node)
    return found


def drawing() -> str:
    """Return the folders of each plane from top to bottom, with their imports, as Markdown."""
    graph, lines = folder_graph(), [_HEAD]
    rank = depths(graph)
    for plane in reversed(PLANES):
        lines += [f"\n## {plane}/\n", "| layer | folder | purpose | imports |", "|---|---|---|---|"]
        nodes = [node for node in graph if node.startswith(f"{plane}.")]
        for node in sorted(nodes, key=lambda node: (-rank[node], node)):
            others = sorted(graph[node] - set(PLANES), key=lambda other: (-rank[other], other))
            names = ", ".join(other.removeprefix(f"{plane}.") for other in others)
            purpose = (ast.get_docstring(trees()[MODULES[node]]) or "").partition("\n")[0]
            path = node.removeprefix(f"{plane}.").replace(".", "/")
            suffix = "/" if MODULES[node].name == "__init__.py" else ".py"
            lines.append(f"| {rank[node]} | `{path}{suffix}` | {purpose} | {names} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(drawing())
