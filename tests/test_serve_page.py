"""The page of ``prefcli serve`` in a real browser: what it shows, keys alone, hostile texts, narrow windows, errors."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from browser import AXE, CHROMIUM, needs_axe, needs_browser
from payloads import markup

import prefcli

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
uvicorn = pytest.importorskip("uvicorn", reason="pip install 'prefcli[serve]'")

pytestmark = [pytest.mark.slow, pytest.mark.network, needs_browser]

STATIC = Path(prefcli.__file__).parent / "serving" / "static"
TOKEN = "sesame-0123456789abcdef"
PROMPT, ANSWER_A, ANSWER_B = "How long do I boil an egg?", "Seven minutes, then cold water.", "It **depends**."
BEACON = "http://127.0.0.1:9/beacon"
WATCH = "addEventListener('securitypolicyviolation', (event) => console.error('CSP', event.violatedDirective))"


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of an application, which a thread serves."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def predictor(features_run: Path) -> prefcli.Predictor:
    return prefcli.load(features_run)


@pytest.fixture(scope="module")
def address(predictor: prefcli.Predictor) -> Iterator[str]:
    from prefcli.serving.app import create_app

    with serving(create_app(predictor)) as url:
        yield url


@pytest.fixture(scope="module")
def locked_address(predictor: prefcli.Predictor) -> Iterator[str]:
    """A server that asks for a token, and takes an eighth of a MiB at a time."""
    from prefcli.options import ServeOptions
    from prefcli.serving.app import create_app

    with serving(create_app(predictor, ServeOptions(max_body_mb=0.125), token=TOKEN)) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that is used, and what a user must not meet: messages on the console, requests to anybody else."""

    page: Any
    address: str
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("request", self._check_address)
        self.page.set_default_timeout(10_000)
        self.page.add_init_script(WATCH)
        self.page.goto(self.address)
        self.page.locator("textarea").nth(2).wait_for()

    def _note(self, message: Any) -> None:
        if not message.text.startswith("Failed to load resource: the server responded"):  # the page shows these errors
            self.faults.append(message.text)

    def _check_address(self, request: Any) -> None:
        if not request.url.startswith(self.address) and not request.url.startswith("data:"):
            self.faults.append(request.url)

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def fill(self, *texts: str) -> None:
        """The prompt and the answers of the first turn."""
        for area, text in zip(self.page.query_selector_all("textarea"), texts, strict=False):
            area.fill(text)

    def ask(self, *texts: str) -> None:
        """Fill in, press the main button, wait for the result."""
        self.fill(*texts)
        self.page.click("#compare")
        self.page.wait_for_selector("#result:not(.stale) h2, #problem p")
        assert self.text("#problem") == ""

    def answer_with(self, path: str, status: int, content: Any) -> None:
        """Let the server answer with something else."""
        self.page.route(f"**/{path}", lambda route: route.fulfill(status=status, json=content))

    def width(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth"))


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Callable[..., Visit]]:
    """Open the page; afterwards nothing may have gone wrong in it."""
    visits = []

    def start(
        url: str = address, *, width: int = 1000, scheme: str = "light", described_by: dict[str, Any] | None = None
    ) -> Visit:
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        if described_by is not None:
            model = {"runs": ["small"], "architecture": "siamese", "limits": {}} | described_by
            page.route("**/v1/model", lambda route: route.fulfill(json=model))
        visits.append(Visit(page, url))
        return visits[-1]

    yield start
    for each in visits:
        each.page.close()
        assert each.faults == []


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def rows(page: Visit, selector: str) -> list[list[str]]:
    """The cells of a table, as read."""
    script = "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.innerText.trim()))"
    return page.page.eval_on_selector_all(f"{selector} tbody tr", script)  # type: ignore[no-any-return]


def comparison(**changes: Any) -> dict[str, Any]:
    """An answer of ``/v1/compare``."""
    usual: dict[str, Any] = {
        "winner_model_a": 0.6, "winner_model_b": 0.3, "winner_tie": 0.1, "verdict": "A", "orders_agree": True,
        "orders": [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], "cuts": [], "contributions": [],
    }  # fmt: skip
    return usual | changes


