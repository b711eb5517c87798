"""Chromium without a window, driven by the DevTools protocol over a pipe: what a page logs, fetches and looks like."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = "no Chromium is installed (Debian: apt-get install chromium)"
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def chromium() -> str | None:
    """Path of a Chromium or Chrome; None when there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Tab:
    """A page that is open.

    Attributes:
        logged: (level, text) of every message on the console, by the page and by the browser.
        fetched: address of every request.
    """

    into: Any
    out: Any
    deadline: float
    number: int = 0
    session: str = ""
    logged: list[tuple[str, str]] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    loaded: bool = False
    rest: bytes = b""

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """Call a method of the protocol; events that come before the answer are kept."""
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        self.into.write(json.dumps({"id": self.number, "method": method, "params": given, **session}).encode() + b"\0")
        self.into.flush()
        while True:
            told = self._read()
            if told.get("id") == self.number:
                assert "error" not in told, (method, told["error"])
                return dict(told["result"])

    def open(self, path: Path, width: int, height: int, dark: bool = False) -> None:
        """Load a file, as wide as a window or a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self.loaded:
            self._read()
        self.call("Runtime.evaluate", expression="1")  # messages about what was loaded come first

    def value(self, expression: str) -> Any:
        """Value of a JavaScript expression; the page's own policy does not apply to it."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"Tab": 9}[key])

    def picture(self, whole: bool = True) -> bytes:
        """The page as PNG."""
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(told["data"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.out], [], [], max(0.0, self.deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            piece = os.read(self.out, 1 << 20)
            assert piece, "Chromium has gone"
            self.rest += piece
        data, _, self.rest = self.rest.partition(b"\0")
        told: dict[str, Any] = json.loads(data)
        self._note(told.get("method", ""), told.get("params", {}))
        return told

    def _note(self, event: str, given: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.fetched.append(given["request"]["url"])
        elif event == "Log.entryAdded":
            self.logged.append((given["entry"]["level"], given["entry"]["text"]))
        elif event == "Runtime.consoleAPICalled":
            self.logged.append((given["type"], json.dumps(given["args"])))
        elif event == "Runtime.exceptionThrown":
            self.logged.append(("error", given["exceptionDetails"]["text"]))
        elif event == "Page.loadEventFired":
            self.loaded = True


@contextmanager
def tab(program: str, seconds: float = 120.0) -> Iterator[Tab]:
    """A fresh Chromium with one empty page; it ends with the block, with everything that it wrote."""
    there, mine = os.pipe()
    back, theirs = os.pipe()
    with tempfile.TemporaryDirectory(prefix="planish-browser-", ignore_cleanup_errors=True) as profile:
        # The protocol is spoken on the descriptors 3 and 4.
        script = f'exec "$@" 3<&{there} 4>&{theirs}'
        process = subprocess.Popen(
            ["bash", "-c", script, "chromium", program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(there, theirs),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(theirs)
        try:
            with os.fdopen(mine, "wb") as into:
                yield _attached(Tab(into, back, time.monotonic() + seconds))
        finally:
            process.kill()
            process.wait()
            os.close(back)


def _attached(made: Tab) -> Tab:
    targets = made.call("Target.getTargets")["targetInfos"]
    page = next(t["targetId"] for t in targets if t["type"] == "page")
    made.session = made.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
    for domain in ("Page", "Network", "Log", "Runtime"):
        made.call(f"{domain}.enable")
    return made
