"""A real headless Chromium, and what its pages complain of."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from patience import PATIENCE_S
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def executable() -> str:
    """Return the path of a browser; without one tests are skipped, but never in CI."""
    for name in NAMES:
        if (path := shutil.which(name)) is not None:
            return path
    text = f"no Chromium in PATH ({', '.join(NAMES)}); on Debian: apt install chromium"
    return pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    path = executable()
    # Chromium's own sandbox does not work for root, as in containers.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextlib.contextmanager
def page(browser: Browser, url: str, **options: Any) -> Iterator[tuple[Page, list[str]]]:
    """Open a page of its own session; beside it, what stands in its console as it goes on."""
    with contextlib.closing(browser.new_context(**options)) as context:
        opened, complaints = context.new_page(), []
        opened.set_default_timeout(1000 * PATIENCE_S)
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.goto(url)
        yield opened, complaints
