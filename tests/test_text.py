"""What the text normalisations keep, remove and count, in one process and in several."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from prefcli.battles import TEXT_FIELDS
from prefcli.errors import InputError, PrefcliError
from prefcli.text import (
    NORMALISATIONS,
    TextCounts,
    nltk_tokens,
    normalisation_identity,
    normalise_batch,
    normalise_text,
    parallel,
)
from prefcli.text.normalise import replace_surrogates
from prefcli.text.parallel import normalise_stream

ROOT = Path(__file__).parent.parent
SAMPLE = json.loads((Path(__file__).parent / "data" / "nltk_tokens.json").read_text(encoding="utf-8"))["texts"]

#: Everything Python can hold, lone surrogates included, and text that looks like text.
ANY_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.text(st.sampled_from("aA.sS'tnI \n\t\u00a0é!?,:;\"`-*()[]3.5\ue000中。ก\u0301\u200d😀\ud83d"), max_size=40),
)
TURNS = st.lists(st.none() | ANY_TEXT.map(replace_surrogates), max_size=3)

#: No deadline: a busy machine is not a failure.
no_deadline = settings(deadline=None, max_examples=60)

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def battles(*rows: tuple, metadata: dict | None = None) -> pa.RecordBatch:
    """Battles from (prompt, response_a, response_b) rows, each a list of turns."""
    lists = pa.list_(pa.string())
    schema = pa.schema(
        [("id", pa.string()), ("prompt", lists), ("response_a", lists), ("response_b", lists), ("label", pa.int8())],
        metadata=metadata,
    )
    columns = [[str(place) for place in range(len(rows))], *([row[k] for row in rows] for k in range(3))]
    return pa.RecordBatch.from_arrays(
        [pa.array(column, type=field.type) for column, field in zip([*columns, [2] * len(rows)], schema, strict=True)],
        schema=schema,
    )


def many_batches(number: int, rows: int = 20) -> list[pa.RecordBatch]:
    return [
        battles(*[([f"Questions {n} {row}?"], ["The dogs, " * 30, None], [f"B {n}."]) for row in range(rows)])
        for n in range(number)
    ]


def normalised_rows(batches: list[pa.RecordBatch], **options: int) -> tuple[list[dict], TextCounts]:
    rows: list[dict] = []
    counts = TextCounts()
    for batch, batch_counts in normalise_stream(iter(batches), "nltk", **options):
        rows += batch.to_pylist()
        counts += batch_counts
    return rows, counts


# The tokens


@pytest.mark.parametrize("entry", SAMPLE, ids=[repr(entry["text"][:25]) for entry in SAMPLE])
def test_tokens_are_those_of_a_plain_nltk_program(entry):
    assert normalise_text(entry["text"], "nltk") == entry["tokens"]


@pytest.mark.parametrize(
    ("token", "kept"),
    [
        ("well-known", "wellknown"),
        ("C++", "C"),
        ("n't", "nt"),
        ("'s", "s"),
        ("3.14", "3.14"),
        ("1,000,000", "1,000,000"),
        ("10:30", "10:30"),
        ("-5", "5"),
        ("v2.", "v2"),
        ("snake_case", "snakecase"),
        ("किताबें", "किताबें"),
        ("cafe\u0301", "cafe\u0301"),
        ("می‌خواهم", "می‌خواهم"),
        ("٣٫١٤", "٣٫١٤"),
        ("👨‍👩‍👧", ""),
        ("❤\ufe0f", ""),
        ("\u0301", ""),
        ("ok\ufffd", "ok"),
        ("😀fun", "fun"),
    ],
)
def test_special_characters_are_removed_unless_between_digits(token, kept):
    assert nltk_tokens.strip_special(token) == kept


def test_stop_words_are_removed_in_any_case_and_only_as_whole_tokens():
    assert normalise_text("The THE the then theory") == "theory"


def test_a_text_of_symbols_is_empty_afterwards():
    assert normalise_text("*** --- 😀 () => {};") == ""


def test_an_initial_that_is_a_stop_word_is_removed_although_nltk_may_keep_it():
    # The one known difference: NLTK's sentence splitter leaves the period on some initials, "a." is no stop word.
    assert normalise_text("A. Turing met I. Newton and D. Hilbert.") == "turing met newton d hilbert"


def test_a_very_long_text_without_whitespace_is_cut_and_nothing_is_lost():
    normalised = normalise_text("qz9" * 80_000, "nltk")
    assert normalised.replace(" ", "") == "qz9" * 80_000
    assert len(normalised.split()) == 3


def test_lone_surrogates_never_raise():
    assert normalise_text("bad \ud83d word", "nltk") == "bad word"
    assert normalise_text("bad \ud83d word", "light") == normalise_text("bad \ud83d word", "raw") == "bad \ufffd word"
    assert normalise_text("\ud83d\ude00", "raw") == "😀"


def test_the_list_of_stop_words_is_nltks():
    assert len(nltk_tokens._stop_words()) == 198
    assert {"the", "not", "wouldn't", "yourselves"} <= nltk_tokens._stop_words()


def test_special_characters_and_marks_are_those_of_unicode():
    special, mark = regex.compile(nltk_tokens.SPECIAL, regex.V1), regex.compile(nltk_tokens.MARK)
    for character in map(chr, range(sys.maxunicode + 1)):
        category = unicodedata.category(character)
        if category != "Cn":  # the library may know of a later Unicode than this Python
            is_joiner = character in "\u200c\u200d"
            assert bool(mark.match(character)) == (category[0] == "M" or is_joiner), hex(ord(character))
            assert bool(special.match(character)) == (category[0] in "PSC" and not is_joiner), hex(ord(character))


def test_unassigned_code_points_are_letters_but_symbols_among_the_pictographs():
    assert nltk_tokens.strip_special("a\U000e0fff\ufdd0b\U0001fafe") == "a\U000e0fff\ufdd0b"


def test_the_libraries_that_decide_are_part_of_the_identity():
    assert normalisation_identity("nltk") == {
        "text": "nltk",
        "text_version": 2,
        "nltk": version("nltk"),
        "regex": version("regex"),
    }
    assert normalisation_identity("raw") == {"text": "raw", "text_version": 1}


# The other normalisations


def test_raw_changes_nothing():
    batch = battles((["A  b\r\n"], ["* c\x00"], [None]))
    normalised, counts = normalise_batch(batch, "raw")
    assert normalised.equals(batch, check_metadata=True)
    assert counts == TextCounts(turns=2, bytes_in=10, bytes_out=10)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("cafe\u0301", "café"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("  indented(x)\n    more   spaces  \n", "  indented(x)\n    more spaces"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("\n\n a\u00a0b\u3000c", " a b c"),
        ("a\tb", "a\tb"),
        ("nul\x00 bell\x07 soft\u00adhyphen \ufeffmark", "nul bell softhyphen mark"),
        ("**Bold** — “it’s” 👨‍👩‍👧", "**Bold** — “it’s” 👨‍👩‍👧"),
    ],
)
def test_light_tidies_and_keeps_the_words(before, after):
    assert normalise_text(before, "light") == after


def test_an_unknown_normalisation_names_the_known_ones():
    for call in (
        lambda: normalise_text("a", "stem"),
        lambda: normalise_batch(battles(), "stem"),
        lambda: normalise_stream([], "stem"),
    ):
        with pytest.raises(InputError, match="no text normalisation 'stem'") as caught:
            call()
        assert caught.value.hint == "Choose one of nltk, raw, light."


def test_a_period_after_a_lone_letter_does_not_depend_on_what_is_tokenised_with_it():
    for chunk in ("s.", "(t.", "d.)", "a.", "them."):
        alone, first, last = [nltk_tokens.tokenize_chunks(chunks) for chunks in ([chunk], [chunk, "x"], ["x", chunk])]
        assert alone[0] == first[0] == last[1]


# Properties


@no_deadline
@given(ANY_TEXT)
def test_nltk_never_raises_and_leaves_no_special_character(anything):
    normalised = normalise_text(anything, "nltk")
    for token in normalised.split(" ") if normalised else []:
        assert regex.search(rf"[^{nltk_tokens.SPECIAL}{nltk_tokens.MARK}]", token, regex.V1)
        without_numbers = regex.sub(r"(?<=\p{Nd}).(?=\p{Nd})", "", token)
        assert not regex.search(nltk_tokens.SPECIAL, without_numbers, regex.V1)
    assert normalised == " ".join(normalised.split())
    normalised.encode("utf-8")


@no_deadline
@given(ANY_TEXT, ANY_TEXT)
def test_the_result_of_a_word_does_not_depend_on_its_neighbours_or_on_the_cache(left, right):
    left, right = replace_surrogates(left), replace_surrogates(right)
    alone = [normalise_text(left), normalise_text(right)]
    nltk_tokens._cache.clear()
    assert normalise_text(f"{left} {right}") == " ".join(filter(None, alone))


@no_deadline
@given(ANY_TEXT)
def test_raw_and_light_are_idempotent(anything):
    for name in ("raw", "light"):
        once = normalise_text(anything, name)
        assert normalise_text(once, name) == once


def test_nltk_is_idempotent_where_no_new_stop_word_or_plural_appears_and_only_there():
    once = normalise_text("Quick brown foxes; 3.14 naïve words, 你好")
    assert normalise_text(once) == once
    assert normalise_text("it's") == "s"
    assert normalise_text("s") == ""


@no_deadline
@given(st.lists(st.tuples(TURNS, TURNS, TURNS), max_size=4), st.sampled_from(sorted(NORMALISATIONS)))
def test_rows_turns_and_nulls_keep_their_places(rows, name):
    batch = battles(*rows)
    normalised, counts = normalise_batch(batch, name)
    normalised.validate(full=True)
    assert normalised.schema == batch.schema
    expected = [[[None if t is None else normalise_text(t, name) for t in turns] for turns in row] for row in rows]
    assert [[row[column] for column in TEXT_FIELDS] for row in normalised.to_pylist()] == expected
    assert counts.turns == sum(turn is not None for row in rows for turns in row for turn in turns)


# Batches


def test_other_columns_and_metadata_pass_through():
    batch = battles((["Dogs"], ["Cats"], ["Mice"]), metadata={b"origin": b"somewhere"})
    normalised, _ = normalise_batch(batch, "nltk")
    assert normalised.to_pylist() == [
        {"id": "0", "prompt": ["dog"], "response_a": ["cat"], "response_b": ["mouse"], "label": 2}
    ]
    assert normalised.schema.equals(batch.schema, check_metadata=True)


def test_empty_lists_null_lists_and_slices_are_normalised():
    batch = battles(
        (["gone"], ["gone"], ["gone"]),
        ([], None, ["Dogs", None, "Cats"]),
        (None, [], [None]),
        (["Foxes"], ["Birds"], ["Trees"]),
    ).slice(1, 3)
    normalised, counts = normalise_batch(batch, "nltk")
    normalised.validate(full=True)
    assert normalised.column("prompt").to_pylist() == [[], None, ["fox"]]
    assert normalised.column("response_a").to_pylist() == [None, [], ["bird"]]
    assert normalised.column("response_b").to_pylist() == [["dog", None, "cat"], [None], ["tree"]]
    assert counts.turns == 5


def test_large_lists_keep_their_type():
    lists = pa.large_list(pa.large_string())
    columns = {name: pa.array([["Dogs"], None], type=lists) for name in TEXT_FIELDS}
    normalised, _ = normalise_batch(pa.RecordBatch.from_pydict(columns), "nltk")
    assert normalised.column("prompt").type == lists
    assert normalised.column("prompt").to_pylist() == [["dog"], None]


def test_emptied_turns_and_answers_are_counted():
    batch = battles(
        (["???"], ["{}", "words"], ["{}", "=>", None]),
        (["fine"], ["", " \n"], []),
        (["fine"], ["The"], ["fine"]),
    )
    _, counts = normalise_batch(batch, "nltk")
    assert counts == TextCounts(turns=11, emptied=5, emptied_answers=2, bytes_in=31, bytes_out=16)


def test_counts_add_up():
    assert TextCounts(1, 2, 3, 4, 5) + TextCounts(10, 20, 30, 40, 50) == TextCounts(11, 22, 33, 44, 55)


def test_a_missing_column_is_named():
    batch = battles((["a"], ["b"], ["c"])).drop_columns(["response_b"])
    with pytest.raises(InputError, match="no column response_b"):
        normalise_batch(batch, "nltk")
    with pytest.raises(InputError, match="no column response_b"):
        list(normalise_stream([batch, batch], "nltk", workers=2))


# The cache


def test_the_cache_of_chunks_is_bounded_and_changes_nothing(monkeypatch):
    texts = [f"words{n} dogs{n}. the cats" for n in range(200)]
    nltk_tokens._cache.clear()
    expected = nltk_tokens.normalise_nltk(texts)
    monkeypatch.setattr(nltk_tokens, "_MAX_CACHED_CHUNKS", 10)
    monkeypatch.setattr(nltk_tokens, "_MAX_BLOCK_CHARACTERS", 100)
    nltk_tokens._cache.clear()
    assert nltk_tokens.normalise_nltk(texts) == expected
    assert len(nltk_tokens._cache) < 40


def test_long_chunks_are_not_cached():
    nltk_tokens._cache.clear()
    assert normalise_text("short " + "x" * 1000 + ".") == "short " + "x" * 1000
    assert list(nltk_tokens._cache) == ["short"]


# NLTK without the rest of NLTK


def run_python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, **options)


def test_normalising_text_imports_nothing_heavy():
    done = run_python(
        "import sys; from prefcli.text import normalise_text; assert normalise_text('The dogs.') == 'dog';"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    assert done.returncode == 0, done.stderr
    heavy = {"nltk", "scipy", "sklearn", "pandas", "torch", "transformers", "multiprocessing"}
    assert not heavy & set(json.loads(done.stdout.replace("'", '"')))


@pytest.mark.slow
def test_the_tokenizer_alone_gives_the_tokens_of_the_plain_import():
    done = run_python(COMPARE_IMPORTS)
    assert done.returncode == 0, done.stderr


COMPARE_IMPORTS = """
import json, sys
from prefcli.text import nltk_tokens

