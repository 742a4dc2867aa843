"""The report: self-contained, escaped, readable without a script, tested in a real browser where there is one."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import pytest
from browser import WIDTHS, needs_axe, needs_browser
from conftest import battle as kaggle_battle
from conftest import write_csv
from jinja2 import DictLoader
from test_eda import batches, battle

from prefcli import exploration
from prefcli.data import synthetic
from prefcli.exploration.models import HeadToHead
from prefcli.exploration.shares import share
from prefcli.rendering import eda_plots, page, templating

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Checker(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def evil_battles() -> exploration.Eda:
    names = [EVIL, '"><svg onload=alert(2)>', "\u202egnp.exe\x00", "x" * 300]
    rows = [
        battle(
            f"{EVIL}{i}",
            "y" * i,
            i % 3,
            prompt=f"{EVIL}{i % 9}",
            model_a=names[i % 4],
            model_b=names[(i + 1 + i % 3) % 4],
        )
        for i in range(200)
    ]
    return exploration.explore(batches(rows))


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "page.html"
    path.write_text(page.render(evil_battles(), f"{EVIL}.csv"), encoding="utf-8")
    return path


def test_templates_escape_text_and_attributes_and_replace_unprintable_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = '{% macro i(x) %}<i>{{ x }}</i>{% endmacro %}<p title="{{ quote }}">{{ "<b>" ~ text }}{{ i(text) }}</p>'
    monkeypatch.setattr(templating.environment(), "loader", DictLoader({"hostile.html": source}))
    shown = templating.render("hostile.html", quote="\"'", text="a\x00b\u202ec\ud800&\n\u3000")
    text = "a\ufffdb\ufffdc\ufffd&amp;\n\u3000"
    assert shown == f'<p title="&#34;&#39;">&lt;b&gt;{text}<i>{text}</i></p>'


def test_the_page_is_well_formed_and_requests_nothing(evil_page: Path) -> None:
    text = evil_page.read_text(encoding="utf-8")
    parsed = Checker(text)
    assert not {"script", "img", "link", "iframe", "object", "form"} & set(parsed.tags)
    assert not any(name.startswith("on") or name in ("src", "style") for name, _ in parsed.attributes)
    assert all((value or "").startswith("#") for name, value in parsed.attributes if name == "href")
    assert not re.search(r"url\(|@import|https?:", text)
    assert "default-src 'none'" in text
    assert "screen and (prefers-color-scheme: dark)" in text  # paper is white
    assert "@media print" in text
    assert 'name="viewport"' in text
    assert re.search(r"Made \d{4}-\d\d-\d\d \d\d:\d\d by prefcli", text)


def test_the_contents_lead_to_every_section(evil_page: Path) -> None:
    text = evil_page.read_text(encoding="utf-8")
    links = re.findall(r'<li><a href="#([\w-]+)">([^<]+)</a></li>', text)
    assert links == re.findall(r'<h2 id="([\w-]+)">([^<]+)</h2>', text)
    assert len({id for id, _ in links}) == len(links) >= 4


def test_hostile_names_show_as_text(evil_page: Path) -> None:
    parsed = Checker(evil_page.read_text(encoding="utf-8"))
    assert any(EVIL in text for text in parsed.texts)
    assert "onerror" not in {name for name, _ in parsed.attributes}


def test_every_plot_has_a_name_and_a_caption_and_is_well_formed(evil_page: Path) -> None:
    text = evil_page.read_text(encoding="utf-8")
    figures = re.findall(r'<figure aria-label="[^"]+">(.*?)<figcaption>[^<]+</figcaption></figure>', text, re.DOTALL)
    assert len(figures) == text.count("<figure") >= 4
    for figure in figures:
        ElementTree.fromstring(f"<figure>{figure}</figure>")


def test_the_page_shows_the_numbers() -> None:
    rows = [battle("x" * 20, "y" * (i % 30 + 1), i % 3, prompt=f"p{i}") for i in range(120)]
    stats = exploration.explore(batches(rows))
    text = page.render(stats, "votes.csv")
    for shown in ("120", f"{stats.tie_share:.1%}", "koala", f"{stats.rewarded[0].wins.value:.1%}", "votes.csv"):
        assert shown in text


def test_a_cells_colour_says_how_far_from_even_its_interval_is() -> None:
    """Three battles that all went one way are not told apart from even so far as three hundred are."""
    names = ("a", "b", "c", "d")
    score: list[list[float | None]] = [[None] * 4 for _ in names]
    battles = [[0] * 4 for _ in names]
    for i, j, won, n in ((0, 1, 1.0, 3), (0, 2, 1.0, 300), (1, 2, 0.52, 300)):
        score[i][j], score[j][i] = won, 1 - won
        battles[i][j] = battles[j][i] = n
    table = HeadToHead(names, tuple(map(tuple, score)), tuple(map(tuple, battles)))
    styles = [[cell.style for cell in row] for row in eda_plots.head_to_head(table)]
    assert styles[0] == ["same", "even", "heat-a-5", "never"]
    assert styles[2] == ["heat-b-5", "even", "same", "never"]
    assert share(3, 3).low < 0.5 < share(300, 300).low - 0.4  # Wilson's interval of three wins includes even


def test_two_models_have_one_table_of_wins() -> None:
    rows = [battle(f"x{i}", "y", i % 3, model_a="koala", model_b="vicuna") for i in range(60)]
    text = page.render(exploration.explore(batches(rows)), "two.csv")
    assert "Most wins" in text
    assert "Highest win rates" not in text
    assert "Most frequent pairs" not in text


def test_models_that_never_met_are_ranked_apart_and_groups_are_shown() -> None:
    rows = [
        battle(f"x{i}", "y" * (1 + i % 5), i % 3, model_a=f"{'ab'[i % 2]}1", model_b=f"{'ab'[i % 2]}2", prompt=f"p{i}")
        for i in range(120)
    ]
    found = exploration.explore(batches(rows), by="length")
    text = page.render(found, "apart.csv")
    first, second = re.findall(r"<h4>Group \d.*?</table>", text, flags=re.DOTALL)
    assert {*re.findall(r">([ab]\d)<", first)} == {"a1", "a2"}
    assert {*re.findall(r">([ab]\d)<", second)} == {"b1", "b2"}
    assert 'class="never"' in text
    assert "By group" in text


def test_a_file_without_outcomes_and_models_has_a_page() -> None:
    rows = [battle(label=None, model_a=None, model_b=None)] * 3
    parsed = Checker(page.render(exploration.explore(batches(rows)), "test.csv"))
    assert "Outcomes" not in parsed.texts
    assert "What to look out for" in parsed.texts


@pytest.mark.slow
def test_the_page_stays_small_however_many_models_there_are() -> None:
    rows = [
        battle(f"x{i}", "y", i % 3, model_a=f"model number {i % 700}", model_b=f"model number {i % 699 + 1}")
        for i in range(4000)
    ]
    assert len(page.render(exploration.explore(batches(rows)), "many.csv").encode()) < 2_000_000


def test_the_command_overwrites_a_page_only_when_forced(cli: Callable[..., Any], tmp_path: Path) -> None:
    demo = synthetic.write(tmp_path / "demo", train=120, test=10)
    report = tmp_path / "page.html"
    assert cli("eda", demo.train, "--report", report).code == 0
    first = report.read_text(encoding="utf-8")
    assert "Battles in train.csv" in first
    again = cli("eda", demo.train, "--report", report)
    assert again.code == 2
    assert "--force" in again.err
    assert cli("eda", demo.test, "--report", report, "--force").code == 0
    assert report.read_text(encoding="utf-8") != first


# In the browser

PROBE = """({ran: window.hacked || 0, images: document.images.length, shows: document.body.innerText.includes("%s"),
  scripts: document.querySelectorAll("main script").length,
  wide: document.documentElement.scrollWidth > document.documentElement.clientWidth})"""


@pytest.mark.slow
@needs_browser
def test_hostile_names_do_nothing_in_a_real_browser_and_nothing_is_wider_than_a_phone(
    evil_page: Path, tmp_path: Path
) -> None:
    alert = "<script>window.alert = () => { window.hacked = 1; };</script></head>"
    text = evil_page.read_text(encoding="utf-8").replace("</head>", alert, 1)
    for probe in browser.results(tmp_path, [(text, width) for width in WIDTHS], PROBE % "<script>alert(1)<\\/script>"):
        assert probe == {"ran": 0, "images": 0, "scripts": 0, "shows": True, "wide": False}


@pytest.mark.slow
@needs_browser
@needs_axe
def test_axe_finds_no_fault_of_contrast_or_labels(evil_page: Path, tmp_path: Path) -> None:
    assert browser.axe_faults(tmp_path, [evil_page.read_text(encoding="utf-8")]) == []


def test_a_file_with_equally_good_models_has_a_page(tmp_path: Path, cli: Any) -> None:
    path = write_csv(tmp_path / "a.csv", [kaggle_battle(i, 2) for i in range(4)])
    done = cli("eda", path, "--report", "page.html")
    assert done.code == 0, done.err
    assert (tmp_path / "page.html").read_text().rstrip().endswith("</html>")
