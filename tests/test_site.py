"""The documentation as a site: it builds without a complaint, leads nowhere in vain, asks nobody for anything."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import AXE, Tab, needs_axe, needs_browser

ROOT = Path(__file__).parent.parent


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(root / "mkdocs.yml"), "-d", str(site)]
    surroundings = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=surroundings)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    made = build(ROOT, folder)
    assert made.returncode == 0, made.stderr
    return folder


class Fetched(HTMLParser):
    """What a browser fetches by itself when it shows a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") not in ("prev", "next", "canonical"):
            self.addresses.append(given.get("href") or "")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "data")]


def test_every_page_is_in_the_site_and_in_its_navigation(site: Path) -> None:
    first = (site / "index.html").read_text(encoding="utf-8")
    pages = [path.stem for path in (ROOT / "docs").glob("*.md")] + ["changelog", "contributing"]
    assert len(pages) > 10
    for page in pages:
        assert (site / f"{page}.html").is_file(), page
        assert f'href="{page}.html"' in first, page
    assert "Predict which of two LLM answers" in first, "README is the first page"
    assert not list(site.rglob("*.py"))


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        addresses = Fetched(page).addresses
        assert addresses
        assert not [a for a in addresses if re.match(r"(https?:)?//", a)], page.name
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
@needs_browser
def test_a_reader_searches_the_site_in_a_folder_and_reads_it_on_a_phone(site: Path, tmp_path: Path) -> None:
    links = "document.querySelectorAll('.md-search-result__link')"
    results = f"Array.from({links}, (link) => link.pathname.split('/').pop())"
    with contextlib.closing(Tab(tmp_path)) as tab:
        tab.show(site / "index.html", width=1280)
        picture = "document.querySelector('article img').getBoundingClientRect()"
        assert tab.value(f"{picture}.top < 450 && {picture}.width > 300"), "a picture in the first screen"
        tab.press("/", *"krippendorff")
        found = tab.wait(f"{results}.length && {results}")
        assert set(found) >= {"metrics.html", "eda.html", "evaluation.html"}
        tab.press("Enter")
        tab.wait("!location.pathname.endsWith('index.html') && document.querySelector('article mark') !== null")

        tab.show(site / "index.html", width=390, scheme="dark")
        assert tab.value("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        tab.value("document.querySelector('label[for=__search]').click()")
        tab.press(*"--swap-average")
        tab.wait(f"{results}.includes('models.html')")
        tab.value("document.querySelector('.md-search-result__link[href*=\"/models.html\"]').click()")
        tab.wait("location.pathname.endsWith('models.html') && document.readyState === 'complete'")
        assert tab.value("document.documentElement.scrollWidth") <= 390
        assert tab.problems == []


@pytest.mark.slow
@needs_browser
@needs_axe
def test_axe_finds_no_fault_of_the_site(site: Path, tmp_path: Path) -> None:
    """But for blocks of code, where the theme's script sets attributes only when they are scrolled to."""
    faults = "run.violations.flatMap((rule) => rule.nodes.map((node) => rule.id + ': ' + node.html.slice(0, 200)))"
    options = "{exclude: '.md-code__nav'}, {rules: {'scrollable-region-focusable': {enabled: false}}}"
    run = f"axe.run({options}).then((run) => {{ window.faults = JSON.stringify({faults}); }}); 0"
    with contextlib.closing(Tab(tmp_path)) as tab:
        for page, width, scheme in [("index", 1280, "light"), ("training", 390, "dark")]:
            tab.show(site / f"{page}.html", width=width, scheme=scheme)
            tab.value(AXE.read_text(encoding="utf-8") + "; 0")
            tab.value(run)
            assert tab.wait("window.faults") == "[]", page


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["[to](nowhere.md)", "[to](training.md#no-such-part)"])
def test_a_broken_link_fails_the_build(tmp_path: Path, broken: str) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "prefcli" / "assets").mkdir(parents=True)
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "prefcli/assets/WORDNET-LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "docs" / "eda.md").write_text(f"# What eda computes\n\n{broken}\n", encoding="utf-8")
    made = build(tmp_path, tmp_path / "site")
    assert made.returncode != 0
    assert "eda.md" in made.stderr
