"""Several answers to one prompt: how files of them are read, how they are ranked, and what is refused."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Result, write_csv
from scipy.optimize import minimize

import prefcli
from prefcli import metrics, pipeline, readers
from prefcli.battles import Source
from prefcli.candidates import CANDIDATE_SCHEMA, make_candidates
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError, ModelError
from prefcli.options import RankOptions
from prefcli.prediction import ranking
from prefcli.prediction.calibration import Calibration
from prefcli.prediction.inference import Member, NonFiniteError
from prefcli.prediction.ranking import Ranked, RankRule
from prefcli.readers import candidates
from prefcli.storage.workspace import Workspace

CLI = Callable[..., Result]
RANDOM = 20240607


# How files are read


def read(*rows: dict[str, Any], **reading: Any) -> list[dict[str, Any]]:
    return readers.read_candidates(list(rows), Source((), **reading)).questions.to_pylist()


MESSAGE = {"role": "assistant", "content": "a"}
ASKED = {"role": "user", "content": "q"}
READ = {
    "texts": ({"prompt": "q", "responses": ["a", ""]}, {}, ["q"], [["a"], [""]]),
    "numbers": ({"prompt": "q", "responses": ["a", 4, True]}, {}, ["q"], [["a"], ["4"], ["true"]]),
    "another name": ({"question": "q", "completions": ["a", "b"]}, {}, ["q"], [["a"], ["b"]]),
    "objects": ({"prompt": "q", "outputs": [{"text": "a", "n": 1}, {"text": "b"}]}, {}, ["q"], [["a"], ["b"]]),
    "messages": ({"prompt": "q", "candidates": [MESSAGE, {**MESSAGE, "content": "b"}]}, {}, ["q"], [["a"], ["b"]]),
    "conversations": (
        {"prompt": [ASKED], "responses": [[ASKED, MESSAGE], [MESSAGE]]}, {}, ["q"], [["a"], ["a"]]
    ),
    "a conversation as the prompt": (
        {"prompt": [{"role": "system", "content": "s"}, ASKED, MESSAGE, {**ASKED, "content": "r"}],
         "responses": ["b", "c"]}, {}, ["s\n\nq", "r"], [["a", "b"], ["a", "c"]],
    ),
    "turns": (
        {"prompt": ["q", "r"], "responses": [["a", None], ["b", "c"]]}, {}, ["q", "r"], [["a", None], ["b", "c"]]
    ),
    "lists written as JSON": ({"prompt": "q", "responses": '["a", "b"]'}, {}, ["q"], [["a"], ["b"]]),
    "messages written as JSON": (
        {"prompt": "q", "responses": [json.dumps([MESSAGE]), json.dumps(MESSAGE)]}, {}, ["q"], [["a"], ["a"]]
    ),
    "turns written as JSON": ({"prompt": '["q"]', "responses": '[["a"], ["b"]]'}, {}, ["q"], [["a"], ["b"]]),
    "answers that repeat the prompt": (
        {"prompt": "What is it?", "responses": ["What is it? This.", "What is it? That."]}, {},
        ["What is it?"], [["This."], ["That."]],
    ),
    "a path": ({"prompt": "q", "x": {"y": ["a", "b"]}}, {"columns": {"responses": "x.y"}}, ["q"], [["a"], ["b"]]),
    "a rule": (
        {"prompt": "q", "choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]},
        {"each": "choices: text=message.content"}, ["q"], [["a"], ["b"]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_several_answers_are_read_in_many_forms(name: str) -> None:
    row, reading, prompt, responses = READ[name]
    (question,) = read(row, **reading)
    assert (question["id"], question["prompt"], question["responses"]) == ("1", prompt, responses)
    assert question["models"] is None


def test_models_scores_and_ids_are_read_where_they_are_said() -> None:
    (by_layout,) = read(
        {"prompt": "q", "answers": [{"answer": "a", "model": "m", "rank": 2}, {"answer": "b", "model": "n", "rank": 1}],
         "num_responses": 2}
    )  # fmt: skip
    assert by_layout["models"] == ["m", "n"]
    assert by_layout["scores"] == [-2, -1]  # a rank is better when lower
    (beside,) = read(
        {"id": "007", "prompt": "q", "responses": ["a", "b"], "names": ["m", None], "votes": [1, 2.5]},
        each="responses: text=., model=/names, score=/votes",
    )
    assert (beside["id"], beside["models"], beside["scores"]) == ("007", ["m", None], [1, 2.5])
    (named,) = read({"prompt": "q", "responses": ["a", "b"], "models": ["m", "n"]})
    assert named["models"] == ["m", "n"]


REFUSED = {
    "no answers": ({"prompt": "q", "responses": []}, {}, "no answers"),
    "null": ({"prompt": "q", "responses": None}, {}, "expected a list of answers, found nothing"),
    "a null answer": ({"prompt": "q", "responses": ["a", None]}, {}, 'answer 2 of 2 is null.*empty answer is ""'),
    "text among objects": ({"prompt": "q", "responses": [{"text": "a"}, "b"]}, {}, "answer 2 of 2 has no text"),
    "an object among texts": (
        {"prompt": "q", "responses": ["a", {"x": "b"}]}, {}, "known key of the answers.*text=KEY"
    ),
    "unknown objects": ({"prompt": "q", "responses": [{"x": "a"}]}, {}, "they have x.*--each 'responses: text=KEY'"),
    "two texts": (
        {"prompt": "q", "responses": [{"text": "a", "answer": "b"}]}, {}, "several keys.*--each 'responses: text=text'"
    ),
    "text instead of a list": ({"prompt": "q", "responses": "a"}, {}, "not a list.*--columns response=responses"),
    "two lists": ({"prompt": "q", "responses": [], "outputs": []}, {}, "responses, outputs.*--columns responses="),
    "a list and an answer": ({"prompt": "q", "responses": ["a"], "response": "b"}, {}, "several columns"),
    "nothing": ({"prompt": "q", "text": "a"}, {}, "no column holds answers; found prompt, text.*--each"),
    "battles": ({"prompt": "q", "response_a": "a", "response_b": "b"}, {}, "battles.*prefcli predict"),
    "columns": ({"prompt": "q", "answer_1": "a", "answer_2": "b", "answer_3": "c"}, {}, "more than two.*one list"),
    "no prompt": ({"responses": ["a", "b"]}, {}, "missing column prompt"),
    "an empty prompt": ({"prompt": None, "responses": ["a", "b"]}, {}, "no prompt"),
    "two prompts": ({"question": "q", "instruction": "i", "responses": ["a"]}, {}, "several columns: question"),
    "turns without turns": ({"prompt": ["q", "r"], "responses": ["a", "b"]}, {}, "list of 2 turns, answer 1 is"),
    "earlier turns twice": (
        {"prompt": ["q"], "history": [["h", "i"]], "responses": ["a"]}, {}, "earlier turns.*--columns history="
    ),
    "other prompts": (
        {"prompt": "", "responses": [[ASKED, MESSAGE], [{**ASKED, "content": "z"}, MESSAGE]]}, {},
        "different prompts|does not begin with",
    ),
    "an unanswered conversation": ({"prompt": "q", "responses": [[ASKED]]}, {}, "holds no answer"),
    "an unknown column": ({"prompt": "q"}, {"columns": {"answers": "x"}}, "unknown column answers.*Known are"),
    "an outcome": ({"prompt": "q", "responses": ["a"]}, {"outcome": "x: 1=a"}, "--outcome is for battles"),
    "a format of battles": ({"prompt": "q", "responses": ["a"]}, {"format": "arena"}, "arena is for battles.*nectar"),
    "two ways": (
        {"prompt": "q", "responses": ["a"]}, {"each": "responses: text=.", "columns": {"responses": "responses"}},
        "say differently where",
    ),
    "replies": ({"prompt": "q", "r": []}, {"each": "r: text=t, replies=r"}, "no replies="),
    "a score that is none": (
        {"prompt": "q", "r": [{"t": "a", "s": "high"}]}, {"each": "r: text=t, score=s"}, "expected a number"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_with_the_option_that_says_it(name: str) -> None:
    row, reading, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        read(row, **reading)
    assert re.search(message, " ".join(caught.value.lines()))
    assert 1 <= len(caught.value.lines()) <= 3


def test_later_rows_of_another_kind_are_refused() -> None:
    answers = ["a", "b"]
    with pytest.raises(InputError, match="several columns: question, input"):
        read(
            *[{"question": "q", "input": "", "responses": answers}] * 120,
            {"question": "q", "input": "x", "responses": answers},
        )
    with pytest.raises(InputError, match="row 2.*") as caught:
        read({"prompt": "q", "responses": answers}, {"prompt": "q", "responses": [json.dumps(MESSAGE)] * 2})
    assert "are messages, those of the first rows are not" in caught.value.what


def test_battles_whose_list_holds_a_text_among_objects_are_refused_with_their_row() -> None:
    rows = [{"prompt": "q", "x": [{"t": "a", "s": 1}, "b"]}]
    with pytest.raises(InputError, match="row 1"):
        readers.battles_from(rows, Source((), each="x: text=t, score=s"))


def test_single_answers_are_grouped_by_prompt_wherever_they_stand(tmp_path: Path) -> None:
    rows = [
        {"id": "x", "prompt": "q", "response": "a", "model": "m"},
        {"id": "y", "prompt": "r", "response": "c", "model": "m"},
        {"id": "x", "prompt": "q", "response": "b", "model": "n"},
        {"id": "z", "prompt": "Q", "response": "d", "model": "n"},
    ]
    path = tmp_path / "single.csv"
    write_csv(path, rows, ["id", "prompt", "response", "model"])
    file = readers.open_candidates(Source((path,)))
    ((batch, counts),) = file.batches()
    assert [(q["id"], q["responses"], q["models"]) for q in batch.to_pylist()] == [
        ("x", [["a"], ["b"]], ["m", "n"]),
        ("y", [["c"]], ["m"]),
        ("z", [["d"]], ["n"]),
    ]
    assert (counts.questions, counts.answers, counts.single, counts.several_ids) == (3, 4, 2, 0)
    assert batch.schema == CANDIDATE_SCHEMA

    rows[2]["id"] = "w"
    write_csv(path, rows, ["id", "prompt", "response", "model"])
    ((_, counts),) = readers.open_candidates(Source((path,))).batches()
    assert counts.several_ids == 1
    assert "the id of its first answer" in counts.warnings()[0]


def test_single_answers_that_do_not_fit_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "MAX_GROUPED_BYTES", 10)
    path = tmp_path / "single.jsonl"
    path.write_text('{"prompt": "q", "response": "abcdefghijklmn"}\n')
    with pytest.raises(InputError, match="GiB of single answers"):
        list(readers.open_candidates(Source((path,))).batches())


def test_files_of_any_kind_hold_the_same_questions(tmp_path: Path) -> None:
    rows = [{"id": str(i), "prompt": f"q{i}", "responses": [f"a{i}", "b", "ü"]} for i in range(5)]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    write_csv(tmp_path / "x.csv", rows, ["id", "prompt", "responses"])
    for path in sorted(tmp_path.glob("x.*")):
        questions = [q for batch, _ in readers.open_candidates(Source((path,))).batches() for q in batch.to_pylist()]
        assert [(q["id"], q["prompt"], q["responses"]) for q in questions] == [
            (row["id"], [row["prompt"]], [[text] for text in row["responses"]]) for row in rows
        ], path.name


def test_the_only_line_of_a_file_is_a_question_of_several_turns(tmp_path: Path) -> None:
    row = {"prompt": ["q", "r"], "responses": [["x", "y"], ["z", "w"]]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    ((batch, _),) = readers.open_candidates(Source((tmp_path / "x.jsonl",))).batches()
    assert [{name: q[name] for name in row} for q in batch.to_pylist()] == [row]


# How answers are ranked


class ByPairs:
    """Compares answers by their numbers; whoever is A has an advantage."""

    def __init__(self, advantage: float = 0.0, tie: float = -0.5, of: Callable[[str], float] = float) -> None:
        self.advantage, self.tie, self.of = advantage, tie, of
        self.seen: list[tuple[str, str]] = []

    def _logits(self, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        values = np.array([[self.of(x) + self.advantage, self.of(y)] for x, y in zip(a, b, strict=True)]).reshape(-1, 2)
        return np.column_stack([values, values.mean(axis=1) + self.tie])

    def logits(self, batch: pa.RecordBatch, *, swap_average: bool = False, done: Any = None) -> Any:
        a, b = ([turns[0] for turns in batch.column(name).to_pylist()] for name in ("response_a", "response_b"))
        self.seen += zip(a, b, strict=True)
        return self._logits(a, b), self._logits(b, a) if swap_average else None


class ByReward(ByPairs):
    """The same numbers as rewards."""

    def __init__(self, tie: float | None = -0.5, scale: float = 1.0) -> None:
        super().__init__(of=lambda text: scale * float(text))
        self.tie_log_nu = tie
        self.tie = -0.5 if tie is None else tie
        self.read = 0

    def rewards(self, batch: pa.RecordBatch, *, done: Any = None) -> np.ndarray:
        self.read += batch.num_rows
        return np.array([self.of(turns[0]) for turns in batch.column("response").to_pylist()])


def questions(*answers: Sequence[str]) -> pa.RecordBatch:
    turns = pa.array([[[text] for text in texts] for texts in answers], CANDIDATE_SCHEMA.field("responses").type)
    names = [f"q{number}" for number in range(len(answers))]
    return make_candidates({"id": pa.array(names), "prompt": pa.array([[name] for name in names]), "responses": turns})


def rank(model: Any, *answers: Sequence[str], calibration: Calibration | None = None, **rule: Any) -> list[Ranked]:
    models = model if isinstance(model, tuple) else (model,)
    calibration = calibration or Calibration((1.0,) * len(models))
    members = [Member((one,), "raw") for one in models]
    return ranking.rank_batch(members, questions(*answers), RankRule(**rule), lambda key: calibration)


def random_shares(size: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first, second = np.triu_indices(size, 1)
    return first, second, np.random.default_rng(RANDOM).dirichlet([1, 1, 1], (count, len(first)))


def test_the_fit_maximises_davidsons_likelihood() -> None:
    first, second, shares = random_shares(5, 3)
    strengths, log_nu = ranking.fit(5, first, second, shares)

    def loss(x: np.ndarray, wanted: np.ndarray) -> float:
        weights = np.exp(np.stack([x[first], x[second], (x[first] + x[second]) / 2 + x[5]]))
        return -float((wanted.T * np.log(weights / weights.sum(axis=0))).sum())

    for number in range(3):
        best = minimize(loss, np.zeros(6), args=(shares[number],), options={"gtol": 1e-9}).x
        assert strengths[number] == pytest.approx(best[:5] - best[:5].mean(), abs=1e-5)
        assert log_nu[number] == pytest.approx(best[5], abs=1e-5)


def test_without_ties_the_fit_is_bradleys_and_terrys() -> None:
    first, second, shares = random_shares(6, 1)
    shares[..., 2] = 0
    shares /= shares.sum(axis=-1, keepdims=True)
    strengths, log_nu = ranking.fit(6, first, second, shares)
    wins = np.zeros((6, 6))
    wins[first, second], wins[second, first] = shares[0, :, 0], shares[0, :, 1]
    worth = np.ones(6)
    for _ in range(2000):  # D. R. Hunter, "MM algorithms for generalized Bradley-Terry models", 2004
        worth = wins.sum(axis=1) / ((wins + wins.T) / np.add.outer(worth, worth)).sum(axis=1)
    assert strengths[0] == pytest.approx(np.log(worth) - np.log(worth).mean(), abs=1e-5)
    assert np.isneginf(log_nu).all()


@pytest.mark.parametrize("gap", [0.0, 0.7, 9.0, 40.0])
def test_of_two_answers_the_score_is_the_log_odds_and_p_best_the_probability_without_a_tie(gap: float) -> None:
    (ranked,) = rank(ByPairs(), ["0", str(gap)])
    p = metrics.softmax(np.array([gap, 0, gap / 2 - 0.5]))
    expected = min(gap, np.log(1 / ranking.MIN_PAIR_PROBABILITY))
    assert ranked.scores[1] - ranked.scores[0] == pytest.approx(expected, rel=1e-3)
    assert ranked.p_best[1] == pytest.approx(p[0] / (p[0] + p[1]), abs=2e-6)
    assert ranked.probabilities[1, 0] == pytest.approx(p, abs=1e-5)


def test_extreme_and_contradictory_pairs_have_a_fit() -> None:
    first, second = np.triu_indices(30, 1)
    certain = np.tile([1.0, 0.0, 0.0], (1, len(first), 1))
    strengths, _ = ranking.fit(30, first, second, certain)
    assert (np.diff(strengths[0]) < 0).all()
    circle = np.array([[[1.0, 0, 0], [0, 1, 0], [1, 0, 0]]])  # 0 beats 1, 2 beats 0, 1 beats 2
    assert ranking.fit(3, *np.triu_indices(3, 1), circle)[0][0] == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_fit_that_does_not_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_newton", lambda *arguments: arguments[-1])
    first, second, shares = random_shares(5, 1)
    with pytest.raises(ModelError, match="do not converge"):
        ranking.fit(5, first, second, shares)


def test_p_best_is_plackett_and_luces_probability_to_be_first() -> None:
    texts = ["0.5", "-1", "2", "0"]
    (ranked,) = rank(ByReward(), texts)
    weights = np.exp([float(text) for text in texts])
    first = np.zeros(4)
    for order in itertools.permutations(range(4)):
        left = weights[list(order)]
        first[order[0]] += np.prod([left[i] / left[i:].sum() for i in range(4)])
    assert ranked.p_best == pytest.approx(first)
    assert ranked.ranking.tolist() == [2, 0, 3, 1]
    assert ranked.scores.tolist() == [0.5, -1, 2, 0]


@pytest.mark.parametrize("swap_average", [False, True])
@pytest.mark.parametrize("model", [ByPairs(advantage=0.4), ByReward()], ids=["pairs", "rewards"])
def test_long_texts_are_read_in_parts_with_the_same_result(model: Any, swap_average: bool, monkeypatch: Any) -> None:
    """Each pair has a copy of its texts: at most so many bytes of them are in memory, or one pair."""
    texts = [["0.5", "-1.25", "0.125"], [f"{number / 8:.3f}" for number in range(8)], ["2"]]
    expected = rank(model, *texts, swap_average=swap_average)
    batches: list[int] = []
    method = "rewards" if isinstance(model, ByReward) else "logits"
    compute = getattr(model, method)

    def counted(batch: pa.RecordBatch, **rest: Any) -> Any:
        texts = [column for name, column in zip(batch.schema.names, batch.columns, strict=True) if name != "id"]
        lists = [column for column in texts if pa.types.is_list(column.type)]
        size = sum(len(turn or "") for column in lists for turns in column.to_pylist() for turn in turns or ())
        assert size <= 20 or batch.num_rows == 1
        batches.append(batch.num_rows)
        return compute(batch, **rest)

    monkeypatch.setattr(model, method, counted)
    monkeypatch.setattr(ranking, "MAX_BYTES_TOGETHER", 20)
    parts = rank(model, *texts, swap_average=swap_average)
    assert len(batches) > 3
    assert max(batches) > 1
    for ranked, whole in zip(parts, expected, strict=True):
        assert np.array_equal(ranked.scores, whole.scores)


@pytest.mark.parametrize("swap_average", [False, True])
@pytest.mark.parametrize("model", [ByPairs(advantage=0.4), ByReward()], ids=["pairs", "rewards"])
def test_the_order_in_the_file_changes_nothing(model: Any, swap_average: bool) -> None:
    texts = [f"{value:.3f}" for value in np.random.default_rng(RANDOM).normal(size=40)]
    for size in (2, 7, 40):  # of 40 not all pairs are compared
        (ranked,) = rank(model, texts[:size], swap_average=swap_average)
        order = np.random.default_rng(1).permutation(size)
        (permuted,) = rank(model, [texts[i] for i in order], swap_average=swap_average)
        assert np.array_equal(permuted.scores, ranked.scores[order])
        assert np.array_equal(permuted.p_best, ranked.p_best[order])
        assert np.array_equal(order[permuted.ranking], ranked.ranking)


def test_each_answer_is_a_as_often_as_b() -> None:
    model = ByPairs()
    rank(model, [str(i) for i in range(9)])
    balance = {text: sum((a == text) - (b == text) for a, b in model.seen) for text in map(str, range(9))}
    assert len(model.seen) == 36
    assert set(balance.values()) == {0}
    first, second, second_is_a = ranking.pairs_to_compare(100, 32)
    a = np.where(second_is_a, second, first)
    assert np.abs(np.bincount(a, minlength=100) - ranking.CYCLES).max() <= 2  # of 16


def test_equal_answers_have_equal_scores_and_the_earlier_one_is_better() -> None:
    for model in (ByPairs(advantage=0.4), ByReward()):
        (ranked,) = rank(model, ["1", "2", "1", "2", "1"])
        assert ranked.ranking.tolist() == [1, 3, 0, 2, 4]
        assert ranked.scores[0] == ranked.scores[2] == ranked.scores[4]
        assert ranked.p_best.sum() == pytest.approx(1)
        assert ranked.p_best[1] == ranked.p_best[3]
        a, b, tie = ranked.between(np.array([0]), np.array([2]))[0]
        assert a == pytest.approx(b)
        assert tie > 0
    (same,) = rank(ByPairs(), ["1", "1", "1"])
    assert same.ranking.tolist() == [0, 1, 2]
    assert same.p_best == pytest.approx(1 / 3)


def test_one_answer_is_a_ranking_of_one() -> None:
    for model, score in ((ByPairs(), 0.0), (ByReward(), 3.0)):
        (ranked,) = rank(model, ["3"])
        assert ranked.to_json() == {"id": "q0", "ranking": [0], "scores": [score], "p_best": [1.0]}
    assert rank(ByPairs(), ["3"], method="mean-win")[0].scores.tolist() == [0.5]


def test_mean_win_is_the_mean_probability_with_ties_half() -> None:
    texts = ["1", "0", "2", "1", "-3"]
    for model in (ByPairs(), ByReward()):
        (ranked,) = rank(model, texts, method="mean-win")
        for i, j in itertools.product(range(5), range(5)):
            p = metrics.softmax(
                np.array([float(texts[i]), float(texts[j]), np.mean([float(texts[i]), float(texts[j])]) - 0.5])
            )
            assert i == j or ranked.probabilities[i, j] == pytest.approx(p, abs=1e-6)
        table = ranked.probabilities
        wins = table[..., 0] + table[..., 2] / 2
        assert ranked.scores == pytest.approx((wins.sum(axis=1) - 0.5) / 4, abs=1e-6)
        assert table[2, 2].tolist() == [0.5, 0.5, 0]
        assert np.allclose(table, table.transpose(1, 0, 2)[..., [1, 0, 2]])


def test_of_many_answers_some_pairs_are_compared_which_connect_all() -> None:
    first, second, _ = ranking.pairs_to_compare(2000, 32)
    assert len(first) <= ranking.CYCLES * 2000
    assert len({*zip(first.tolist(), second.tolist(), strict=True)}) == len(first)
    assert (first < second).all()
    reached, pending = {0}, [0]
    near: dict[int, set[int]] = {}
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        near.setdefault(i, set()).add(j)
        near.setdefault(j, set()).add(i)
    while pending:
        new = near[pending.pop()] - reached
        reached |= new
        pending += new
    assert len(reached) == 2000
    assert ranking.pairs_compared(np.array([3, 2000, 3, 1]), 32) == 3 + len(first) + 3


@pytest.mark.parametrize("size", [60, 700])  # of 700 the sparse solver
def test_the_strengths_of_many_answers_are_found_from_some_pairs(size: int) -> None:
    values = np.random.default_rng(RANDOM).normal(size=size).round(4)
    (ranked,) = rank(ByPairs(), [str(value) for value in values])
    assert ranked.scores == pytest.approx(values - values.mean(), abs=2e-4)
    # A pair that was not compared has the fit's probability.
    p = metrics.softmax(np.array([values[0], values[1], (values[0] + values[1]) / 2 - 0.5]))
    assert ranked.between(np.array(0), np.array(1)) == pytest.approx(p, abs=1e-3)


def test_a_table_of_too_many_pairs_is_refused() -> None:
    (ranked,) = rank(ByReward(), [str(i) for i in range(ranking.MAX_MATRIX + 1)])
    with pytest.raises(InputError, match="too many for a table"):
        _ = ranked.probabilities


def test_a_reward_model_reads_each_different_answer_once_and_compares_nothing() -> None:
    model = ByReward()
    rank(model, ["1", "2", "1"], ["3", "4", "5"])
    assert (model.read, model.seen) == (5, [])


@pytest.mark.parametrize("tie", [-0.5, None], ids=["constant", "from the prompt"])
def test_several_reward_runs_are_blended_as_predict_blends_them(tie: float | None) -> None:
    models = (ByReward(tie), ByReward(tie, scale=-0.3))
    calibration = Calibration((0.8, 0.5), tie_shift=0.2)
    texts = ["1", "0.5", "3"]
    (ranked,) = rank(models, texts, calibration=calibration)
    assert ranked.scores == pytest.approx([0.8 * float(t) - 0.3 * 0.5 * float(t) for t in texts])
    for i, j in itertools.combinations(range(3), 2):
        alone = [metrics.softmax(model._logits([texts[i]], [texts[j]])) for model in models]
        assert ranked.probabilities[i, j] == pytest.approx(calibration.apply(alone)[0])


def test_one_reward_run_is_scored_by_its_own_rewards_and_p_best_by_calibrated_ones() -> None:
    (ranked,) = rank(ByReward(), ["1", "3"], calibration=Calibration((0.5,)))
    assert ranked.scores.tolist() == [1, 3]
    assert ranked.p_best[1] == pytest.approx(1 / (1 + np.exp(-0.5 * 2)))


def test_ties_that_training_never_saw_have_their_fixed_probability() -> None:
    for model in (ByPairs(), ByReward()):
        (ranked,) = rank(model, ["1", "3", "0"], calibration=Calibration((0.9,), unseen=(2,)))
        assert ranked.probabilities[0, 1, 2] == pytest.approx(metrics.UNSEEN_PROBABILITY)


def test_runs_of_both_kinds_are_blended_by_pairs() -> None:
    (ranked,) = rank((ByReward(), ByPairs()), ["1", "3", "0"], calibration=Calibration((0.5, 0.5)))
    assert ranked.scores == pytest.approx(np.array([1, 3, 0]) - 4 / 3, abs=1e-5)


def test_numbers_that_are_not_finite_are_refused() -> None:
    for model in (ByPairs(), ByReward()):
        with pytest.raises(NonFiniteError, match="no finite"):
            rank(model, ["1", "nan"])


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(InputError, match="mean_win"):
        RankRule(method="mean_win")
    with pytest.raises(InputError, match="all_pairs is 1"):
        RankRule(all_pairs=1)


# The verb, and Python


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory, demo_files: Demo) -> Path:
    return train_tiny(tmp_path_factory.mktemp("reward"), demo_files, "reward")


@pytest.fixture(scope="module")
def siamese_run(tmp_path_factory: pytest.TempPathFactory, demo_files: Demo) -> Path:
    return train_tiny(tmp_path_factory.mktemp("siamese"), demo_files, "siamese")


def train_tiny(folder: Path, demo: Demo, architecture: str) -> Path:
    options = {"encoder": "tiny", "limit": 40, "max_length": 32, "architecture": architecture}
    return prefcli.train(demo.train, output=folder / "run", workspace=folder / "ws", **options).run


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Five questions: of three, two, one and three answers, two of which are equal, and one in two turns."""
    rows = [
        {"id": "q-1", "prompt": "Compare a winter with a table.", "responses": ["Clear step.", "Vague.", "Sun."]},
        {"id": "02", "prompt": "Räume?", "responses": ["", "Precise reason, a verified example."]},
        {"id": "3", "prompt": "One?", "responses": ["Only one."]},
        {"id": "4", "prompt": "Same?", "responses": ["Lazy.", "Helpful.", "Lazy."]},
        {"id": "5", "prompt": [ASKED, MESSAGE, {**ASKED, "content": "And?"}], "responses": ["Wrong.", "Accurate."]},
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_command_writes_a_ranking_for_each_question_and_the_best_answers(
    features_run: Path, answers: Path, cli: CLI
) -> None:
    done = cli("rank", answers, "--model", features_run, "--best", "best.jsonl", "--json")
    assert done.code == 0, done.err
    summary = done.json()
    assert (summary["questions"], summary["answers"], summary["pairs"], summary["single"]) == (5, 11, 3 + 1 + 1 + 1, 1)
    assert "1 question has one answer only" in done.err
    ranked = lines_of(Path("ranked.jsonl"))
    assert [line["id"] for line in ranked] == ["q-1", "02", "3", "4", "5"]
    for line in ranked:
        assert list(line) == ["id", "ranking", "scores", "p_best"]
        by_score = sorted(range(len(line["scores"])), key=lambda i: (-line["scores"][i], i))
        assert line["ranking"] == by_score
        assert sum(line["p_best"]) == pytest.approx(1)
    assert ranked[3]["scores"][0] == ranked[3]["scores"][2]

    rows = lines_of(Path("best.jsonl"))
    assert [row["score"] for row in rows] == [line["scores"][line["ranking"][0]] for line in ranked]
    assert [row["p_best"] for row in rows] == [line["p_best"][line["ranking"][0]] for line in ranked]
    texts = [json.loads(line)["responses"] for line in answers.read_text().splitlines()]
    assert [row["response"] for row in rows] == [
        own[line["ranking"][0]] for own, line in zip(texts, ranked, strict=True)
    ]
    assert rows[4]["prompt"] == [ASKED, MESSAGE, {**ASKED, "content": "And?"}]
    assert rows[0]["prompt"] == [{"role": "user", "content": "Compare a winter with a table."}]
    again = read(*rows)  # and it reads back, as single answers
    assert [question["prompt"] for question in again][-1] == ["q", "And?"]


def test_parquet_limit_and_the_cache_give_the_same(features_run: Path, answers: Path, cli: CLI) -> None:
    first = cli("rank", answers, "--model", features_run)
    second = cli("rank", answers, "--model", features_run, "--output", "r.parquet", "--best", "b.parquet", "--limit", 2)
    assert (first.code, second.code) == (0, 0), second.err
    assert "read now" in first.err
    assert "reused from the cache" in second.err
    assert pq.read_table("r.parquet").to_pylist() == lines_of(Path("ranked.jsonl"))[:2]
    assert pq.read_table("b.parquet").num_rows == 2


def test_python_gives_what_the_command_gives(features_run: Path, answers: Path, cli: CLI) -> None:
    judge = prefcli.load(features_run)
    result = prefcli.rank(answers, "ranked.jsonl", models=[features_run], method="mean-win", workspace="ws")
    assert result.questions == 5
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    ranked = judge.rank(rows, rule=RankRule(method="mean-win"))
    assert [json.loads(json.dumps(question.to_json())) for question in ranked] == lines_of(Path("ranked.jsonl"))
    alone = judge.rank(rows[0]["prompt"], rows[0]["responses"])
    assert alone.ranking.tolist() == ranked[0].ranking.tolist()
    p = judge.predict(rows[0]["prompt"], *rows[0]["responses"][:2])
    assert alone.probabilities[0, 1] == pytest.approx(p)
    turns = judge.rank(["q", "And?"], [["a", "Wrong."], ["a", "Accurate."]])
    assert turns.scores.tolist() == judge.rank([rows[4]])[0].scores.tolist()
    with pytest.raises(InputError, match="run has the architecture features, which compares answers"):
        judge.score("q", "a")
    with pytest.raises(InputError, match="unknown option 'metod'"):
        prefcli.rank(answers, "x.jsonl", metod="fit")


def test_a_pairwise_run_compares_as_predict_does(siamese_run: Path) -> None:
    judge = prefcli.load(siamese_run, swap_average=True, precision="fp32")
    texts = ["Clear step.", "Vague sun.", "A verified reason."]
    ranked = judge.rank("Compare.", texts)
    for i, j in itertools.permutations(range(3), 2):
        assert ranked.probabilities[i, j] == pytest.approx(judge.predict("Compare.", texts[i], texts[j]), abs=1e-6)
    shuffled = judge.rank("Compare.", [texts[i] for i in (2, 0, 1)])
    assert shuffled.scores.tolist() == ranked.scores[[2, 0, 1]].tolist()
    assert shuffled.p_best.tolist() == ranked.p_best[[2, 0, 1]].tolist()


def test_a_reward_run_gives_scores_and_their_order(reward_run: Path, answers: Path, cli: CLI) -> None:
    judge = prefcli.load(reward_run, precision="fp32")
    done = cli("rank", answers, "--model", reward_run, "--precision", "fp32", "--json")
    assert done.code == 0, done.err
    assert done.json()["pairs"] == 0
    assert "each answer is read once: scores are rewards" in done.err
    assert "changes nothing" not in done.err
    useless = cli("rank", answers, "--model", reward_run, "--swap-average", "--all-pairs", 40, "--force").err
    assert "--swap-average changes nothing" in useless
    assert "--all-pairs changes nothing" in useless
    row = json.loads(answers.read_text().splitlines()[0])
    (ranked, *_) = lines_of(Path("ranked.jsonl"))
    scores = judge.score(row["prompt"], row["responses"])
    assert scores == pytest.approx(ranked["scores"], abs=1e-5)
    single = judge.score(row["prompt"], row["responses"][1])
    assert isinstance(single, float)
    assert single == pytest.approx(scores[1], abs=1e-6)
    p = judge.predict(row["prompt"], *row["responses"][:2])
    assert judge.rank(row["prompt"], row["responses"]).probabilities[0, 1] == pytest.approx(p, abs=1e-6)
    assert (p.a > p.b) == (scores[0] > scores[1])
    turns = judge.score(["q", "And?"], ["a", "Accurate."])
    assert isinstance(turns, float)
    assert judge.score(["q", "And?"], [["a", "Accurate."]])[0] == pytest.approx(turns)
    messages = [{"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("user", "And?"))]
    answer = [{"role": "assistant", "content": "Accurate."}]
    (ranked_turns,) = judge.rank([{"prompt": messages, "responses": [answer]}])
    assert ranked_turns.rewards == pytest.approx([turns])


@pytest.mark.parametrize(
    ("prompt", "given", "message"),
    [
        ("q", [], "there are no answers"),
        ("q", "a", "answers is str, expected a list"),
        ("q", ["a", None], "answer 2 is NoneType, neither text nor a list of turns"),
        ("q", ["a", 3], "answer 2 is int"),
        (["q", "r"], ["a", "b"], "answer 1 has 1 turns, the prompt has 2"),
        ([], ["a"], "the prompt has no turns"),
        ("q", None, "there are no answers"),
        ([{"prompt": "q", "responses": []}], None, "no answers"),
    ],
)
def test_answers_from_python_are_checked(features_run: Path, prompt: Any, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prefcli.load(features_run, calibrated=False).rank(prompt, given)


def test_lines_are_answered_as_they_come_and_a_bad_one_with_an_error(features_run: Path, tmp_path: Path) -> None:
    lines = [
        '{"id": "x", "prompt": "q", "responses": ["Clear step.", "Vague."]}',
        '{"id": "y", "prompt": "q", "responses": []}',
        "{",
        '{"prompt": "q", "response": "a"}',
        '{"prompt": "q", "completions": [{"text": "a"}]}',
        "",
        '{"id": 7, "prompt": "q", "responses": ["Clear step.", null]}',
    ]
    written = io.BytesIO()
    total, failed = pipeline.rank_lines(
        io.BytesIO("\n".join(lines).encode()), written, Workspace(tmp_path), RankOptions(models=(str(features_run),))
    )
    found = [json.loads(line) for line in written.getvalue().splitlines()]
    assert (total, failed) == (6, 4)
    assert found[0] == prefcli.load(features_run).rank("q", ["Clear step.", "Vague."]).to_json() | {"id": "x"}
    assert found[1] == {"id": "y", "line": 2, "error": "no answers"}
    assert found[2]["error"].startswith("broken JSON")
    assert found[3]["error"] == "the line holds one answer, expected a list of answers"
    assert found[4] == {"id": "5", "ranking": [0], "scores": [0.0], "p_best": [1.0]}
    assert (found[5]["id"], found[5]["error"]) == ("7", "answer 2 of 2 is null")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "ranked.csv"], "name it .jsonl, .json or .parquet"),
        (["--output", "answers.jsonl", "--force"], "cannot be the output: it is an input"),
        (["--output", "old.jsonl"], "already exists"),
        (["--best", "old.jsonl"], "already exists"),
        (["--best", "ranked.jsonl"], "named as two outputs"),
        (["--all-pairs", "1"], "--all-pairs is 1, at least 2 is needed"),
        (["--method", "vote"], "not one of fit, mean-win"),
        (["--outcome", "x: 1=a"], "--outcome is for battles"),
        (["--output", "-", "--best", "b.jsonl", "--limit", "2"], "cannot be combined with --best, --limit"),
    ],
)
def test_impossible_calls_are_refused_before_anything_is_written(
    features_run: Path, answers: Path, cli: CLI, flags: list[str], message: str
) -> None:
    Path("old.jsonl").write_text("old")
    done = cli("rank", answers.name, "--model", features_run, *flags)
    assert done.code == 2, done.err
    assert message in done.err.lower()
    assert {path.name for path in Path().iterdir()} <= {"answers.jsonl", "old.jsonl", ".prefcli"}
    assert Path("old.jsonl").read_text() == "old"


def test_ids_that_occur_twice_are_refused(features_run: Path, cli: CLI) -> None:
    Path("x.jsonl").write_text('{"id": "1", "prompt": "q", "responses": ["a"]}\n' * 2)
    done = cli("rank", "x.jsonl", "--model", features_run)
    assert done.code == 2
    assert "id '1' occurs twice, for questions 1 and 2" in done.err
    assert "--columns id=" in done.err
    assert cli("rank", "x.jsonl", "--model", features_run, "--columns", "id=").code == 0


def test_a_failure_on_the_way_leaves_no_part_of_an_output(
    features_run: Path, answers: Path, cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = ranking.stream

    def breaks(*arguments: Any, **options: Any) -> Any:
        yield next(stream(*arguments, **options))
        raise InputError("broken")

    monkeypatch.setattr(ranking, "stream", breaks)
    Path("best.jsonl").write_text("old")
    done = cli("rank", answers, "--model", features_run, "--best", "best.jsonl", "--force")
    assert (done.code, "broken" in done.err) == (2, True)
    assert Path("best.jsonl").read_text() == "old"
    assert {path.name for path in Path().iterdir()} == {"answers.jsonl", "best.jsonl", ".prefcli"}
