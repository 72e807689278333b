"""Debian's Chromium, and pages in it that must not complain."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

# The shell draws the same pages for a quarter of the processor time: it has no windows of its own.
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None and "POLYAK_REQUIRE_CHROMIUM" not in os.environ, reason="no chromium here"
)


@contextmanager
def chromium() -> Generator[Browser]:
    """A browser."""
    with sync_playwright() as playwright:
        # No sandbox: containers of CI give it no namespaces, and the pages are our own.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def quiet_page(browser: Browser, **options: Any) -> Generator[Page]:
    """A page that fails at its end if the browser complained about anything, or if it asked the network."""
    opened = browser.new_page(**options)
    opened.set_default_timeout(120_000)  # where many tests share few cores
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("requestfailed", lambda request: complaints.append(request.url))
    opened.on(
        "request", lambda request: complaints.append(request.url) if "http" in request.url[:4] else None
    )
    yield opened
    opened.close()
    assert not complaints
