"""No file of preferences is misread: random battles in every known layout, under random names, and in odd files.

What a file must be read as comes from ``layouts.py``, which knows the battles before it writes them.
"""

from __future__ import annotations

import csv
import json
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import layouts
import pytest
from layouts import TIE, A, B, Battle, Holds, Known, Row

from prefcli import readers
from prefcli.battles import Source
from prefcli.errors import InputError

Read = tuple[list[str], list[str], list[str], int | None]


def read(path: Path, **options: Any) -> list[Row]:
    """The battles of a file as dictionaries."""
    file = readers.open_battles(Source((path,), **options))
    return [row for batch, _ in file.batches() for row in batch.to_pylist()]


def texts(rows: Sequence[Mapping[str, Any]]) -> list[Read]:
    """Prompt, answers and label of battles that were read."""
    return [(row["prompt"], row["response_a"], row["response_b"], row["label"]) for row in rows]


def by_winner(rows: Sequence[Mapping[str, Any]]) -> list[Read]:
    """The same with the better answer first: for files that know no sides."""
    return [
        (row["prompt"], row["response_b"], row["response_a"], A) if row["label"] == B else texts([row])[0]
        for row in rows
    ]


def refused(path: Path, **options: Any) -> str:
    """The error that reading the file gives, as the user sees it."""
    with pytest.raises(InputError) as error:
        read(path, **options)
    assert len(error.value.lines()) <= 3
    return "\n".join(error.value.lines())


def seeded(*names: object) -> random.Random:
    return random.Random(zlib.crc32(repr(names).encode()))


FILES = [(known, container) for known in layouts.LAYOUTS for container in known.containers]


@pytest.mark.parametrize(("known", "container"), FILES, ids=[f"{known.name} {name}" for known, name in FILES])
def test_battles_in_every_known_layout_are_read_as_they_are(known: Known, container: str, tmp_path: Path) -> None:
    rng = seeded(known.name, container)
    truth = layouts.battles(rng, known.holds, 12)
    rows = [known.row(battle, number) for number, battle in enumerate(truth)] + list(known.extra_rows)
    path = layouts.write(tmp_path / f"file{layouts.suffix(container)}", rows, container)
    wrong = layouts.differences(
        known, [part for battle in truth for part in known.truth(battle)], read(path, **known.options)
    )
    assert not wrong, "\n".join(wrong)


GENERIC = next(known for known in layouts.LAYOUTS if known.name == "winner as letters")


@pytest.mark.parametrize(
    "container",
    ["semicolons", "bom", "utf-16", "latin-1", "upper-case headers", "indented json", "wrapped json"]
    + ["json by columns", "json by columns and row"],
)
def test_battles_in_every_container_are_read_as_they_are(container: str, tmp_path: Path) -> None:
    def latin(text: str | None) -> str:
        return (text or "").encode("latin-1", "replace").decode("latin-1")

    truth = layouts.battles(seeded(container), GENERIC.holds, 12)
    if container == "latin-1":
        truth = [
            replace(b, prompts=(latin(b.prompts[0]),), a=(latin(b.a[0]),), b=(f"{latin(b.b[0])} é",)) for b in truth
        ]
    path = layouts.write(
        tmp_path / f"file{layouts.suffix(container)}", [GENERIC.row(battle, 0) for battle in truth], container
    )
    options = {"encoding": "latin-1"} if container == "latin-1" else {}
    assert not (wrong := layouts.differences(GENERIC, truth, read(path, **options))), "\n".join(wrong)
    if container == "latin-1":
        assert "encoding" in refused(path)


@pytest.mark.parametrize("known", layouts.LAYOUTS, ids=lambda known: known.name)
def test_tables_in_memory_are_read_as_files_are(known: Known, tmp_path: Path) -> None:
    truth = layouts.battles(seeded(known.name, "memory"), known.holds, 6)
    rows = [known.row(battle, number) for number, battle in enumerate(truth)] + list(known.extra_rows)
    table = readers.battles_from(rows, Source((), **known.options))
    wrong = layouts.differences(known, [part for battle in truth for part in known.truth(battle)], table.to_pylist())
    assert not wrong, "\n".join(wrong)


# Other names


NAMES = "col_1 Frage réponse x.y data item.0 Left Q2 meta answers text value winnerish 问题 prompt2 label_x".split()


