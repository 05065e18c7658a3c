"""Options of the backbone on a command line: --backbone.options.NAME VALUE, for any name of timm.

The parser knows only the options that a recipe has; timm has hundreds more.
"""

import re
import tomllib
from collections.abc import Collection, Sequence
from typing import Any, Final

from shards.errors import ConfigError

_TABLE: Final = "--backbone.options"
_NAME: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def take_options(
    arguments: Sequence[str], known: Collection[str]
) -> tuple[list[str], dict[str, Any]]:
    """Return the arguments without options of the backbone, and these options as a table.

    Names in `known` stay among the arguments. Raises ConfigError.
    """
    rest: list[str] = []
    options: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        option, mark, value = word.partition("=")
        table, _, name = option.partition(f"{_TABLE}.")
        if option in (_TABLE, f"{_TABLE}."):
            raise ConfigError(
                f"{word} names no option; each option of the network is given by its own name, "
                f"such as {_TABLE}.drop_path_rate 0.1"
            )
        name = name.replace("-", "_")
        if table or not name or name in known or name.removeprefix("no_") in known:
            rest.append(word)
            continue
        values = [value] if mark else []
        while not mark and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        if not values or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{word} needs a name and a value, such as {_TABLE}.drop_path_rate 0.1"
            )
        _put(options, name.split("."), tuple(map(_value, values)))
    return rest, options


def _put(table: dict[str, Any], path: list[str], values: tuple[Any, ...]) -> None:
    for part in path[:-1]:
        found = table.setdefault(part, {})
        if not isinstance(found, dict):
            raise ConfigError(f"{_TABLE}.{part} is given as a value and as a table; give one")
        table = found
    table[path[-1]] = values if len(values) > 1 else values[0]


def _value(text: str) -> Any:
    """Return a value as TOML writes it; other texts are words."""
    try:
        return _plain(tomllib.loads(f"x = {text.lower() if text in ('True', 'False') else text}"))
    except ValueError:
        return float(text) if re.fullmatch(r"[+-]?\.\d+", text) else text


def _plain(tables: dict[str, Any]) -> Any:
    (value,) = tables.values()  # a text of several lines could be several values
    return tuple(value) if isinstance(value, list) else value
