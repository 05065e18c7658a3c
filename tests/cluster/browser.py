"""A real browser without a window, for tests of the live page."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a chromium on the PATH, such as Debian's package"
)

# Charts out of view are not drawn; no page is higher than this.
_HEIGHT = 6000


@contextmanager
def open_browser() -> Iterator[Browser]:
    with sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


class Visit:
    """An open page; `errors` are the messages on its console."""

    def __init__(self, browser: Browser, url: str, *, width: int = 1000):
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": _HEIGHT}, color_scheme="light"
        )
        self.errors: list[str] = []
        self.page.on("console", lambda one: self.errors.append(one.text))
        self.page.on("pageerror", lambda one: self.errors.append(str(one)))
        self.page.goto(url)

    def wait_for(self, expression: str, seconds: float = 20.0) -> None:
        """Wait until this JavaScript is true; before its elements are there it counts as false."""
        # A string would be evaluated within the page, which its own policy forbids.
        calm = f"() => {{ try {{ return {expression} }} catch {{ return false }} }}"
        self.page.wait_for_function(calm, timeout=1000 * seconds)

    def evaluate(self, expression: str) -> Any:
        """Return the value of this JavaScript."""
        return self.page.evaluate(f"() => ({expression})")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()