def place(rng: random.Random, row_paths: list[str]) -> tuple[str, Callable[[Row, Any], None]]:
    """A path in rows that no other value uses, and what puts a value there."""
    free = [name for name in NAMES if name not in {path.split("\0")[0] for path in row_paths}]
    top = rng.choice(free)
    kind = rng.choice(["top", "top", "nested", "listed"])
    if kind == "top":
        row_paths.append(top)
        return top, lambda row, value: row.update({top: value})
    row_paths.append(f"{top}\0")
    key = rng.choice(["text", "0", "value"]) if kind == "nested" else "1"
    inner: Callable[[Any], Any] = (lambda value: {"other": "x", key: value}) if kind == "nested" else lambda v: ["x", v]
    return f"{top}.{key}", lambda row, value: row.update({top: inner(value)})


def outcome_forms(rng: random.Random, paths: list[str]) -> tuple[str, Callable[[Row, int], None]]:
    """A random ``--outcome`` and what writes an outcome so."""
    form = rng.choice(["words", "numbers", "comparison", "agreement", "majority", "higher", "lower"])
    places = [place(rng, paths) for _ in range({"majority": 3, "words": 1, "numbers": 1, "comparison": 1}.get(form, 2))]
    names = ",".join(path for path, _ in places)

    def put(row: Row, values: Sequence[Any]) -> None:
        for (_, store), value in zip(places, values, strict=True):
            store(row, value)

    if form == "words":
        words = rng.sample(["first", "zweite", "ni l'un", "no_1", "beide gut", "1st", "X"], 3)
        case = rng.choice([str, str.upper, str.title])
        rule = f"{names}: {words[0]}=a, {words[1]}=b, {words[2]}=tie"
        return rule, lambda row, outcome: put(row, [case(words[outcome])])
    if form == "numbers":
        numbers = rng.sample([-1, 0, 1, 2, 3, 10], 3)
        form_of = rng.choice([int, float, str])
        rule = f"{names}: {numbers[0]}=a, {numbers[1]}=b, {numbers[2]}=tie"
        return rule, lambda row, outcome: put(row, [form_of(numbers[outcome])])
    if form == "comparison":
        middle = rng.choice([0, 1.5, -2, 0.5])
        sign = rng.choice([1, -1])
        rule = f"{names}: {'><'[sign < 0]}{middle}=a, {'<>'[sign < 0]}{middle}=b, {middle}=tie"
        return rule, lambda row, outcome: put(row, [middle + (sign, -sign, 0)[outcome] * rng.choice([0.1, 1, 7])])
    if form == "agreement":
        votes = (("m1", "m1"), ("m2", "m2"))
        ties = [("m1", "m2"), ("m2", "m1"), ("T", "T"), ("T", "m1")]
        rule = f"{names}: m1=a, m2=b, T=tie"
        return rule, lambda row, outcome: put(row, rng.choice(ties) if outcome == TIE else votes[outcome])
    if form == "majority":
        votes3 = ((1, 1, 2), (2, 0, 2), (0, 1, 0))
        rule = f"{names} (majority): 1=a, 2=b, 0=tie"
        return rule, lambda row, outcome: put(row, rng.sample(votes3[outcome], 3))
    scores = ((9, 2.5), (-1, 3), (4, 4.0))
    higher = form == "higher"
    return f"{names}: {form}", lambda row, outcome: put(
        row, scores[outcome] if higher else [-s for s in scores[outcome]]
    )


@pytest.mark.parametrize("seed", range(120))
def test_battles_under_random_names_and_outcomes_are_read_as_they_are(seed: int, tmp_path: Path) -> None:
    rng = seeded("names", seed)
    paths: list[str] = []
    columns, stores = {}, {}
    joined = rng.random() < 0.4
    fields = ["prompt", "response_a", "response_b"]
    for name in [*fields, "extra"][: 4 if joined else 3]:
        columns[name], stores[name] = place(rng, paths)
    rule, store_outcome = outcome_forms(rng, paths)
    if joined:
        columns["prompt"] += "+" + columns.pop("extra")
    truth = layouts.battles(rng, Holds(), 8)
    rows = []
    for battle in truth:
        row: Row = {"noise": rng.choice([1, "x", None])}
        first, _, rest = battle.prompts[0].partition("\n")
        stores["prompt"](row, first if joined else battle.prompts[0])
        if joined:
            stores["extra"](row, rest)
        stores["response_a"](row, battle.a[0])
        stores["response_b"](row, battle.b[0])
        store_outcome(row, battle.outcome or 0)
        rows.append(row)
    container = rng.choice(["jsonl", "json", "indented json"])
    path = layouts.write(tmp_path / f"file{layouts.suffix(container)}", rows, container)
    wrong = layouts.differences(GENERIC, truth, read(path, columns=columns, outcome=rule))
    assert not wrong, f"{columns} {rule}\n" + "\n".join(wrong)


