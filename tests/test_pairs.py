"""Preference pairs of rankings: which are made, in which layouts, and that the libraries for them read the files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_language_model

from prefcli.battles import Source
from prefcli.candidates import make_candidates
from prefcli.errors import InputError
from prefcli.options import PAIR_LAYOUTS, PairOptions
from prefcli.prediction import inference, pairs, ranking
from prefcli.prediction.calibration import Calibration
from prefcli.prediction.pairs import PairCounts, PairFile, PreferencePair, choose, labelled_answers, writing
from prefcli.prediction.ranking import Comparison, Ranked, RankRule, rank_batch
from prefcli.readers import open_battles

NU = 0.5
"""Davidson's parameter of the rankings here: a third as many ties as wins of either side between equals."""


Pair = tuple[int, int]


def make_ranked(
    scores: Sequence[float],
    answers: Sequence[Any] | None = None,
    compared: Mapping[Pair, Any] | None = None,
    **fields: Any,
) -> Ranked:
    """A ranking by a reward; answers are texts, or lists of turns; ``compared`` are pairs with probabilities."""
    texts = answers if answers is not None else [f"answer {number}" for number in range(len(scores))]
    values = np.array(scores, dtype=np.float64)
    pairs = sorted(compared or {})
    comparison = Comparison(
        values - values.mean(),
        np.full(len(values), np.log(fields.pop("nu", NU))),
        first=np.array([first for first, _ in pairs], dtype=np.intp),
        second=np.array([second for _, second in pairs], dtype=np.intp),
        compared=np.array([(compared or {})[pair] for pair in pairs]),
    )
    own = {
        "id": "p1",
        "prompt": ["Which one?"],
        "models": [f"model-{number}" for number in range(len(scores))],
        **fields,
    }
    return Ranked(
        responses=[[text] if isinstance(text, str) or text is None else list(text) for text in texts],
        ranking=np.argsort(-values, kind="stable"),
        scores=values,
        p_best=np.exp(values) / np.exp(values).sum(),
        comparison=comparison,
        distinct=np.arange(len(values)),
        **own,
    )


def indices(pairs: Sequence[PreferencePair]) -> list[tuple[int, int]]:
    return [(pair.chosen, pair.rejected) for pair in pairs]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("best-worst", [(1, 3)]),
        ("best-rest", [(1, 2), (1, 0), (1, 3)]),
        ("all", [(1, 2), (1, 0), (1, 3), (2, 0), (2, 3), (0, 3)]),
    ],
)
def test_which_answers_are_paired(select: str, expected: list[tuple[int, int]]) -> None:
    ranked = make_ranked([0.0, 6.0, 3.0, -3.0])
    pairs = choose(ranked, PairOptions(select=select))
    assert indices(pairs) == expected
    for pair in pairs:  # of the first pair, by hand: exp(3) / (exp(3) + 1 + nu exp(1.5))
        difference = ranked.scores[pair.chosen] - ranked.scores[pair.rejected]
        assert pair.margin == difference
        parts = np.array([np.exp(difference), 1, NU * np.exp(difference / 2)])
        assert pair.probability == pytest.approx(parts[0] / parts.sum(), rel=1e-12)


def test_what_is_not_sure_enough_is_left_out_and_counted() -> None:
    ranked = make_ranked([0.0, 1.0, 2.0, 5.0])
    counts = PairCounts()
    pairs = choose(ranked, PairOptions(select="all", min_probability=0.75, min_margin=3.5), counts)
    # The probability of a margin of 2 is 7.389 / (7.389 + 1 + 0.5 * 2.718) = 0.758, of 1 only 0.597.
    assert indices(pairs) == [(3, 1), (3, 0)]
    assert counts.left_out == {"below probability 0.75": 2, "below margin 3.5": 2}
    assert counts.sentences() == ["pairs left out: 2 below probability 0.75, 2 below margin 3.5"]
    counts = PairCounts()
    assert indices(choose(ranked, PairOptions(select="all", max_per_prompt=2), counts)) == [(3, 1), (3, 0)]
    assert counts.left_out == {"over the limit of a prompt": 4}
    assert choose(ranked, PairOptions(min_probability=1.0)) == []


