"""Contact sheet of images with captions: one PNG, or one self-contained HTML file.

All text comes from untrusted data. It is escaped, without control and direction characters, and
the content security policy of the page allows no script and no external address.
"""

import base64
import html
import io
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.errors import ConfigError
from shards.files import write_atomic

Pixels = NDArray[np.uint8]

SUFFIXES: Final = (".html", ".png")
_MAX_CHARACTERS = 160
_LINE, _MARGIN, _GAP, _MIN_WIDTH = 15, 16, 10, 160
_PAPER, _INK, _FAINT, _ALARM = "#ffffff", "#1a1a1a", "#666666", "#b3261e"


@dataclass(frozen=True, slots=True)
class SheetTile:
    """One cell of a sheet: rows of images (H, W, 3) uint8 RGB, a title, and lines below it.

    `reason` is the reason of a reject.
    """

    title: str
    rows: tuple[tuple[Pixels, ...], ...] = ()
    lines: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ContactSheet:
    """Tiles with a heading and `facts` above them. Quality "exact" keeps every pixel."""

    heading: str
    tiles: Sequence[SheetTile]
    facts: tuple[str, ...] = ()
    alarm: str = ""
    quality: Literal["exact", "small"] = "small"


def check_suffix(path: Path) -> None:
    """Raise ConfigError unless a sheet can be written to a file of this name."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"--out {path} ends in {path.suffix or 'no suffix'!r}; a sheet is written as "
            f"{' or '.join(SUFFIXES)}: give it one of these"
        )
    if not path.parent.is_dir():
        raise ConfigError(
            f"--out {path} names a folder that does not exist; a sheet needs an existing one: "
            f"make {path.parent} first"
        )


def write_sheet(sheet: ContactSheet, path: Path) -> None:
    """Write `sheet` as PNG or HTML, by the suffix of `path`. The write is atomic."""
    check_suffix(path)
    if path.suffix.lower() == ".png":
        data = _png(draw_sheet(sheet))
    else:
        data = sheet_html(sheet).encode()
    try:
        write_atomic(path, data)
    except OSError as error:
        raise ConfigError(
            f"--out {path} cannot be written ({error.strerror}); give a file in a folder that can"
        ) from error


def clean_text(text: str) -> str:
    """Return `text` on one line, shortened, without control and direction characters."""
    line = " ".join(text[: 4 * _MAX_CHARACTERS].split())
    kept = "".join("�" if unicodedata.category(c).startswith("C") else c for c in line)
    return kept if len(kept) <= _MAX_CHARACTERS else kept[: _MAX_CHARACTERS - 1] + "…"


def sheet_html(sheet: ContactSheet) -> str:
    """Return the sheet as HTML: data URIs, no script, dark or light by the system setting."""
    facts = "".join(f"<p>{_text(fact)}</p>" for fact in sheet.facts)
    alarm = f'<p class="alarm">{_text(sheet.alarm)}</p>' if sheet.alarm else ""
    tiles = "\n".join(_figure(tile, sheet.quality) for tile in sheet.tiles)
    return _PAGE.format(heading=_text(sheet.heading), facts=facts, alarm=alarm, tiles=tiles)


def _figure(tile: SheetTile, quality: Literal["exact", "small"]) -> str:
    rows = "".join(
        f'<div class="row">{"".join(_img(pixels, tile, quality) for pixels in row)}</div>'
        for row in tile.rows
    )
    reason = f'<b class="alarm">{_text(tile.reason)}</b>' if tile.reason else ""
    lines = "".join(f"<span>{_text(line)}</span>" for line in tile.lines)
    caption = f"<b>{_text(tile.title)}</b>{reason}{lines}"
    kind = "tile refused" if tile.reason else "tile"
    return f'<figure class="{kind}">{rows}<figcaption>{caption}</figcaption></figure>'


def _img(pixels: Pixels, tile: SheetTile, quality: Literal["exact", "small"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(
        buffer, "WEBP", lossless=quality == "exact", quality=85, method=4, exact=True
    )
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    return (
        f'<img loading="lazy" decoding="async" width="{width}" height="{height}" '
        f'alt="{_text(tile.title)}" src="data:image/webp;base64,{data}">'
    )


def _text(text: str) -> str:
    return html.escape(clean_text(text), quote=True)


_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{heading}</title>
<style>
:root {{ color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --faint: #5f5f5f;
 --card: #f3f3f3; --alarm: #b3261e; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #141414; --ink: #ececec;
 --faint: #a6a6a6; --card: #212121; --alarm: #ff8a80; }} }}
body {{ margin: 1.5rem; background: var(--paper); color: var(--ink);
 font: 14px/1.45 system-ui, sans-serif; }}
h1 {{ font-size: 1.2rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }}
p {{ margin: .1rem 0; color: var(--faint); overflow-wrap: anywhere; }}
main {{ display: flex; flex-wrap: wrap; gap: 12px; margin-top: 1rem; align-items: flex-start; }}
.tile {{ margin: 0; padding: 8px; background: var(--card); border-radius: 6px; min-width: 160px;
 max-width: 100%; width: min-content; content-visibility: auto;
 contain-intrinsic-size: auto 210px auto 260px; }}
.refused {{ outline: 2px solid var(--alarm); }}
.row {{ display: flex; gap: 2px; margin-bottom: 2px; overflow-x: auto; }}
img {{ display: block; flex: none; }}
figcaption {{ display: flex; flex-direction: column; overflow-wrap: anywhere; font-size: 12px; }}
figcaption span {{ color: var(--faint); unicode-bidi: isolate; }}
figcaption b {{ font-weight: 600; unicode-bidi: isolate; }}
.alarm, figcaption .alarm {{ color: var(--alarm); }}
</style>
</head>
<body>
<h1>{heading}</h1>
{alarm}{facts}
<main>
{tiles}
</main>
</body>
</html>
"""