@pytest.mark.parametrize("seed", range(20))
def test_chosen_and_rejected_under_random_names_are_read_as_they_are(seed: int, tmp_path: Path) -> None:
    rng = seeded("chosen", seed)
    paths: list[str] = []
    places = {name: place(rng, paths) for name in ("prompt", "chosen", "rejected")}
    truth = layouts.battles(rng, layouts.PAIRS, 6)
    rows = []
    for battle in truth:
        row: Row = {}
        for name, value in zip(places, (battle.prompts[0], battle.chosen[0], battle.rejected[0]), strict=True):
            places[name][1](row, value)
        rows.append(row)
    path = layouts.write(tmp_path / "file.jsonl", rows, "jsonl")
    columns = {name: where for name, (where, _) in places.items()}
    known = replace(GENERIC, sided=False)
    assert not (wrong := layouts.differences(known, truth, read(path, columns=columns))), "\n".join(wrong)


def all_pairs(prompt: str, answers: Sequence[str], goodness: Sequence[float]) -> list[Battle]:
    """Every pair in the list's order."""
    return [
        Battle(
            (prompt,),
            (answers[i],),
            (answers[j],),
            TIE if goodness[i] == goodness[j] else int(goodness[i] < goodness[j]),
        )
        for i in range(len(answers))
        for j in range(i + 1, len(answers))
    ]


@pytest.mark.parametrize("seed", range(30))
def test_lists_of_answers_become_all_their_pairs(seed: int, tmp_path: Path) -> None:
    rng = seeded("each", seed)
    by_rank = rng.random() < 0.5
    deep = rng.random() < 0.5
    rows, truth = [], []
    for _ in range(4):
        prompt, count = layouts.text(rng), rng.choice([2, 2, 3, 5])
        answers = [layouts.text(rng) for _ in range(count)]
        goodness = [rng.choice([1, 2.5, 3, 4]) for _ in answers]
        items = [
            {"m": f"model-{i}", "said": {"text": answer} if deep else answer, "n": -good if by_rank else good}
            for i, (answer, good) in enumerate(zip(answers, goodness, strict=True))
        ]
        rows.append({"ask": prompt, "all": items})
        truth += all_pairs(prompt, answers, goodness)
    path = layouts.write(tmp_path / "file.jsonl", rows, "jsonl")
    each = f"all: text=said{'.text' if deep else ''}, model=m, {'rank' if by_rank else 'score'}=n"
    found = read(path, columns={"prompt": "ask"}, each=each)
    assert not (wrong := layouts.differences(replace(GENERIC, sided=False), truth, found)), "\n".join(wrong)
    assert {found[0]["model_a"], found[0]["model_b"]} == {"model-0", "model-1"}
    assert len({row["id"] for row in found}) == len(found)


# Odd files of these kinds, with what they must be read as


def jsonl(path: Path, *rows: Row) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_numbers_and_booleans_are_answers_as_text(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        {"prompt": "6*7?", "response_a": 42, "response_b": 41.5, "winner": "a"},
        {"prompt": "True?", "response_a": True, "response_b": False, "winner": "b"},
    )
    assert texts(read(path)) == [(["6*7?"], ["42"], ["41.5"], A), (["True?"], ["true"], ["false"], B)]


@pytest.mark.parametrize("form", ["text", "message", "list"])
def test_a_prompt_that_the_answers_repeat_is_taken_once(form: str, tmp_path: Path) -> None:
    def answer(text: str) -> Any:
        said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]
        return {"text": f"\n\nHuman: Why?\n\nAssistant: {text}", "message": said[1], "list": said}[form]

    prompt = "\n\nHuman: Why?\n\nAssistant:" if form == "text" else "Why?"
    path = jsonl(tmp_path / "a.jsonl", {"prompt": prompt, "chosen": answer("So."), "rejected": answer("No.")})
    assert by_winner(read(path)) == [(["Why?"], ["So."], ["No."], A)]


