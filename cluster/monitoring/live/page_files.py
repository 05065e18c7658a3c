"""Files of the live page: HTML, styles, scripts, the chart library, and gallery images.

All of it comes from this machine; the page must not load anything from elsewhere.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import plotly

from cluster.monitoring.http_server import HttpResponse, Page
from cluster.monitoring.live.gallery import Gallery
from cluster.monitoring.live.page_section import PageSection, section_specs

_FOLDER: Final = Path(__file__).parent
_PLOTLY: Final = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
_KINDS: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# The chart library writes inline styles into the page; scripts come from files only.
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
SCRIPTS: Final = ("page.js", "charts.js", "parts.js", "sections.js", "store.js")


def live_pages(sections: Sequence[PageSection], gallery: Gallery | None) -> dict[str, Page]:
    """Return pages by path, for a server."""
    files = {f"/live/{name}": _FOLDER / name for name in ("page.css", *SCRIPTS)}
    files |= {"/": _FOLDER / "page.html", "/live/plotly.min.js": _PLOTLY}
    pages: dict[str, Page] = {path: _page(file) for path, file in files.items()}
    specs = json.dumps(section_specs(sections)).encode()
    pages["/live/sections.json"] = lambda _: HttpResponse(specs, "application/json")
    if gallery is not None:
        pages["/gallery"] = lambda query: _image(gallery, query)
    return pages


def _page(file: Path) -> Page:
    kind = f"{_KINDS[file.suffix]}; charset=utf-8"
    return lambda _: HttpResponse(_read(file), kind, headers=_HEADERS)


@cache
def _read(file: Path) -> bytes:
    return file.read_bytes()


def _image(gallery: Gallery, query: Mapping[str, str]) -> HttpResponse:
    found = gallery.image(query.get("name", ""))
    if found is None:
        return HttpResponse(b"the gallery no longer has this image\n", status=404)
    return HttpResponse(found, "image/jpeg", headers=_HEADERS)
