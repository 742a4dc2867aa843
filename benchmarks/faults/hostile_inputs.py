"""Hostile and damaged input files, each made from a random generator alone, so that a number gives it again."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet")
WORDS = [
    *("good", "clear", "answer", "river", "wrong", "lazy", "the", "of", "code", "don't", "3.14", "...", "{}", "<b>"),
    *("ünïcode", "日本語", "😀", "`x`", "https://a.b", "\t"),
]


@dataclass(frozen=True)
class Hostile:
    """An input file, and how it lies on the disk.

    Attributes
    ----------
    kind:
        What is wrong with it, in words; a row of the table of results.
    name:
        The file's name.
    data:
        Its bytes.
    place:
        What it is when it is no plain file: ``folder``, ``fifo``, ``link`` to nothing, ``loop`` of links, ``stdin``,
        ``null``, ``zero``, ``under a file``, ``unreadable``.
    limits:
        Constants of the readers to be lowered: module and name -> value.
    """

    kind: str
    name: str
    data: bytes
    place: str = ""
    limits: dict[str, int] = field(default_factory=dict)


# Whole tables


def sentence(random: Random, most: int = 12) -> str:
    return " ".join(random.choices(WORDS, k=random.randint(1, most)))


def turns(random: Random) -> list[str | None]:
    return [sentence(random) for _ in range(random.choice((1, 1, 1, 2)))]


def talk(random: Random, questions: list[str]) -> list[Row]:
    messages = []
    for question in questions:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": sentence(random)}]
    return messages


def one_hot(label: int) -> Row:
    return {name: int(i == label) for i, name in enumerate(WINNERS)}


def kaggle(random: Random, count: int) -> list[Row]:
    rows = []
    for number in range(count):
        prompt = turns(random)
        sides = {f"response_{side}": json.dumps([sentence(random) for _ in prompt]) for side in "ab"}
        names = {f"model_{side}": f"model-{random.randint(1, 4)}" for side in "ab"}
        rows.append({"id": number, **names, "prompt": json.dumps(prompt), **sides, **one_hot(random.randrange(3))})
    return rows


def generic(random: Random, count: int) -> list[Row]:
    how = random.randrange(4)
    rows: list[Row] = []
    for number in range(count):
        row: Row = {"id": f"b{number}", **{name: sentence(random) for name in ("prompt", "response_a", "response_b")}}
        if how == 0:
            row["winner"] = random.choice(("model_a", "model_b", "tie", "both_bad", "A", ""))
        elif how == 1:
            row["label"] = random.randrange(3)
        elif how == 2:
            row |= random.choice(
                ({"p_a": 0.5, "p_b": 0.25, "p_tie": 0.25}, {"p_a": 0.125, "p_b": 0.75, "p_tie": 0.125})
            )
        else:
            row |= one_hot(random.randrange(3))
        rows.append(row)
    return rows


def arena(random: Random, count: int) -> list[Row]:
    rows = []
    for number in range(count):
        questions = [sentence(random) for _ in range(random.choice((1, 1, 2)))]
        sides = {f"conversation_{side}": talk(random, questions) for side in "ab"}
        winner = random.choice(("model_a", "model_b", "tie", "tie (bothbad)"))
        rows.append({"question_id": f"q{number // 2}", "model_a": "x", "model_b": "y", "winner": winner, **sides})
    return rows


def mt_bench(random: Random, count: int) -> list[Row]:
    return [{**row, "judge": "expert_1", "turn": random.randint(1, 2)} for row in arena(random, count)]


def preferences(random: Random, count: int) -> list[Row]:
    how = random.randrange(3)
    rows: list[Row] = []
    for _ in range(count):
        question = sentence(random)
        if how == 0:
            sides = {name: f"\n\nHuman: {question}\n\nAssistant: {sentence(random)}" for name in ("chosen", "rejected")}
            rows.append(sides)
        elif how == 1:
            rows.append({"prompt": question, "chosen": sentence(random), "rejected": sentence(random)})
        else:
            rows.append({name: talk(random, [question]) for name in ("chosen", "rejected")})
    return rows


def guesses(random: Random, count: int) -> list[Row]:
    rows = []
    for number in range(count):
        values = [random.uniform(0.01, 1) for _ in WINNERS]
        rows.append({"id": number, **dict(zip(WINNERS, (value / sum(values) for value in values), strict=True))})
    return rows


def truth(random: Random, count: int) -> list[Row]:
    return [{"id": number, **one_hot(random.randrange(3))} for number in range(count)]


LAYOUTS: dict[str, Callable[[Random, int], list[Row]]] = {
    "kaggle": kaggle,
    "generic": generic,
    "arena": arena,
    "mt-bench": mt_bench,
    "preferences": preferences,
}


# Tables as bytes


def as_text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def readable(value: Any) -> str:
    return str(as_text(value)).encode("utf-8", "replace").decode()


def as_csv(rows: list[Row], delimiter: str = ",", line: str = "\n") -> bytes:
    stream = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, columns, delimiter=delimiter, lineterminator=line)
    writer.writeheader()
    writer.writerows({name: as_text(value) for name, value in row.items()} for row in rows)
    return stream.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(rows: list[Row], random: Random) -> bytes:
    """Rows as Parquet; what Parquet cannot hold is written as text."""
    options = {
        "compression": random.choice(("none", "snappy", "zstd", "gzip", "lz4")),
        "use_dictionary": random.random() < 0.5,
        "row_group_size": random.choice((2, 1000)),
        "write_page_checksum": random.random() < 0.3,
        "data_page_version": random.choice(("1.0", "2.0")),
        "store_schema": random.random() < 0.5,
    }
    plain = [{name: readable(cell) for name, cell in row.items()} for row in rows]
    for told in (rows, plain):
        stream = io.BytesIO()
        with contextlib.suppress(pa.ArrowException, OverflowError, UnicodeError):
            pq.write_table(pa.Table.from_pylist(told), stream, **options)
            break
    return stream.getvalue()


def encoded(rows: list[Row], format: str, random: Random) -> bytes:
    if format == "parquet":
        return as_parquet(rows, random)
    if format in ("csv", "tsv"):
        return as_csv(rows, "\t" if format == "tsv" else ",", random.choice(("\n", "\n", "\r\n", "\r")))
    if format == "json":
        return json.dumps(rows, indent=random.choice((None, 2))).encode()
    return "\n".join(json.dumps(row, ensure_ascii=random.random() < 0.5) for row in rows).encode("utf-8", "replace")


def repeated_text(rows: int, length: int) -> bytes:
    """Parquet that holds one long text once, and says that every cell is this text."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * length]))
    stream = io.BytesIO()
    table = pa.table(dict.fromkeys(("prompt", "response_a", "response_b"), column))
    pq.write_table(table, stream, store_schema=False, compression="zstd")
    return stream.getvalue()