@pytest.mark.parametrize("role", ["tool", "function_call", "observation", "developer"])
def test_messages_of_other_roles_keep_question_and_answers(role: str, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Weather in Oslo?"}, {"role": role, "content": "12 degrees"}]
    messages += [{"role": "observation", "content": "done"}] * (role == "function_call")
    answers = {
        name: [{"role": "assistant", "content": said}] for name, said in (("chosen", "Cold."), ("rejected", "Hot."))
    }
    (found,) = by_winner(read(jsonl(tmp_path / "a.jsonl", {"prompt": messages, **answers})))
    assert "Weather in Oslo?" in found[0][0]
    assert (found[1][-1], found[2][-1], found[3]) == ("Cold.", "Hot.", A)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "prompter", "text": "Why?"},
        {"from": "human", "value": "Why?"},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
        {"role": "user", "content": [{"type": "text", "value": "Why?"}]},
        ["Human", "Why?"],
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("alone", [False, True], ids=["list", "one object"])
def test_every_form_of_a_message_is_read(message: Any, alone: bool, tmp_path: Path) -> None:
    if alone and isinstance(message, list):
        pytest.skip("a pair alone is a list of two texts")
    row = {"prompt": message if alone else [message], "chosen": "So.", "rejected": "No."}
    assert by_winner(read(jsonl(tmp_path / "a.jsonl", row))) == [(["Why?"], ["So."], ["No."], A)]


def test_conversations_without_a_question_are_refused(tmp_path: Path) -> None:
    answers = {
        name: [{"role": "assistant", "content": said}] for name, said in (("chosen", "Yes."), ("rejected", "No."))
    }
    assert "row 1" in refused(jsonl(tmp_path / "a.jsonl", answers))
    sides = {"conversation_a": answers["chosen"], "conversation_b": answers["rejected"], "winner": "model_a"}
    assert "row 1" in refused(jsonl(tmp_path / "b.jsonl", sides))


def test_the_common_beginning_of_answers_is_no_prompt_where_there_is_a_question(tmp_path: Path) -> None:
    row = {
        "ask": "A tale of a fox.",
        "chosen": "It was night and a fox ran.",
        "rejected": "It was night and it snowed.",
    }
    message = refused(jsonl(tmp_path / "a.jsonl", row))
    assert "ask" in message
    assert "prompt=ask" in message
    found = read(tmp_path / "a.jsonl", columns={"prompt": "ask"})
    assert by_winner(found) == [([row["ask"]], [row["chosen"]], [row["rejected"]], A)]


LABELS = ([0, 1, 1], [1, 0, 0], [1, 2, 1], [1, -1, 0], [0, 1, 2], [0.0, 1.0, 1.0], [0.2, 0.9, 0.5])


@pytest.mark.parametrize("labels", LABELS, ids=str)
@pytest.mark.parametrize("column", ["label", "winner", "preference", "vote"])
def test_a_number_means_nothing_until_someone_says_so(column: str, labels: list[float], tmp_path: Path) -> None:
    asked = ["Name a bird.", "Three plus four?", "Say hello."]
    rows = [
        {"prompt": asked[i], "response_a": f"First {i}", "response_b": f"Second {i}", column: label}
        for i, label in enumerate(labels)
    ]
    message = refused(jsonl(tmp_path / "a.jsonl", *rows))
    assert column in message
    assert "--outcome" in message


def test_the_refusal_of_a_number_shows_the_first_battle_in_words(tmp_path: Path) -> None:
    row = {"prompt": "Name a bird.", "response_a": "Crow.", "response_b": "Carp.", "label": 1}
    message = refused(jsonl(tmp_path / "a.jsonl", row, {**row, "label": 0}))
    for part in ("Name a bird.", "Crow.", "Carp.", "label", "1=a", "1=b"):
        assert part in message, message


def test_a_model_called_like_a_side_is_not_guessed(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "response_a": "So.", "response_b": "No.", "model_a": "B", "model_b": "A"}
    path = jsonl(tmp_path / "a.jsonl", {**row, "winner": "A"}, {**row, "winner": "B"})
    assert [label for *_, label in texts(read(path))] == [B, A], "both names are spellings, so names win"
    for models in ({"model_a": "B", "model_b": "vole"}, {"model_a": "tie", "model_b": "vole"}):
        name = models["model_a"]
        refused(jsonl(tmp_path / "b.jsonl", {**row, **models, "winner": name}))


