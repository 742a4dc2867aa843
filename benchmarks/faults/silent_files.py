"""Situations around files and tables in which the right answer is known: see ``silent.py``.

JSON whose keys appear late, odd tables in memory, truncated files, archives with several tables, and outputs that are
inputs. The expected battles are made here and only written in many ways, so they are known without reading them.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import prefcli
from prefcli.battles import Source
from prefcli.data import synthetic
from prefcli.errors import InputError, PrefcliError
from prefcli.readers import battles_from, open_battles
from prefcli.storage import files

Row = dict[str, Any]
Situation = tuple[str, Callable[[], str]]

ROWS = 400
LATE = {"in row 101": 100, "in row 150": 149, "in the middle": 200, "in row 399": 398, "in the last row": ROWS - 1}
"""Where a key appears for the first time: after as many rows."""


def situations(folder: Path, seed: int) -> Iterator[Situation]:
    """Every situation, in files below ``folder``; texts and rows depend on the seed."""
    for number, part in enumerate((_late_keys, _containers, _tables, _truncated, _archives, _outputs)):
        kind = part.__name__.strip("_").replace("_", " ")
        below = folder / part.__name__.strip("_")
        below.mkdir(parents=True)
        for name, run in part(below, random.Random(f"{seed} {number}")):
            yield f"{kind}: {name}", run


def _rows(chance: random.Random, count: int = ROWS, **extra: Callable[[], Any]) -> list[Row]:
    """Battles as a plain table: an id, three texts, an outcome."""

    def text() -> str:
        return " ".join(chance.choice(synthetic.NEUTRAL) for _ in range(chance.randrange(1, 9)))

    return [
        {
            "id": f"b{number}",
            "prompt": text(),
            "response_a": text(),
            "response_b": text(),
            "winner": chance.choice(("model_a", "model_b", "tie")),
        }
        | {name: make() for name, make in extra.items()}
        for number in range(count)
    ]


def _expected(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Id, texts, label and soft labels of each row; row numbers where the file has no ids."""
    labels = {"model_a": 0, "model_b": 1, "tie": 2, None: None}
    has_ids = any(row.get("id") is not None for row in rows)
    return [
        (
            row.get("id") if has_ids else str(number),
            *([row[name]] for name in ("prompt", "response_a", "response_b")),
            labels[row.get("winner")],
            None if row.get("p_a") is None else tuple(np.float32(row[name]) for name in ("p_a", "p_b", "p_tie")),
        )
        for number, row in enumerate(rows, start=1)
    ]


def _read(batches: Sequence[pa.RecordBatch]) -> list[tuple[Any, ...]]:
    return [
        (
            row["id"],
            *(row[name] for name in ("prompt", "response_a", "response_b")),
            row["label"],
            None if row.get("p_a") is None else tuple(np.float32(row[name]) for name in ("p_a", "p_b", "p_tie")),
        )
        for batch in batches
        for row in batch.to_pylist()
    ]


def _compare(read: list[tuple[Any, ...]], expected: list[tuple[Any, ...]], *, with_soft: bool = True) -> str:
    if len(read) != len(expected):
        return f"silent: {len(read)} battles instead of {len(expected)}"
    for number, (is_, should) in enumerate(zip(read, expected, strict=True), start=1):
        if is_[: 6 if with_soft else 5] != should[: 6 if with_soft else 5]:
            return f"silent: battle {number} is {is_} instead of {should}"
    return "right"


def _reads_as(source: Source | Path, rows: Sequence[Row]) -> str:
    """Whether a file is read as the rows that were written into it, or refused as input."""
    try:
        return _compare(_read([batch for batch, _ in open_battles(source).batches()]), _expected(rows))
    except InputError:
        return "refused"


def _soft(a: float, b: float, tie: float) -> Row:
    return {"p_a": a, "p_b": b, "p_tie": tie}


# JSON whose keys appear late

WRITERS: dict[str, Callable[[Sequence[Row]], str]] = {
    ".jsonl": lambda rows: "\n".join(map(json.dumps, rows)),
    ".json, an array": lambda rows: json.dumps(rows),
    ".json, under data": lambda rows: json.dumps({"version": 1, "data": rows}),
    ".json, indented": lambda rows: json.dumps(rows, indent=2),
}


def _late_keys(folder: Path, chance: random.Random) -> Iterator[Situation]:
    number = 0
    for late in ("winner", "id", "p_a", "model_a"):
        for where, first in LATE.items():
            for form, write in WRITERS.items():
                if number % 2 == 0 or form == ".jsonl":  # half of the combinations are enough
                    rows = _rows(chance)
                    if late == "p_a":
                        for row in rows:
                            row |= chance.choice((_soft(0.5, 0.25, 0.25), _soft(0, 0.5, 0.5)))
                            del row["winner"]
                    if late == "model_a":
                        for row in rows:
                            row |= {"model_a": "left", "model_b": "right"}
                    dropped = {"p_a": ("p_a", "p_b", "p_tie"), "model_a": ("model_a", "model_b")}.get(late, (late,))
                    rows = [
                        {key: cell for key, cell in row.items() if n >= first or key not in dropped}
                        for n, row in enumerate(rows)
                    ]
                    path = folder / f"{number}{form.split(',')[0]}"
                    yield f"{late} {where} of {form}", functools.partial(_late, path, write(rows), rows, late)
                number += 1


def _late(path: Path, text: str, rows: list[Row], late: str) -> str:
    path.write_text(text, encoding="utf-8")
    try:
        batches = [batch for batch, _ in open_battles(path).batches()]
    except InputError:
        return "refused"
    if late == "model_a":
        models = [name for batch in batches for name in batch.column("model_a").to_pylist()]
        if models != [row.get("model_a") for row in rows]:
            return "silent: the models' names are lost"
    if late == "p_a":  # a label may be derived from them
        read = [(*row[:4], None, row[5]) for row in _read(batches)]
        return _compare(read, _expected(rows))
    return _compare(_read(batches), _expected(rows))


# one table in many containers


def _containers(folder: Path, chance: random.Random) -> Iterator[Situation]:
    rows = _rows(chance)
    for row in rows[:5]:  # what tables get wrong
        row["response_a"] += chance.choice((', "quoted", 1\n2', "\ttab", "\u2028line", " é 模 🙂", "\\n not a line"))
    frame = pd.DataFrame(rows)
    late = [{key: cell for key, cell in row.items() if n > 150 or key != "winner"} for n, row in enumerate(rows)]
    csv_text, lines = frame.to_csv(index=False), WRITERS[".jsonl"](rows)
    forms: dict[str, tuple[bytes, list[Row]]] = {
        "a.csv": (csv_text.encode(), rows),
        "bom.csv": (b"\xef\xbb\xbf" + csv_text.encode(), rows),
        "crlf.csv": (frame.to_csv(index=False, lineterminator="\r\n").encode(), rows),
        "semicolon.csv": (frame.to_csv(index=False, sep=";").encode(), rows),
        "a.tsv": (frame.to_csv(index=False, sep="\t").encode(), rows),
        "named.csv, but lines": (lines.encode(), rows),
        "a.jsonl.gz": (gzip.compress(lines.encode()), rows),
        "late.jsonl.gz": (gzip.compress(WRITERS[".jsonl"](late).encode()), late),
        "two-members.jsonl.gz": (gzip.compress(lines[:999].encode()) + gzip.compress(lines[999:].encode()), rows),
        "late.json.gz": (gzip.compress(json.dumps(late).encode()), late),
        "records.json": (frame.to_json(orient="records").encode(), rows),
        "columns.json": (frame.to_json(orient="columns").encode(), rows),
        "split.json": (frame.to_json(orient="split").encode(), rows),
        "utf-16.csv": (csv_text.encode("utf-16"), rows),
        "latin-1.csv": (csv_text.encode("latin-1", "replace"), rows),
        "a.csv.bz2": (bz2.compress(csv_text.encode()), rows),
        "blank-lines.jsonl": (lines.replace("\n", "\n\n  \n").encode(), rows),
    }
    for name, (data, expected) in forms.items():
        path = folder / name.partition(",")[0].replace("named", "lines")
        yield name, functools.partial(_container, path, data, expected)
    yield "a.parquet", functools.partial(_parquet, folder / "a.parquet", rows)
    yield "three files, the last with a key of its own", functools.partial(_several, folder, rows)


def _container(path: Path, data: bytes, rows: list[Row]) -> str:
    path.write_bytes(data)
    return _reads_as(path, rows)


def _parquet(path: Path, rows: list[Row]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=37)
    return _reads_as(path, rows)


def _several(folder: Path, rows: list[Row]) -> str:
    paths = tuple(folder / f"part-{number}.jsonl" for number in range(3))
    parts = (rows[:150], rows[150:300], [row | _soft(0.5, 0.25, 0.25) for row in rows[300:]])
    for path, part in zip(paths, parts, strict=True):
        path.write_text(WRITERS[".jsonl"](part), encoding="utf-8")
    return _reads_as(Source(paths), [row for part in parts for row in part])


# tables in memory


def _tables(folder: Path, chance: random.Random) -> Iterator[Situation]:
    rows = _rows(chance, 60)
    frame, arrow = pd.DataFrame(rows), pa.Table.from_pylist(rows)
    texts = ["prompt", "response_a", "response_b"]
    late = [{key: cell for key, cell in row.items() if n > 50 or key != "winner"} for n, row in enumerate(rows)]
    no_ids = [{key: cell for key, cell in row.items() if key != "id"} for row in rows]

    def with_turns(make: Callable[[str], Any]) -> pd.DataFrame:
        return frame.assign(**{name: [make(text) for text in frame[name]] for name in texts})

    path = folder / "turns.parquet"
    pq.write_table(pa.Table.from_pylist([row | {name: [row[name]] for name in texts} for row in rows]), path)
    tables: dict[str, tuple[Any, list[Row]]] = {
        "a DataFrame": (frame, rows),
        "an index of its own": (frame.set_index(pd.Index(range(1000, 1060))), rows),
        "a repeated index": (frame.set_index(pd.Index([0] * 60)), rows),
        "shuffled columns": (frame[frame.columns[::-1]], rows),
        "turns as lists": (with_turns(lambda text: [text]), rows),
        "turns as tuples": (with_turns(lambda text: (text,)), rows),
        "turns as arrays of objects": (with_turns(lambda text: np.array([text], dtype=object)), rows),
        "turns as arrays of text": (with_turns(lambda text: np.array([text])), rows),
        "turns as Arrow scalars": (with_turns(lambda text: pa.scalar([text])), rows),
        "pd.read_parquet": (pd.read_parquet(path), rows),
        "pd.read_parquet with Arrow types": (pd.read_parquet(path, dtype_backend="pyarrow"), rows),
        "nullable types": (frame.convert_dtypes(), rows),
        "categories": (frame.astype({"winner": "category", "prompt": "category"}), rows),
        "NumPy text": (frame.assign(prompt=[np.str_(text) for text in frame["prompt"]]), rows),
        "missing outcomes as NaN": (pd.DataFrame(late), late),
        "missing outcomes as pd.NA": (pd.DataFrame(late).convert_dtypes(), late),
        "missing outcomes as None": (pd.DataFrame(late).astype(object).where(pd.DataFrame(late).notna(), None), late),
        "a list of dictionaries, the outcome late": (late, late),
        "a generator of dictionaries": ((row for row in rows), rows),
        "a dictionary of columns": (frame.to_dict("list"), rows),
        "a dictionary of arrays": ({name: frame[name].to_numpy() for name in frame}, rows),
        "an Arrow table": (arrow, rows),
        "an Arrow table in chunks": (pa.concat_tables([arrow[i : i + 7] for i in range(0, 60, 7)]), rows),
        "an Arrow table with dictionaries": (arrow.set_column(4, "winner", arrow["winner"].dictionary_encode()), rows),
        "a record batch": (arrow.to_batches()[0], rows),
        "large strings": (arrow.cast(pa.schema([(name, pa.large_string()) for name in frame])), rows),
        "string views": (arrow.cast(pa.schema([(name, pa.string_view()) for name in frame])), rows),
        "a column twice, once empty": (pd.concat([frame, frame[["winner"]].assign(winner="model_a")], axis=1), rows),
        "a text column twice": (pd.concat([frame, frame[["prompt"]].assign(prompt="other")], axis=1), rows),
        "two levels of columns": (frame.set_axis(pd.MultiIndex.from_product([["x"], frame.columns]), axis=1), rows),
        "whole numbers as ids": (frame.assign(id=range(60)), [row | {"id": str(n)} for n, row in enumerate(rows)]),
        "floats as ids": (frame.assign(id=np.arange(60) / 1), [row | {"id": f"{n}.0"} for n, row in enumerate(rows)]),
        "ids in the index": (frame.set_index("id"), no_ids),
        "numbers as text": (frame.assign(prompt=range(60)), [row | {"prompt": str(n)} for n, row in enumerate(rows)]),
        "NaN as text": (frame.assign(prompt=np.nan), [row | {"prompt": None} for row in rows]),
        "bytes as text": (frame.assign(prompt=[text.encode() for text in frame["prompt"]]), rows),
        "sets as turns": (with_turns(lambda text: {text}), rows),
        "an array": (frame.to_numpy(), rows),
        "a series": (frame["prompt"], rows),
        "no columns": (frame[[]], rows),
        "no rows": (frame[:0], rows),
    }
    for name, (table, expected) in tables.items():
        yield name, functools.partial(_table, table, expected)


def _table(table: Any, rows: list[Row]) -> str:
    try:
        batch = battles_from(table)
    except InputError:
        return "refused"
    return _compare(_read([batch]), _expected(rows))


# truncated files


def _truncated(folder: Path, chance: random.Random) -> Iterator[Situation]:
    """Cut between two rows a CSV or JSONL file is whole, so they are cut within one."""
    rows = _rows(chance)
    frame = pd.DataFrame(rows)
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", frame.to_csv(index=False))
    lines = WRITERS[".jsonl"](rows).encode()
    for name, data in {
        "a.jsonl": lines,
        "a.json": json.dumps(rows).encode(),
        "wrapped.json": json.dumps({"data": rows, "more": 1}).encode(),
        "a.parquet": buffer.getvalue(),
        "a.zip": zipped.getvalue(),
        "a.csv.gz": gzip.compress(frame.to_csv(index=False).encode()),
        "a.jsonl.gz": gzip.compress(lines),
    }.items():
        for share in (0.3, 0.9, 1.0):
            at = max(1, min(int(len(data) * share), len(data) - (3 if name != "a.jsonl" else 1)))
            while name == "a.jsonl" and data[at - 1 : at + 1].strip(b" }") == b"\n":
                at -= 1
            cut = functools.partial(_cut, folder / f"{at}-{name}", data[:at])
            yield f"{name} after {at} of {len(data)} bytes", cut