def test_ties_and_contradictions_are_left_out() -> None:
    compared = {(1, 2): (0.1, 0.3, 0.6), (0, 2): (0.5, 0.4, 0.1)}  # a tie; and a pair against the ranking
    counts = PairCounts()
    ranked = make_ranked([0.0, 1.0, 3.0], compared=compared)
    assert indices(choose(ranked, PairOptions(select="all", min_probability=0), counts)) == [(1, 0)]
    assert counts.left_out == {"as ties": 1, "as their own comparison contradicts the ranking": 1}
    even = {(0, 1): (0.4, 0.4, 0.2)}
    for scores, compared in (([1.0, 1.0], {}), ([1.0, 2.0], even)):  # nothing tells them apart
        ranked = make_ranked(scores, compared=compared, nu=1e-9)
        assert choose(ranked, PairOptions(min_probability=0)) == []


def test_identical_answers_are_never_paired() -> None:
    answers = ["same", "other", "same", ["other"], [None], [""]]
    ranked = make_ranked([9.0, 6.0, 3.0, 0.0, -3.0, -6.0], answers)
    counts = PairCounts()
    assert indices(choose(ranked, PairOptions(select="all"), counts)) == [(0, 1), (0, 4), (1, 4)]
    assert counts.repeated == 3
    assert choose(make_ranked([2.0, 0.0], ["same", "same"]), PairOptions()) == []
    assert choose(make_ranked([2.0]), PairOptions()) == []


def test_all_pairs_of_too_many_answers_are_refused() -> None:
    ranked = make_ranked(np.linspace(0, 1, 1001))
    with pytest.raises(InputError, match=r"1,001 answers, too many for all pairs \(at most 1,000\)"):
        choose(ranked, PairOptions(select="all"))


def test_labels_for_kto_follow_the_pairs_and_ties_take_them_over() -> None:
    tie = (0.3, 0.2, 0.5)
    ranked = make_ranked([6.0, 5.9, 0.0, -6.0, -6.1], compared={(0, 1): tie, (3, 4): tie})
    pairs = choose(ranked, PairOptions())
    assert indices(pairs) == [(0, 4)]
    assert labelled_answers(ranked, pairs) == {0: True, 1: True, 3: False, 4: False}  # 2 ties with neither
    counts = PairCounts()
    in_all = choose(ranked, PairOptions(select="all"))
    assert labelled_answers(ranked, in_all, counts) == {0: True, 1: True, 3: False, 4: False}
    assert counts.ambiguous == 1  # the middle one is better than two and worse than two
    assert labelled_answers(ranked, []) == {}


WORDS = {"short": 1.0, "a much longer answer than that": 2.0, "": -1.0, "middling": 0.5}
PENALTY = 0.9


class Known:
    """A model of known strengths: of single answers, or of pairs."""

    tie_log_nu = float(np.log(NU))

    def logits(self, batch: pa.RecordBatch, **_: Any) -> tuple[np.ndarray, None]:
        a, b = (np.array([WORDS[turns[0]] for turns in batch.column(f"response_{side}").to_pylist()]) for side in "ab")
        return np.stack([a, b, (a + b) / 2 + self.tie_log_nu], axis=1), None