def test_two_answers_have_the_probabilities_of_predict_and_what_moved_them(
    visit: Callable[..., Visit], predictor: prefcli.Predictor
) -> None:
    page = visit()
    page.ask(PROMPT, ANSWER_A, ANSWER_B)
    expected = predictor.predict(PROMPT, ANSWER_A, ANSWER_B)
    values = page.page.eval_on_selector_all("#result .plot .value", "(all) => all.map((each) => each.innerText)")
    assert values == [percent(share) for share in expected]
    b, a, tie = predictor.predict(PROMPT, ANSWER_B, ANSWER_A)
    assert (a, b, tie) == pytest.approx(expected, abs=1e-6)
    assert "It does not matter: the probabilities are the same with the answers swapped." in page.text("#result")
    assert "nothing was cut" in page.text("#result")
    moved = rows(page, "[aria-label='Statistics of the answers']")
    contributions = predictor.compare(PROMPT, ANSWER_A, ANSWER_B).contributions
    assert [row[0] for row in moved[:10]] == [each.description for each in contributions[:10]]
    for row, odds in [(moved[0], contributions[0].log_odds), (moved[-1], sum(each.log_odds for each in contributions))]:
        assert row[-1] == f"{'A' if odds > 0 else 'B'} +{abs(odds):.2f}"
    assert moved[-1][0] == "together"
    assert page.text("#model") == "Answered by run (features)."
    assert page.page.inner_text("#status") == page.text("#result h2"), "read aloud"


def test_three_answers_are_ranked_and_the_best_is_compared_with_the_others(
    visit: Callable[..., Visit], predictor: prefcli.Predictor
) -> None:
    page = visit()
    page.button("Add an answer").click()
    answers = [ANSWER_A, "", "Boil it for **seven** minutes.\n\n1. Water\n2. Egg\n3. Wait"]
    page.ask(PROMPT, *answers)
    ranked = predictor.rank(PROMPT, answers)
    order = ["ABC"[i] for i in ranked.ranking]
    assert page.text("#result h2") == f"Answer {order[0]} is most likely the best"
    lines = page.page.eval_on_selector_all(
        "#result > .plot li", "(all) => all.map((row) => [...row.children].map((each) => each.innerText))"
    )
    assert [(label, share) for label, _, share in lines] == [
        (f"{place + 1}. answer {'ABC'[i]}", percent(ranked.p_best[i])) for place, i in enumerate(ranked.ranking)
    ]
    best, second = (answers[i] for i in ranked.ranking[:2])
    left, right, tie = map(percent, predictor.predict(PROMPT, best, second))
    summary = f"{order[0]} against {order[1]}: {order[0]} {left}, {order[1]} {right}, tie {tie}"
    assert page.text("#result details summary") == summary
    page.button("Remove answer B").click()
    assert page.page.eval_on_selector_all("textarea", "(all) => all.map((each) => each.value)") == [
        PROMPT, answers[0], answers[2],
    ]  # fmt: skip
    assert page.page.is_visible("#result .changed"), "the result is of other texts"


def test_turns_are_sent_as_lists_and_the_request_and_its_answer_can_be_copied(
    visit: Callable[..., Visit], predictor: prefcli.Predictor
) -> None:
    page = visit()
    page.button("Add a turn").click()
    texts = ["one?", "eins", "uno", "two?", "it's \u202ezwei", ""]
    page.ask(*texts)
    for each, text in zip(page.page.locator("#result details").all(), ("curl", "winner_model_a"), strict=True):
        each.locator("summary").click()
        each.locator("pre", has_text=text).wait_for()
    curl, answer = (each.text_content() for each in page.page.locator("#result pre").all())
    head, body, end = curl.split("\n")
    assert head.startswith(f"curl {page.address}v1/compare -H")
    assert head.endswith("<<'END'")
    assert end == "END"
    assert "\u202e" not in body, "it would turn the line around"
    assert json.loads(body) == {
        "prompt": ["one?", "two?"], "response_a": ["eins", "it's \u202ezwei"], "response_b": ["uno", ""],
        "details": True,
    }  # fmt: skip
    expected = predictor.compare(["one?", "two?"], ["eins", "it's \u202ezwei"], ["uno", ""]).to_json()
    assert json.loads(answer)["winner_model_a"] == pytest.approx(expected["winner_model_a"], abs=1e-6)
    page.button("Remove the last turn").click()
    assert page.page.locator("textarea").count() == 3


def test_every_example_is_answered_and_its_markup_stays_text(visit: Callable[..., Visit]) -> None:
    page = visit()
    names = page.page.eval_on_selector_all("#examples button", "(all) => all.map((each) => each.innerText)")
    assert len(names) >= 5
    for name in names:
        page.button(name).click()
        assert page.page.is_hidden("#result")
        page.ask()
    assert "Markup" in names[-1]
    assert page.page.title().startswith("Which answer")
    assert page.page.locator("img").count() == 0