CONTRADICTIONS: dict[str, Row] = {
    "winner and label": {"winner": "model_a", "label": "B"},
    "winner and another name": {"winner": "model_a", "preferred": "B"},
    "winner and one-hot": {"winner": "a", "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
    "winner and soft labels": {"winner": "a", "p_a": 0, "p_b": 0.9, "p_tie": 0.1},
    "one-hot and soft labels": {
        "winner_model_a": 1,
        "winner_model_b": 0,
        "winner_tie": 0,
        "p_a": 0,
        "p_b": 0.9,
        "p_tie": 0.1,
    },
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_outcome_columns_that_contradict_each_other_are_refused(name: str, tmp_path: Path) -> None:
    texts_ = {"prompt": "Why?", "response_a": "So.", "response_b": "No."}
    message = refused(jsonl(tmp_path / "a.jsonl", {**texts_, **CONTRADICTIONS[name]}))
    assert "row 1" in message


def test_a_value_that_is_not_named_is_an_error_with_its_row(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "response_a": "So.", "response_b": "No."}
    path = jsonl(tmp_path / "a.jsonl", {**row, "vote": "l"}, {**row, "vote": None}, {**row, "vote": "both"})
    message = refused(path, outcome="vote: l=a, r=b")
    assert "row 3" in message
    assert "both" in message
    assert [label for *_, label in texts(read(path, outcome="vote: l=a, r=b, both=both_bad"))] == [A, None, TIE]


OUTCOME_COLUMNS: dict[str, list[Any]] = {
    "verdict": ["left one", "right one"],
    "human_preference": ["A", "B"],
    "preferred_response": ["response_a", "response_b"],
    "a_better": [True, False],
    "judgment": ["[[A]]", "[[B]]"],
    "xq7": ["model_a", "model_b"],
    "score": [0.8, 0.1],
    "rating": [1, 5],
    "choice": [1, 2],
    "outcome": ["a_wins", "b_wins"],
}
"""Columns that hold outcomes, A's and B's, in words that are clear or not."""


@pytest.mark.parametrize("column", OUTCOME_COLUMNS)
def test_a_column_that_may_hold_outcomes_is_read_right_or_asked_about(column: str, tmp_path: Path) -> None:
    row = {"prompt": "Why?", "response_a": "So.", "response_b": "No."}
    path = jsonl(tmp_path / "a.jsonl", *({**row, column: value} for value in OUTCOME_COLUMNS[column]))
    try:
        assert [label for *_, label in texts(read(path))] == [A, B]
    except InputError as error:
        message = "\n".join(error.lines())
        assert column in message
        assert "--outcome" in message
    named = jsonl(tmp_path / "b.jsonl", {**row, column: OUTCOME_COLUMNS[column][1], "winner": "b"})
    assert [label for *_, label in texts(read(named))] == [B], "beside an outcome it is no question"


ODD_TEXTS = [
    "None",
    "null",
    "NaN",
    "NA",
    "1",
    "0.50",
    "[]",
    "{}",
    "true",
    "[1, 2]",
    '["a", "b"]',
    "['a']",
    "A",
    "tie",
    "-",
]


@pytest.mark.parametrize("container", ["csv", "jsonl"])
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_answers_that_look_like_values_stay_text(text: str, container: str, tmp_path: Path) -> None:
    rows = [{"prompt": "Which?", "response_a": text, "response_b": "Other.", "winner": "a"}]
    path = layouts.write(tmp_path / f"a.{container}", rows, container)
    assert texts(read(path)) == [(["Which?"], [text], ["Other."], A)]


def test_the_best_of_several_answers_is_no_battle_of_the_first_two(tmp_path: Path) -> None:
    answers = {f"response_{letter}": f"Answer {letter}" for letter in "abcd"}
    row = {"prompt_id": 7, "prompt": "Why?", **answers, "human_chosen": "c"}
    assert "response_c" in refused(jsonl(tmp_path / "a.jsonl", row))


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "response_a": "So.", "response_b": "No.", "winner": "a", "topic": "x", "when": 3}
    file = readers.open_battles(Source((jsonl(tmp_path / "a.jsonl", row),)))
    assert list(file.not_read) == ["topic", "when"]


def test_refusals_name_what_the_file_has(tmp_path: Path) -> None:
    row = {"promt": "Why?", "response_a": "So.", "response_b": "No.", "winner": "a"}
    message = refused(jsonl(tmp_path / "a.jsonl", row))
    assert "promt" in message
    assert "prompt=promt" in message


def test_unmapping_leaves_a_column_out(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "response_a": "So.", "response_b": "No.", "label": 1}
    assert [label for *_, label in texts(read(jsonl(tmp_path / "a.jsonl", row), columns={"label": ""}))] == [None]


def test_a_column_whose_name_holds_a_dot_wins_over_a_path(tmp_path: Path) -> None:
    row = {"q.0": "Why?", "q": ["Wrong"], "x+y": "So.", "x": "wrong", "y": "wrong", "r": "No.", "v": "1"}
    columns = {"prompt": "q.0", "response_a": "x+y", "response_b": "r"}
    assert texts(read(jsonl(tmp_path / "a.jsonl", row), columns=columns, outcome="v: 1=a")) == [
        (["Why?"], ["So."], ["No."], A)
    ]


def test_a_list_without_a_score_is_an_error_with_its_row(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "all": [{"t": "So.", "s": 1}, {"t": "No.", "s": score}]} for score in (0, None)]
    assert "row 2" in refused(jsonl(tmp_path / "a.jsonl", *rows), each="all: text=t, score=s")


