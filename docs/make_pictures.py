"""Make the pictures of the pages in ``docs/images`` from the demo's battles: ``make pictures``.

Terminal screens (SVG) are what tmux shows at 80 columns while real commands run; pages (PNG) are what Chromium shows.
Names, times and speeds of runs differ each time. Needs tmux and Chromium.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

import prefcli
from prefcli.api import eda
from prefcli.data import synthetic

IMAGES = Path(__file__).parent / "images"
PAGE_WIDTH, PAGE_HEIGHT = 1000, 1250
PHONE_SIZE = (390, 844)
COLUMNS, ROWS = 80, 200
MAX_SECONDS = 300
PROMPT = "$ "
COMPARE = 'prefcli compare --prompt "Tides?" --a "wrong and vague" --b "clear, helpful"'
GAP, MORE = Text(), Text("...", "dim")
THEME = TerminalTheme(
    (22, 27, 34), (220, 225, 230),
    [(72, 79, 88), (255, 123, 114), (86, 211, 100), (227, 179, 65),
     (121, 192, 255), (210, 168, 255), (86, 212, 221), (220, 225, 230)],
)  # fmt: skip
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
SVG = f"""<svg role="img" viewBox="0 0 {{width}} {{height}}" xmlns="http://www.w3.org/2000/svg">
<style>
.{{unique_id}}-matrix {{{{ font: {{char_height}}px {FONTS}; white-space: pre }}}}
.{{unique_id}}-title {{{{ font: bold 16px sans-serif }}}}
{{styles}}
</style>
<defs>
<clipPath id="{{unique_id}}-clip-terminal">
<rect x="0" y="0" width="{{terminal_width}}" height="{{terminal_height}}" />
</clipPath>
{{lines}}
</defs>
{{chrome}}
<g transform="translate({{terminal_x}}, {{terminal_y}})" clip-path="url(#{{unique_id}}-clip-terminal)">
{{backgrounds}}
<g class="{{unique_id}}-matrix">
{{matrix}}
</g>
</g>
</svg>
"""
"""As rich draws terminals, with fonts of the reader's machine: nothing is fetched."""