def test_what_was_cut_an_order_that_matters_and_a_close_call_are_said(visit: Callable[..., Visit]) -> None:
    page = visit(described_by={"max_tokens": {"small": 512}})
    cut = {"run": "small", "field": "response_b", "tokens": 1900, "kept": 512}
    content = comparison(
        winner_model_a=0.46, winner_model_b=0.44, verdict="too close to call", orders_agree=False, cuts=[cut]
    )
    page.answer_with("v1/compare", 200, content)
    page.ask("a", "b", "c")
    assert page.text("#result h2") == "Too close to call"
    assert "Of answer B 512 of 1,900 tokens were read: small reads 512 tokens at a time." in page.text("#result")
    assert "The order changes the preference." in page.text("#result")
    assert rows(page, "[aria-label='Probabilities by order']") == [
        ["A first, B second", "70.0%", "20.0%", "10.0%"],
        ["B first, A second", "50.0%", "40.0%", "10.0%"],
    ]
    page.answer_with("v1/compare", 200, content | {"orders_agree": True, "orders": [[0.46, 0.44, 0.1]] * 2})
    page.ask()
    assert "The most likely outcome is only 2.0 points ahead of the next." in page.text("#result")
    assert "the probabilities are the same with the answers swapped" in page.text("#result")
    changes = {"record": {"right": 0.625, "ci": [0.5, 0.7], "battles": 1200}, "rewards": [1.5, -0.25]}
    extreme = {"winner_model_a": 0.99995, "winner_model_b": 0.00005, "winner_tie": 0}
    page.answer_with("v1/compare", 200, comparison(**extreme, **changes))
    page.ask()
    record = "Of 1,200 held-out battles with such a lead, 62.5% (95% interval: 50.0% to 70.0%) ended as the run found"
    assert record in page.text("#result")
    assert "Rewards: A 1.5000, B -0.2500." in page.text("#result")
    values = page.page.eval_on_selector_all("#result .plot .value", "(all) => all.map((each) => each.innerText)")
    assert values == [">99.9%", "<0.1%", "0%"], "never rounded to none or all"


ERRORS = [
    (413, "the body is larger than 4 MiB", "for programs", "Shorten the texts"),
    (429, "too many requests wait", "Try again in 3 s.", "Try again in 3 s."),
    (503, "no answer within 60 s", "Send less at a time, or try again later.", "Send less at a time"),
]


def test_errors_are_shown_with_what_to_do_and_nothing_is_lost(visit: Callable[..., Visit]) -> None:
    page = visit()
    page.fill(PROMPT, ANSWER_A, ANSWER_B)
    for status, error, hint, shown in ERRORS:
        page.answer_with("v1/compare", status, {"error": error, "hint": hint})
        page.button("Compare").click()
        page.page.locator("#problem", has_text=f"Error: {error}").wait_for()
        assert shown in page.text("#problem")
    assert page.page.input_value("textarea") == PROMPT
    page.page.unroute_all()
    page.ask()


def test_refusals_of_the_real_server_and_one_that_is_gone_are_shown(visit: Callable[..., Visit]) -> None:
    page = visit()
    page.button("Compare").click()
    page.page.wait_for_selector("#problem p")
    assert "neither a prompt nor answers" in page.text("#problem")
    page.ask("word " * 20_000, "x" * 100_000, ANSWER_B)
    page.page.route("**/v1/compare", lambda route: route.abort())
    page.button("Compare").click()
    page.page.wait_for_selector("#problem p")
    assert "the server does not answer" in page.text("#problem")
    assert "Your texts are still here." in page.text("#problem")
    assert page.faults.pop().startswith("Failed to load resource: net::ERR_FAILED")


def test_a_request_can_be_cancelled_and_answers_that_come_too_late_are_dropped(visit: Callable[..., Visit]) -> None:
    page = visit()
    waiting: list[Any] = []
    page.page.route("**/v1/compare", lambda route: waiting.append(route))
    page.fill(PROMPT, ANSWER_A, ANSWER_B)
    page.button("Compare").click()
    page.page.wait_for_selector("#cancel")
    assert page.text("#status").startswith("Waiting")
    page.button("Cancel").click()
    assert page.text("#status") == "Cancelled."
    assert page.page.is_hidden("#cancel")
    assert page.page.evaluate("document.activeElement.id") == "compare"
    page.page.unroute_all()
    page.ask()
    assert page.page.is_hidden("#cancel")


def test_a_token_is_asked_for_and_kept_in_memory_only(visit: Callable[..., Visit], locked_address: str) -> None:
    page = visit(locked_address)
    page.page.wait_for_selector("#problem p")
    assert page.page.evaluate("document.activeElement.id") == "token"
    page.fill(PROMPT, ANSWER_A, ANSWER_B)
    for wrong, message in [("wrong", "this is not the server's token"), ("wröng", "no letters beyond ASCII")]:
        page.page.fill("#token", wrong)
        page.page.press("#token", "Enter")
        page.page.locator("#problem", has_text=message).wait_for()
    page.page.fill("#token", TOKEN)
    page.page.press("#token", "Enter")
    page.page.wait_for_selector("#result h2")
    page.page.locator("#model", has_text="features").wait_for()
    page.page.click("summary")
    page.page.locator("pre", has_text="$PREFCLI_TOKEN").wait_for()
    assert TOKEN not in page.page.content()
    stored = "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
    assert TOKEN not in page.page.evaluate(stored)
    page.fill("word " * 28_000)
    page.page.click("#compare")
    page.page.locator("#problem", has_text="the body is larger than 0.125 MiB").wait_for()
    assert "Shorten the texts" in page.text("#problem")


