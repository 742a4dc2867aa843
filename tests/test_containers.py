"""Files and tables to raw columns: every arrangement of JSON, every delimiter and encoding, every kind of table."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import operator
import pickle
import random
import sqlite3
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from prefcli import readers
from prefcli.errors import InputError
from prefcli.readers import containers, json_rows
from prefcli.readers.cells import parse_nested
from prefcli.readers.containers import column_names, open_container, raw_batches
from prefcli.readers.tables import raw_table

Row = Mapping[str, Any]


def read(path: Path, encoding: str | None = None) -> list[dict[str, Any]]:
    """All columns of all rows; cells of CSV as text."""
    container = open_container(path, encoding=encoding)
    names = column_names(container)
    rows: list[dict[str, Any]] = []
    for batch in raw_batches(container, names):
        columns = {
            name: cells if isinstance(cells, list) else cells.to_pylist() for name, cells in batch.columns.items()
        }
        for cells in zip(*columns.values(), strict=True):
            decoded = (cell.decode() if isinstance(cell, bytes) else cell for cell in cells)
            rows.append(dict(zip(batch.columns, decoded, strict=True)))
    return rows


def refused(path: Path, encoding: str | None = None) -> InputError:
    with pytest.raises(InputError) as error:
        read(path, encoding)
    assert len(error.value.lines()) <= 3
    return error.value


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# JSON

ROWS: list[Row] = [
    {"id": 1, "prompt": "Hi?", "response_a": "käse", "response_b": "[]{}", "winner": "a"},
    {"id": 2, "prompt": 'say "no"', "response_a": "line\nbreak", "response_b": "", "winner": None},
    {"id": 3, "prompt": "1", "response_a": "😀", "response_b": "x" * 50, "winner": "tie"},
]

ARRANGEMENTS: dict[str, Callable[[pd.DataFrame], str]] = {
    "lines": lambda table: table.to_json(orient="records", lines=True),
    "indented objects": lambda table: "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "array": lambda table: table.to_json(orient="records"),
    "indented array": lambda table: table.to_json(orient="records", indent=2, force_ascii=False),
    "wrapped": lambda table: json.dumps({"version": "1.0", "n": 3, "data": ROWS}),
    "wrapped first": lambda table: json.dumps({"votes": ROWS, "about": {"n": [1]}}, indent=1),
    "lists": lambda table: json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "columns": lambda table: table.to_json(orient="columns"),
    "index": lambda table: table.to_json(orient="index", indent=1),
    "split": lambda table: table.to_json(orient="split"),
    "table": lambda table: table.to_json(orient="table"),
}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.json.gz", "rows"])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_json_is_read_however_its_rows_are_arranged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrangement: str, name: str
) -> None:
    text = ARRANGEMENTS[arrangement](pd.DataFrame(ROWS)).encode()
    path = write(tmp_path / name, gzip.compress(text) if name.endswith("gz") else text)
    for block in (7, 1 << 20):
        monkeypatch.setattr(json_rows, "BLOCK_CHARS", block)
        rows = [{key: cell for key, cell in row.items() if key != "index"} for row in read(path)]  # orient="table"
        assert rows == ROWS


@pytest.mark.parametrize("arrangement", ["lines", "array", "wrapped", "index"])
def test_a_key_of_a_late_row_is_a_column(tmp_path: Path, arrangement: str) -> None:
    rows: list[Row] = [{"prompt": str(number)} for number in range(2500)] + [{"late": 7, "prompt": "x"}]
    text = {
        "lines": "\n".join(map(json.dumps, rows)),
        "array": json.dumps(rows),
        "wrapped": json.dumps({"data": rows}),
        "index": json.dumps(dict(enumerate(rows))),
    }[arrangement]
    values = [row["late"] for row in read(write(tmp_path / "rows.json", text))]
    assert values == [None] * 2500 + [7]


def test_random_json_is_read_as_pythons_own_reader_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(0)

    def value(depth: int) -> Any:
        kind = generator.randrange(7 if depth else 5)
        if kind == 5:
            return [value(depth - 1) for _ in range(generator.randrange(4))]
        if kind == 6:
            return {text(): value(depth - 1) for _ in range(generator.randrange(4))}
        return (text(), generator.randrange(-5, 10**9), generator.random(), None, generator.random() < 0.5)[kind]

    def text() -> str:
        return "".join(generator.choices('ab"\\/{}[]:, \n\t\u00e9\u2028\U0001f600', k=generator.randrange(9)))

    for _ in range(150):
        monkeypatch.setattr(json_rows, "BLOCK_CHARS", generator.randrange(1, 40))
        rows = [{"id": 0, **{text(): value(3) for _ in range(4)}} for _ in range(generator.randrange(1, 6))]
        indent = generator.choice([None, 1])
        if generator.random() < 0.5:
            document = json.dumps(rows, indent=indent, ensure_ascii=generator.random() < 0.5)
        else:
            document = "\n".join(json.dumps(row, indent=indent) for row in rows)
        names = dict.fromkeys(name for row in rows for name in row)
        assert read(write(tmp_path / "rows.json", document)) == [{n: row.get(n) for n in names} for row in rows]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completions": [{"text": "x", "score": 1}, {"text": "y", "score": 2}]},
        {"chosen": [{"role": "user", "content": "q"}], "rejected": [{"role": "user", "content": "q"}]},
        {"prompt": {"role": "user", "content": "q"}, "chosen": {"role": "assistant", "content": "x"}},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "x"}},
        {"prompt": ["q", "r"], "response_a": ["x", "y"], "response_b": ["x"]},
        {
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [1]}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}],
        },
        {"id": "1", "prompt": ["q", "r"], "response_a": ["x", "y"], "response_b": ["x", "z"]},
    ],
    ids=lambda row: " ".join(row),
)
def test_the_only_row_of_a_file_is_a_row(tmp_path: Path, row: Row) -> None:
    for text in (json.dumps(row), json.dumps(row, indent=2)):
        assert read(write(tmp_path / "rows.json", text)) == [row]


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ('{"features": [{"a": 1}], "rows": [{"b": 1}]}', "several lists may be the rows: features, rows", ""),
        ('{"prompt": ["q", "r"], "response_a": ["x", "y"], "response_b": ["x", "z"]}', "several turns", ""),
        ('{"prompt": ["q", "r"], "responses": [["x", "y"], ["z", "w"]]}', "several turns", ""),
        ('{"a": 1}\n{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' occurs twice", "row 2"),
        ('[{"a": 1, "a": 2}]', "key 'a' occurs twice", "row 1"),
        ('{"a": 1, "a": 2}', "key 'a' occurs twice", "row 1"),
        ('[{"a": 1}]\n[{"a": 2}]', "'[' follows the array", "row 2"),
        ('[{"a": 1} {"a": 2}]', "expected ',' or ']', found '{'", "row 2"),
        ('[{"a": 1},]', "Expecting value", "row 2"),
        ('{"a": 1}\n{"a" 2}\n', "Expecting ':'", "row 2"),
        ('{"a" 1}', "expected ':', found '1'", "row 1"),
        ('{"a": 1', "expected ',' or '}', found the end", "row 1"),
        ("[[1, 2], [3, 4]]", "expected an object, found '[1, 2]'", "row 1"),
        ("{}", "no rows", ""),
        ('{"data": []}', "no rows", ""),
        ('{"columns": ["a", "b"], "data": [[1, 2], [3]]}', "not 2 cells long", ""),
        ('{"columns": ["a", "a"], "data": [[1, 2], [3, 4]]}', "column 'a' occurs twice", ""),
        ('{"a": 1' + "0" * 5000 + "}", "broken JSON", "row 1"),
    ],
)
def test_json_that_may_mean_two_things_or_is_broken_is_refused(
    tmp_path: Path, text: str, what: str, where: str
) -> None:
    error = refused(write(tmp_path / "rows.json", text))
    assert what in error.what
    assert where in error.where


def test_the_row_that_is_not_utf8_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = b"".join(b'{"a": "caf\xc3\xa9"}\n' for _ in range(5000)) + b'{"a": "caf\xe9"}\n'
    error = refused(write(tmp_path / "rows.jsonl", rows))
    assert "not UTF-8" in error.what
    assert error.where.endswith("row 5001")
    assert "--encoding" in error.hint
    assert read(tmp_path / "rows.jsonl", "latin-1")[-1] == {"a": "café"}


def test_a_mistake_in_the_first_row_is_found_without_reading_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "BLOCK_CHARS", 100)

    class Endless(io.RawIOBase):
        start, left = b'{"a": [1, 2 "x"]}\n', 1_000_000

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            self.left -= len(buffer)
            assert self.left > 0, "read too far"
            buffer[:] = (self.start + b" " * len(buffer))[: len(buffer)]
            return len(buffer)

    with pytest.raises(InputError, match="broken JSON"):
        json_rows.scan(lambda: io.BufferedReader(Endless()), "rows.jsonl", 1 << 30)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "row",
    [
        {"q": {"t": ["Name a fish."]}, "c": [{"text": "cod", "s": 3}, {"text": "eel", "s": 1}]},
        {"question_id": "x", "games": [{"score": "A>B"}]},
        {"conversation": [{"input": "q", "output": "x"}], "chosen": "x", "rejected": "y"},
        {"prompt": ["q", "r"], "response_a": ["x", "y"], "response_b": ["x", "z"]},
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows"])
def test_one_object_on_a_line_is_a_row(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    assert read(write(tmp_path / name, json.dumps(row).encode())) == [row]


def test_tables_of_weights_and_biases_are_read(tmp_path: Path) -> None:
    table = {
        "columns": ["a", "b"],
        "data": [[1, "x"], [2, "y"]],
        "ncols": 2,
        "nrows": 2,
        "column_types": {"params": {}},
    }
    path = write(tmp_path / "run.table.json", json.dumps(table).encode())
    assert read(path) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


def test_the_list_of_battles_is_proposed_where_there_are_several(tmp_path: Path) -> None:
    document = {"features": [{"name": "prompt"}], "rows": [{"row": {"prompt": "q"}}], "num_rows_total": 1}
    path = write(tmp_path / "rows.json", json.dumps(document).encode())
    with pytest.raises(InputError, match="several lists may be the rows") as error:
        read(path)
    assert "jq -c '.rows[]'" in error.value.hint


# CSV

CELLS = [
    ["id", "Prompt", "response_a"],
    ["1", "a, b; c\td | e", "x"],
    ["2", 'say "no"\nthen; go', "käse"],
    ["3", "", "é"],
]


def table(delimiter: str, quoting: int = csv.QUOTE_MINIMAL, header: list[str] | None = None) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=quoting).writerows([header or CELLS[0], *CELLS[1:]])  # type: ignore[arg-type]
    return text.getvalue()


EXPECTED = [dict(zip(CELLS[0], row, strict=True)) for row in CELLS[1:]]


@pytest.mark.parametrize("delimiter", list(containers.DELIMITERS), ids=repr)
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.txt"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str, quoting: int, name: str) -> None:
    text = table(delimiter, quoting).encode()
    assert read(write(tmp_path / name, gzip.compress(text) if name.endswith("gz") else text)) == EXPECTED


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("a;b,c\n1,2\n", ","),
        ("a;b,c;d\n1,2\n", ","),
        ('a,b\n"x;y;z",1\n', ","),
        ("a,b;c;d\n1;2;3\n", ";"),
        ("a,b\n1;2;3\n", ","),
        ("a,b,c\n1;2;3\n", ","),
        ("a\n1;2\n", ","),
        ("a;b|c;d\n1\n", ","),
        ("a,b;c;d\n1,2\n3;4;5\n", ","),
        ("a;b\n", ";"),
    ],
)
def test_a_file_of_commas_is_never_mistaken(tmp_path: Path, text: str, delimiter: str) -> None:
    assert open_container(write(tmp_path / "a.csv", text)).delimiter == delimiter


def test_spaces_around_header_cells_and_unnamed_columns_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ' id , Prompt\t,response_a,,\n1, x ,"y",,\n')
    assert read(path) == [{"id": "1", "Prompt": " x ", "response_a": "y"}]
    assert "column 'id' occurs twice" in refused(write(tmp_path / "b.csv", "id, id\n1,2\n")).what


MARKED = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
NAMED = ["latin-1", "cp1252", "utf-16-be", "utf-16-le"]


@pytest.mark.parametrize("encoding", [*MARKED, *NAMED])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_text_of_any_encoding_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, kind: str
) -> None:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in EXPECTED)
    path = write(tmp_path / f"a.{kind}", (lines if kind == "jsonl" else table(",")).encode(encoding))
    for block in (64 if kind == "csv" else 3, 1 << 20):
        monkeypatch.setattr(containers, "BLOCK_BYTES", block)
        assert read(path, encoding if encoding in NAMED else None) == EXPECTED


def test_a_mark_wins_over_a_named_encoding_and_parquet_has_none(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", table(",").encode("utf-8-sig")), "cp1252") == EXPECTED
    pq.write_table(pa.Table.from_pylist(EXPECTED), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "cp1252") == EXPECTED


def test_encodings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"id,a\n1,\x81\n")
    error = refused(path, "cp1252")
    assert "byte 7 is not cp1252" in error.what
    assert "the header is not UTF-8" in refused(write(tmp_path / "b.csv", "id,größe\n1,2\n".encode("latin-1"))).what
    for name in ("nonsense", "rot13", "base64", "a\0b"):
        assert "unknown encoding" in refused(path, name).what


# Files of other kinds


def foreign_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Content of files that prefcli does not read, as their own programs write it, and what each is called."""
    frame = pd.DataFrame(EXPECTED)
    array, feather, stream = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, np.zeros(3))
    pyarrow.feather.write_feather(frame, feather)
    with pa.ipc.new_stream(stream, pa.Table.from_pandas(frame).schema) as writer:
        writer.write_table(pa.Table.from_pandas(frame))
    with sqlite3.connect(folder / "a.db") as database:
        database.execute("create table t (a)")

    def archive(*members: str) -> bytes:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as file:
            for member in members:
                file.writestr(member, "x")
        return packed.getvalue()

    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    return {
        "a.xlsx": (archive("[Content_Types].xml", "xl/workbook.xml", "xl/worksheets/sheet1.xml"), "Excel"),
        "a.csv": (archive("xl/workbook.xml"), "Excel"),
        "a.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "Excel"),
        "a.ods": (archive("mimetype", "content.xml"), "OpenDocument"),
        "a.parquet": (pointer, "Git LFS"),
        "b.csv": (pointer, "Git LFS"),
        "c.csv": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page"),
        "b.parquet": (b"<html>", "web page"),
        "a.json": (b"\xef\xbb\xbf<?xml version='1.0'?><rows/>", "XML"),
        "a.pdf": (b"%PDF-1.7\n", "PDF"),
        "a.pkl": (pickle.dumps(EXPECTED), "pickle"),
        "a.npy": (array.getvalue(), "NumPy"),
        "a.npz": (archive("x.npy"), "NumPy"),
        "a.pt": (archive("archive/data.pkl"), "PyTorch"),
        "a.feather": (feather.getvalue(), "Feather"),
        "a.arrow": (stream.getvalue(), "Arrow"),
        "a.db": ((folder / "a.db").read_bytes(), "SQLite"),
        "a.bz2": (bz2.compress(b"id,prompt"), "bzip2"),
        "a.gz": (gzip.compress(pickle.dumps(EXPECTED)), "pickle"),
    }