class KnownReward(Known):
    def rewards(self, batch: pa.RecordBatch, **_: Any) -> np.ndarray:
        return np.array([WORDS[turns[0]] for turns in batch.column("response").to_pylist()])


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("model", [Known(), KnownReward()])
def test_length_penalty_is_taken_from_scores_and_probabilities_alike(model: Any, weight: float) -> None:
    answers = [*WORDS, "short"]
    columns = {"id": ["q"], "prompt": [["Which?"]], "responses": [[[text] for text in answers]]}
    batch = make_candidates({name: pa.array(column) for name, column in columns.items()})
    member = inference.Member((model,), "raw")
    calibration = Calibration((weight,))
    (ranked,) = rank_batch([member], batch, RankRule(length_penalty=PENALTY), lambda key: calibration)
    lengths = np.log2([6, 31, 1, 9, 6])
    strengths = np.array([WORDS[text] for text in answers])
    if isinstance(model, KnownReward):  # its reward is penalised, then scaled as the temperature says
        expected = strengths - PENALTY * lengths
        difference = weight * (expected[:, None] - expected)
        assert ranked.scores == pytest.approx(expected, abs=1e-6)
    else:  # the calibrated strengths are penalised
        expected = weight * strengths - PENALTY * lengths
        difference = expected[:, None] - expected
        assert ranked.scores == pytest.approx(expected - expected.mean(), abs=1e-5)
    assert ranked.ranking.tolist() == np.argsort(-expected, kind="stable").tolist() == [2, 0, 4, 3, 1]
    nu = NU**weight
    win, loss = np.exp(difference / 2), np.exp(-difference / 2)
    apart = ~np.eye(5, dtype=bool) & (difference != 0)
    assert ranked.probabilities[..., 0][apart] == pytest.approx((win / (win + loss + nu))[apart], abs=1e-5)
    assert ranked.probabilities[..., 2][apart] == pytest.approx((nu / (win + loss + nu))[apart], abs=1e-5)
    best = np.exp(difference[:, 0] - difference[:, 0].max())
    assert ranked.p_best == pytest.approx(best / best.sum(), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "worst"}, "--pairs-select is 'worst', not one of best-worst, best-rest, all"),
        ({"min_probability": 1.5, "min_margin": -1.0}, "--pairs-min-probability is 1.5, at most 1.0 is allowed"),
    ],
)
def test_impossible_options_are_refused_by_their_flags(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PairOptions(**options).check()


MULTI = {"prompt": ["Hi", None, "And now?"]}
RANKINGS = (
    make_ranked([0.0, 4.0, 2.0], ["No.", 'Yes: "日本"\n\u2028\\', "Perhaps."], id="a"),
    make_ranked([4.0, 0.0], ["", "something"], id="b", models=None),
    make_ranked([0.0, 4.0], [["Hello", "so", "worse"], ["Hello", "so", "better"]], id="c", **MULTI),
    make_ranked([0.0, 4.0], [["Hello", None, "x"], ["Good day", "so", "x"]], id="d", **MULTI),
    make_ranked([0.0], ["alone"], id="e"),
)


def write(path: Path, rankings: Sequence[Ranked] = RANKINGS, **options: Any) -> PairCounts:
    counts = PairCounts()
    with writing(PairFile(path, PairOptions(**options)), counts) as add:
        for ranked in rankings:
            add(ranked)
    return counts


def texts(turns: Sequence[str | None]) -> list[str]:
    return [turn or "" for turn in turns]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("layout", PAIR_LAYOUTS)
def test_prefcli_reads_every_layout_back(layout: str, suffix: str) -> None:
    path = Path("pairs" + suffix)
    counts = write(path, layout=layout, select="best-rest")
    file = open_battles(Source.of(path))
    rows = [row for batch, _ in file.batches() for row in batch.to_pylist()]
    expected = [(RANKINGS[0], 1, 2), (RANKINGS[0], 1, 0), (RANKINGS[1], 0, 1), (RANKINGS[2], 1, 0), (RANKINGS[3], 1, 0)]
    lost = {"trl": 0, "llama-factory": 1, "trl-text": 2}[layout]
    assert [row["id"] for row in rows] == ["a-1", "a-2", "b-1", "c-1", "d-1"][: 5 - lost]
    for row, (ranked, chosen, rejected) in zip(rows, expected, strict=False):
        winner, loser = "ab" if row["label"] == 0 else "ba"
        assert texts(row["prompt"]) == texts(ranked.prompt)
        assert texts(row[f"response_{winner}"]) == texts(ranked.responses[chosen])
        assert texts(row[f"response_{loser}"]) == texts(ranked.responses[rejected])
        assert row[f"model_{winner}"] == (ranked.models[chosen] if ranked.models else None)
    assert counts.rows == 5 - lost
    assert (counts.prompts, counts.without, counts.single) == (5, 1 + lost, 1)
    assert counts.left_out == ({f"as the layout {layout} cannot hold their turns": lost} if lost else {})


def test_rows_of_every_layout() -> None:
    user, assistant = ({"role": role} for role in ("user", "assistant"))
    extra = {"margin": 4.0, "probability": pytest.approx(np.exp(4) / (np.exp(4) + 1 + NU * np.exp(2)))}
    extra |= {"chosen_model": "model-1", "rejected_model": "model-0", "chosen_index": 1, "rejected_index": 0}
    expected = {
        "trl": {
            "prompt": [user | {"content": "Hi"}],
            "chosen": [
                assistant | {"content": "Good day"},
                user | {"content": ""},
                assistant | {"content": "so"},
                user | {"content": "And now?"},
                assistant | {"content": "x"},
            ],
        },
        "trl-text": {"prompt": "Which one?", "chosen": 'Yes: "日本"\n\u2028\\', "rejected": "No."},
        "llama-factory": {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello"},
                {"from": "human", "value": ""},
                {"from": "gpt", "value": "so"},
                {"from": "human", "value": "And now?"},
            ],
            "chosen": {"from": "gpt", "value": "better"},
            "rejected": {"from": "gpt", "value": "worse"},
        },
    }
    for (layout, row), number in zip(expected.items(), (3, 0, 2), strict=True):
        write(Path("pairs.jsonl"), RANKINGS[number : number + 1], layout=layout)
        (line,) = Path("pairs.jsonl").read_text().splitlines()
        assert json.loads(line) | row | extra == json.loads(line)


