"""Every supported layout: the battles expected of a file, and the error for a broken one.

The fixtures follow the layouts' public documentation; no published row is copied.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefcli import readers
from prefcli.battles import ReadCounts, Source
from prefcli.errors import InputError
from prefcli.outcomes import TIE, A, B
from prefcli.readers import open_battles

Row = Mapping[str, Any]


def write(path: Path, rows: Iterable[Row]) -> Path:
    """Rows as JSON lines, a JSON array, or Parquet, by the file's name."""
    rows = list(rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(source: Path | Source, **options: Any) -> tuple[list[dict[str, Any]], ReadCounts, str]:
    """Battles as dicts without their prompt keys, the counts, and the recognised format."""
    file = open_battles(Source((source,), **options) if options else source)
    rows: list[dict[str, Any]] = []
    counts = ReadCounts()
    for batch, counted in file.batches():
        rows += batch.drop_columns(["prompt_key"]).to_pylist()
        counts += counted
    return rows, counts, file.layout.name


def refused(source: Path | Source, **options: Any) -> InputError:
    with pytest.raises(InputError) as error:
        read(source, **options)
    assert len(error.value.lines()) <= 3
    return error.value


def messages(*texts: str, parts: bool = False) -> list[dict[str, Any]]:
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    content = [[{"type": "text", "text": text}] if parts else text for text in texts]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(content)]


# Chatbot Arena