def packed(data: bytes, name: str, random: Random) -> tuple[bytes, str]:
    """The file as it is, or as ``.gz`` or ``.zip``."""
    how = random.randrange(10)
    if how == 0:
        return gzip.compress(data, 1), f"{name}.gz"
    if how == 1:
        methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        return zipped({name: data}, random.choice(methods)), f"{name}.zip"
    return data, name


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


# Damage


def damaged(data: bytes, random: Random) -> bytes:
    """Bytes flipped, inserted, deleted, repeated, lines swapped, the end cut off: up to four of these."""
    kept = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(kept) + 1)
        length = random.choice((1, 1, 2, 4, 20, 200))
        match random.randrange(7):
            case 0 if kept:
                kept[at % len(kept)] ^= 1 << random.randrange(8)
            case 1:
                kept[at:at] = random.randbytes(length)
            case 2:
                del kept[at : at + length]
            case 3:
                kept[at:at] = kept[at : at + length * 5]
            case 4:
                lines = kept.split(b"\n")
                i, j = random.randrange(len(lines)), random.randrange(len(lines))
                lines[i], lines[j] = lines[j], lines[i]
                kept = bytearray(b"\n".join(lines))
            case 5:
                del kept[at:]
            case _:
                kept[at : at + length] = random.choice((b"\xff", b"\x00", b"\x7f", b'"', b"\n", b",", b"9")) * length
    return bytes(kept)