class Terminal:
    """A pseudo-terminal in which commands run in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shown = 0

    def show(self, command: str, until: str = "") -> list[Text]:
        """The screen's lines, with colours, after a command; or as soon as it matches ``until``, then interrupted."""
        quoted = shlex.quote(PROMPT + command)
        script = f"trap : INT; printf '\\033[1m%s\\033[0m\\n' {quoted}; {command}; touch ended; sleep {MAX_SECONDS}"
        ended = self._folder / "ended"
        ended.unlink(missing_ok=True)
        self._shown += 1
        self._tmux("new-session", "-d", "-x", str(COLUMNS), "-y", str(ROWS), "sh", "-c", script)
        self._tmux("set-option", "status", "off")
        lines: list[Text] = []
        deadline = time.monotonic() + MAX_SECONDS
        while not ended.exists():
            assert time.monotonic() < deadline, f"{command}: not done in {MAX_SECONDS} s"
            time.sleep(0.05)
            screen = self._capture()
            if until and not lines and any(re.search(until, line.plain) for line in screen):
                lines = screen
                self._tmux("send-keys", "C-c")
        assert lines or not until, f"{command}: nothing matches {until}"
        lines = lines or self._capture()
        self._tmux("kill-server")
        return lines

    def _capture(self) -> list[Text]:
        return list(AnsiDecoder().decode(self._tmux("capture-pane", "-e", "-p").rstrip("\n")))

    def _tmux(self, *arguments: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TMUX")}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        command = ["tmux", "-S", str(self._folder / f"tmux{self._shown}"), "-f", os.devnull, *arguments]
        return subprocess.run(
            command, cwd=self._folder, env=environment, check=True, capture_output=True, text=True
        ).stdout


def draw(name: str, lines: Sequence[Text]) -> None:
    """Write the lines of a screen as ``NAME.svg``."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(width=COLUMNS, record=True, file=nowhere, force_terminal=True, color_system="truecolor")
        for line in (*lines, GAP):  # without the last one, the ends of letters are cut off
            console.print(line, soft_wrap=True)
        svg = console.export_svg(title="", theme=THEME, code_format=SVG, unique_id=name)
    svg = "\n".join(line.strip() for line in svg.splitlines() if line.strip()) + "\n"
    (IMAGES / f"{name}.svg").write_text(svg, encoding="utf-8")


def results(lines: Sequence[Text], end: str = "") -> list[Text]:
    """The command and its results without its notes, which are dim; to the end of the table that is called ``end``."""
    kept: list[Text] = []
    for line in lines:
        dim = line.spans and all(getattr(span.style, "dim", False) for span in line.spans)
        if not dim:
            kept.append(line)
        elif kept[-1] != MORE:
            kept.append(MORE)
    if not end:
        return kept
    start = next(number for number, line in enumerate(kept) if line.plain.startswith(end))
    stop = next(number for number in range(start, len(kept)) if not kept[number].plain)
    return [*kept[:stop], MORE]


def draw_terminals(folder: Path) -> None:
    """The terminal screens."""
    terminal = Terminal(folder)
    draw("help", terminal.show("prefcli"))
    statistics = terminal.show("prefcli eda train.csv")
    draw("eda", statistics)
    training = terminal.show("prefcli train train.csv --recipe fast")
    draw("train", training)
    predicting = terminal.show("prefcli predict test.csv")
    score = terminal.show("prefcli score preds.csv test_truth.csv")
    draw("score", score)
    draw("compare", results(terminal.show(COMPARE)))
    parts = [results(statistics, "Ratings"), results(training), results(predicting), results(score)]
    draw("session", [line for part in parts for line in (*part, GAP)][:-1])
    draw("progress", terminal.show("prefcli train train.csv --encoder tiny", until=r"training .* [456]\d%"))


def find_chromium() -> str:
    """Chromium's command."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "no Chromium on this machine"
    return chromium


def draw_pages(folder: Path) -> None:
    """The beginnings of both pages, in light colours: ``eda-report.png`` and ``run-report.png``."""
    workspace = folder / ".prefcli"
    eda(folder / "train.csv", workspace, report=folder / "eda-report.html")
    run = prefcli.train(folder / "train.csv", recipe="fast", output=folder / "my-run", workspace=workspace).run
    prefcli.report(run, folder / "run-report.html", workspace=workspace)
    for page in sorted(folder.glob("*.html")):
        command = [find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={PAGE_WIDTH},{PAGE_HEIGHT}"]
        subprocess.run([*command, f"--screenshot={IMAGES / page.stem}.png", page.as_uri()], check=True, timeout=120)


def draw_served_page(folder: Path) -> None:
    """The page of ``prefcli serve``: in light colours, the result in dark ones, and a ranking on a phone."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "prefcli", "serve", "my-run", "--port", "0", "--json"]
    serving = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert serving.stdout is not None
        address = json.loads(serving.stdout.readline())["url"]
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
            for name, width, height, scheme, example in (
                ("serve", PAGE_WIDTH, PAGE_HEIGHT, "light", "A child's question"),
                ("serve-dark", PAGE_WIDTH, PAGE_HEIGHT, "dark", "A child's question"),
                ("serve-phone", *PHONE_SIZE, "light", "Three names (Spanish)"),
            ):
                page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.goto(address)
                page.get_by_role("button", name=example).click()
                page.click("#compare")
                page.wait_for_selector("#result h2")
                if name != "serve":
                    page.locator("#result h2").evaluate("(heading) => heading.scrollIntoView()")
                page.screenshot(path=IMAGES / f"{name}.png")
            chromium.close()
    finally:
        serving.terminate()
        serving.wait(timeout=30)


def main() -> None:
    """Write all pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic.write(folder, train=3000, test=1000)
        draw_terminals(folder)
        draw_pages(folder)
        draw_served_page(folder)


if __name__ == "__main__":
    main()