def arena_rows(parts: bool = False) -> list[dict[str, Any]]:
    bad = "both_bad" if parts else "tie (bothbad)"
    pairs = [("model_a", 1), ("model_b", 1), ("tie", 1), (bad, 2)]
    return [
        {
            "question_id": f"q{number}",
            "model_a": "koala",
            "model_b": "vole",
            "winner": winner,
            "judge": "arena_user_1",
            "conversation_a": messages(*["Hi?", "Hello!", "Why?", "So."][: 2 * turns], parts=parts),
            "conversation_b": messages(*["Hi?", "Good day.", "Why?", "Thus."][: 2 * turns], parts=parts),
            "turn": turns,
            "anony": True,
            "tstamp": 1.5,
        }
        for number, (winner, turns) in enumerate(pairs)
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("parts", [False, True], ids=["plain", "typed parts"])
def test_arena_conversations_are_read(tmp_path: Path, suffix: str, parts: bool) -> None:
    rows, counts, name = read(write(tmp_path / f"arena{suffix}", arena_rows(parts)))
    assert name == "arena"
    assert [row["label"] for row in rows] == [A, B, TIE, TIE]
    assert [row["both_bad"] for row in rows] == [False, False, False, True]
    assert [row["id"] for row in rows] == ["q0", "q1", "q2", "q3"]
    assert rows[0]["model_a"] == "koala"
    assert rows[0]["model_b"] == "vole"
    assert rows[0]["prompt"] == ["Hi?"]
    assert rows[3]["prompt"] == ["Hi?", "Why?"]
    assert rows[3]["response_a"] == ["Hello!", "So."]
    assert rows[3]["response_b"] == ["Good day.", "Thus."]
    assert counts.battles == counts.labelled == 4


def test_images_in_arena_conversations_are_dropped_and_counted(tmp_path: Path) -> None:
    row = arena_rows(parts=True)[0]
    row["conversation_a"][0]["content"].append({"type": "image", "image": "cat.png"})
    for suffix in (".jsonl", ".parquet"):
        rows, counts, _ = read(write(tmp_path / f"a{suffix}", [row, *arena_rows(parts=True)[1:]]))
        assert counts.dropped_parts == 1
        assert rows[0]["prompt"] == ["Hi?"]


def test_conversations_are_cut_where_their_prompts_differ(tmp_path: Path) -> None:
    row = arena_rows()[3]
    row["conversation_b"] = messages("Hi?", "Good day.", "Who?", "Me.")
    rows, counts, _ = read(write(tmp_path / "a.jsonl", [row]))
    assert rows[0]["prompt"] == ["Hi?"]
    assert rows[0]["response_b"] == ["Good day."]
    assert counts.diverged == 1
    assert "diverge" in " ".join(counts.warnings())


def test_system_messages_go_before_the_prompt(tmp_path: Path) -> None:
    row = arena_rows()[0]
    for side in ("a", "b"):
        row[f"conversation_{side}"].insert(0, {"role": "system", "content": "Be brief."})
    rows, _, _ = read(write(tmp_path / "a.jsonl", [row]))
    assert rows[0]["prompt"] == ["Be brief.\n\nHi?"]


@pytest.mark.parametrize(
    ("change", "what", "where"),
    [
        ({"winner": "modelA"}, "unknown winner 'modelA'", "row 2, column winner"),
        ({"conversation_a": messages()}, "the conversation is empty", "row 2, column conversation_a"),
        ({"conversation_b": messages("Bye?", "x")}, "different prompts", "row 2"),
        ({"conversation_b": "text"}, "broken JSON", "row 2, column conversation_b"),
        ({"conversation_b": None}, "found nothing", "row 2, column conversation_b"),
        ({"conversation_a": [{"role": "narrator", "content": "x"}]}, "unknown role 'narrator'", "row 2"),
        ({"conversation_a": [{"role": "user", "content": 7}]}, "content is '7'", "row 2, column conversation_a"),
    ],
)
def test_a_broken_arena_row_is_refused_with_its_place(tmp_path: Path, change: Row, what: str, where: str) -> None:
    first, second, *_ = arena_rows()
    error = refused(write(tmp_path / "a.jsonl", [first, {**second, **change}]))
    assert what in error.what
    assert where in error.where
    assert error.hint


# MT-bench


def mt_bench_row(judge: str, turn: int, winner: str) -> dict[str, Any]:
    return {
        "question_id": 81,
        "model_a": "koala",
        "model_b": "vole",
        "winner": winner,
        "judge": judge,
        "conversation_a": messages("One?", "1", "Two?", "2"),
        "conversation_b": messages("One?", "one", "Two?", "two"),
        "turn": turn,
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_mt_bench_judgments_are_read(tmp_path: Path, suffix: str) -> None:
    source_rows = [
        mt_bench_row("author_1", 1, "model_a"),
        mt_bench_row("expert_2", 1, "tie"),
        mt_bench_row("expert_2", 2, "model_b"),
    ]
    rows, _, name = read(write(tmp_path / f"mt{suffix}", source_rows))
    assert name == "mt-bench"
    assert [row["id"] for row in rows] == ["81", "81-2", "81-3"]
    assert [row["label"] for row in rows] == [A, TIE, B]
    assert [row["response_b"] for row in rows] == [["one"], ["one"], ["one", "two"]]
    assert "both_bad" not in rows[0]


def test_mt_bench_without_the_judged_turn_is_refused(tmp_path: Path) -> None:
    error = refused(write(tmp_path / "mt.jsonl", [{**mt_bench_row("x", 1, "tie"), "turn": 0}]))
    assert "row 1, column turn" in error.where


# Chosen and rejected

HH = "\n\nHuman: How are you?\n\nAssistant: Fine.\n\nHuman: And now?\n\nAssistant:"


def chosen_answer(row: Row) -> list[str]:
    return row["response_a"] if row["label"] == A else row["response_b"]


def rejected_answer(row: Row) -> list[str]:
    return row["response_b"] if row["label"] == A else row["response_a"]


FORMS: dict[str, tuple[dict[str, Any], list[str], list[str], list[str]]] = {
    "hh-rlhf": (
        {"chosen": f"{HH} Better.", "rejected": f"{HH} Worse."},
        ["How are you?", "And now?"],
        ["Fine.", "Better."],
        ["Fine.", "Worse."],
    ),
    "ultrafeedback": (
        {
            "prompt": "Colour of the sky?",
            "prompt_id": "ab12",
            "chosen": messages("Colour of the sky?", "Blue."),
            "rejected": messages("Colour of the sky?", "Green."),
            "messages": messages("Colour of the sky?", "Blue."),
            "score_chosen": 8.0,
            "score_rejected": 2.0,
        },
        ["Colour of the sky?"],
        ["Blue."],
        ["Green."],
    ),
    "reward-bench": (
        {
            "prompt": "Colour of the sky?",
            "chosen": "Blue.",
            "chosen_model": "koala",
            "rejected": "Green.",
            "rejected_model": "vole",
            "subset": "easy",
            "id": 7,
        },
        ["Colour of the sky?"],
        ["Blue."],
        ["Green."],
    ),
    "trl explicit conversational": (
        {
            "prompt": messages("Colour of the sky?"),
            "chosen": [{"role": "assistant", "content": "Blue."}],
            "rejected": [{"role": "assistant", "content": "Green."}],
        },
        ["Colour of the sky?"],
        ["Blue."],
        ["Green."],
    ),
    "trl implicit conversational": (
        {"chosen": messages("Colour of the sky?", "Blue."), "rejected": messages("Colour of the sky?", "Green.")},
        ["Colour of the sky?"],
        ["Blue."],
        ["Green."],
    ),
    "trl implicit text": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        ["The sky is"],
        ["blue."],
        ["black."],
    ),
    "transcript as prompt": (
        {"prompt": HH, "chosen": " Better.", "rejected": " Worse."},
        ["How are you?", "And now?"],
        ["Fine.", " Better."],
        ["Fine.", " Worse."],
    ),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_chosen_and_rejected_answers_are_read(tmp_path: Path, form: str, suffix: str) -> None:
    row, prompt, chosen, rejected = FORMS[form]
    rows, _, name = read(write(tmp_path / f"pairs{suffix}", [row]))
    assert name == "preferences"
    assert rows[0]["prompt"] == prompt
    assert rows[0]["label"] in (A, B)
    assert chosen_answer(rows[0]) == chosen
    assert rejected_answer(rows[0]) == rejected
    assert rows[0]["id"] == str(row.get("id", row.get("prompt_id", 1)))
    models = {rows[0]["model_a"], rows[0]["model_b"]}
    assert models == ({"koala", "vole"} if form == "reward-bench" else {None})
    if form == "reward-bench":
        assert rows[0]["model_a" if rows[0]["label"] == A else "model_b"] == "koala"


def test_the_side_of_the_chosen_answer_carries_no_signal(tmp_path: Path) -> None:
    source_rows = [{"prompt": f"{i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4000)]
    rows, _, _ = read(write(tmp_path / "pairs.jsonl", source_rows))
    share = sum(row["label"] == A for row in rows) / len(rows)
    assert 0.46 < share < 0.54
    swapped = [{"prompt": r["prompt"], "chosen": r["rejected"], "rejected": r["chosen"]} for r in source_rows]
    again, _, _ = read(write(tmp_path / "swapped.jsonl", swapped))
    for row, other in zip(rows, again, strict=True):
        # The same two answers stand in the same order, whoever won: the order is no function of the outcome.
        assert row["response_a"] == other["response_a"]
        assert row["label"] != other["label"]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"chosen": "Apples.", "rejected": "Pears."}, "no prompt"),
        ({"prompt": "x", "chosen": "Apples.", "rejected": None}, "no answer"),
        ({"chosen": messages("Hi?"), "rejected": messages("Hi?", "x")}, "holds no answer"),
    ],
)
def test_a_broken_pair_is_refused_with_its_place(tmp_path: Path, row: Row, what: str) -> None:
    error = refused(write(tmp_path / "pairs.jsonl", [row]))
    assert what in error.what
    assert "pairs.jsonl" in error.where
    assert error.hint or what == "holds no answer"


