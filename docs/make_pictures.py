"""Make the pictures of the pages in ``docs/images`` from the demo's battles: ``make pictures``; needs Chromium."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import prefcli
from prefcli.api import eda
from prefcli.data import synthetic

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1000, 1560


def main() -> None:
    """Write ``eda-report.png`` and ``run-report.png``: the beginnings of both pages, in light colours."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "no Chromium on this machine"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo = synthetic.write(folder, train=3000, test=10)
        workspace = folder / ".prefcli"
        eda(demo.train, workspace, report=folder / "eda-report.html")
        run = prefcli.train(demo.train, recipe="fast", output=folder / "my-run", workspace=workspace).run
        prefcli.report(run, folder / "run-report.html", workspace=workspace)
        for page in sorted(folder.glob("*.html")):
            command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={WIDTH},{HEIGHT}"]
            subprocess.run([*command, f"--screenshot={IMAGES / page.stem}.png", page.as_uri()], check=True, timeout=120)


if __name__ == "__main__":
    main()