def test_kto_rows_of_every_layout() -> None:
    ranked = RANKINGS[2]
    conversation = [("Hi", "Hello"), ("", "so"), ("And now?", "better")]
    for layout, keys in (("trl", ("user", "assistant")), ("llama-factory", ("human", "gpt"))):
        counts = write(Path("kto.jsonl"), [ranked], layout=layout, ties="kto")
        rows = [json.loads(line) for line in Path("kto.jsonl").read_text().splitlines()]
        names = ("role", "content") if layout == "trl" else ("from", "value")
        messages = [
            dict(zip(names, pair, strict=True)) for turn in conversation for pair in zip(keys, turn, strict=True)
        ]
        own = {"id": "c-1", "score": 4.0, "model": "model-1", "index": 1}
        if layout == "trl":
            assert rows[0] == {**own, "prompt": messages[:-1], "completion": messages[-1:], "label": True}
        else:
            assert rows[0] == {**own, "conversations": messages, "kto_tag": True}
        assert rows[1].get("label", rows[1].get("kto_tag")) is False
        assert counts.rows == 2
        write(Path("kto.parquet"), [ranked], layout=layout, ties="kto")
        assert pq.read_table("kto.parquet").to_pylist() == rows
    write(Path("kto.jsonl"), RANKINGS[:1], layout="trl-text", ties="kto")
    first, second = (json.loads(line) for line in Path("kto.jsonl").read_text().splitlines())
    assert (first["completion"], first["label"], second["completion"], second["label"]) == (
        ranked_text(1),
        True,
        ranked_text(0),
        False,
    )


def ranked_text(answer: int) -> str:
    return RANKINGS[0].responses[answer][0] or ""


def test_formats_hold_the_same_rows_and_an_empty_file_is_valid() -> None:
    rows = []
    for suffix in (".jsonl", ".json", ".parquet"):
        write(Path("pairs" + suffix))
        write(Path("empty" + suffix), [])
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    assert json.loads(Path("pairs.json").read_text()) == rows
    assert pq.read_table("pairs.parquet").to_pylist() == rows
    assert json.loads(Path("empty.json").read_text()) == []
    assert Path("empty.jsonl").read_text() == ""
    assert pq.read_table("empty.parquet").num_rows == 0


def test_the_file_is_whole_or_absent() -> None:
    Path("pairs.jsonl").write_text("before")
    with (
        pytest.raises(KeyboardInterrupt),
        writing(PairFile(Path("pairs.jsonl"), PairOptions()), PairCounts()) as add,
    ):
        add(RANKINGS[0])
        raise KeyboardInterrupt
    assert [path.name for path in Path.cwd().iterdir()] == ["pairs.jsonl"]
    assert Path("pairs.jsonl").read_text() == "before"


