"""A real browser without a window, for tests of the live page."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a chromium on the PATH, such as Debian's package"
)

# Charts out of sight are not drawn; no page is higher than this.
_HEIGHT = 6000


@contextmanager
def open_browser() -> Iterator[Browser]:
    with sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


class Visit:
    """A page that is looked at; `troubles` are what it said to its console."""

    def __init__(self, browser: Browser, url: str, *, width: int = 1000, scheme: str = "light"):
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": _HEIGHT},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        self.troubles: list[str] = []
        self.page.on("console", lambda one: self.troubles.append(one.text))
        self.page.on("pageerror", lambda one: self.troubles.append(str(one)))
        self.page.goto(url)

    def wait_for(self, expression: str, seconds: float = 20.0) -> None:
        """Until this JavaScript is true."""
        # A string would be evaluated within the page, which its own policy forbids.
        self.page.wait_for_function(f"() => ({expression})", timeout=1000 * seconds)

    def tell(self, expression: str) -> object:
        return self.page.evaluate(f"() => ({expression})")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()