ODD_VALUES: tuple[Any, ...] = (
    None, "", " ", 0, 1, -1, 2, 3, 0.5, 1e308, 1e400, float("nan"), True, False, "NaN", "null", "007", "1e5", "²", "٣",
    "9" * 400, "9" * 5000, "inf", "-0", "0x1", "1_0", [], {}, [[]], [None], ["a"], ["a", None], [1], [True], [{}],
    {"a": 1}, {"role": "user"}, [{"role": "user", "content": "a"}], [{"role": ["x"], "content": {"a": 1}}],
    [{"from": "human", "value": "a"}, {"from": "gpt", "value": [{"type": "image"}]}], "[]", "[", '["a"', '["a"]', "{}",
    "[null]", "[1]", '["\\ud800"]', "\ud800", "a\x00b", "\x1b[31mred\x1b[0m", "a\nb", "a\rb", "a\r\nb", 'a"b', "a,b",
    "\u202eevil", "\ufeff", "\ufffe", "\U0010ffff", "e" + "\u0301" * 300, "=1+1", "<script>alert(1)</script>",
    "</script>", "<!--", "&amp;", "\n\nHuman: a\n\nAssistant:", "\n\nHuman:\n\nHuman:", "x" * 100_000, "语" * 50_000,
    " " * 100_000, "a b " * 20_000, "```\ncode", "[" * 990, "[" * 100_000, "[" * 500 + "]" * 500, 10**30, -(2**63),
)  # fmt: skip
"""Where a table holds text or a number: things that are neither, or too much of it."""


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


def odd_values(random: Random, rows: list[Row], columns: tuple[str, ...] = ()) -> list[Row]:
    """Some cells replaced by odd values, in a row, in some, or in the whole column."""
    names = list(columns) or list(rows[0])
    for _ in range(random.randint(1, 3)):
        name, value = random.choice(names), random.choice(ODD_VALUES)
        if random.random() < 0.03:
            value = nested(random.choice((300, 480, 900, 960, 980, 990)))
        where = random.choice((range(len(rows)), [random.randrange(len(rows))], range(0, len(rows), 2)))
        for row in where:
            rows[row] = {**rows[row], name: value}
    return rows


def odd_ids(random: Random, rows: list[Row]) -> list[Row]:
    odd = (
        "007",
        "1e5",
        "NaN",
        "",
        "1",
        1,
        1.0,
        True,
        "a\nb",
        "a\rb",
        "\x1b]0;x\x07",
        'q"',
        "a,b",
        "None",
        "9" * 300,
        " 1",
    )
    name = next((name for name in ("id", "question_id", "prompt_id") if name in rows[0]), "id")
    choice = random.choice(("one", "all", "twice", "missing"))
    for number in range(len(rows)):
        if choice == "missing":
            rows[number].pop(name, None)
        elif choice != "one" or number == 1:
            rows[number][name] = {"one": random.choice(odd), "all": odd[number % len(odd)], "twice": number // 2}[
                choice
            ]
    return rows


def odd_columns(random: Random, rows: list[Row]) -> list[Row]:
    """Columns missing, in another order, in capitals, with white space, or thousands of them."""
    names = list(rows[0])
    match random.randrange(6):
        case 0:
            gone = random.choice(names)
            return [{name: cell for name, cell in row.items() if name != gone} for row in rows]
        case 1:
            random.shuffle(names)
            return [{name: row.get(name) for name in names} for row in rows]
        case 2:
            return [{name.upper(): cell for name, cell in row.items()} for row in rows]
        case 3:
            return [{f" {name}": cell for name, cell in row.items()} for row in rows]
        case 4:
            more = {f"column {number}": number for number in range(random.choice((20, 2000)))}
            return [{**row, **more} for row in rows[:2]]
        case _:
            odd = random.choice(
                ("winner", "conversation_a", "chosen", "rejected", "p_a", "label", "both_bad", "\x1b[1m", "")
            )
            return [{**row, odd: random.choice(ODD_VALUES)} for row in rows]


def odd_outcomes(random: Random, rows: list[Row]) -> list[Row]:
    """No winner, two, half ones, all the same, or words that mean nothing."""
    where = random.choice((range(len(rows)), [random.randrange(len(rows))]))
    value = random.choice(("", 0, 1, 0.5, 1.0, "1.0", 2, -1, "true", "x", None, "model_a", "tie", [], float("nan")))
    for row in where:
        rows[row] |= {name: value for name in rows[row] if name.startswith(("winner", "label", "p_", "both"))}
        if random.random() < 0.3:
            rows[row] |= one_hot(0)
    return rows


def odd_answers(random: Random, rows: list[Row]) -> list[Row]:
    """Identical answers, or none at all."""
    value = random.choice(("", "same", " ", "[]", '[""]', "[null]", '["same"]', [], [""], [None], ["same"]))
    names = [name for name in rows[0] if name.startswith(("response", "chosen", "rejected", "prompt"))]
    chosen = random.choice((names, [name for name in names if name != "prompt"]))
    return [{**row, **dict.fromkeys(chosen, value)} for row in rows]


