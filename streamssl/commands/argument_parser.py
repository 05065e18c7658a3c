"""Arguments into values; whatever cannot be understood becomes one sentence."""

import contextlib
import difflib
import io
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import tyro

from shards.errors import ConfigError

T = TypeVar("T")


def parse(kind: type[T], program: str, arguments: list[str], default: T | None = None) -> T:
    """`kind` from `arguments`. Raises ConfigError; leaves with SystemExit(0) after --help."""
    said = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind, prog=program, args=arguments, config=(tyro.conf.AvoidSubcommands,), **options
            )
    except SystemExit as left:
        if not left.code:
            raise
        raise ConfigError(one_sentence(said.getvalue(), program)) from None


def one_sentence(text: str, program: str) -> str:
    """What the parser said, in a box of several lines, as one sentence with a remedy."""
    text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─┌┐└┘├┤•]+", " ", text)
    text = " ".join(text.split())
    remedy = f"`{program} --help` lists all options"
    if wrong := re.search(r"Unrecognized options: (\S+?),? ", text + " "):
        close = re.search(r"Perhaps you meant:? (--\S+)", text)
        hint = f"did you mean {close[1]}? " if close else ""
        what = "option" if wrong[1].startswith("-") else "argument"
        return f"unknown {what} {wrong[1]}; {hint}{remedy}"
    if missing := re.search(r"Missing from .*?: (.*?) \(required\)", text):
        name = re.match(r"--\S+", missing[1]) or re.search(r"\S+$", missing[1])
        return f"{name[0] if name else missing[1]} is missing; {remedy}"
    if bare := re.search(r"Missing value for argument '(\S+?)'", text):
        return f"{bare[1]} needs a value; {remedy}"
    if value := re.search(r"Error parsing (--\S+?): (.*?)(?: Argument helptext|$)", text):
        number = re.search(r"(?:literal for (int)|to float).*?: ('.*')", value[2])
        if number:
            kind = "a whole number" if number[1] else "a number"
            return f"{value[1]}={number[2]}; it must be {kind}; {remedy}"
        return f"{value[1]}: {value[2]}; {remedy}"
    choices = r"invalid choice (.*?) for argument '(\S+?)'\. Expected one of (.*?)\."
    if choice := re.search(choices, text):
        return f"{choice[2]}={choice[1]}; allowed are {choice[3]}; {remedy}"
    return f"{text}; {remedy}"


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """The beginning of a sentence about a name that nobody has, with the names that there are."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"unknown {what}{hint} known are {', '.join(names)}"