def test_files_of_other_kinds_are_called_by_their_names(tmp_path: Path) -> None:
    for name, (content, what) in foreign_files(tmp_path).items():
        error = refused(write(tmp_path / name, content))
        assert what in error.what, name
        assert error.hint, name


@pytest.mark.parametrize("start", [b"ORCID,a", b"BZh1,a", b"ARROW1,a", b"ORC", b"Rar!,a", b"%,PDF-"])
def test_a_header_that_begins_like_another_kind_of_file_is_a_header(tmp_path: Path, start: bytes) -> None:
    assert column_names(open_container(write(tmp_path / "a.csv", start + b"\n1,2\n"))) == start.decode().split(",")


def test_a_table_beside_other_files_in_an_archive_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("vectors.npy", b"x")
        archive.writestr("table.csv", table(","))
    assert read(tmp_path / "a.zip") == EXPECTED


# Cells


@pytest.mark.parametrize(
    "turns",
    [[], ["Hi", "there"], ["it's", 'a "q"', None], ["line\nbreak \\ '\"", "käse \u2028 \x07"], ["]", "', '", "[a]"]],
    ids=repr,
)
def test_a_list_is_read_from_a_cell_as_json_and_as_python_prints_it(turns: list[Any]) -> None:
    for spelling in (json.dumps(turns), repr(turns), f" {turns!r} "):
        assert parse_nested(spelling.strip()) == turns