with open("tests/data/nltk_tokens.json", encoding="utf-8") as file:
    chunks = sorted({chunk for entry in json.load(file)["texts"] for chunk in entry["text"].split()})
alone = nltk_tokens._tokenizer_alone()
assert alone is not None and "nltk" not in sys.modules
tokens = nltk_tokens.tokenize_chunks(chunks)
plain = nltk_tokens._tokenizer_by_import()
assert type(plain) is not type(alone) and sys.modules["nltk"].__version__
assert nltk_tokens._tokenizer_alone() is None, "an imported NLTK is left alone"
nltk_tokens._tokenizer.cache_clear()
assert nltk_tokens.tokenize_chunks(chunks) == tokens
"""


def test_the_tokenizer_alone_is_not_used_where_nltk_cannot_be_located(monkeypatch):
    monkeypatch.setattr(nltk_tokens.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.delitem(sys.modules, "nltk")
    assert nltk_tokens._tokenizer_alone() is None
    assert "nltk" not in sys.modules


# Several processes


@pytest.mark.slow
def test_two_processes_give_what_one_gives_in_order():
    batches = many_batches(12)
    alone, together = normalised_rows(batches, workers=1), normalised_rows(batches, workers=2)
    assert alone == together
    assert [row["prompt"][0] for row in alone[0][::20]] == [f"question {n} 0" for n in range(12)]


@pytest.mark.slow
def test_a_large_batch_is_cut_and_keeps_its_rows(monkeypatch):
    monkeypatch.setattr(parallel, "_MAX_PIECE_BYTES", 1000)
    batch = pa.Table.from_batches(many_batches(5)).combine_chunks().to_batches()[0]
    pieces = [piece for piece, _ in normalise_stream([batch], "nltk", workers=1)]
    assert len(pieces) > 10
    assert pa.Table.from_batches(pieces).to_pylist() == normalised_rows(many_batches(5), workers=1)[0]
    assert normalised_rows([batch], workers=2)[0] == normalised_rows([batch], workers=1)[0]


def test_one_small_batch_starts_no_process(monkeypatch):
    monkeypatch.setattr(parallel.subprocess, "Popen", lambda *_, **__: pytest.fail("started a process"))
    assert len(normalised_rows(many_batches(1), workers=8)[0]) == 20
    assert normalised_rows([], workers=8) == ([], TextCounts())
    assert len(normalised_rows(many_batches(3), workers=1)[0]) == 60
    assert len(list(normalise_stream(many_batches(3), "raw", workers=8))) == 3


@pytest.mark.slow
def test_batches_are_read_only_as_far_ahead_as_there_is_work():
    read = 0

    def source():
        nonlocal read
        for batch in many_batches(30, rows=1):
            read += 1
            yield batch

    for done, _ in enumerate(normalise_stream(source(), "nltk", workers=2), start=1):
        assert read <= done + 2 * 2
    assert read == done == 30


def test_zero_workers_is_an_input_error():
    with pytest.raises(InputError, match="by 0 workers"):
        normalise_stream([], "nltk", workers=0)


@pytest.mark.slow
def test_an_error_of_the_reader_reaches_the_caller_and_ends_the_processes(monkeypatch):
    started = spy_on_processes(monkeypatch)

    def source():
        yield from many_batches(6)
        raise InputError("row 7 is broken")

    with pytest.raises(InputError, match="row 7 is broken"):
        list(normalise_stream(source(), "nltk", workers=2))
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


@pytest.mark.slow
def test_leaving_early_ends_the_processes(monkeypatch):
    started = spy_on_processes(monkeypatch)
    stream = normalise_stream(many_batches(20), "nltk", workers=2)
    next(stream)
    stream.close()
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


def test_a_process_that_dies_is_reported(monkeypatch):
    monkeypatch.setattr(parallel, "_WORKER", "import os; os._exit(3)  # {path!r} {name!r}")
    with pytest.raises(PrefcliError, match=r"ended unexpectedly \(exit code 3\)"):
        list(normalise_stream(many_batches(4), "nltk", workers=2))


def test_a_process_that_fails_says_why():
    with pytest.raises(PrefcliError, match="no text normalisation 'stem'"):
        list(parallel._normalise_stream(many_batches(2), "stem", workers=2))


def spy_on_processes(monkeypatch) -> list[subprocess.Popen]:
    started: list[subprocess.Popen] = []
    real = subprocess.Popen

    def popen(*arguments, **options):
        started.append(real(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(parallel.subprocess, "Popen", popen)
    return started


#: A program that normalises battles without end and prints the ids of the processes it started.
ENDLESS = """
import itertools, subprocess, sys
sys.path.insert(0, "tests")
from prefcli.text import parallel
from test_text import many_batches

class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        print(self.pid, flush=True)

parallel.subprocess.Popen = Popen
for _ in parallel.normalise_stream(itertools.cycle(many_batches(4)), "nltk", workers=2):
    pass
"""


@pytest.mark.slow
@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_survives_its_parent(number):
    # The program has no "if __name__ == '__main__'": workers do not import the caller's main module.
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        time.sleep(0.5)
        parent.send_signal(number)
        parent.wait(timeout=10)
        errors = parent.stderr.read()
    deadline = time.monotonic() + 10
    while any(is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(worker) for worker in workers)
    assert errors.count("Traceback") == (1 if number == signal.SIGINT else 0), errors


def is_running(pid: int) -> bool:
    """Alive and no zombie (whoever inherits an orphan may reap it late)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