# Generic rows

GENERIC = {"prompt": "Hi?", "response_a": "Hello", "response_b": "[sic]", "winner": "model_a"}


@pytest.mark.parametrize(
    ("winner", "label", "bad"),
    [
        ("model_a", A, False),
        ("B", B, False),
        ("draw", TIE, False),
        ("both_bad", TIE, True),
        ("Tie (bothbad)", TIE, True),
        ("vole", B, False),
        ("", None, None),
        (None, None, None),
    ],
)
def test_generic_winners_are_read(tmp_path: Path, winner: str | None, label: int | None, bad: bool | None) -> None:
    row = {**GENERIC, "winner": winner, "model_a": "koala", "model_b": "vole"}
    rows, _, name = read(write(tmp_path / "rows.jsonl", [row]))
    assert name == "generic"
    assert (rows[0]["label"], rows[0]["both_bad"]) == (label, bad)
    assert rows[0]["response_b"] == ["[sic]"]
    assert rows[0]["id"] == "1"


def test_generic_csv_with_other_column_names_is_read(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text('question,left,right,vote\n"Hi, you?",Hello,Hey,a\nBye?,So long,Bye,tie\n', encoding="utf-8")
    columns = readers.parse_columns("prompt=question, response_a=left,response_b=right,winner=vote")
    rows, _, name = read(path, columns=columns)
    assert name == "generic"
    assert [row["prompt"] for row in rows] == [["Hi, you?"], ["Bye?"]]
    assert [row["label"] for row in rows] == [A, TIE]


def test_generic_tsv_is_read(tmp_path: Path) -> None:
    path = tmp_path / "votes.tsv"
    path.write_text("prompt\tresponse_a\tresponse_b\twinner\nHi, you?\tHello\tHey\tb\n", encoding="utf-8")
    assert read(path)[0][0]["label"] == B


def test_soft_labels_are_read(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi?", "response_a": "x", "response_b": "y", "p_a": 0.2, "p_b": 0.5, "p_tie": 0.3},
        {"prompt": "Hi?", "response_a": "x", "response_b": "y", "p_a": 0.4, "p_b": 0.4, "p_tie": 0.2},
    ]
    for suffix in (".jsonl", ".parquet"):
        battles, _, name = read(write(tmp_path / f"soft{suffix}", rows))
        assert name == "generic"
        assert [battles[0][key] for key in ("p_a", "p_b", "p_tie")] == pytest.approx([0.2, 0.5, 0.3])
        assert [row["label"] for row in battles] == [B, None]


@pytest.mark.parametrize(
    ("change", "what", "column"),
    [
        ({"winner": "third"}, "unknown winner 'third'", "winner"),
        ({"response_a": {"body": "x"}}, "a turn is", "response_a"),
        ({"p_a": 0.5, "p_b": 0.5, "p_tie": 0.5}, "is 1.5, not 1", ""),
        ({"p_a": -0.5, "p_b": 1, "p_tie": 0.5}, "expected a probability", "p_a"),
        ({"p_a": "many", "p_b": 1, "p_tie": 0}, "expected a probability", "p_a"),
    ],
)
def test_a_broken_generic_row_is_refused_with_its_place(tmp_path: Path, change: Row, what: str, column: str) -> None:
    error = refused(write(tmp_path / "rows.jsonl", [{**GENERIC, **change}]))
    assert what in error.what
    assert "rows.jsonl" in error.where
    assert column in error.where


# Kaggle's zip, several files, standard input


KAGGLE = "id,model_a,model_b,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"


def kaggle_csv(first: int, count: int) -> str:
    lines = [f'{i},x,y,"[""Hi?""]","[""a{i}""]","[""b{i}""]",0,0,1\n' for i in range(first, first + count)]
    return KAGGLE + "".join(lines)


def test_the_competitions_zip_is_read_as_downloaded(tmp_path: Path) -> None:
    path = tmp_path / "competition.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sample_submission.csv", "id,winner_model_a,winner_model_b,winner_tie\n1,0,0,1\n")
        archive.writestr("test.csv", 'id,prompt,response_a,response_b\n9,"[""Hi?""]","[""a""]","[""b""]"\n')
        archive.writestr("train.csv", kaggle_csv(1, 3))
    rows, _, name = read(path)
    assert name == "kaggle"
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert "train.csv" in open_battles(path).description
    test, _, _ = read(path / "test.csv")
    assert test[0]["id"] == "9"
    assert open_battles(path).options() != open_battles(path / "test.csv").options()
    assert "no more.csv inside" in refused(path / "more.csv").what


