"""Pages in a real browser: headless Chromium, where there is one, and axe-core, as ``axe-playwright-python`` holds it.

Headless Chromium has no narrow windows, so every page is shown in a frame of its width; one start shows them all.
"""

from __future__ import annotations

import contextlib
import html
import importlib.util
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_package = importlib.util.find_spec("axe_playwright_python")
AXE = Path((_package and _package.origin) or "").parent / "axe.min.js"
"""The script of axe-core."""
WIDTHS = (1280, 390)
DARK = "screen and (prefers-color-scheme: dark)"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=10000", "--dump-dom",
)  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
needs_axe = pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: pip install axe-playwright-python")

COLLECT = """<script>
const results = [];
addEventListener("message", (event) => {
  results[event.data.frame] = event.data.result;
  if (Object.keys(results).length < %d) return;
  const out = document.createElement("pre");
  out.id = "results";
  out.textContent = JSON.stringify(results);
  document.body.append(out);
});
</script>"""


def results(folder: Path, pages: Sequence[tuple[str, int]], script: str) -> list[Any]:
    """What ``script``, an expression (perhaps a promise), gives in each page, shown at its width.

    The page's own policy, which forbids scripts, is left out, so that only its escaping protects it.
    """
    frames = []
    for number, (text, width) in enumerate(pages):
        send = f"parent.postMessage({{frame: {number}, result}}, '*')"
        run = f"<script>addEventListener('load', async () => {{ const result = await ({script}); {send}; }});</script>"
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace("</body>", f"{run}</body>")
        frames.append(f'<iframe srcdoc="{html.escape(page)}" style="width:{width}px;height:2000px"></iframe>')
    path = folder / "frames.html"
    shown = "".join(["<!doctype html><meta charset=utf-8><body>", COLLECT % len(pages), *frames])
    path.write_text(shown, encoding="utf-8")
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1400,2000", path.as_uri()]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        pytest.skip(f"Chromium does not run here: {error}")
    (collected,) = re.findall(r'<pre id="results">(.*?)</pre>', shown, flags=re.DOTALL)
    return list(json.loads(html.unescape(collected)))


def axe_faults(folder: Path, pages: Sequence[str]) -> list[str]:
    """Every fault that axe-core finds in the pages, light and dark, at each width; it must find that text is there."""
    shown = [(text, width) for page in pages for text in (page, page.replace(DARK, "screen")) for width in WIDTHS]
    code = AXE.read_text(encoding="utf-8").replace("</script", "<\\/script")
    axe = f"<script>{code}</script></head>"
    script = """axe.run(document).then((run) => ({
      rules: run.passes.map((rule) => rule.id),
      faults: run.violations.flatMap((rule) => rule.nodes.map((node) => rule.id + ": " + node.html.slice(0, 200))),
    }))"""
    found = results(folder, [(text.replace("</head>", axe, 1), width) for text, width in shown], script)
    assert all("color-contrast" in run["rules"] for run in found)
    return [fault for run in found for fault in run["faults"]]


class Tab:
    """A page that is used as a person does: Chromium's debugging protocol, through two pipes.

    ``problems`` collects what a reader must not meet: messages on the console, and requests for anything but files.
    """

    def __init__(self, profile: Path) -> None:
        to_read, self._commands = os.pipe()
        self._answers, to_write = os.pipe()
        flags = [flag for flag in FLAGS if flag not in ("--dump-dom", "--virtual-time-budget=10000")]
        command = [str(CHROMIUM), *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        pipes = f'exec "$@" 3<&{to_read} 4>&{to_write}'  # the numbers that the protocol prescribes
        self._process = subprocess.Popen(
            ["bash", "-c", pipes, "bash", *command], pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self._received, self._count, self._session = b"", 0, {}
        self.problems: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command of the protocol, and its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters, **self._session}
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._count:
            self._note(answer["method"], answer["params"])
        assert "error" not in answer or method == "Runtime.evaluate", answer
        return dict(answer.get("result", {}))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], 60)
            part = os.read(self._answers, 1 << 16) if ready else b""
            if not part:
                self._process.kill()
                pytest.skip("Chromium does not run here")
            self._received += part
        text, _, self._received = self._received.partition(b"\0")
        return dict(json.loads(text))

    def _note(self, event: str, parameters: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            if not parameters["request"]["url"].startswith(("file:", "data:", "about:")):
                self.problems.append(f"asks for {parameters['request']['url']}")
        elif event in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.problems.append(json.dumps(parameters)[:300])

    def show(self, page: Path, *, width: int, scheme: str = "light") -> None:
        """Load a page in a window of this width, with the reader's preference for light or dark."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=page.as_uri())
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(page.as_uri())}")

    def value(self, script: str) -> Any:
        """What an expression is in the page; None while the page gives way to another."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer.get("result", {}).get("value")

    def wait(self, script: str) -> Any:
        """The first true value of an expression in the page."""
        for _ in range(600):
            if value := self.value(script):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}; {self.problems}")

    def press(self, *keys: str) -> None:
        """Keys one after the other: letters, or ``Enter``."""
        for key in keys:
            text = "\r" if key == "Enter" else key
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def close(self) -> None:
        """End this browser."""
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._commands)
        os.close(self._answers)