def odd_encoding(random: Random, text: bytes) -> bytes:
    """CSV or JSON in another encoding, with other line ends, with marks and NULs in it."""
    plain = text.decode("utf-8", "replace")
    match random.randrange(12):
        case 0:
            return plain.encode("latin-1", "replace")
        case 1:
            return plain.replace("ü", "’").encode("cp1252", "replace")
        case 2:
            return plain.encode("utf-16")
        case 3:
            return plain.encode("utf-16-le")
        case 4:
            return plain.encode("utf-32")
        case 5:
            return b"\xef\xbb\xbf" + text
        case 6:
            return text.replace(b"\n", b"\r\n")
        case 7:
            return text.replace(b"\n", b"\r")
        case 8:
            return text.replace(b"e", b"\x00", random.randint(1, 5))
        case 9:
            at = random.randrange(len(text) + 1)
            return text[:at] + b'"' + text[at:]
        case 10:
            return text.replace(
                b"\n", random.choice((b"\n\n", b"\n \n", b"\n\x00\n", b"\x0b", b"\xc2\x85", b"\xe2\x80\xa8"))
            )
        case _:
            return text.replace(b'"', random.choice((b"'", b"\xe2\x80\x9c", b'""', b"")))


def odd_sizes(random: Random, rows: list[Row], format: str) -> bytes:
    """Nothing, a header alone, one row, or two."""
    match random.randrange(5):
        case 0:
            return random.choice(
                (b"", b"\n", b"\n" * 5000, b" ", b"\xef\xbb\xbf", b"[]", b"{}", b"[{}]", b"null", b"PAR1")
            )
        case 1:
            return encoded(rows[:1], "csv", random).partition(b"\n")[0] + random.choice((b"", b"\n"))
        case 2:
            stream = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows[:1]).slice(0, 0), stream)
            return stream.getvalue()
        case 3:
            return encoded(rows[:1], format, random)
        case _:
            return encoded(rows[:2], format, random)