def test_an_archive_of_several_tables_is_refused_with_their_names(tmp_path: Path) -> None:
    path = tmp_path / "two.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.csv", kaggle_csv(1, 1))
        archive.writestr("two.csv", kaggle_csv(2, 1))
    error = refused(path)
    assert "one.csv, two.csv" in error.what
    assert "two.zip/one.csv" in error.hint


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_compressed_files_are_read_like_plain_ones(tmp_path: Path, suffix: str) -> None:
    plain = write(tmp_path / f"arena{suffix}", arena_rows())
    packed = tmp_path / f"arena{suffix}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    zipped = tmp_path / "arena.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.write(plain, plain.name)
    assert read(packed)[0] == read(zipped)[0] == read(plain)[0]


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    paths = tuple(tmp_path / f"part{i}.csv" for i in range(2))
    for i, path in enumerate(paths):
        path.write_text(kaggle_csv(10 * i, 2), encoding="utf-8")
    rows, _, _ = read(Source(paths))
    assert [row["id"] for row in rows] == ["0", "1", "10", "11"]
    assert open_battles(Source(paths)).digest() != open_battles(Source(paths[::-1])).digest()
    pairs = tuple(write(tmp_path / f"pair{i}.jsonl", [FORMS["hh-rlhf"][0]]) for i in range(2))
    assert [row["id"] for row in read(Source(pairs))[0]] == ["1", "2"]