@pytest.mark.parametrize("missing", ["p_a", "p_b", "p_tie"])
def test_incomplete_probabilities_are_no_outcome(missing: str, tmp_path: Path) -> None:
    shares = {name: share for name, share in (("p_a", 0.2), ("p_b", 0.7), ("p_tie", 0.1)) if name != missing}
    row = {"prompt": "Why?", "response_a": "So.", "response_b": "No.", **shares}
    assert missing in refused(jsonl(tmp_path / "a.jsonl", row))


@pytest.mark.parametrize("empty", ["chosen", "rejected", "prompt", "history"])
def test_messages_in_a_csv_are_messages_beside_an_empty_cell(empty: str, tmp_path: Path) -> None:
    def said(role: str, text: str) -> list[Row]:
        return [{"role": role, "content": text}]

    rows = [
        {"prompt": said("user", f"Why {i}?"), "chosen": said("assistant", "So."), "rejected": said("assistant", "No.")}
        for i in range(3)
    ]
    rows[1][empty] = None
    path = layouts.write(tmp_path / "a.csv", rows, "csv")
    try:
        found = by_winner(read(path))
    except InputError as error:
        assert "row 2" in "\n".join(error.lines())  # noqa: PT017  (either is right)
        return
    assert [found[0], found[2]] == [([f"Why {i}?"], ["So."], ["No."], A) for i in (0, 2)]


def test_a_row_without_question_and_answers_is_an_error(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "response_a": "So.", "response_b": "No.", "winner": "a"}
    assert "row 2" in refused(jsonl(tmp_path / "a.jsonl", row, {"topic": "x"}))
    other = {"input": "Why?", "output_1": "So.", "output_2": "No.", "label": 1}
    assert "row" in refused(jsonl(tmp_path / "b.jsonl", row, other)), "rows of two layouts"


def test_conversations_are_cut_at_the_judged_turn(tmp_path: Path) -> None:
    def said(*texts: str) -> list[Row]:
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]

    sides = {"conversation_a": said("1?", "a", "2?", "c"), "conversation_b": said("1?", "b", "2?", "d")}
    for names in ({"judge": "expert_1"}, {}, {"tstamp": 1.5, "anony": True}):
        row = {"question_id": 1, "model_a": "x", "model_b": "y", "winner": "model_a", **sides, "turn": 1, **names}
        assert texts(read(jsonl(tmp_path / "a.jsonl", row))) == [(["1?"], ["a"], ["b"], A)]


MISPLACED: dict[str, Row] = {
    "text instead of an answer": {"prompt": "Why?", "response_a": {"x": 1}, "response_b": "No.", "winner": "a"},
    "a list of numbers": {"prompt": "Why?", "chosen": [1, 2], "rejected": "No."},
    "a null question": {"prompt": None, "chosen": "So.", "rejected": "No."},
    "a null answer": {"prompt": "Why?", "chosen": "So.", "rejected": None},
    "an unknown winner": {"prompt": "Why?", "response_a": "So.", "response_b": "No.", "winner": "the first"},
    "both labels": {"instruction": "Why?", "output_1": "So.", "output_2": "No.", "preference": 3},
    "a preference that could not be parsed": {
        "instruction": "Why?",
        "output_1": "S",
        "output_2": "N",
        "preference": -1,
    },
    "a label of no answer": {"input": "Why?", "output_1": "So.", "output_2": "No.", "label": 0},
    "a response that is neither": {"prompt": "Why?", "response_0": "So.", "response_1": "No.", "better_response_id": 2},
}


