"""``prefcli serve``: its HTTP interface, limits and refusals in this process; signals in one of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from conftest import Result, start_process

import prefcli
from prefcli.options import ServeOptions
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.prediction import inference, ranking
from prefcli.storage import runs

pytest.importorskip("fastapi", reason="pip install 'prefcli[serve]'")
uvicorn = pytest.importorskip("uvicorn", reason="pip install 'prefcli[serve]'")
testclient = pytest.importorskip("starlette.testclient", reason="pip install httpx")

from uvicorn.server import ServerState  # noqa: E402

from prefcli.serving import server  # noqa: E402
from prefcli.serving.app import create_app  # noqa: E402
from prefcli.serving.worker import Item, QueueFullError, Worker  # noqa: E402

pytestmark = pytest.mark.slow

CLI = Callable[..., Result]
TOKEN = "sesame-0123456789abcdef"
BATTLE = {"prompt": "Name a fruit.", "response_a": "A cherry.", "response_b": "Bananas are yellow, as everyone knows."}
SECRET = "xylophone-4711"
"""A text that may not appear anywhere but in answers."""


@pytest.fixture(scope="module")
def predictor(features_run: Path) -> prefcli.Predictor:
    return prefcli.load(features_run)


@contextlib.contextmanager
def client_of(predictor: prefcli.Predictor, token: str | None = None, **options: Any) -> Iterator[Any]:
    app = create_app(predictor, ServeOptions(**options), token=token)
    with testclient.TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(predictor: prefcli.Predictor) -> Iterator[Any]:
    with client_of(predictor) as client:
        yield client


def triple(answer: dict[str, Any]) -> list[float]:
    return [answer[name] for name in WINNER_COLUMNS]


def odd_battles() -> list[dict[str, Any]]:
    """Battles in other languages, of several turns, with empty, missing and very long texts."""
    return [
        BATTLE,
        {"prompt": "¿Qué?", "response_a": "", "response_b": "Nada 🍒"},
        {"prompt": "猫の手も借りたい", "response_a": "猫です。\n" * 50, "response_b": "忙しい"},
        {"prompt": ["Hello", "And now?"], "response_a": ["Hi", None], "response_b": ["Hello!", "Nothing"]},
        {"prompt": ["a", "b"], "response_a": ["one"], "response_b": ["x", "y"]},
        {"prompt": "[1, 2]", "response_a": '["a"]', "response_b": "null"},
        {"prompt": "long", "response_a": "word " * 5000, "response_b": "short"},
        {"prompt": "nul \0 and \t", "response_a": "</script>", "response_b": "'; DROP"},
    ]


def test_answers_are_those_of_predict_alone_together_and_in_one_request(
    client: Any, predictor: prefcli.Predictor, features_run: Path, demo_files: Any
) -> None:
    """Also of prompts that the run held out, for each of which the temperature is fitted without it."""
    held_out = set(runs.read_validation(features_run).keys.tolist())
    battles = odd_battles()
    for row in Path(demo_files.train).read_text().splitlines()[1:30]:
        texts = re.findall(r'"(\[.*?\])"(?=,|$)', row)
        fields = [json.loads(text.replace('""', '"')) for text in texts[:3]]
        battles.append(dict(zip(("prompt", "response_a", "response_b"), fields, strict=True)))
    from prefcli.battles import prompt_key

    of_held_out = [prompt_key(each["prompt"]) in held_out for each in battles if isinstance(each["prompt"], list)]
    assert any(of_held_out)
    assert not all(of_held_out)
    expected = [list(predictor.predict(*each.values())) for each in battles]
    together = client.post("/v1/compare", json={"battles": battles}).json()["results"]
    assert np.abs(np.array([triple(each) for each in together]) - expected).max() < 1e-9
    for battle, probabilities in zip(battles[:6], expected, strict=False):
        answer = client.post("/v1/compare", json=battle)
        assert answer.status_code == 200
        assert np.abs(np.array(triple(answer.json())) - probabilities).max() < 1e-9


def test_clients_that_ask_at_once_get_their_own_answers(client: Any, predictor: prefcli.Predictor) -> None:
    battles = [{**BATTLE, "response_a": "cherry " * number} for number in range(40)]
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        answers[number] = client.post("/v1/compare", json={**battles[number], "id": number}).json()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = predictor.predict([{"id": str(number), **battle} for number, battle in enumerate(battles)])
    assert [answers[number]["id"] for number in range(40)] == list(range(40))
    assert np.abs(np.array([triple(answers[number]) for number in range(40)]) - expected).max() < 1e-9
    batches = re.search(r"^prefcli_batch_battles_count (\S+)", client.get("/metrics").text, flags=re.M)
    battles_done = re.search(r"^prefcli_battles_total (\S+)", client.get("/metrics").text, flags=re.M)
    assert batches
    assert battles_done
    assert float(batches[1]) < float(battles_done[1]), "some were computed together"


def test_details_and_rankings_are_those_from_python(client: Any, predictor: prefcli.Predictor) -> None:
    detailed = client.post("/v1/compare", json={**BATTLE, "details": True, "id": "x"}).json()
    assert detailed.pop("id") == "x"
    assert detailed == json.loads(json.dumps(predictor.compare(*BATTLE.values()).to_json()))
    described = client.get("/openapi.json").json()["components"]["schemas"]
    assert set(detailed["contributions"][0]) == set(described["Contribution"]["properties"])
    question = {"prompt": "Name a fruit.", "responses": ["A cherry.", "Bananas are yellow.", "", "A cherry."]}
    ranked = predictor.rank(question["prompt"], question["responses"])  # type: ignore[call-overload]
    answer = client.post("/v1/rank", json=question).json()
    assert answer == {name: value for name, value in ranked.to_json().items() if name != "id"}
    assert client.post("/v1/rank", json={**question, "id": 7}).json()["id"] == 7


def test_the_pairs_of_a_ranking_are_what_is_counted(predictor: prefcli.Predictor) -> None:
    """Of many answers not all pairs are compared."""
    answers = [f"{number} cherries" for number in range(40)]
    pairs = len(ranking.pairs_to_compare(40, ranking.RankRule().all_pairs)[0])
    assert pairs < 40 * 39 / 2
    with client_of(predictor) as client:
        assert client.post("/v1/rank", json={"prompt": "How many?", "responses": answers}).status_code == 200
        assert f"prefcli_battles_total {pairs:.1f}" in client.get("/metrics").text


def test_the_model_is_described_as_it_was_loaded(features_run: Path, tmp_path: Path) -> None:
    """By the names of the hub, and whatever becomes of the folders."""
    folder = shutil.copytree(features_run, tmp_path / "0123abc")
    loaded = prefcli.Predictor([folder], prefcli.PredictOptions(("hf://me/judge",)))
    with pytest.raises(prefcli.InputError, match="^hf://me/judge has the architecture features"):
        loaded.check_rewards()
    with client_of(loaded) as client:
        shutil.rmtree(folder)
        described = client.get("/v1/model").json()
    assert described["runs"] == ["hf://me/judge"]
    assert described["max_tokens"] == {"hf://me/judge": None}


def test_scores_are_the_rewards_and_other_runs_say_what_to_do(client: Any, reward_run: Path) -> None:
    answer = client.post("/v1/score", json={"prompt": "a", "response": "b"})
    assert answer.status_code == 409
    assert answer.json() == {
        "error": "run has the architecture features, which compares answers and gives no scores",
        "hint": "Ask /v1/rank, or serve a run of --architecture reward.",
    }
    reward = prefcli.load(reward_run, device="cpu")
    with client_of(reward) as scoring:
        assert scoring.get("/v1/model").json()["can_score"] is True
        one = scoring.post("/v1/score", json={"prompt": "Name a fruit.", "response": "A cherry."}).json()
        assert one == {"score": pytest.approx(reward.score("Name a fruit.", "A cherry."), abs=1e-6)}
        body = {"prompt": ["Hi", "More?"], "responses": [["a", "b"], ["c", None]], "id": "k"}
        several = scoring.post("/v1/score", json=body).json()
        assert several["id"] == "k"
        assert several["scores"] == pytest.approx(reward.score(["Hi", "More?"], [["a", "b"], ["c", None]]), abs=1e-6)
        details = scoring.post("/v1/compare", json={**BATTLE, "details": True}).json()
        assert len(details["rewards"]) == 2


def test_a_battle_that_is_not_valid_gets_an_error_in_its_place(client: Any) -> None:
    battles = [BATTLE, {"prompt": 3, "id": "y"}, "text", {**BATTLE, "id": 2}, {**BATTLE, "respnse_a": "x"}]
    first, second, third, fourth, fifth = client.post("/v1/compare", json={"battles": battles}).json()["results"]
    assert triple(first) == triple(fourth)
    assert fourth["id"] == 2
    assert second == {"id": "y", "error": "prompt is int, neither text nor a list of turns"}
    assert third == {"id": None, "error": "a battle is a JSON object"}
    assert fifth["error"] == "respnse_a: there is no such key"


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/v1/compare", b'{"prompt": "a"', 400, "broken JSON: Expecting ',' delimiter at character 14"),
        ("/v1/compare", b'{"prompt": "\xff"}', 400, "the body is not JSON"),
        ("/v1/compare", b'{"prompt": ' + b"[" * 100_000 + b"}", 400, "the body is not JSON"),
        ("/v1/compare", b'{"prompt": ' + b"9" * 5000 + b"}", 400, "the body is not JSON"),
        ("/v1/compare", b"", 422, "there is no body"),
        ("/v1/compare", b"[]", 422, "the body is a JSON object"),
        ("/v1/compare", b"{}", 422, "prompt: is missing"),
        ("/v1/compare", b'{"battles": []}', 422, "battles: expected at least 1, got 0"),
        ("/v1/compare", b'{"prompt": NaN, "response_a": "a", "response_b": "b"}', 422,
         "prompt is float, neither text nor a list of turns"),
        ("/v1/compare", b'{"prompt": [], "response_a": "a", "response_b": "b"}', 422, "prompt has no turns"),
        ("/v1/compare", b'{"prompt": "", "response_a": "", "response_b": [null]}', 422, "neither a prompt nor answers"),
        ("/v1/compare", b'{"prompt": "a", "response_a": "a", "response_b": "b", "details": 1}', 422,
         "details: expected true or false"),
        ("/v1/rank", b'{"prompt": ["a", "b"], "responses": ["c"]}', 422, "answer 1 has 1 turns, the prompt has 2"),
        ("/v1/rank", b'{"prompt": "a", "responses": "c"}', 422, "responses: expected a list"),
        ("/v1/rank", b'{"prompt": "a", "responses": ["c"], "\\ud800": 1}', 422, "a key is not valid text"),
        ("/v1/rank", b'{"prompt": "a", "responses": ["c"], "' + b"k" * 3000 + b'": 1}', 422,
         f"{'k' * 79}…: there is no such key"),
        ("/v1/rank", b'{"prompt": "a", "responses": ["c"], "key": 1}', 422, "key: there is no such key"),
        ("/v1/rank", json.dumps({"prompt": "a", "responses": ["c"] * 129}).encode(), 422,
         "responses: expected at most 128, got 129"),
        ("/v1/rank", b'{"prompt": "a", "responses": ["c"], "id": NaN}', 422, "id: neither text nor a number"),
        ("/v1/score", b'{"prompt": "a", "response": "c", "id": {}}', 422, "id: neither text nor a number"),
        ("/nowhere", b"{}", 404, "there is no such path"),
        ("/health", b"{}", 405, "there is no such method for this path"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_said(client: Any, path: str, body: bytes, status: int, error: str) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (status, error)


def test_lone_surrogates_are_read_as_predict_reads_them(client: Any, predictor: prefcli.Predictor) -> None:
    body = b'{"prompt": "a \\ud800", "response_a": "\\ud83c\\udf52", "response_b": "b", "id": "\\udfff"}'
    answer = client.post("/v1/compare", content=body, headers={"content-type": "application/json"})
    assert triple(answer.json()) == pytest.approx(list(predictor.predict("a �", "🍒", "b")), abs=1e-9)


def test_forms_and_other_hosts_are_refused(client: Any, predictor: prefcli.Predictor) -> None:
    """A page elsewhere can send a form, and can give its own name to this machine's address."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = client.post("/v1/compare", content=json.dumps(BATTLE), headers={"content-type": kind})
        assert answer.status_code == 415, kind
    for host in ("evil.example", "localhost.evil.example:8000", "127.0.0.1.evil"):
        assert client.get("/v1/model", headers={"host": host}).status_code == 400
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"):
        assert client.get("/v1/model", headers={"host": host}).status_code == 200
    with testclient.TestClient(create_app(predictor, host_names=("My-Machine",))) as named:
        for host, status in (("my-machine:8000", 200), ("MY-MACHINE", 200), ("localhost", 400)):
            assert named.get("/health", headers={"host": host}).status_code == status
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert client.options("/v1/compare", headers=preflight).status_code == 405
    answer = client.post("/v1/compare", json=BATTLE, headers={"origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_every_answer_has_the_headers_that_protect_browsers(client: Any) -> None:
    paths = ("/", "/health", "/nowhere", "/static/docs.css", "/docs")
    other_host = client.get("/health", headers={"host": "x"})
    for answer in (*map(client.get, paths), client.post("/v1/compare"), other_host):
        assert answer.headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
            "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_head_is_answered_as_get_without_a_body(client: Any) -> None:
    for path in ("/", "/health", "/v1/model", "/nowhere", "/v1/compare"):
        get, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert head.headers == get.headers, path


def test_with_a_token_only_the_pages_and_health_are_open(predictor: prefcli.Predictor) -> None:
    with client_of(predictor, token=TOKEN) as client:
        for path in ("/", "/static/docs.css", "/health", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        assert client.get("/openapi.json").json()["security"] == [{"token": []}]
        for path in ("/v1/model", "/metrics"):
            for header in ("", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer é"):
                answer = client.get(path, headers={"authorization": header.encode("latin-1")})
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert client.get(path, headers={"authorization": f"bearer {TOKEN}"}).status_code == 200
        assert client.post("/v1/compare", json=BATTLE).status_code == 401
        assert client.post("/v1/compare", json=BATTLE, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_bodies_are_bounded_whatever_length_they_claim(predictor: prefcli.Predictor) -> None:
    with client_of(predictor, max_body_mb=0.015625) as client:
        small = json.dumps({**BATTLE, "prompt": "a" * 16_000})
        kind = {"content-type": "application/json"}
        assert client.post("/v1/compare", content=small, headers=kind).status_code == 200
        large = small.replace("aaa", "aaaa")
        for content in (large, iter([large[:5000].encode(), large[5000:].encode()])):  # with a length; chunked
            answer = client.post("/v1/compare", content=content, headers=kind)
            assert (answer.status_code, answer.json()["error"]) == (413, "the body is larger than 0.015625 MiB")


def test_bodies_of_all_requests_together_are_bounded(predictor: prefcli.Predictor) -> None:
    blocked = Blocked(predictor)
    body = json.dumps({**BATTLE, "prompt": "a" * 15_000}).encode()
    kind = {"content-type": "application/json"}
    with client_of(blocked, max_body_mb=0.015625) as client:  # type: ignore[arg-type]
        statuses: list[int] = []
        ask = lambda: statuses.append(client.post("/v1/compare", content=body, headers=kind).status_code)  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        while len(statuses) < 20 - 2**14 * 16 // len(body):  # those for which there is no room are refused at once
            time.sleep(0.01)
        assert set(statuses) == {429}
        blocked.go.set()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200] * (2**14 * 16 // len(body)) + [429] * (20 - 2**14 * 16 // len(body))
        assert client.post("/v1/compare", content=body, headers=kind).status_code == 200


class Blocked:
    """A predictor that computes when it is allowed to."""

    def __init__(self, predictor: prefcli.Predictor) -> None:
        self.predictor, self.go, self.begun = predictor, threading.Event(), threading.Event()
        self.folders, self.names, self.can_score = predictor.folders, predictor.names, False

    def predict_each(self, battles: Any) -> Any:
        self.begun.set()
        self.go.wait(10)
        return self.predictor.predict_each(battles)


def test_a_full_queue_refuses_and_says_when_to_try_again(predictor: prefcli.Predictor) -> None:
    blocked = Blocked(predictor)
    with client_of(blocked, max_queue=2) as client:  # type: ignore[arg-type]
        statuses: list[int] = []
        ask = lambda: statuses.append(client.post("/v1/compare", json=BATTLE).status_code)  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(3)]
        threads[0].start()
        assert blocked.begun.wait(10)  # one is computed
        for thread in threads[1:]:
            thread.start()
        while "prefcli_queue_requests 2.0" not in client.get("/metrics").text:  # two wait
            time.sleep(0.01)
        answer = client.post("/v1/compare", json=BATTLE)
        assert (answer.status_code, answer.json()["error"]) == (429, "too many requests wait")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        blocked.go.set()
        for thread in threads:
            thread.join()
        assert statuses == [200, 200, 200]


def test_a_request_that_takes_too_long_is_answered_and_others_go_on(predictor: prefcli.Predictor) -> None:
    blocked = Blocked(predictor)
    with client_of(blocked, timeout=0.1) as client:  # type: ignore[arg-type]
        answer = client.post("/v1/compare", json=BATTLE)
        assert (answer.status_code, answer.json()["error"]) == (503, "no answer within 0.1 s")
        assert answer.headers["retry-after"] == "5"
        blocked.go.set()
        assert client.get("/health").status_code == 200


def test_what_the_model_cannot_compute_fails_alone(
    predictor: prefcli.Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = inference.predict_batch

    def not_finite(member: Any, batch: Any, **rest: Any) -> Any:
        if SECRET in str(batch.column("prompt")):
            raise inference.NonFiniteError("the model computes no finite numbers for 1 battle")
        return predict(member, batch, **rest)

    monkeypatch.setattr(inference, "predict_batch", not_finite)
    bad = {**BATTLE, "prompt": SECRET}
    with client_of(predictor) as client:
        results = client.post("/v1/compare", json={"battles": [BATTLE, bad, BATTLE]}).json()["results"]
        assert triple(results[0]) == triple(results[2])
        assert results[1] == {"error": "the model computes no finite numbers for 1 battle"}
        assert client.post("/v1/compare", json=bad).status_code == 422


def test_an_error_of_prefcli_is_the_answer(predictor: prefcli.Predictor) -> None:
    class Diverging(Blocked):
        def rank_each(self, questions: Any) -> Any:
            raise prefcli.ModelError("the strengths of the answers do not converge", hint="Rank fewer answers at once.")

    with client_of(Diverging(predictor)) as client:  # type: ignore[arg-type]
        answer = client.post("/v1/rank", json={"prompt": "a", "responses": ["b", "c"]})
    what = {"error": "the strengths of the answers do not converge", "hint": "Rank fewer answers at once."}
    assert (answer.status_code, answer.json()) == (422, what)


def test_no_text_is_logged_when_something_fails(
    predictor: prefcli.Predictor, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken(Blocked):
        def predict_each(self, battles: Any) -> Any:
            raise ValueError(f"cannot compute {battles}")

    warnings: list[str] = []
    reporter = type("Reporter", (), {"warn": lambda self, text: warnings.append(text)})()
    app = create_app(Broken(predictor), reporter=reporter)  # type: ignore[arg-type]
    with testclient.TestClient(app, base_url="http://localhost") as client:
        for body in ({**BATTLE, "prompt": SECRET}, {"prompt": SECRET}, {SECRET: 1}):
            client.post("/v1/compare", json=body)
        answer = client.post("/v1/compare", json={**BATTLE, "prompt": SECRET})
        assert answer.status_code == 500
        assert "bug in prefcli" in answer.json()["hint"]
        assert SECRET not in answer.text
        assert SECRET not in client.get("/metrics").text
        client.get(f"/{SECRET}")
        assert SECRET not in client.get("/metrics").text
    assert re.fullmatch(r"unexpected ValueError in .*test_serve\.py, line \d+", warnings[0])
    assert SECRET not in f"{caplog.text} {capfd.readouterr()} {warnings}"


def test_openapi_describes_what_is_sent_and_answered(client: Any) -> None:
    """Its examples are valid requests, and answers have the fields that it names."""
    api = client.get("/openapi.json").json()
    assert set(api["paths"]) == {"/v1/compare", "/v1/rank", "/v1/score", "/v1/model", "/health", "/metrics"}
    schemas = api["components"]["schemas"]

    def described(content: dict[str, Any]) -> list[dict[str, Any]]:
        schema = content["application/json"]["schema"]
        of_any = schema.get("oneOf") or schema.get("anyOf") or [schema]
        return [schemas[each["$ref"].rpartition("/")[2]] for each in of_any]

    for path in ("/v1/compare", "/v1/rank"):
        post = api["paths"][path]["post"]
        fields = [set(schema["properties"]) for schema in described(post["responses"]["200"]["content"])]
        for schema in described(post["requestBody"]["content"]):
            assert schema["examples"]
            for example in schema["examples"]:
                answer = client.post(path, json=example)
                assert answer.status_code == 200
                assert any(set(answer.json()) <= names for names in fields), path
    for path in ("/v1/model", "/health"):
        (schema,) = described(api["paths"][path]["get"]["responses"]["200"]["content"])
        assert set(schema["properties"]) == set(client.get(path).json())
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert all(path in page.text for path in api["paths"])
    assert not re.findall(r"<script|style=|https?://", page.text)


def test_metrics_count_by_path_and_status(predictor: prefcli.Predictor) -> None:
    with client_of(predictor) as client:
        client.post("/v1/compare", json={"battles": [BATTLE] * 3})
        client.post("/v1/compare", json={})
        client.get("/wp-login.php")
        lines = client.get("/metrics").text.splitlines()
    for line in (
        'prefcli_requests_total{path="/v1/compare",status="200"} 1.0',
        'prefcli_requests_total{path="/v1/compare",status="422"} 1.0',
        'prefcli_requests_total{path="other",status="404"} 1.0',
        'prefcli_request_seconds_count{path="/v1/compare"} 2.0',
        "prefcli_battles_total 3.0",
        "prefcli_batch_battles_sum 3.0",
        "prefcli_queue_requests 0.0",
    ):
        assert line in lines


def test_a_large_request_is_computed_in_parts_between_which_others_have_their_turn() -> None:
    """With room for 4 battles or 100 characters, what waits is taken in turn, at least one item at a time."""
    batches: list[list[int]] = []

    def compute(values: list[int]) -> list[int]:
        batches.append(values)
        return [-value for value in values]

    async def run() -> list[list[int]]:
        worker = Worker(max_queue=3, batch_battles=4, batch_characters=100, observe=lambda battles: None)
        item = lambda value, battles=1, characters=1: Item(value, battles, characters)  # noqa: E731
        jobs = [[item(value) for value in range(10)], [item(20), item(21, 1, 99)], [item(30, 50, 500)]]
        tasks = [asyncio.create_task(worker.submit(compute, job)) for job in jobs]
        await asyncio.sleep(0)  # all three wait before the thread starts
        with pytest.raises(QueueFullError):
            await worker.submit(compute, jobs[0])
        worker.start()
        results = await asyncio.gather(*tasks)
        worker.close()
        return results

    assert asyncio.run(run()) == [[-value for value in range(10)], [-20, -21], [-30]]
    assert batches == [[0, 1, 2, 3], [20, 21], [30], [4, 5, 6, 7], [8, 9]]


class Panic(BaseException):
    """As tokenizers raises it."""


@pytest.mark.parametrize("kind", [ZeroDivisionError, Panic, StopIteration])
def test_a_request_that_fails_does_not_spoil_those_computed_with_it(kind: type[BaseException]) -> None:
    def compute(values: list[int]) -> list[float]:
        if 0 in values:
            raise kind
        return [1 / value for value in values]

    async def run() -> list[Any]:
        worker = Worker(max_queue=9, batch_battles=9, batch_characters=9, observe=lambda battles: None)
        tasks = [asyncio.create_task(worker.submit(compute, [Item(value, 1, 1)])) for value in (1, 0, 2)]
        await asyncio.sleep(0)
        worker.start()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=30)
        worker.close()
        return results

    first, second, third = asyncio.run(run())
    assert (first, third) == ([1.0], [0.5])
    assert type(second) is (kind if kind is ZeroDivisionError else RuntimeError)
    assert kind is ZeroDivisionError or str(second) == kind.__name__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host", "0.0.0.0"), "error: --host 0.0.0.0 lets other machines ask: that needs a token\n"
         "  Make one: openssl rand -hex 32 > token.txt; then --token-file token.txt.\n"),
        (("--host", "no.such.host.invalid"), "error: --host 'no.such.host.invalid' is no address of this machine\n"),
        (("--token-file", "missing.txt"),
         "error: cannot read the token: No such file or directory\n  in missing.txt\n"),
        (("--token-file", "short.txt"), "error: the token is not 16 or more ASCII characters without spaces\n"
         "  in short.txt\n  Make one: openssl rand -hex 32 > token.txt; then --token-file token.txt.\n"),
        (("--port", "70000"), "error: --port is 70000, at most 65535 is allowed\n  See prefcli serve --help.\n"),
        (("--max-queue", "0"), None),
        (("no-such-run", "--port", "0"), None),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused(cli: CLI, features_run: Path, arguments: Any, message: str | None) -> None:
    Path("short.txt").write_text("abc")
    shown = cli("serve", *([] if arguments[0][0] != "-" else [features_run]), *arguments)
    assert shown.code == 2
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert message is None or shown.err == message


def test_a_port_in_use_and_a_damaged_run_are_named(cli: CLI, features_run: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        shown = cli("serve", features_run, "--port", port)
    assert (shown.code, shown.err) == (
        1,
        f"error: cannot listen on 127.0.0.1, port {port}: address already in use\n"
        "  Choose another --port; 0 takes a free one.\n",
    )
    damaged = shutil.copytree(features_run, tmp_path / "damaged")
    (damaged / "booster.txt").write_text("tree\n")
    shown = cli("serve", damaged, "--port", 0)
    assert shown.code == 1
    assert "damaged" in shown.err


def test_without_its_packages_the_line_that_installs_them_is_shown(cli: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli("serve", "RUN").err == (
        "error: prefcli serve needs fastapi, uvicorn and prometheus_client, which are not installed\n"
        "  Install: pip install fastapi uvicorn prometheus-client\n"
    )


@pytest.mark.parametrize(
    ("calls", "is_cut_off"), [(("pause_writing",), True), (("pause_writing", "resume_writing"), False)]
)
def test_a_client_that_reads_no_answers_is_cut_off(calls: tuple[str, ...], is_cut_off: bool) -> None:

    async def serve() -> mock.Mock:
        transport = mock.Mock(is_closing=lambda: False)
        options = ServeOptions(timeout=0.02, header_timeout=60.0)
        protocol = type("Protocol", (server._Protocol,), {"options": options})
        connection = protocol(uvicorn.Config(mock.Mock(), lifespan="off"), ServerState(), {})
        connection.connection_made(transport)
        for call in calls:
            getattr(connection, call)()
        await asyncio.sleep(0.1)
        connection.connection_lost(None)
        return transport

    assert asyncio.run(serve()).abort.called is is_cut_off


def test_what_is_not_read_when_a_connection_ends_does_not_hold_it() -> None:
    async def serve() -> mock.Mock:
        transport = mock.Mock(is_closing=lambda: False)
        options = ServeOptions(timeout=0.02, header_timeout=0.02)
        protocol = type("Protocol", (server._Protocol,), {"options": options})
        protocol(uvicorn.Config(mock.Mock(), lifespan="off"), ServerState(), {}).connection_made(transport)
        await asyncio.sleep(0.15)
        return transport

    transport = asyncio.run(serve())
    assert [call[0] for call in transport.method_calls if call[0] in ("close", "abort")] == ["close", "abort"]


def talk(port: int, request: bytes, *, wait: float = 5) -> bytes:
    """What a server answers to bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as stream:
        stream.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while block := stream.recv(65536):
                answer += block
        return answer


def post(body: bytes, *headers: str) -> bytes:
    fields = ["host: localhost", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join(["POST /v1/compare HTTP/1.1", *fields, "", ""]).encode() + body


@pytest.mark.network
def test_a_process_takes_a_free_port_cuts_off_slow_clients_and_finishes_what_it_accepted(
    features_run: Path, tmp_path: Path
) -> None:
    flags = ("--header-timeout", "0.5", "--max-connections", "4", "--timeout", "20")
    command = ({"PREFCLI_TOKEN": TOKEN}, ("serve", features_run, "--port", 0, "--json", *flags))
    process = start_process(command, output=tmp_path / "serve")
    try:
        out, err = tmp_path / "serve.out", tmp_path / "serve.err"
        while not (out.exists() and out.read_text().endswith("\n")):
            assert process.is_alive(), err.read_text()
            time.sleep(0.01)
        serving = json.loads(out.read_text())
        port = serving["port"]
        url = f"http://127.0.0.1:{port}/"
        assert serving == {"url": url, "host": "127.0.0.1", "port": port, "pid": process.pid, "models": ["run"]}
        assert err.read_text() == f"run at http://127.0.0.1:{port}/ (Ctrl+C stops)\n"

        broken = talk(port, b"no http\r\n\r\n")
        assert broken.startswith(b"HTTP/1.1 400 ")
        assert b"content-security-policy" in broken
        assert broken.endswith(b'{"error": "this is not a valid HTTP request", "hint": ""}')
        assert talk(port, b"GET / HTTP/1.1\r\nhost: local") == b"", "closed, because the head does not go on"
        assert talk(port, b"") == b"", "closed, because nothing comes"
        assert talk(port, post(json.dumps(BATTLE).encode())[:-5] + b"\r\n\r\n12345").startswith(b"HTTP/1.1 401 ")
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(4)]
            time.sleep(0.05)
            assert talk(port, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")[:12] in (b"HTTP/1.1 503", b"")
            assert len(idle) == 4
        time.sleep(0.1)
        body = json.dumps({"battles": [{**BATTLE, "response_a": "word " * 200}] * 300}).encode()
        with socket.create_connection(("127.0.0.1", port)) as accepted:
            accepted.sendall(post(body, f"authorization: Bearer {TOKEN}")[:-1])
            time.sleep(0.2)  # it is accepted, and waits for its last byte
            os.kill(serving["pid"], signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(OSError):  # noqa: PT011  (refused or reset)
                socket.create_connection(("127.0.0.1", port), timeout=1)
            accepted.sendall(b"}")
            answer = b""
            while block := accepted.recv(65536):
                answer += block
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["results"]) == 300
        process.join(timeout=20)
        assert process.exitcode == 0
        assert err.read_text().count("\n") == 1, "nothing was logged"
        assert TOKEN not in err.read_text() + out.read_text()
    finally:
        process.kill()
        process.join()


@pytest.mark.network
def test_the_commands_and_reward_functions_of_the_documents_work(reward_run: Path) -> None:
    """As TRL and verl call them: with texts, and with lists of messages."""
    from test_docs_commands import ROOT, blocks

    page = blocks(ROOT / "docs" / "serve.md")
    of_server = [block for block in page if block.reason == "test_serve.py runs it, with a server"]
    reward = prefcli.load(reward_run, device="cpu")
    with socket.create_server(("127.0.0.1", 0)) as listening, serving(create_app(reward), listening) as address:
        variables: dict[str, Any] = {}
        for block in of_server:
            text = block.text.replace("http://127.0.0.1:8000", address)
            if block.language == "python":
                exec(text, variables)
        commands = [command for block in of_server if block.language == "sh" for command in block.commands]
        assert len(commands) == 3
        for command in commands if shutil.which("curl") else ():
            command = command.replace("http://127.0.0.1:8000", address)
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
            assert "error" not in json.loads(done.stdout), command
        texts = ["A cherry.", "Banana.", "I am unsure."]
        expected = [reward.score("Name a fruit.", text) for text in texts]
        prompts = ["Name a fruit."] * 3
        assert variables["reward"](
            prompts=prompts, completions=texts, completion_ids=[[1]] * 3, trainer_state=None
        ) == (pytest.approx(expected, abs=1e-6))
        talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "Name a fruit."}]  # fmt: skip
        messages = [[{"role": "assistant", "content": text}] for text in texts]
        prompts_of_both = [talk] * 3 + [talk[2:]] * 3
        rewards = variables["reward"](prompts=prompts_of_both, completions=messages * 2)
        in_talk = [reward.score(["Hi", "Name a fruit."], ["Hello", text]) for text in texts]
        assert rewards == pytest.approx([*in_talk, *expected], abs=1e-6)
        assert all(type(each) is float for each in rewards), "as TRL wants them"
        score = variables["compute_score"]("votes", texts[0], None, extra_info={"question": "Name a fruit."})
        assert score == pytest.approx(expected[0], abs=1e-6)


@contextlib.contextmanager
def serving(app: Any, listening: socket.socket) -> Iterator[str]:
    """The address of an application that a thread serves."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