def draw_sheet(sheet: ContactSheet) -> Image.Image:
    """Return the sheet as one image: tiles in rows, the text below each."""
    font = ImageFont.load_default(12)
    sizes = [_measure(tile) for tile in sheet.tiles]
    width = max((size[0] for size in sizes), default=_MIN_WIDTH) + _GAP
    height = sum(size[1] + _GAP for size in sizes) / max(1, len(sizes))
    columns = max(1, min(len(sizes), round(math.sqrt(len(sizes) * height / width * 1.3))))
    rows = [sizes[first : first + columns] for first in range(0, len(sizes), columns)]
    heights = [max(size[1] for size in row) + _GAP for row in rows]
    head = [(sheet.heading, _INK), *((sheet.alarm, _ALARM),) * bool(sheet.alarm)]
    head += [(fact, _FAINT) for fact in sheet.facts]
    top = _MARGIN + _LINE * len(head) + _GAP
    wide = max(2 * _MARGIN + columns * width, 640)
    image = Image.new("RGB", (wide, top + sum(heights) + _MARGIN), _PAPER)
    canvas = ImageDraw.Draw(image)
    for number, (text, colour) in enumerate(head):
        _write(canvas, font, (_MARGIN, _MARGIN + number * _LINE), text, colour, wide - 2 * _MARGIN)
    for index, tile in enumerate(sheet.tiles):
        row, column = divmod(index, columns)
        place = (_MARGIN + column * width, top + sum(heights[:row]), width - _GAP)
        _draw_tile(image, canvas, font, tile, place)
    return image


def _measure(tile: SheetTile) -> tuple[int, int]:
    """Return width and height of a tile in pixels."""
    widths = [sum(p.shape[1] + 2 for p in row) for row in tile.rows]
    heights = [max((p.shape[0] for p in row), default=0) + 2 for row in tile.rows]
    num_lines = 1 + bool(tile.reason) + len(tile.lines)
    return max([_MIN_WIDTH, *widths]), sum(heights) + num_lines * _LINE


def _draw_tile(
    image: Image.Image,
    canvas: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    tile: SheetTile,
    place: tuple[int, int, int],
) -> None:
    left, y, width = place
    for row in tile.rows:
        x = left
        for pixels in row:
            image.paste(Image.fromarray(pixels), (x, y))
            x += pixels.shape[1] + 2
        y += max((pixels.shape[0] for pixels in row), default=0) + 2
    lines = [(tile.title, _INK), *((tile.reason, _ALARM),) * bool(tile.reason)]
    for text, colour in [*lines, *((line, _FAINT) for line in tile.lines)]:
        _write(canvas, font, (left, y), text, colour, width)
        y += _LINE


def _write(
    canvas: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    place: tuple[int, int],
    text: str,
    colour: str,
    width: int,
) -> None:
    """Draw one line of text, shortened to `width` pixels."""
    shown = clean_text(text)
    while shown and font.getlength(shown) > width:
        shown = shown[:-2] + "…" if len(shown) > 2 else ""
    canvas.text(place, shown, fill=colour, font=font)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
