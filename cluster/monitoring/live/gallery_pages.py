"""What a browser gets: the page, its scripts, the charts' library, and images of the galleries.

All of it comes from this machine; the page may load nothing from anywhere else.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import plotly

from cluster.monitoring.http_server import Answer, Page
from cluster.monitoring.live.gallery import Gallery

_FOLDER: Final = Path(__file__).parent
_PLOTLY: Final = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
_KINDS: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# The library writes styles of its own into the page; scripts come from files alone.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
SCRIPTS: Final = ("page.js", "charts.js", "parts.js", "store.js")


def live_pages(gallery: Gallery | None) -> dict[str, Page]:
    """Pages by path, for a server."""
    files = {f"/live/{name}": _FOLDER / name for name in ("page.css", *SCRIPTS)}
    files |= {"/": _FOLDER / "page.html", "/live/plotly.min.js": _PLOTLY}
    pages: dict[str, Page] = {path: _page(file) for path, file in files.items()}
    if gallery is not None:
        pages["/gallery"] = lambda query: _image(gallery, query)
    return pages


def _page(file: Path) -> Page:
    return lambda _: Answer(_read(file), f"{_KINDS[file.suffix]}; charset=utf-8", headers=_HEADERS)


@cache
def _read(file: Path) -> bytes:
    return file.read_bytes()


def _image(gallery: Gallery, query: Mapping[str, str]) -> Answer:
    found = gallery.image(query.get("name", ""))
    if found is None:
        return Answer(b"that image is not there, or not any more\n", status=404)
    return Answer(found, "image/jpeg", headers=_HEADERS)