@pytest.mark.slow
def test_trl_trains_on_the_files(tmp_path: Path) -> None:
    """`datasets` loads them, TRL prepares what was written, and a step of DPO and of KTO has a finite loss."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = make_language_model(tmp_path / "model", "llama")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)  # with a head
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    common = {"max_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False, "per_device_train_batch_size": 8}

    def trainer(kind: str, **options: Any) -> Any:
        write(Path("pairs.jsonl"), TRAINED, **options)
        data = datasets.load_dataset("json", data_files="pairs.jsonl", split="train", cache_dir=str(tmp_path / "cache"))
        settings = getattr(trl, f"{kind}Config")(str(tmp_path / "out"), **common)
        model = AutoModelForCausalLM.from_pretrained(folder)
        return getattr(trl, f"{kind}Trainer")(model, args=settings, train_dataset=data, processing_class=tokenizer)

    def prepared(trainer: Any) -> list[list[Any]]:
        names = [name for name in trainer.train_dataset.column_names if name.endswith("_ids") and "KL" not in name]
        return [[tokenizer.decode(row[name]) for name in names] for row in trainer.train_dataset]

    of_messages = trainer("DPO")
    assert prepared(of_messages) == [
        [" user: which one?\n", "assistant: bad stone\n", "assistant: good river\n"],
        [
            " user: hi\nassistant: good\nuser: \nassistant: bad\nuser: and now?\n",
            "assistant: river\n",
            "assistant: stone\n",
        ],
    ]
    assert np.isfinite(of_messages.train().training_loss)
    of_text = trainer("DPO", layout="trl-text")
    assert prepared(of_text) == [["[CLS] which one?", "bad stone[SEP]", "good river[SEP]"]]
    of_labels = trainer("KTO", ties="kto")
    assert prepared(of_labels)[:2] == [
        [" user: which one?\n", "assistant: bad stone\n"],
        [" user: which one?\n", "assistant: good river\n"],
    ]
    assert of_labels.train_dataset["label"][:2] == [True, False]


TRAINED = (
    make_ranked([0.0, 4.0], ["good river", "bad stone"]),
    make_ranked([4.0, 0.0], [["good", "bad", "river"], ["good", "bad", "stone"]], **MULTI),
)


@pytest.mark.slow
def test_too_many_answers_for_all_pairs_are_refused_before_any_is_ranked(
    features_run: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "MAX_ALL_PAIRS", 2)
    monkeypatch.delattr(ranking, "rank_batch")
    rows = [{"prompt": "q", "responses": ["a", "b"]}, {"prompt": "r", "responses": ["a", "b", "c"]}]
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("rank", "answers.jsonl", "--model", features_run, "--pairs", "p.jsonl", "--pairs-select", "all")
    assert done.code == 2
    assert "question 2 has 3 answers, too many for all pairs (at most 2)" in done.err
    assert not list(Path().glob("[pr]*.jsonl"))


def test_rank_writes_pairs_from_the_command_and_from_python(cli: Any, features_run: Path) -> None:
    import prefcli

    rows = [{"id": str(i), "prompt": f"Question {i}?", "responses": [f"lazy vague {i}", "clear precise step", "x"]}
            for i in range(3)]  # fmt: skip
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("answers.jsonl", "--model", features_run, "--json")
    pairs = ("--pairs", "pairs.json", "--pairs-select", "all", "--pairs-min-probability", 0)
    result = cli("rank", *flags, *pairs)
    assert result.code == 0, result.err
    counts = result.json()["pair_counts"]
    written = json.loads(Path("pairs.json").read_text())
    assert counts["prompts"] == 3
    assert counts["rows"] == len(written) > 0
    ranked = [json.loads(line) for line in Path("ranked.jsonl").read_text().splitlines()]
    for row in written:
        question = int(row["id"].split("-")[0])
        scores = ranked[question]["scores"]
        assert row["margin"] == scores[row["chosen_index"]] - scores[row["rejected_index"]] > 0
        assert row["chosen"][0]["content"] == rows[question]["responses"][row["chosen_index"]]
    again = prefcli.rank(
        "answers.jsonl",
        "again.jsonl",
        models=[features_run],
        pairs="again.json",
        pairs_select="all",
        pairs_min_probability=0,
    )
    assert again.pair_counts is not None
    assert again.pair_counts.rows == counts["rows"]
    assert Path("again.json").read_bytes() == Path("pairs.json").read_bytes()
    none = cli("rank", *flags, "--force", "--pairs", "none.jsonl", "--pairs-min-probability", 1)
    assert "none.jsonl is empty" in none.err
    assert none.json()["pair_counts"]["without"] == 3
    assert "--pairs-select needs --pairs FILE" in cli("rank", *flags, "--force", "--pairs-select", "all").err
    assert "is named as two outputs" in cli("rank", *flags, "--pairs", "ranked.jsonl", "--force").err
    assert "cannot tell the format of pairs.csv" in cli("rank", *flags, "--force", "--pairs", "pairs.csv").err
    with pytest.raises(InputError, match="pairs_select is for a file of pairs"):
        prefcli.rank("answers.jsonl", "x.jsonl", models=[features_run], pairs_select="all")