@pytest.mark.parametrize("name", MISPLACED)
def test_cells_that_do_not_fit_their_layout_are_refused_with_their_row(name: str, tmp_path: Path) -> None:
    assert "row 1" in refused(jsonl(tmp_path / "a.jsonl", MISPLACED[name]))


# Found by damaged and real files


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (("question", "response_chosen", "response_rejected"), "prompt=question,chosen=response_chosen,rejected="),
        (("prompt", "pos_resp", "neg_resp"), "prompt=prompt,chosen=pos_resp,rejected=neg_resp"),
        (("ask", "up_ranking_answer", "low_ranking_answer"), "prompt=NAME,chosen=up_ranking_answer,rejected=low_"),
        (("q", "preferred_text", "non_preferred_text"), "chosen=preferred_text,rejected=non_preferred_text"),
    ],
)
def test_a_better_and_a_worse_answer_under_other_names_are_suggested(
    tmp_path: Path, names: tuple[str, str, str], hint: str
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(dict(zip(names, ("Why?", "Because.", "No."), strict=True))) + "\n")
    assert hint in refused(path)


def test_numbers_in_a_list_are_not_suggested_as_answers(tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    path.write_text('{"review": 1, "score": [8, 9]}\n')
    assert "--each '" not in refused(path)


def test_openai_input_may_be_the_messages_themselves(tmp_path: Path) -> None:
    row = {
        "input": [{"role": "user", "content": "Hello in French?"}],
        "preferred_output": [{"role": "assistant", "content": "Bonjour"}],
        "non_preferred_output": [{"role": "assistant", "content": "Hello"}],
    }
    path = tmp_path / "openai.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert by_winner(read(path)) == [(["Hello in French?"], ["Bonjour"], ["Hello"], A)]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [({}, "chosen and rejected are texts that hold lists"), ({"num_correct": 1, "num_incorrect": 2}, "row 2")],
)
def test_an_empty_list_of_answers_does_not_make_the_others_text(tmp_path: Path, more: Row, sentence: str) -> None:
    rows = [
        {"prompt": "Q1", "chosen": '["right"]', "rejected": '["wrong", "worse"]', **more},
        {"prompt": "Q2", "chosen": '["right"]', "rejected": "", **more},
    ]
    path = tmp_path / "lists.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert sentence in refused(path)


def test_messages_in_some_rows_and_text_in_others_are_refused(tmp_path: Path) -> None:
    context = json.dumps([{"role": "user", "content": "Why?"}])
    answers = [json.dumps({"role": "assistant", "content": text}) for text in ("Because.", "No.")]
    path = tmp_path / "mixed.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("context", "chosen", "rejected"), (context, *answers), (context, "Because.", "No.")]
        )
    assert "row 2" in refused(path)


def test_rows_of_two_published_layouts_are_refused(tmp_path: Path) -> None:
    rows = [
        {"prompt": "P", "response_0": "x", "response_1": "y", "better_response_id": 0, "safer_response_id": 0},
        {"prompt": "Q", "response_1": "v", "response_2": "w", "preference_strength": -2},
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    path = tmp_path / "two.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    assert "the columns fit several formats: helpsteer2, safe-rlhf" in refused(path)


def test_a_pair_without_answers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "P", "chosen": "x", "rejected": ""},
        {"prompt": "Q", "chosen": "", "rejected": None, "chosen_response": "v", "rejected_response": "w"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert refused(path).startswith("no answers\n")
    assert "row 2, column chosen and rejected" in refused(path)


def test_lists_of_turns_below_plain_texts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "both.csv"
    with path.open("w", newline="") as file:
        plain, lists = ("P", "x", "y", "a"), ('["P", "Q"]', '["x", "z"]', '["y", ""]', "b")
        csv.writer(file).writerows([("prompt", "response_a", "response_b", "winner"), plain, lists])
    assert refused(path).startswith("the texts of row 2 are lists of turns, those of row 1 are not\n")
    assert [row["prompt"] for row in read(path, format="generic")] == [["P"], ['["P", "Q"]']]
