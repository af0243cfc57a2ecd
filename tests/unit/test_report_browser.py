"""The page of a zoo in a real browser: it draws, says nothing in the console and fetches nothing."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
from PIL import Image

from zooplatform.reporting import write_report

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.catalog import Catalog

pytestmark = pytest.mark.integration

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)

# Where every figure lies, and what of it is really drawn: rectangles of its paths and texts.
_FIGURES = """
[...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  return {
    x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height,
    alt: svg.getAttribute('aria-label'), role: svg.getAttribute('role'),
    shapes: [...svg.querySelectorAll('path, use')].filter(e => e.getBoundingClientRect().width > 0).length,
    texts: [...svg.querySelectorAll('text')].filter(e => e.getBoundingClientRect().width > 0).length,
  };
})
"""


class Browser:
    """A headless Chromium, spoken to over two pipes in its own protocol."""

    def __init__(self, profile: Path) -> None:
        program = shutil.which("chromium")
        if program is None:
            pytest.fail("there is no chromium; install Debian's package of this name")
        to_child, self._out = os.pipe()
        self._in, from_child = os.pipe()

        def pipes() -> None:
            # The protocol wants descriptors 3 and 4, which the pipes themselves may have.
            read, write = os.dup(to_child), os.dup(from_child)
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"],
            preexec_fn=pipes,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self.events: list[dict[str, Any]] = []
        self._buffer, self._number, self._session = b"", 0, ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)  # it ends when the pipe does
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], 60)[0]:
                pytest.fail("the browser does not answer")
            data = os.read(self._in, 1 << 20)
            if not data:
                pytest.fail("the browser ended")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path) -> None:
        """Load a page, and wait a moment for what it might still fetch."""
        self.events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            self.ask("Runtime.evaluate", expression="0")

    def value(self, expression: str) -> Any:
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"]["value"]

    def screenshot(self) -> np.ndarray[Any, Any]:
        """(height, width, 3) of the whole page."""
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def prefer(self, scheme: str, width: int) -> None:
        self.ask(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )


@pytest.fixture(scope="module")
def page(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the zoo that comes with the package."""
    from zooplatform.catalog import open_catalog

    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(checkout / "catalogs" / "digits", folder / "digits")
    with open_catalog(folder / "digits") as catalog:
        return write_report(catalog, "digits", folder / "page").path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def complaints(events: list[dict[str, Any]]) -> list[Any]:
    """What the console and the log of the browser hold."""
    names = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    return [event["params"] for event in events if event["method"] in names]


def requests(events: list[dict[str, Any]]) -> list[str]:
    """Addresses that were asked for, without what the page holds itself."""
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
        and not event["params"]["request"]["url"].startswith("data:")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_figures_are_drawn_and_nothing_is_fetched(
    browser: Browser, page: Path, scheme: str
) -> None:
    browser.prefer(scheme, 1000)
    browser.open(page)
    assert complaints(browser.events) == []
    assert requests(browser.events) == [page.resolve().as_uri()]
    figures = browser.value(_FIGURES)
    assert len(figures) == 4
    pixels = browser.screenshot()
    ground = pixels[5, 5].astype(int)
    assert (ground.mean() > 200) == (scheme == "light")
    for figure in figures:
        assert figure["role"] == "img"
        assert len(figure["alt"]) > 60
        assert figure["width"] > 600
        assert figure["shapes"] > 20
        assert figure["texts"] > 8
        left, top = int(figure["x"]), int(figure["y"])
        part = pixels[top : top + int(figure["height"]), left : left + int(figure["width"])]
        background = part[0, 0].astype(int)
        far = np.abs(part.astype(int) - background).sum(axis=2)
        # Lines, marks and letters are there, and stand out from the ground.
        assert (far > 60).mean() > 0.01
        assert far.max() > 350


def test_every_colour_follows_the_ground(browser: Browser, page: Path) -> None:
    """No figure keeps a colour of its own, which would vanish on one of the grounds."""
    colours = {}
    for scheme in ("light", "dark"):
        browser.prefer(scheme, 1000)
        browser.open(page)
        colours[scheme] = browser.value(
            "[...document.querySelectorAll('figure svg text')].map(e => getComputedStyle(e).fill)"
        )
    assert colours["light"]
    assert not set(colours["light"]) & set(colours["dark"])


def test_a_narrow_screen_needs_no_sideways_scrolling(browser: Browser, page: Path) -> None:
    browser.prefer("light", 380)
    browser.open(page)
    assert browser.value("document.documentElement.scrollWidth") <= 380


def test_hostile_names_stay_text(browser: Browser, catalog: Catalog, tmp_path: Path) -> None:
    """Names of zoos, hyper-parameters and values are shown, not run."""
    from dataclasses import replace

    from zooplatform.testing import sample_population

    batch = sample_population()
    evil = "<script>document.title='gone'</script><img src=x onerror=alert(1)> $\\frac{a}$ \"'&"
    rows = [
        replace(row, model=replace(row.model, config={evil: f"{evil}{index % 3}", "a": index}))
        for index, row in enumerate(batch.rows)
    ]
    catalog.append(
        replace(batch, rows=rows), zoo=evil, source=evil, license=evil, citation="]]></svg>" + evil
    )
    written = write_report(catalog, evil, tmp_path)
    browser.prefer("light", 1000)
    browser.open(written.path)
    assert complaints(browser.events) == []
    assert requests(browser.events) == [written.path.resolve().as_uri()]
    assert browser.value("document.querySelectorAll('img, script').length") == 0
    assert browser.value("document.querySelector('h1').textContent") == evil
    assert browser.value("document.title") == f"{evil}: a zoo of 4 networks"
