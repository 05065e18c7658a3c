"""`streamssl recipes`: list the recipes; with a name, show one in full."""

import inspect
from collections.abc import Mapping
from typing import Any

import tomli_w
from rich.console import Console

from shards.errors import ConfigError
from streamssl.commands.argument_parser import unknown
from streamssl.config.run_config import to_fields
from streamssl.recipes import RECIPES, kind_of

_USAGE = "usage: streamssl recipes [NAME]"


def show_recipes(arguments: list[str], console: Console) -> int:
    """Run `streamssl recipes` and return its exit code."""
    if arguments and arguments[0] in ("-h", "--help"):
        console.print(_USAGE, markup=False)
        return 0
    if len(arguments) > 1:
        raise ConfigError(
            f"{len(arguments)} names of recipes; `streamssl recipes` takes at most one name: give "
            "one, or none to list all"
        )
    lines = _note(arguments[0]) if arguments else _list()
    console.print("\n".join(lines), markup=False)
    return 0


def _list() -> list[str]:
    """Return one line for each recipe: name, kind, method, purpose."""
    rows = [
        (name, kind_of(name), build().method_name, inspect.getdoc(build) or "")
        for name, build in RECIPES.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join(
            [*(row[column].ljust(widths[column]) for column in range(3)), row[3].partition("\n")[0]]
        )
        for row in rows
    ]


def _note(name: str) -> list[str]:
    """Return the docstring of a recipe and its settings in the form of config.toml."""
    if name not in RECIPES:
        raise ConfigError(unknown(f"recipe {name!r}", name, RECIPES))
    build = RECIPES[name]
    config = build()
    fields: Mapping[str, Any] = to_fields(config)
    head = f"{name} ({kind_of(name)}, method {config.method_name})"
    return [head, "", inspect.getdoc(build) or "", "", tomli_w.dumps(fields).rstrip()]