def test_keys_alone_do_everything(visit: Callable[..., Visit]) -> None:
    page = visit()
    press = page.page.keyboard.press

    def tab_to(name: str) -> None:
        for _ in range(40):
            press("Tab")
            script = "[document.activeElement.innerText || document.activeElement.parentElement.innerText, " \
                "getComputedStyle(document.activeElement).outlineStyle]"  # fmt: skip
            text, outline = page.page.evaluate(script)
            assert outline != "none", text
            if text.strip().startswith(name):
                return
        raise AssertionError(f"no key leads to {name}")

    tab_to("A child's question")
    press("Enter")
    tab_to("Prompt")
    page.page.keyboard.type("!")
    press("Control+Enter")
    page.page.wait_for_selector("#result h2")
    assert page.page.input_value("textarea").endswith("!")
    tab_to("Add an answer")
    press("Enter")
    page.page.keyboard.type("typed at once")
    assert page.page.locator("textarea").last.input_value() == "typed at once"
    tab_to("Remove answer C") if page.page.evaluate("document.activeElement.tagName") == "TEXTAREA" else None
    press("Space")
    tab_to("Compare")
    press("Space")
    page.page.wait_for_selector("#result:not(.changed) h2")
    tab_to("The answer as JSON")
    press("Enter")
    page.page.locator("#result pre", has_text="winner_model_a").wait_for()


def test_hostile_texts_of_user_and_server_are_inert(visit: Callable[..., Visit]) -> None:
    evil = markup(BEACON)
    everything = "\n".join(evil)
    page = visit()
    elements = "document.querySelectorAll('script, img, svg, iframe, object, embed, link, style, base, form').length"
    before = page.page.evaluate(elements)
    page.ask(everything, everything, everything[::-1])
    for each in page.page.locator("details").all():
        each.locator("summary").click()
    contributions = [
        {"description": "\n".join(evil[i::8]), "unit": evil[i], "a": 1, "b": None, "log_odds": 0.5} for i in range(8)
    ]
    cuts = [{"run": text, "field": "prompt", "tokens": 2, "kept": 1} for text in evil]
    page.answer_with("v1/compare", 200, comparison(contributions=contributions, cuts=cuts, verdict=everything))
    page.ask()
    shown = page.page.text_content("#result")
    assert all(text in shown for text in evil if "\x00" not in text)
    page.answer_with("v1/compare", 500, {"error": everything, "hint": everything})
    page.button("Compare").click()
    page.page.wait_for_selector("#problem p")
    assert evil[0] in page.page.text_content("#problem")
    assert page.page.evaluate(elements) == before
    assert page.page.title().startswith("Which answer")


def states(page: Visit) -> Iterator[str]:
    """What a user may look at, one after the other, and the page that describes the interface."""
    yield "empty"
    page.ask(PROMPT, "a" * 300, ANSWER_B)
    for each in page.page.locator("#result summary").all():
        each.click()
    yield "compared"
    page.button("Two turns (Arabic)").click()
    page.button("Add an answer").click()
    page.ask()
    page.page.locator("#result summary").first.click()
    yield "ranked, with turns"
    page.answer_with("v1/rank", 401, {"error": "a" * 300, "hint": ""})
    page.page.click("#compare")
    page.page.wait_for_selector("#problem p")
    yield "error"
    page.page.goto(page.address + "docs")
    yield "docs"


@needs_axe
@pytest.mark.parametrize(("width", "scheme"), [(1000, "light"), (390, "dark")])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(
    visit: Callable[..., Visit], width: int, scheme: str
) -> None:
    page = visit(width=width, scheme=scheme)
    axe = AXE.read_text(encoding="utf-8")
    script = """() => axe.run().then((run) => ({
      passed: run.passes.map((rule) => rule.id),
      faults: run.violations.flatMap((rule) => rule.nodes.map((node) => rule.id + ": " + node.html.slice(0, 200))),
    }))"""
    for state in states(page):
        assert page.width() <= width, state
        page.page.evaluate(axe)
        run = page.page.evaluate(script)
        assert run["faults"] == [], state
        assert "color-contrast" in run["passed"]


def test_the_files_name_no_other_host_and_are_small() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in STATIC.iterdir()}
    assert {"index.html", "page.css", "page.js", "examples.js"} <= set(texts)
    for name, text in texts.items():
        assert not re.findall(r"(?:https?:)?//[\w.]+\.\w", text), name
    written = texts["index.html"] + texts["page.js"]
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|\sstyle=|\son\w+=", written)
    assert sum(map(len, texts.values())) < 40_000