def odd_types(random: Random, rows: list[Row]) -> bytes:
    """Parquet whose columns have types that no reader of battles expects."""
    count = len(rows)
    names = list(rows[0])
    columns: dict[str, pa.Array] = {}
    for name in names:
        if random.random() < 0.6:
            columns[name] = pa.array([as_text(row.get(name)) for row in rows])
            continue
        text = [str(as_text(row.get(name))) for row in rows]
        columns[name] = random.choice(
            (
                pa.array(text, pa.large_string()),
                pa.array([cell.encode() for cell in text], pa.binary()),
                pa.array([b"\xff\xfe", None] * count, pa.binary())[:count],
                pa.array([b"abcd"] * count, pa.binary(4)),
                pa.array(text).dictionary_encode(),
                pa.nulls(count),
                pa.array([None] * count, pa.string()),
                pa.array(range(count), pa.uint8()),
                pa.array([1.5] * count, pa.float32()),
                pa.array([2**62] * count, pa.timestamp("us", "Europe/Berlin")),
                pa.array([2**62] * count, pa.timestamp("ns")),
                pa.array([1] * count, pa.duration("ms")),
                pa.array([1] * count, pa.date32()),
                pa.array([True, None] * count)[:count],
                pa.array([1] * count).cast(pa.decimal128(30, 2)),
                pa.array([["a", None]] * count),
                pa.array([["a"]] * count, pa.list_(pa.string(), 1)),
                pa.array([["a"]] * count, pa.large_list(pa.large_string())),
                pa.array([[b"\xff"]] * count, pa.list_(pa.binary())),
                pa.array([[["a"]]] * count),
                pa.array([{"a": 1}] * count),
                pa.array([[("k", "v")]] * count, pa.map_(pa.string(), pa.string())),
                pa.array([[{"role": "user", "content": {"text": "a"}}]] * count),
                pa.array([[{"role": 1, "content": 2}, None]] * count),
                pa.array([[{"role": b"\xff", "content": b"\xff"}]] * count),
                pa.array([[{"role": "user", "content": [{"text": b"\xff"}]}]] * count),
                pa.array([[{"role": "user", "content": [["a"]]}]] * count),
                pa.array([[{"role": "user", "content": "a"}], None] * count)[:count],
                pa.array([[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * count),
            )
        )  # fmt: skip
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def large(random: Random) -> Hostile:
    """A cell of 50 MB, ten thousand columns, or fifty thousand rows with the same id."""
    match random.randrange(5):
        case 0:
            piece = random.choice(("word ", "x", "語", '\\"'))
            cell = json.dumps([piece * (50_000_000 // len(piece.encode()))], ensure_ascii=False)
            rows = kaggle(random, 3)
            return Hostile("a cell of 50 MB", "long.csv", as_csv([rows[0], {**rows[1], "response_a": cell}, rows[2]]))
        case 1:
            rows = [{**row, **{f"c{n}": n for n in range(10_000)}} for row in kaggle(random, 3)]
            format = random.choice(("csv", "jsonl", "parquet"))
            return Hostile("10,000 columns", f"wide.{format}", encoded(rows, format, random))
        case 2:
            header = ",".join(["id", "prompt", "response_a", "response_b", *["again"] * 60_000])
            return Hostile("10,000 columns", "again.csv", header.encode() + b"\n1,a,b,c\n")
        case 3:
            row = {"question_id": 1, "conversation_a": talk(random, ["q"]), "conversation_b": talk(random, ["q"])}
            return Hostile(
                "30,000 equal ids", "ids.jsonl", (json.dumps({**row, "winner": "tie"}) + "\n").encode() * 30_000
            )
        case _:
            text = "a" * 300_000 + random.choice((" ", "\n", "")) + "語" * 200_000
            row = {"chosen": f"{text} yes", "rejected": f"{text} no"}
            return Hostile("no white space", "pairs.jsonl", (json.dumps(row) + "\n").encode() * 2)


def place(random: Random) -> Hostile:
    """A table where it is not expected, under a name that is not expected."""
    data = as_csv(kaggle(random, 5))
    match random.randrange(12):
        case 0:
            name = random.choice(
                ("a\nb.csv", "\x1b[31mred.csv", "a b'\".csv", "-n.csv", "日本.csv", "\udcff.csv", "%s{0}.csv")
            )
            return Hostile("odd name", name, random.choice((data, b"", damaged(data, random))))
        case 1:
            return Hostile("odd name", "x" * 251 + ".csv", data)
        case 2:
            return Hostile("too long name", "x" * 300 + ".csv", data, "missing")
        case 3:
            return Hostile("pipe", "pipe.csv", random.choice((data, b"", gzip.compress(data), data[:99])), "fifo")
        case 4:
            return Hostile("standard input", "-", random.choice((data, b"", damaged(data, random))), "stdin")
        case 5:
            return Hostile("pipe", "pipe.parquet", as_parquet(kaggle(random, 5), random), "fifo")
        case 6:
            limits = {"containers.MAX_INPUT_BYTES": 20 << 20}
            return Hostile("device", "zero", b"", "zero", limits)
        case 7:
            return Hostile("device", "null", b"", "null")
        case other:
            places = {8: "folder", 9: "link", 10: "loop", 11: "under a file"}
            return Hostile("folder, link to nothing", "train.csv", data, places[other])


def bomb(random: Random) -> Hostile:
    """Compressed data that unpacks to more than the limit, which is lowered for it; and archives full of files."""
    limits = {"containers.MAX_INPUT_BYTES": 6 << 20, "containers.MAX_ROW_BYTES": 2 << 20}
    limits["containers.BLOCK_BYTES"] = random.choice((1 << 16, 1 << 20))
    limits["json_rows.BLOCK_CHARS"] = 1 << 16
    format = random.choice(("csv", "tsv", "jsonl", "json", "parquet"))
    whole = encoded(generic(random, 1), format, random)
    header, _, row = whole.partition(b"\n")
    unit = random.choice((b"\0", b"\n", b" ", b'"', b",", b"[", b"a", b"\r\n", row + b"\n", b'{"a":1}\n'))
    start = random.choice((b"", header + b"\n", whole))
    data = start + unit * ((8 << 20) // len(unit))
    name = f"bomb.{format}"
    match random.randrange(5):
        case 4:
            rows, length = random.choice(((10_000, 1000), (20, 1_000_000), (100, 100_000)))
            return Hostile("bomb", "repeated.parquet", repeated_text(rows, length), limits=limits)
        case 0:
            return Hostile("bomb", f"{name}.gz", gzip.compress(data, 1), limits=limits)
        case 1:
            return Hostile("bomb", f"{name}.zip", zipped({name: data}), limits=limits)
        case 2:
            count = random.choice((10, 2000))
            return Hostile("archive of many files", "many.zip", zipped({f"t{n}.csv": header for n in range(count)}))
        case _:
            more = gzip.compress(gzip.compress(data, 1), 1)
            return Hostile("bomb", f"{name}.gz", more, limits=limits)


def battles(random: Random) -> Hostile:
    """A file that should have been one of battles."""
    chance = random.random()
    if chance < 0.0015:
        return large(random)
    if chance < 0.008:
        return bomb(random)
    if chance < 0.06:
        return place(random)
    layout = random.choice(list(LAYOUTS))
    format = random.choice(FORMATS)
    rows = LAYOUTS[layout](random, random.choice((3, 6, 12, 40)))
    limits = {"containers.BLOCK_BYTES": 1 << 12, "json_rows.BLOCK_CHARS": 256} if random.random() < 0.2 else {}
    name = f"{layout}.{format}"

    def made(kind: str, data: bytes, name: str = name) -> Hostile:
        data, name = packed(data, name, random)
        return Hostile(kind, name, data, limits=limits)

    match random.choices(range(10), (40, 4, 12, 5, 4, 7, 4, 5, 5, 6))[0]:
        case 0:
            data, name = packed(encoded(rows, format, random), name, random)
            return Hostile(f"damaged {name.partition('.')[2]}", name, damaged(data, random), limits=limits)
        case 1:
            return made(f"whole {layout}", encoded(rows, format, random))
        case 2:
            return made("odd values", encoded(odd_values(random, rows), format, random))
        case 3:
            return made("odd ids", encoded(odd_ids(random, rows), format, random))
        case 4:
            return made("odd columns", encoded(odd_columns(random, rows), format, random))
        case 5:
            return made("odd outcomes", encoded(odd_outcomes(random, rows), format, random))
        case 6:
            return made("identical or empty answers", encoded(odd_answers(random, rows), format, random))
        case 7:
            format = random.choice(("csv", "tsv", "json", "jsonl"))
            return made("odd encoding", odd_encoding(random, encoded(rows, format, random)), f"{layout}.{format}")
        case 8:
            return made("nothing, one row, two", odd_sizes(random, rows, format))
        case _:
            return made("odd Parquet types", odd_types(random, rows), f"{layout}.parquet")


NUMBERS: tuple[Any, ...] = (
    float("nan"), float("inf"), -float("inf"), -0.1, 1.1, 0.3333, 1e308, 1e-320, "", "x", "nan", "NaN", "inf", " 0.5 ",
    "1e-400", "0,5", "1_0", "0x1", None, True, "½", "٠", [], {}, "1e999", "-0", 2, "9" * 400, "a\nb", "x" * 100_000,
)  # fmt: skip


def score_file(random: Random, *, labels: bool) -> Hostile:
    """A file that ``score`` should have been able to read: predictions, or the truth."""
    rows = (truth if labels else guesses)(random, 12)
    format = random.choice(FORMATS)
    name = f"scores.{format}"
    match random.choices(range(7), (30, 5, 25, 10, 10, 10, 10))[0]:
        case 0:
            data, name = packed(encoded(rows, format, random), name, random)
            return Hostile("score: damaged", name, damaged(data, random))
        case 1:
            kind, data = "score: whole", encoded(rows, format, random)
        case 2:
            for _ in range(random.randint(1, 3)):
                number, column = random.randrange(len(rows)), random.choice(WINNERS)
                rows[number] = {**rows[number], column: random.choice(NUMBERS)}
            kind, data = "score: odd numbers", encoded(rows, format, random)
        case 3:
            kind, data = "score: odd ids", encoded(odd_ids(random, rows), format, random)
        case 4:
            random.shuffle(rows)
            more = random.choice((rows[:-1], [*rows, rows[0]], [*rows, {**rows[0], "id": 99}], rows[:1], rows))
            kind, data = "score: ids missing, more, twice", encoded(more, format, random)
        case 5:
            kind, data = "score: odd columns", encoded(odd_columns(random, rows), format, random)
        case _:
            kind, data = "score: odd Parquet types", odd_types(random, rows)
            format = "parquet"
    data, name = packed(data, f"scores.{format}", random)
    return Hostile(kind, name, data)
