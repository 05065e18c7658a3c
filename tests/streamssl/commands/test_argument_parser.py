"""Argument parser: values of their types, and one sentence for each kind of mistake.

The messages come from events in `tyro._errors`, a private module: an upgrade of tyro that changes
them breaks these tests.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from shards.errors import ConfigError
from streamssl.commands.argument_parser import parse, unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part."""

    base_lr: float = 0.1
    kind: Literal["swav", "constant"] = "swav"
    table: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of a command."""

    data: str
    out: Path
    readers: int = 2
    ks: tuple[int, ...] = (1, 2)
    limit: int | None = None
    part: Part = field(default_factory=Part)


GIVEN = ["--data", "d", "--out", "o"]


def test_arguments_become_values_of_their_types() -> None:
    """Each field of a nested dataclass must be an option."""
    found = parse(Options, "p", [*GIVEN, "--part.base-lr", "0.5", "--ks", "3", "4", "--readers=7"])
    assert found == Options(
        data="d", out=Path("o"), readers=7, ks=(3, 4), part=Part(base_lr=0.5, kind="swav")
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*GIVEN, "--reader", "3"], "^unknown option --reader; did you mean --readers"),
        ([*GIVEN, "--reader=3"], "^unknown option --reader=3; did you mean --readers"),
        (
            [*GIVEN, "--part.base_rate", "3"],
            "^unknown option --part.base_rate; did you mean --part.base-",
        ),
        (
            [*GIVEN, "--part.table", "3"],
            "^unknown option --part.table; did you mean --part.table.NAME",
        ),
        ([*GIVEN, "--zzz"], "^unknown option --zzz; `p --help` lists"),
        ([*GIVEN, "stray"], "^unknown argument stray; `p --help` lists"),
        (["--out", "o"], "^--data is missing; `p --help` lists"),
        (["--data", "d"], "^--out is missing; `p --help` lists"),
        ([], "^--data is missing; `p --help` lists"),
        ([*GIVEN, "--readers", "two"], "^--readers='two'; it must be a whole number; `p --help`"),
        ([*GIVEN, "--part.base-lr", "x"], "^--part.base-lr='x'; it must be a number; `p --help`"),
        ([*GIVEN, "--readers"], "^--readers needs a value; `p --help` lists"),
        (
            [*GIVEN, "--part.kind", "x"],
            "^--part.kind='x'; allowed are swav, constant; `p --help` lists",
        ),
        (["--data"], "^--data needs a value; `p --help` lists"),
        (["--zzz"], "^unknown option --zzz; `p --help` lists"),
        ([*GIVEN, "--base-lr", "3"], "^unknown option --base-lr; did you mean --part.base-lr"),
        ([*GIVEN, "--ks", "1", "x"], "^--ks='1 x'; it must be whole numbers; `p --help` lists"),
        ([*GIVEN, "--limit=x"], "^--limit='x'; it must be a whole number or None; `p --help`"),
    ],
)
def test_each_kind_of_mistake_is_one_sentence(arguments: list[str], expected: str) -> None:
    """A box of several lines or a usage page would hide the mistake."""
    with pytest.raises(ConfigError, match=expected) as error:
        parse(Options, "p", arguments)
    text = str(error.value)
    assert "\n" not in text and not re.search(r"[│╭╰]", text)
    assert len(text) < 250


def test_help_ends_with_success(capsys: pytest.CaptureFixture[str]) -> None:
    """Help is not an error."""
    with pytest.raises(SystemExit) as left:
        parse(Options, "p", ["--help"])
    assert not left.value.code
    assert "--part.base-lr" in capsys.readouterr().out


def test_a_wrong_name_gets_the_known_names() -> None:
    """The nearest name must be offered first."""
    assert unknown("recipe 'swab'", "swab", ["swav", "moco"]) == (
        "unknown recipe 'swab'; did you mean 'swav'? known are swav, moco"
    )
    assert unknown("recipe 'x'", "x", ["swav"]) == "unknown recipe 'x'; known are swav"