def test_several_files_of_one_layout_must_be_alike(tmp_path: Path) -> None:
    csv = tmp_path / "train.csv"
    csv.write_text(kaggle_csv(1, 1), encoding="utf-8")
    bare = tmp_path / "test.csv"
    bare.write_text('id,prompt,response_a,response_b\n9,"[""Hi?""]","[""a""]","[""b""]"\n', encoding="utf-8")
    assert "is in one file and not in the other" in refused(Source((csv, bare))).what


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress], ids=["plain", "gz"])
def test_standard_input_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Any) -> None:
    for data in (kaggle_csv(1, 2).encode(), write(tmp_path / "a.jsonl", arena_rows()).read_bytes()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pack(data))))
        assert len(read(Path("-"))[0]) == (2 if data.startswith(b"id") else 4)


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    import os
    import threading

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(kaggle_csv(1, 2), encoding="utf-8"))
    writer.start()
    rows, _, _ = read(pipe)
    writer.join()
    assert [row["id"] for row in rows] == ["1", "2"]


# Recognition


def test_a_test_file_is_recognised_by_how_its_prompts_are_written(tmp_path: Path) -> None:
    kaggle = tmp_path / "test.csv"
    kaggle.write_text('id,prompt,response_a,response_b\n9,"[""Hi?""]","[""a""]","[""b""]"\n', encoding="utf-8")
    plain = tmp_path / "plain.csv"
    plain.write_text("id,prompt,response_a,response_b\n9,Hi?,a,b\n", encoding="utf-8")
    assert open_battles(kaggle).layout.name == "kaggle"
    assert open_battles(plain).layout.name == "generic"
    assert read(plain)[0][0]["prompt"] == ["Hi?"]


def test_the_format_can_be_forced(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(kaggle_csv(1, 1), encoding="utf-8")
    rows, _, name = read(path, format="generic")
    assert name == "generic"
    assert rows[0]["prompt"] == ['["Hi?"]']
    assert "unknown format 'kagle'" in refused(path, format="kagle").what
    assert "missing columns conversation_a" in refused(path, format="arena").what


def test_plain_text_in_kaggles_columns_gets_a_hint_how_to_read_it(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(KAGGLE + "1,x,y,Hi?,a,b,1,0,0\n", encoding="utf-8")
    error = refused(path)
    assert "row 1, column prompt" in error.where
    assert "--format generic" in error.hint
    assert read(path, format="generic")[0][0]["label"] == A


def test_columns_that_fit_two_formats_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "both.jsonl", [{**arena_rows()[0], "chosen": "x", "rejected": "y"}])
    assert "--format" in refused(path).hint


@pytest.mark.parametrize("text", ["prompt", "=x", "nonsense=x", "prompt=a,prompt=b", "prompt=a,response_a=a"])
def test_a_wrong_mapping_of_columns_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--columns"):
        readers.parse_columns(text)


def test_a_mapping_to_a_missing_column_names_those_found(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [GENERIC])
    error = refused(path, columns={"prompt": "question"})
    assert "missing column question; found prompt, response_a" in error.what
