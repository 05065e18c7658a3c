"""Text on a terminal: shown, never obeyed."""

import io
import logging

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table

from streamssl.cli import main
from streamssl.terminal import TerminalConsole, escape_warnings, printable

# Each would change the terminal: its title, its colours, its lines, the order of letters.
OBEYED = ["\x1b]0;owned\x07", "\x1b[31m", "\x9b2J", "a\rb", "\x08", "\x7f", "\u202e", "\u2066"]


@pytest.mark.parametrize("text", OBEYED)
def test_control_characters_are_shown_as_escapes(text):
    """A shard of this name would type into the shell of whoever reads about it."""
    shown = printable(f"a{text}b")
    assert shown.isprintable() and "\\" in shown
    assert printable("größe 模型\tof 3\n") == "größe 模型\tof 3\n"


@pytest.mark.parametrize("text", OBEYED)
def test_every_way_to_print_is_escaped(text):
    """A table or a progress line would let through what a sentence does not."""
    file = io.StringIO()
    console = TerminalConsole(file=file, width=200, highlight=False, soft_wrap=True, markup=False)
    table = Table("name")
    table.add_row(text)
    console.print(f"of {text}")
    console.print(table)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task(text)
    assert not set(file.getvalue()) & {"\x1b", "\x07", "\x9b", "\x08", "\x7f", "\u202e", "\u2066"}


def test_colours_of_our_own_stay():
    """Whoever escapes everything shows no colours."""
    file = io.StringIO()
    TerminalConsole(file=file, force_terminal=True, color_system="standard").print("[red]x[/]")
    assert "\x1b[31mx" in file.getvalue()


def test_errors_and_warnings_are_escaped(capsys, tmp_path, monkeypatch):
    """Names of files are in most messages."""
    assert main(["shards", "verify", f"{tmp_path}/\x1b[31m.tar"]) == 2
    escape_warnings()
    # Of a log with a handler, such as those of the tests, warnings would not reach the terminal.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logging.getLogger("package.module").warning("about %s", "\x1b[31m")
    text = "".join(capsys.readouterr())
    assert "\x1b" not in text and "\\x1b[31m.tar" in text and "about \\x1b[31m" in text
