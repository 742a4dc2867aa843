"""Damaged, hostile and odd files: read, or refused with file, row and column; never a traceback."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from prefcli.errors import InputError, PrefcliError
from prefcli.readers import containers, json_rows, open_battles
from prefcli.readers.battle_file import unique_id

HEADER = "id,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie"
ROW = '{id},"[""Hi?""]","[""{a}""]","[""b""]",0,0,1'


def table(*rows: str, line: str = "\n") -> bytes:
    return line.join([HEADER, *rows, ""]).encode()


def row(number: int = 1, answer: str = "a") -> str:
    return ROW.format(id=number, a=answer)


def read(path: Path) -> pa.Table:
    return pa.Table.from_batches([batch for batch, _ in open_battles(path).batches()])


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as error:
        read(path)
    assert 1 <= len(error.value.lines()) <= 3
    assert all("\n" not in line for line in error.value.lines())
    assert path.name in error.value.where
    return error.value


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + table(row()),
        table(row(), line="\r\n"),
        table(row()).rstrip(b"\n"),
        table(row(), ""),
    ],
    ids=["byte order mark", "CRLF", "no last line break", "empty line at the end"],
)
def test_harmless_oddities_are_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(data)
    battles = read(path)
    assert battles["id"].to_pylist() == ["1"]
    assert battles["response_a"].to_pylist() == [["a"]]


@pytest.mark.parametrize(
    ("data", "what", "where"),
    [
        (b"", "the file is empty", ""),
        (table(), "holds no battles", ""),
        (b"\n\n", "not a header", ""),
        (table(row()).decode().encode("utf-16-le"), "seems to be UTF-16", ""),
        (table(row(1), row(2, "caf\xe9")).decode().encode("latin-1"), "not UTF-8", "row 2, column response_a"),
        (table(row(1), row(2) + ",extra"), "expected 7 cells, found 8", "row 2"),
        (table(row(1), '2,"[""Hi?""]","[""open'), "", "row 2"),
        (table(row(1), row(2, "x\x00y")), "broken JSON", "row 2, column response_a"),
        (table(row(1), '2,"[""Hi?""]","{""a"":1}","[""b""]",0,0,1'), "a JSON list of turns", "row 2"),
        (table(row(1), '2,"[""Hi?""]","[1]","[""b""]",0,0,1'), "a turn is '1'", "row 2, column response_a"),
        (table(row(1), row(2)[:-5] + "1,1,0"), "2 winners", "row 2"),
        (table(row(1), row(2)[:-5] + "0,0,2"), "expected 0 or 1", "row 2, column winner_tie"),
        (table(f'1,"[""Hi?""]","{"[" * 100_000}","[""b""]",0,0,1'), "broken JSON", "row 1, column response_a"),
        (b"id,id,prompt\n", "occurs twice", ""),
        (b"a,b\n1,2\n", "missing column", ""),
        (b",".join(b"c%d" % i for i in range(10_000)) + b"\n", "and 9988 more", ""),
    ],
)
def test_a_broken_csv_is_refused_with_its_row_and_column(tmp_path: Path, data: bytes, what: str, where: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(data)
    error = refused(path)
    assert what in error.what
    assert where in error.where


def test_a_wrong_row_far_into_a_large_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "BLOCK_BYTES", 1 << 14)
    path = tmp_path / "train.csv"
    path.write_bytes(table(*(row(i) for i in range(1, 5000)), row(5000) + ",extra"))
    assert "row 5000" in refused(path).where


def test_a_cell_longer_than_a_block_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "BLOCK_BYTES", 1 << 14)
    path = tmp_path / "train.csv"
    path.write_bytes(table(row(1), row(2), row(3, "x" * 500_000), row(4)))
    battles = read(path)
    assert battles["id"].to_pylist() == ["1", "2", "3", "4"]
    assert len(battles["response_a"][2].as_py()[0]) == 500_000


def test_ten_thousand_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    names = ",".join(f"c{i}" for i in range(10_000))
    path.write_text(f"{HEADER},{names}\n{row()}{',0' * 10_000}\n", encoding="utf-8")
    assert read(path).num_rows == 1


def test_lone_surrogates_are_replaced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(table(row(1, r"\ud83d!")))
    ((batch, counts),) = open_battles(path).batches()
    assert batch.column("response_a").to_pylist() == [["\ufffd!"]]
    assert counts.surrogates == 1


def test_missing_files_folders_and_damaged_archives_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.csv").what
    assert "found a folder" in refused(tmp_path).what
    packed = gzip.compress(table(*(row(i) for i in range(2000))))
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(packed[: len(packed) // 2])
    assert "damaged" in refused(cut).what
    plain = tmp_path / "plain.csv.gz"
    plain.write_bytes(table(row()))
    assert "damaged" in refused(plain).what
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 nonsense")
    assert "damaged" in refused(broken).what


def test_a_file_is_recognised_by_its_content_not_its_name(tmp_path: Path) -> None:
    packed = tmp_path / "download"
    packed.write_bytes(gzip.compress(table(row())))
    assert read(packed).num_rows == 1
    parquet = tmp_path / "train.csv"
    pq.write_table(pa.table({"prompt": ["Hi?"], "response_a": ["a"], "response_b": ["b"], "winner": ["a"]}), parquet)
    assert read(parquet).num_rows == 1


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_INPUT_BYTES", 1 << 20)
    data = table(*(row(i) for i in range(40_000)))
    packed = tmp_path / "bomb.csv.gz"
    packed.write_bytes(gzip.compress(data))
    assert "unpacks to more than" in refused(packed).what
    zipped = tmp_path / "bomb.zip"
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.csv", data)
    assert "unpacks to more than" in refused(zipped).what


@pytest.mark.parametrize("cut", [8, 200, -4])
def test_a_truncated_parquet_is_refused(tmp_path: Path, cut: int) -> None:
    stream = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["Hi?"], "response_a": ["a"], "response_b": ["b"]}), stream)
    path = tmp_path / "battles.parquet"
    path.write_bytes(stream.getvalue()[:cut])
    assert "not a readable Parquet file" in refused(path).what


def test_parquet_with_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    wrong = pa.StringArray.from_buffers(1, pa.py_buffer(b"\x00\x00\x00\x00\x01\x00\x00\x00"), pa.py_buffer(b"\xff"))
    path = tmp_path / "battles.parquet"
    pq.write_table(pa.table({"prompt": wrong, "response_a": ["a"], "response_b": ["b"]}), path)
    assert "UTF8" in refused(path).what


def samples() -> dict[str, bytes]:
    """Small intact files of several kinds."""
    plain = table(*(row(i) for i in range(1, 6)))
    rows = [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}] * 3
    zipped, parquet = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.csv", plain)
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": []}]
    pq.write_table(
        pa.Table.from_pylist([{"conversation_a": messages, "conversation_b": messages, "winner": "tie"}]), parquet
    )
    return {
        "train.csv": plain,
        "train.csv.gz": gzip.compress(plain),
        "train.zip": zipped.getvalue(),
        "arena.parquet": parquet.getvalue(),
        "pairs.json": json.dumps(rows).encode(),
        "pairs.jsonl": "\n".join(map(json.dumps, rows)).encode(),
    }


@pytest.mark.parametrize("name", samples())
def test_random_damage_is_read_or_refused(tmp_path: Path, name: str) -> None:
    random = Random(name)
    intact = samples()[name]
    path = tmp_path / name
    path.write_bytes(intact)
    assert read(path).num_rows
    for _ in range(150):
        data = bytearray(intact)
        for _ in range(random.randint(1, 4)):
            at = random.randrange(len(data) + 1)
            kind = random.randrange(3)
            data[at : at + (random.randint(1, 20) if kind else 1)] = b"" if kind == 1 else random.randbytes(3)
        path.write_bytes(bytes(data[: random.randrange(len(data) + 1)] if random.random() < 0.2 else data))
        with contextlib.suppress(InputError):
            read(path)


@pytest.mark.parametrize(
    ("data", "what", "where"),
    [
        (b'{"prompt": "x"}\n{"prompt": "x", "resp', "broken JSON", "row 2"),
        (b'[{"prompt": "x"}, {"prompt": "x", "resp', "broken JSON", "row 2"),
        (b'[{"prompt": "x"}', "broken JSON", ""),
        (b'"text"\n', "expected an object", "row 1"),
        (b"{}\n", "no rows", ""),
        (b'{"prompt": "\xff"}\n', "not UTF-8", "row 1"),
        (b'[{"prompt": "\xff"}]', "not UTF-8", "row 1"),
        (b'{"a": ' + b"[" * 100_000, "broken JSON", "row 1"),
        (b'[{"a": ' + b"[" * 100_000 + b"]]", "broken JSON", "row 1"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows"])
def test_broken_json_is_refused(tmp_path: Path, name: str, data: bytes, what: str, where: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    if name == "rows" and data[:1] not in b"{[":
        pytest.skip("without a name it reads as CSV")
    error = refused(path)
    assert what in error.what
    assert where in error.where


def test_a_json_array_longer_than_a_block_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "BLOCK_CHARS", 100)
    rows = [{"prompt": "é" * i, "response_a": "a", "response_b": "b", "winner": "a"} for i in range(300)]
    path = tmp_path / "rows.json"
    for text in (json.dumps(rows), json.dumps(rows, indent=2, ensure_ascii=False)):
        path.write_text(text, encoding="utf-8")
        assert read(path)["prompt"].to_pylist() == [["é" * i] for i in range(300)]


def test_an_array_is_read_no_further_than_the_longest_row_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "BLOCK_CHARS", 100)
    for start in (b'[{"a": "', b'{"a": "', b'{"data": [{"a": "'):
        with pytest.raises(InputError, match="the row is longer than"):
            json_rows.scan(lambda start=start: contextlib.nullcontext(Endless(start)), "rows.json", 10_000)


class Endless(io.RawIOBase):
    """A file that never ends; a test that reads too far fails."""

    def __init__(self, start: bytes) -> None:
        self._start, self._left = start, 1_000_000

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = (self._start + b"x" * len(buffer))[: len(buffer)]
        self._start = b""
        self._left -= len(data)
        assert self._left > 0, "read too far"
        buffer[: len(data)] = data
        return len(data)


def test_a_line_of_json_over_the_row_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_ROW_BYTES", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "' + b"x" * 2000 + b'"}\n')
    assert "the row is longer than" in refused(path).what


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_empty_lines_are_skipped(tmp_path: Path, name: str) -> None:
    rows = [json.dumps({"prompt": "x", "response_a": answer, "response_b": "b"}).encode() for answer in "abc"]
    data = b"\n\n" + rows[0] + b"\n" * 200_000 + rows[1] + b"\n \n" + rows[2]
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read(path)["response_a"].to_pylist() == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_batches_of_long_rows_hold_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(containers, "BLOCK_BYTES", 10_000)
    rows = [{"prompt": "x", "response_a": "a" * 3000, "response_b": "b"}] * 100
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)  # the long text is written once
        assert path.stat().st_size < 20_000
    else:
        path.write_text(json.dumps(rows) if name == "rows.json" else "\n".join(map(json.dumps, rows)))
    batches = [batch.num_rows for batch, _ in open_battles(path).batches()]
    assert sum(batches) == 100
    assert max(batches) <= 4


# Paths


def test_paths_that_lead_to_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "nowhere.csv").symlink_to("none")
    (tmp_path / "plain.csv").write_bytes(table(row()))
    for name in ("loop.csv", "nowhere.csv", "plain.csv/below.csv", "x" * 300 + ".csv"):
        refused(tmp_path / name)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no endless device")
def test_an_endless_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_INPUT_BYTES", 1 << 20)
    assert "the input is longer than" in refused(Path("/dev/zero")).what


def piped(path: Path, data: bytes) -> None:
    def feed() -> None:
        with contextlib.suppress(BrokenPipeError):
            path.write_bytes(data)

    os.mkfifo(path)
    threading.Thread(target=feed).start()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the copy has a name while it is read")
@pytest.mark.parametrize("kind", ["csv", "parquet", "zip", "parquet.gz"])
def test_the_temporary_copy_of_a_stream_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    packed = io.BytesIO()
    if kind.startswith("parquet"):
        pq.write_table(pa.table({"prompt": ["Hi?"], "response_a": ["a"], "response_b": ["b"]}), packed)
    else:
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("train.csv", table(row()))
    data = table(row()) if kind == "csv" else packed.getvalue()
    piped(tmp_path / "pipe", gzip.compress(data) if kind.endswith("gz") else data)
    battles = open_battles(tmp_path / "pipe")
    assert len(battles.digest()) == 64
    for batch, _ in battles.batches():
        assert batch.num_rows == 1
        assert not list(folder.iterdir())


def test_a_missing_folder_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    piped(tmp_path / "pipe", table(row()))
    with pytest.raises(PrefcliError) as error:
        open_battles(tmp_path / "pipe")
    assert error.value.exit_code == 1
    assert str(tmp_path / "gone") in error.value.where
    assert "TMPDIR" in error.value.hint


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_a_full_folder_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Path("/dev/full").open("wb") as full:
        monkeypatch.setattr(containers, "_temporary_file", lambda: (full, Path("/dev/full")))
        piped(tmp_path / "pipe", table(row()))
        with pytest.raises(PrefcliError, match="no space left") as error:
            open_battles(tmp_path / "pipe")
        assert error.value.exit_code == 1
        assert error.value.where == str(tmp_path)
        full.close = lambda: None  # type: ignore[method-assign]


# Archives


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_inside_any_kind_of_archive_is_reported(tmp_path: Path, method: int) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        archive.writestr("train.csv", table(*(row(i) for i in range(200))))
    data = bytearray(packed.getvalue())
    for at in range(60, len(data) - 200, 7):
        data[at] ^= 0xFF
    path = tmp_path / "train.zip"
    path.write_bytes(data)
    assert "the compressed file is damaged" in refused(path).what


def test_a_gz_file_wrongly_named_parquet_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_copy", lambda *_: pytest.fail("unpacked"))
    path = tmp_path / "battles.parquet.gz"
    path.write_bytes(gzip.compress(bytes(100_000)))
    assert "not a Parquet file" in refused(path).what


# Rows and headers that are too long


def test_blocks_grow_up_to_the_row_limit_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(containers, "MAX_ROW_BYTES", 3 << 17)
    blocks = []
    options = pyarrow.csv.ReadOptions

    def recording_options(**kwargs: Any) -> Any:
        blocks.append(kwargs["block_size"])
        return options(**kwargs)

    monkeypatch.setattr(pyarrow.csv, "ReadOptions", recording_options)
    path = tmp_path / "train.csv"
    path.write_bytes(table(row(1), row(2, "x" * 2_000_000), row(3)))
    error = refused(path)
    assert "a row is longer than 0.375 MiB" in error.what
    assert "after row 1" in error.where
    assert blocks == [1 << 14, 1 << 17, 3 << 17]


@pytest.mark.parametrize("header", ["x" * 5000, '"' + "x\n" * 5000, '"a\n",' * 5000], ids=["cell", "lines", "cells"])
def test_a_header_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str) -> None:
    monkeypatch.setattr(containers, "MAX_HEADER_CHARS", 1 << 10)
    path = tmp_path / "train.csv"
    path.write_text(header)
    assert "the header is longer than" in refused(path).what


def test_the_search_for_a_broken_row_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_EXPLAINED_CHARS", 1 << 10)
    path = tmp_path / "train.csv"
    path.write_bytes(table(row(1), row(2, "x" * 5000), row(3) + ",extra"))
    error = refused(path)
    assert "longer than" in error.what
    assert "row 2" in error.where


def test_a_column_repeated_sixty_thousand_times_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(",".join(["id", *["again"] * 60_000]))
    assert "column 'again' occurs twice" in refused(path).what


def test_the_common_prompt_of_text_without_white_space_is_found_in_linear_time(tmp_path: Path) -> None:
    shared = "Why? " + "語" * 300_000
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"chosen": f"{shared} yes", "rejected": f"{shared}no"}), encoding="utf-8")
    battles = read(path)
    assert battles["prompt"].to_pylist() == [["Why?"]]


def test_a_cell_of_white_space_is_looked_at_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt,response_a,response_b,winner\nHi?,{' ' * 300_000},b,a\n")
    assert read(path).num_rows == 1


def test_fifty_thousand_equal_ids_are_numbered_in_linear_time() -> None:
    seen: dict[str, int] = {}
    ids = [unique_id(name, seen) for name in ["q", "q-2", *["q"] * 50_000, "q-2"]]
    assert ids == ["q", "q-2", *(f"q-{number}" for number in range(3, 50_003)), "q-2-2"]


# Values


@pytest.mark.parametrize("turn", ["²", "٣", "9" * 5000, "0", "-1", "1.5", "1_0"])
def test_a_turn_that_is_not_a_positive_integer_is_refused(tmp_path: Path, turn: str) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = tmp_path / "judged.jsonl"
    path.write_text(json.dumps({"conversation_a": messages, "conversation_b": messages, "judge": "x", "turn": turn}))
    assert "expected a turn from 1" in refused(path).what


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string())),
        pa.array([2**62], pa.timestamp("us")),
        pa.array([b"\xff"], pa.large_binary()),
        pa.array([None, b"\xff"], pa.binary())[1:],
        pa.array([[b"\xff"]]),
        pa.array([{"a": 1}]),
        pa.array([[["a"]]]),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("name", ["id", "prompt", "response_a", "model_a"])
def test_parquet_of_unexpected_types_is_read_or_refused(tmp_path: Path, name: str, column: pa.Array) -> None:
    columns = {
        "id": ["1"],
        "prompt": ["Hi?"],
        "response_a": ["a"],
        "response_b": ["b"],
        "model_a": ["x"],
        "winner": [""],
    }
    path = tmp_path / "battles.parquet"
    pq.write_table(pa.table({**columns, name: column}), path)
    with contextlib.suppress(InputError):
        read(path)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[{"role": "user", "content": {"text": "a"}}]]),
        pa.array([[{"role": b"\xff", "content": b"\xff"}]]),
        pa.array([[{"role": "user", "content": [{"text": b"\xff"}]}]]),
        pa.array([[{"role": "user", "content": [["a"]]}]]),
        pa.array([[[b"\xff"]]]),
        pa.array([[("role", "content")]], pa.map_(pa.string(), pa.string())),
    ],
    ids=lambda column: str(column.type),
)
def test_parquet_conversations_of_unexpected_types_are_refused(tmp_path: Path, column: pa.Array) -> None:
    path = tmp_path / "arena.parquet"
    pq.write_table(pa.table({"conversation_a": column, "conversation_b": [MESSAGES]}), path)
    assert "conversation_a" in refused(path).where


@pytest.mark.parametrize("value", ["yes", "-0", "a b"])
def test_a_both_bad_column_of_words_is_ignored(tmp_path: Path, value: str) -> None:
    path = tmp_path / "battles.csv"
    path.write_text(f"prompt,response_a,response_b,winner,both_bad\nHi?,a,b,tie (bothbad),{value}\n")
    assert read(path)["both_bad"].to_pylist() == [True]


@pytest.mark.parametrize("error", [pa.ArrowMemoryError("malloc of size 1000000000000 failed"), MemoryError()])
@pytest.mark.parametrize("where", ["iter_batches", "__init__"])
def test_a_parquet_file_that_needs_more_memory_than_available_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    path = tmp_path / "battles.parquet"
    pq.write_table(pa.table({"prompt": ["Hi?"], "response_a": ["a"], "response_b": ["b"]}), path)
    monkeypatch.setattr(pq.ParquetFile, where, raises(error))
    assert "more memory than is available" in refused(path).what


def test_battles_that_need_more_memory_than_available_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(table(row()))
    monkeypatch.setattr("prefcli.readers.engine.make_batch", raises(MemoryError()))
    assert "more memory than is available" in refused(path).what


def raises(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail
