"""Pages in a real browser: headless Chromium, where there is one, and axe-core, where it lies.

Headless Chromium has no narrow windows, so every page is shown in a frame of its width; one start shows them all.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = Path(__file__).parent.parent
AXE = Path(os.environ.get("AXE_CORE") or ROOT / "node_modules" / "axe-core" / "axe.min.js")
"""The script of axe-core: ``npm install --no-save axe-core`` puts it there."""
WIDTHS = (1280, 390)
DARK = "screen and (prefers-color-scheme: dark)"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=10000", "--dump-dom",
)  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
needs_axe = pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: set AXE_CORE, or npm install axe-core here")

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
