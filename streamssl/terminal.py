"""Terminal: text from files, shards and other machines is shown, and never obeyed.

Names of members, keys and messages of stores may hold control characters. A terminal would act on
them: change its title, overwrite lines, answer into the shell. A terminal that is closed meanwhile
ends no run.
"""

import errno
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

from rich.console import Console, RenderableType
from rich.segment import Segment

# Controls of ASCII and Latin-1 except tab and newline, and marks that reverse the order of a line.
_OBEYED: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return `text` with an escape such as \\x1b in the place of each control character."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class TerminalConsole(Console):
    """Console that shows control characters of what it prints as escapes."""

    def render(self, renderable: RenderableType, options: Any = None) -> Iterable[Segment]:
        """See `rich.console.Console`, which adds its own colours later."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(printable(part.text), part.style)


class TerminalOutput:
    """Standard output that stays usable after its terminal is gone; delegates to `file`."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with _without_terminal():
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with _without_terminal():
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _PrintableFormatter(logging.Formatter):
    """Formatter of warnings that no handler took."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def print_error(text: str) -> None:
    """Write a line about an error to the error output."""
    sys.stderr.write(f"streamssl: {printable(text)}\n")


def escape_warnings() -> None:
    """Show control characters in warnings of libraries, too."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_PrintableFormatter())


@contextmanager
def _without_terminal() -> Iterator[None]:
    """Suppress the error of an output whose terminal is gone."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
