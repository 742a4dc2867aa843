"""Damaged, hostile and odd files: read, or refused in words that name the place; never a traceback."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zipfile
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefcli.errors import InputError
from prefcli.readers import containers, json_rows, open_battles

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
        (table(row()).decode().encode("utf-16"), "UTF-16", ""),
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
def test_a_broken_csv_is_refused_and_the_place_named(tmp_path: Path, data: bytes, what: str, where: str) -> None:
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


def test_ten_thousand_columns_are_no_trouble(tmp_path: Path) -> None:
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


def test_missing_files_folders_and_damaged_archives(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.csv").what
    assert "found a folder" in refused(tmp_path).what
    whole = gzip.compress(table(*(row(i) for i in range(2000))))
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refused(cut).what
    liar = tmp_path / "plain.csv.gz"
    liar.write_bytes(table(row()))
    assert "damaged" in refused(liar).what
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 nonsense")
    assert "damaged" in refused(broken).what


def test_what_a_file_is_does_not_hang_on_its_name(tmp_path: Path) -> None:
    packed = tmp_path / "download"
    packed.write_bytes(gzip.compress(table(row())))
    assert read(packed).num_rows == 1
    parquet = tmp_path / "train.csv"
    pq.write_table(pa.table({"prompt": ["Hi?"], "response_a": ["a"], "response_b": ["b"], "winner": ["a"]}), parquet)
    assert read(parquet).num_rows == 1


def test_a_decompression_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "LARGEST_INPUT_BYTES", 1 << 20)
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


def test_parquet_that_lies_about_its_text_is_refused(tmp_path: Path) -> None:
    wrong = pa.StringArray.from_buffers(1, pa.py_buffer(b"\x00\x00\x00\x00\x01\x00\x00\x00"), pa.py_buffer(b"\xff"))
    path = tmp_path / "battles.parquet"
    pq.write_table(pa.table({"prompt": wrong, "response_a": ["a"], "response_b": ["b"]}), path)
    assert "UTF8" in refused(path).what


def samples() -> dict[str, bytes]:
    """Small whole files of several kinds."""
    plain = table(*(row(i) for i in range(1, 6)))
    rows = [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}] * 3
    zipped, parquet = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.csv", plain)
    talk = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": []}]
    pq.write_table(pa.Table.from_pylist([{"conversation_a": talk, "conversation_b": talk, "winner": "tie"}]), parquet)
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
    whole = samples()[name]
    path = tmp_path / name
    path.write_bytes(whole)
    assert read(path).num_rows
    for _ in range(150):
        data = bytearray(whole)
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
    monkeypatch.setattr(json_rows, "BLOCK_CHARACTERS", 100)
    rows = [{"prompt": "é" * i, "response_a": "a", "response_b": "b", "winner": "a"} for i in range(300)]
    path = tmp_path / "rows.json"
    for text in (json.dumps(rows), json.dumps(rows, indent=2, ensure_ascii=False)):
        path.write_text(text, encoding="utf-8")
        assert read(path)["prompt"].to_pylist() == [["é" * i] for i in range(300)]