def _cut(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    try:
        battles = sum(batch.num_rows for batch, _ in open_battles(path).batches())
    except InputError:
        return "refused"
    return f"silent: {battles} battles of a file that was cut"


# archives with several tables


def _archives(folder: Path, chance: random.Random) -> Iterator[Situation]:
    train, test = _rows(chance, 30), [{**row, "id": f"t{row['id']}"} for row in _rows(chance, 20)]
    tables = {"train.csv": train, "test.csv": test, "other.csv": train, "TEST.CSV": test, "deep/test.csv": test}
    cases: list[tuple[str, tuple[str, ...], str, list[Row] | None]] = [
        ("train and test", ("train.csv", "test.csv"), "train", train),
        ("train and test", ("train.csv", "test.csv"), "test", test),
        ("test and train", ("test.csv", "train.csv"), "test", test),
        ("test in a folder", ("train.csv", "deep/test.csv"), "test", test),
        ("TEST in capitals", ("train.csv", "TEST.CSV"), "test", test),
        ("only train", ("train.csv",), "test", train),
        ("train and other, test is wanted", ("train.csv", "other.csv"), "test", None),
        ("two called test", ("test.csv", "deep/test.csv", "train.csv"), "test", None),
        ("two, neither wanted", ("other.csv", "deep/test.csv"), "train", None),
    ]
    for number, (name, members, preferred, rows) in enumerate(cases):
        path = folder / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("sample_submission.csv", "id,winner_model_a,winner_model_b,winner_tie\n")
            archive.writestr("__MACOSX/._train.csv", "x")
            for member in members:
                archive.writestr(member, pd.DataFrame(tables[member]).to_csv(index=False))
        yield f"{name}, for {preferred}", functools.partial(_archive, path, preferred, rows)


def _archive(path: Path, preferred: str, rows: list[Row] | None) -> str:
    try:
        battles = [batch for batch, _ in open_battles(path, preferred).batches()]
    except InputError:
        return "refused"
    if rows is None:
        return "silent: a table was chosen"
    return _compare(_read(battles), _expected(rows))


# outputs that are inputs


def _outputs(folder: Path, chance: random.Random) -> Iterator[Situation]:
    data = synthetic.write(folder / "data", train=120, test=30, seed=chance.randrange(1000))
    run = prefcli.train(data.train, recipe="fast", output=folder / "run", workspace=folder / "ws").run
    names = ("itself", "another spelling", "a symbolic link", "a hard link", "through a linked folder")
    for name in names:
        for output_is_link in (False, True):
            order = "as output" if output_is_link else "as input"
            below = folder / f"{name} {order}"
            yield f"predict, {name} {order}", functools.partial(_overwrite, below, data.test, name, output_is_link, run)
    verbs = ("calibrate", "eda", "eda --test", "train", "validation file", "soft labels", "run's table", "demo", "zip")
    for verb in verbs:
        yield verb, functools.partial(_overwrite_by, folder / verb, verb, data, run)


def _overwrite(folder: Path, votes: Path, name: str, output_is_link: bool, run: Path) -> str:
    folder.mkdir()
    path = Path(shutil.copy(votes, folder / "votes.csv"))
    other = folder / "other.csv"
    match name:
        case "itself":
            other = path
        case "another spelling":
            other = folder / ".." / folder.name / "votes.csv"
        case "a symbolic link":
            other.symlink_to(path.name)
        case "a hard link":
            other.hardlink_to(path)
        case "through a linked folder":
            (folder / "link").symlink_to(".")
            other = folder / "link" / "votes.csv"
    source, output = (path, other) if output_is_link else (other, path)
    return _keeps([path, *run.iterdir()], lambda: prefcli.predict(source, output, models=[run], force=True))


def _overwrite_by(folder: Path, verb: str, data: synthetic.Demo, run: Path) -> str:
    folder.mkdir()
    train, test, truth = (Path(shutil.copy(path, folder)) for path in (data.train, data.test, data.truth))
    own = Path(shutil.copytree(run, folder / "run"))
    votes = Path(shutil.copy(train, own / "votes.csv"))
    soft = own / "soft.csv"
    header = "id,winner_model_a,winner_model_b,winner_tie\n"
    soft.write_text(header + "".join(f"{number},0.2,0.3,0.5\n" for number in range(1, 121)))
    archive = folder / "votes.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(test, "test.csv")
    archive_as_csv = folder / "zip.csv"
    archive_as_csv.hardlink_to(archive)
    workspace: dict[str, Any] = {"workspace": folder / "ws"}
    train_over: dict[str, Any] = {"recipe": "fast", "output": own, "force": True, **workspace}
    call: Callable[[], Any] = {
        "calibrate": lambda: prefcli.predict(test, train, calibrate=train, models=[run], force=True, **workspace),
        "eda": lambda: prefcli.api.eda(train, report=train, force=True, **workspace),
        "eda --test": lambda: prefcli.api.eda(train, test=test, report=test, force=True, **workspace),
        "train": lambda: prefcli.train(votes, **train_over),
        "validation file": lambda: prefcli.train(train, validation_file=str(votes), **train_over),
        "soft labels": lambda: prefcli.train(train, soft_labels=str(soft), **train_over),
        "run's table": lambda: prefcli.predict(test, own / "validation.parquet", models=[own], force=True, **workspace),
        "demo": lambda: synthetic.write(folder, train=50, test=10, seed=1),
        "zip": lambda: prefcli.predict(archive / "test.csv", archive_as_csv, models=[run], force=True, **workspace),
    }[verb]
    return _keeps([train, test, truth, archive, *own.iterdir()], call)


def _keeps(inputs: Sequence[Path], call: Callable[[], Any]) -> str:
    """Whether a call leaves its inputs alone."""
    before: Mapping[Path, str] = {path: files.sha256(path) for path in inputs if path.is_file()}
    ending = "right"
    try:
        call()
    except PrefcliError:
        ending = "refused"
    changed = [path.name for path, digest in before.items() if not path.is_file() or files.sha256(path) != digest]
    return f"silent: {', '.join(changed)} changed" if changed else ending