@pytest.mark.parametrize(
    "cell",
    ["", "text", "[a]", "['a'", "['a' 'b']", "['a'] b", r"['\x0']", "[__import__('os')]", "[b'a']"],
)
def test_a_cell_that_spells_no_list_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|Extra"):
        parse_nested(cell)


# Tables in memory

MESSAGES = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "x"}]
RECORDS: list[Row] = [
    {"id": "1", "turns": ["Hi?", None], "messages": MESSAGES, "n": 1, "score": 0.5, "flag": True, "model": "koala"},
    {"id": "2", "turns": [], "messages": MESSAGES[:1], "n": 2, "score": None, "flag": False, "model": None},
]


class Exported:
    """Another library's table, which offers its data as Arrow's stream."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


class Dataset:
    """What ``datasets.Dataset`` offers; its rows are some of those of a larger table, in another order."""

    def __init__(self, table: pa.Table, rows: list[int], format: str | None = None) -> None:
        self.data, self._rows, self._format = table, rows, format

    def with_format(self, format: str) -> Dataset:
        return Dataset(self.data, self._rows, format)

    def __getitem__(self, key: slice) -> Any:
        assert self._format == "arrow"
        return self.data.take(self._rows[key])


class Splits(dict[str, Dataset]):
    """What ``datasets.DatasetDict`` is."""

    with_format = None


TABLES: dict[str, Callable[[], Any]] = {
    "rows": lambda: RECORDS,
    "generator": lambda: (row for row in RECORDS),
    "columns": lambda: {name: [row[name] for row in RECORDS] for name in RECORDS[0]},
    "pandas": lambda: pd.DataFrame(RECORDS),
    "pandas, other index": lambda: pd.DataFrame(RECORDS, index=[7, 7]),
    "pandas from Parquet": lambda: pa.Table.from_pylist(RECORDS).to_pandas(),
    "pandas, Arrow types": lambda: pa.Table.from_pylist(RECORDS).to_pandas(types_mapper=pd.ArrowDtype),
    "pandas, nullable types": lambda: pd.DataFrame(RECORDS).convert_dtypes(),
    "pandas, categories": lambda: pd.DataFrame(RECORDS).astype({"model": "category", "id": "category"}),
    "arrow": lambda: pa.Table.from_pylist(RECORDS),
    "arrow in chunks": lambda: pa.concat_tables([pa.Table.from_pylist(RECORDS).slice(i, 1) for i in range(2)]),
    "arrow batch": lambda: pa.RecordBatch.from_pylist(RECORDS),
    "arrow, large and views": lambda: pa.Table.from_pylist(
        RECORDS, pa.schema([pa.field(name, kind) for name, kind in WIDE.items()])
    ),
    "exported": lambda: Exported(pa.Table.from_pylist(RECORDS)),
    "dataset": lambda: Dataset(pa.Table.from_pylist([RECORDS[1], {"id": "0"}, RECORDS[0]]), [2, 0]),
    "tuples and numpy": lambda: [
        {
            **row,
            "id": np.str_(row["id"]),
            "turns": np.array(row["turns"], dtype=object),
            "messages": tuple(row["messages"]),
            "n": np.int64(row["n"]),
            "score": np.float32(np.nan if row["score"] is None else row["score"]),
            "flag": np.bool_(row["flag"]),
            "model": row["model"] or pd.NA,
        }
        for row in RECORDS
    ],
}
WIDE = {
    "id": pa.string_view(),
    "turns": pa.large_list(pa.large_string()),
    "messages": pa.large_list(pa.struct({"role": pa.dictionary(pa.int8(), pa.string()), "content": pa.large_string()})),
    "n": pa.uint8(),
    "score": pa.float32(),
    "flag": pa.bool_(),
    "model": pa.dictionary(pa.int32(), pa.string()),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_in_memory_is_read_whatever_library_it_is_of(kind: str) -> None:
    raw = raw_table(TABLES[kind](), "the table")
    assert raw.num_rows == 2
    assert raw.columns == {name: [row[name] for row in RECORDS] for name in RECORDS[0]}
    assert {type(cell) for cell in raw.columns["n"]} == {int}


@pytest.mark.parametrize(("library", "make"), [("polars", "DataFrame"), ("datasets", "Dataset.from_list")])
def test_tables_of_other_libraries_are_read_where_they_are_installed(library: str, make: str) -> None:
    function = operator.attrgetter(make)(pytest.importorskip(library))
    assert raw_table(function(RECORDS), "t").columns == {name: [row[name] for row in RECORDS] for name in RECORDS[0]}


def test_missing_values_and_dates_of_pandas_are_plain() -> None:
    frame = pd.DataFrame({"when": [pd.Timestamp("2024-01-02"), pd.NaT], "text": ["x", np.nan], "n": [1.0, np.nan]})
    expected = {"when": ["2024-01-02 00:00:00", None], "text": ["x", None], "n": [1.0, None]}
    assert raw_table(frame, "t").columns == expected


@pytest.mark.parametrize(
    ("table", "what", "hint"),
    [
        (pd.DataFrame([["x", "y"]], columns=["prompt", "prompt"]), "column 'prompt' occurs twice", "Rename"),
        (pa.table([["x"], ["y"]], names=["prompt", "prompt"]), "column 'prompt' occurs twice", "Rename"),
        ({"prompt": "Hi?", "response_a": "x"}, "'prompt' is str, not a column", "[battle]"),
        (Splits({"train": Dataset(pa.table({}), [])}), "'train' is Dataset, not a column", "table['train']"),
        ({"prompt": ["x"], "response_a": ["x", "y"]}, "different lengths", "[battle]"),
        ([{"prompt": "x"}, ["y"]], "is list", "a list of dictionaries"),
        ([{"prompt": "x"}, {"prompt": object()}], "a cell is object", "Cells are text"),
        ([{"prompt": [{"content": {1, 2}}]}], "a cell is list", "Cells are text"),
        ([{"prompt": b"\xff"}], "a cell is bytes", "Cells are text"),
        (pd.Series(["x"]), "is Series", "a DataFrame"),
        (7, "is int", "a DataFrame"),
        (pd.DataFrame({"a": [object()]}), "a cell is object", "Cells are text"),
    ],
)
def test_what_is_no_table_is_refused_with_what_to_pass(table: Any, what: str, hint: str) -> None:
    with pytest.raises(InputError) as error:
        raw_table(table, "the table")
    assert what in error.value.what
    assert hint in error.value.hint


@pytest.mark.parametrize("row_group_size", [2_000, 100_000])
def test_reading_parquet_takes_no_more_memory_for_more_rows(tmp_path, monkeypatch, row_group_size):
    """Arrow's own buffers: of a file of 24 MB that compresses badly, in ten groups of rows or in one."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(33, 127, 400, dtype=np.uint8).tobytes().decode() for _ in range(60_000)]
    columns = dict(zip(("prompt", "response_a", "response_b"), (texts[::3], texts[1::3], texts[2::3]), strict=True))
    file = tmp_path / "large.parquet"
    winners = ["model_a", "model_b"] * 10_000
    pq.write_table(pa.table({**columns, "winner": winners}), file, row_group_size=row_group_size)
    del texts, columns
    monkeypatch.setattr(containers, "BLOCK_BYTES", 1 << 20)
    before, held, rows = pa.total_allocated_bytes(), 0, 0
    for batch, _ in readers.open_battles(file).batches():
        held = max(held, pa.total_allocated_bytes() - before)
        rows += batch.num_rows
    assert rows == 20_000
    assert file.stat().st_size > 18_000_000
    assert held < 18_000_000
