"""Parsing of command lines: arguments become a dataclass, a mistake becomes one sentence."""

import difflib
import types
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Final, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

# The only structured report of a mistake is private; its test says what an upgrade breaks.
from tyro import _errors as events

from shards.errors import ConfigError

T = TypeVar("T")

# Options that messages name often, without the group that they belong to.
_SHORT_NAMES: Final = {"--image-member": "--admission.image-member"}


def parse(kind: type[T], program: str, arguments: list[str], default: T | None = None) -> T:
    """Return `kind` from `arguments`. Raises ConfigError; raises SystemExit(0) after --help."""
    options: dict[str, Any] = {} if default is None else {"default": default}
    names = list(_option_names(kind if default is None else default))
    arguments = [_full_name(word, names) for word in arguments]

    def refuse(event: events.ParseErrorEvent) -> NoReturn:
        mistake = _mistake(event, arguments, names)
        raise ConfigError(f"{mistake}; `{program} --help` lists all options")

    with events.on_parse_error(refuse):
        return tyro.cli(
            kind, prog=program, args=arguments, config=(tyro.conf.AvoidSubcommands,), **options
        )


def _full_name(word: str, names: list[str]) -> str:
    name, mark, value = word.partition("=")
    full = _SHORT_NAMES.get(name.replace("_", "-"))
    return f"{full}{mark}{value}" if full in names else word


def _mistake(event: events.ParseErrorEvent, arguments: list[str], names: list[str]) -> str:
    """Return what is wrong with `arguments`, without the remedy."""
    match event:
        case (
            events.UnrecognizedArgs(tokens=[first, *_])
            | events.MissingArgs(unrecognized_tokens=[first, *_])
        ):
            return _unknown_token(first, names)
        case events.MissingArgs(missing_arguments=[missing, *_]):
            name = missing.arg.display_name()
            return f"{name.upper() if missing.arg.is_positional() else name} is missing"
        case events.BadValue(argument=argument, reason="too_few_values"):
            return f"{argument.display_name()} needs a value"
        case events.InvalidChoice(argument=argument, value=value, choices=choices):
            return f"{argument.display_name()}={value!r}; allowed are {', '.join(choices)}"
        case events.InstantiationFailure(argument=argument) if argument is not None:
            name = argument.display_name()
            found = _given(name, arguments)
            allowed = _description(argument.field.type_stripped) or argument.lowered.metavar
            return f"{name}={found!r}; it must be {allowed}"
        case events.InstantiationFailure(message=message):
            return message
    return f"the arguments do not fit ({event})"


def _unknown_token(token: str, names: list[str]) -> str:
    if not token.startswith("-"):
        return f"unknown argument {token}"
    word = token.partition("=")[0].replace("_", "-")
    nested = [name for name in names if name.endswith(f".{word.removeprefix('--')}")]
    close = [*nested, *difflib.get_close_matches(word, names, n=1)]
    return f"unknown option {token}" + (f"; did you mean {close[0]}?" if close else "")


def _given(name: str, arguments: list[str]) -> str:
    """Return the value of option `name` as it was typed."""
    for place, word in enumerate(arguments):
        option, has_value, value = word.partition("=")
        if option.replace("_", "-") == name:
            following = arguments[place + 1 :]
            ends = (n for n, later in enumerate(following) if later.startswith("--"))
            return value if has_value else " ".join(following[: next(ends, None)])
    return " ".join(arguments)


def _description(kind: Any) -> str:
    """Return the values of a type in words; empty if there are none for it."""
    if kind in (int, float):
        return "a whole number" if kind is int else "a number"
    parts = [part for part in get_args(kind) if part is not Ellipsis]
    if get_origin(kind) is tuple and set(parts) <= {int, float}:
        return "whole numbers" if set(parts) == {int} else "numbers"
    if get_origin(kind) in (Union, types.UnionType) and type(None) in parts and len(parts) == 2:
        inner = _description(next(part for part in parts if part is not type(None)))
        return inner and f"{inner} or None"
    return ""


def _option_names(source: Any, prefix: str = "--") -> Iterator[str]:
    """Yield the options of a dataclass, or of an instance, whose unions have one type."""
    hints = get_type_hints(
        source if isinstance(source, type) else type(source), include_extras=True
    )
    for field in fields(source):
        marks = getattr(hints[field.name], "__metadata__", ())
        if tyro.conf.Suppress in marks or tyro.conf.Positional in marks:
            continue
        value = getattr(hints[field.name], "__origin__", hints[field.name])
        if not isinstance(source, type):
            value = getattr(source, field.name)
        name = field.name.rstrip("_").replace("_", "-")  # `from` is a word of Python
        if is_dataclass(value):
            is_flat = any(getattr(mark, "name", None) == "" for mark in marks)
            yield from _option_names(value, prefix if is_flat else f"{prefix}{name}.")
        elif isinstance(value, dict) or value is dict:
            keys = value if isinstance(value, dict) and value else ("NAME",)
            yield from (f"{prefix}{name}.{key.replace('_', '-')}" for key in keys)
        else:
            yield prefix + name


def unknown(label: str, word: str, known: Iterable[str]) -> str:
    """Return the beginning of a sentence about a wrong name, with the names that exist."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"unknown {label}{hint} known are {', '.join(names)}"
