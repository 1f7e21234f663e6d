"""Chromium without a window, led by the DevTools protocol over two pipes: no socket or driver."""

from __future__ import annotations

import base64
import itertools
import json
import os
import selectors
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
LIMIT = 60.0  # seconds
FLAGS = (
    "--headless=new --disable-gpu --disable-dev-shm-usage --no-first-run --no-default-browser-check"
)


class Browser:
    """One page.

    Attributes:
        problems: What the page has printed on its console: errors, and breaches of its policy.
    """

    def __init__(self, profile: Path, size: str = "1200,900") -> None:
        self._numbers = itertools.count(1)
        self._rest = b""
        self.problems: list[str] = []
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        root = "--no-sandbox" if os.geteuid() == 0 else ""
        command = (
            f"exec {CHROMIUM} {FLAGS} {root} --remote-debugging-pipe --window-size={size} "
            f"--user-data-dir='{profile}' about:blank 3<&{theirs_in} 4>&{theirs_out}"
        )
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session: str | None = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        self.prefer("light")

    _session = None

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == number:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result
            self._note(found)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + LIMIT
        with selectors.DefaultSelector() as selector:
            selector.register(self._read, selectors.EVENT_READ)
            while b"\0" not in self._rest:
                assert selector.select(max(0.0, end - time.monotonic())), "the browser is silent"
                chunk = os.read(self._read, 1 << 20)
                assert chunk, "the browser has ended"
                self._rest += chunk
        text, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        about = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(about["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.problems.append(about["entry"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled" and about["type"] == "error":
            self.problems.append(json.dumps(about["args"]))

    def prefer(self, scheme: str) -> None:
        """Ask for "light" or "dark" pages."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", features=[feature])

    def open(self, address: str) -> None:
        self._call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of an expression (JavaScript) in the page."""
        found = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression, once it is true."""
        end = time.monotonic() + LIMIT
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}\n{self.problems}"
            time.sleep(0.1)
        return value

    def shoot(self, path: Path) -> None:
        """Save what the page looks like."""
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser."""
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(20)
