"""ComfyUI's own front end in headless Chromium, driven from a test.

Needs the package `playwright` and a Chromium: CHROMIUM_PATH, one on the PATH, or the one that Playwright installed.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update"]
FLAGS += ["--disable-background-networking", "--disable-sync"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Nothing that a first-time visitor is greeted with, and nothing that lies over the canvas; the classic canvas.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.VueNodes.Enabled": False}
NODES_2 = {"Comfy.VueNodes.Enabled": True}
READY = "window.app?.graph && window.app.extensionManager && document.querySelector('canvas')"


class NoBrowser(RuntimeError):
    """There is no Playwright or no Chromium on this machine."""


def do_without(reason: NoBrowser) -> None:
    """Skips the test, or fails it in CI, where a browser is expected."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(str(reason))


@contextmanager
def browser():
    """A headless Chromium. Raises NoBrowser."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise NoBrowser("playwright is not installed") from error
    path = os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        try:
            running = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        except Error as error:
            raise NoBrowser(f"Chromium does not start: {error.message.splitlines()[0]}") from error
        try:
            yield running
        finally:
            running.close()


class FrontEnd:
    """The front end of a running server, in a page of its own. `settings` go over SETTINGS; the server keeps them."""

    def __init__(
        self, running, url: str, width: int = 1600, height: int = 1000, settings: dict[str, Any] | None = None
    ):
        self.page = running.new_page(viewport={"width": width, "height": height})
        self.page.request.post(f"{url}/api/settings", data=SETTINGS | (settings or {}))
        self.page.goto(url, timeout=180_000)
        self.page.wait_for_function(READY, timeout=180_000)
        self.page.wait_for_function("'SaveImage' in LiteGraph.registered_node_types", timeout=180_000)

    def load(self, workflow: dict[str, Any]) -> None:
        """Loads a UI-format workflow, as dropping its file on the canvas does."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)

    def convert(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """A UI-format workflow as the Run button would queue it."""
        self.load(workflow)
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")
