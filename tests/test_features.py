"""The architecture `features`: what is measured of battles, what is trained on it, and what is saved in a folder.

Statistics are compared with a plain Python version of each, one text at a time.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import languages

from prefcli import metrics, readers
from prefcli.battles import make_batch
from prefcli.data import synthetic
from prefcli.data.splits import split_folds
from prefcli.errors import ModelError
from prefcli.models import features as models
from prefcli.models.features import BOOSTER, COLUMNS, MANIFEST, WEIGHTS, FeaturesModel, names, statistics, textbytes
from prefcli.models.features import booster as boosting
from prefcli.models.features import words as word_model
from prefcli.models.features.booster import NETWORK_ROUNDS, WORD_ROUNDS, BoosterSettings, FitProgress
from prefcli.models.features.model import INNER_FOLDS, table
from prefcli.models.features.names import ANSWER_STATISTICS, PAIR_STATISTICS, PHRASES, TEXT_STATISTICS
from prefcli.models.features.statistics import BUCKETS, Features
from prefcli.outcomes import SWAPPED
from prefcli.training.fit_features import FeaturesFitter

TURNS = pa.list_(pa.string())
Turns = list[str | None]
Battle = tuple[Turns, Turns, Turns]

ODD = (
    "", " ", "\n", "\n\n\n", "\u0301", "\u200d", "👍🏽👨\u200d👩\u200d👧", "你好，世界。", "مرحبا، عالم",
    "हिन्दी ภาษาไทย",
    "nul\x00 bell\x07 del\x7f\x85", "```", "**", "[](", "://", "I'm sorry, but I can't.", "don’t “quote”", "a\r\nb",
    "1. one\n2. two", "x" * 2000, "word " * 300, "😀" * 300, "Sure! Here is\n\n# Heading\n\n* item\n  - item\n",
)  # fmt: skip
some_text = st.one_of(
    st.none(),
    st.text(max_size=30),
    st.sampled_from(ODD),
    st.lists(st.sampled_from((*synthetic.LIKED, *synthetic.DISLIKED, "The", "sorry", "\n", "-")), max_size=40).map(
        " ".join
    ),
)
some_turns = st.one_of(st.lists(some_text, max_size=3), st.lists(some_text, min_size=20, max_size=30))
some_battle = st.one_of(
    st.tuples(some_turns, some_turns, some_turns),
    st.tuples(some_turns, some_turns).map(lambda pair: (pair[0], pair[1], pair[1])),
)
some_battles = st.lists(some_battle, min_size=1, max_size=6)

#: A machine that is busy with other things is not a failure.
unhurried = settings(deadline=None, max_examples=40)


def as_batch(rows: Sequence[Battle]) -> pa.RecordBatch:
    columns = {
        name: pa.array([row[i] for row in rows], TURNS) for i, name in enumerate(("prompt", "response_a", "response_b"))
    }
    return make_batch({"id": pa.array([str(i) for i in range(len(rows))], pa.string()), **columns})


def swapped_rows(rows: Sequence[Battle]) -> list[Battle]:
    return [(prompt, b, a) for prompt, a, b in rows]


def swapped(battles: Features) -> Features:
    """The features of the same battles with A and B swapped."""
    return Features(battles.prompt, battles.answers[:, ::-1], battles.pair, -battles.words)


def same(one: Features, other: Features) -> None:
    """Equal to the bit, or the first difference."""
    np.testing.assert_array_equal(one.prompt, other.prompt)
    np.testing.assert_array_equal(one.answers, other.answers)
    np.testing.assert_array_equal(one.pair, other.pair)
    assert one.words.shape == other.words.shape
    assert (one.words != other.words).nnz == 0
    assert one.prompt.dtype == one.answers.dtype == one.pair.dtype == one.words.dtype == np.float32


def measured(text: str) -> dict[str, float]:
    """The statistics of a text by name, counts as counts."""
    return answer_statistics("", text, "")


def answer_statistics(prompt: str, a: str, b: str) -> dict[str, float]:
    """The statistics of answer A by name, counts as counts."""
    found = statistics.extract(as_batch([([prompt], [a], [b])]))
    values = dict(zip(ANSWER_STATISTICS, found.answers[0, 0].astype(float).tolist(), strict=True))
    return {name: math.expm1(value) if name in names.LOG_STATISTICS else value for name, value in values.items()}


def pair_statistics(a: str, b: str) -> dict[str, float]:
    found = statistics.extract(as_batch([(["?"], [a], [b])]))
    return dict(zip(PAIR_STATISTICS, found.pair[0].astype(float).tolist(), strict=True))


def few_rounds(rounds: int) -> Callable[[int], BoosterSettings]:
    return lambda battles: BoosterSettings(8, 0.2, 10, 0.3, rounds, 10)


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small boosters learn what is tested here as well."""
    monkeypatch.setattr(BoosterSettings, "for_battles", few_rounds(25))


class Trained:
    """The demo's battles, measured, and a model of them."""

    def __init__(self, folder: Path, battles: int) -> None:
        made = synthetic.write(folder, train=battles, test=300)
        batches = [batch for batch, _ in readers.open_battles(made.train).batches()]
        self.battles = Features.concatenate([statistics.extract(batch) for batch in batches])
        self.labels = np.concatenate([batch.column("label").to_numpy() for batch in batches])
        self.keys = np.concatenate([batch.column("prompt_key").to_numpy() for batch in batches])
        self.targets = np.eye(3, dtype=np.float32)[self.labels]

    def few(self, battles: int) -> tuple[Features, np.ndarray, np.ndarray]:
        rows = np.arange(battles)
        return self.battles.take(rows), self.targets[rows], self.keys[rows]

    @functools.cached_property
    def model(self) -> FeaturesModel:
        """Trained on all but the last 300 battles."""
        return models.fit(*self.few(len(self.battles) - 300), threads=1)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("demo"), 1500)


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    """A folder with a saved model."""
    trained.model.save(tmp_path / "saved")
    return tmp_path / "saved"


# Swapping the answers


@pytest.mark.slow
@unhurried
@given(some_battles)
def test_swapped_battles_have_swapped_features(rows):
    same(statistics.extract(as_batch(swapped_rows(rows))), swapped(statistics.extract(as_batch(rows))))


@pytest.mark.slow
@unhurried
@given(rows=some_battles)
def test_swapped_answers_get_swapped_probabilities_exactly(trained, rows):
    model = trained.model
    assert model.booster is not None
    original, _ = model.logits(as_batch(rows))
    other, back = model.logits(as_batch(swapped_rows(rows)), swap_average=True)
    np.testing.assert_array_equal(original[:, SWAPPED], other)
    np.testing.assert_array_equal(back, original)
    assert np.isfinite(original).all()
    np.testing.assert_allclose(np.exp(original).sum(axis=1), 1)


@pytest.mark.slow
@unhurried
@given(rows=some_battles)
def test_identical_answers_are_as_likely_to_win(trained, rows):
    probabilities = trained.model.probabilities(statistics.extract(as_batch([(p, a, a) for p, a, _ in rows])))
    np.testing.assert_array_equal(probabilities[:, 0], probabilities[:, 1])


def test_the_demos_battles_are_predicted_symmetrically_and_differently(trained):
    probabilities = trained.model.probabilities(trained.battles)
    np.testing.assert_array_equal(probabilities[:, SWAPPED], trained.model.probabilities(swapped(trained.battles)))
    assert np.abs(probabilities[:, 0] - probabilities[:, 1]).mean() > 0.1


def test_the_swapped_table_permutes_and_negates_columns(trained):
    scores = np.arange(len(trained.battles)) - 3.5
    original = dict(zip(COLUMNS, table(trained.battles, scores).T, strict=True))
    other = dict(zip(COLUMNS, table(trained.battles, scores, swapped=True).T, strict=True))
    for name in COLUMNS:
        side, _, statistic = name.partition(": ")
        partner = {"A": f"B: {statistic}", "B": f"A: {statistic}"}.get(side, name)
        expected = -original[name] if side == "A - B" else original[partner]
        np.testing.assert_array_equal(other[name], expected, err_msg=name)


# Batches


@pytest.mark.slow
@unhurried
@given(some_battles)
def test_a_battle_is_measured_alike_alone_and_in_any_company(rows):
    together = statistics.extract(as_batch(rows))
    same(together, Features.concatenate([statistics.extract(as_batch([row])) for row in rows]))
    turned = statistics.extract(as_batch(rows[::-1]))
    same(together, turned.take(np.arange(len(rows))[::-1]))


@pytest.mark.parametrize(("size", "number"), [(1, 2048), (60, 2048), (1 << 20, 1), (1 << 20, 7), (500, 3)])
def test_chunks_change_nothing(monkeypatch, size, number):
    rows: list[Battle] = [([f"question {i}"], [ODD[i % len(ODD)]], [None, "b" * i]) for i in range(40)]
    whole = statistics.extract(as_batch(rows))
    chunks: list[int] = []
    measure = statistics._measure
    monkeypatch.setattr(
        statistics, "_measure", lambda part, version: chunks.append(part.num_rows) or measure(part, version)
    )
    monkeypatch.setattr(statistics, "CHUNK_BYTES", size)
    monkeypatch.setattr(statistics, "CHUNK_BATTLES", number)
    same(statistics.extract(as_batch(rows)), whole)
    assert sum(chunks) == len(rows)
    assert len(chunks) > 1
    assert max(chunks) <= number
    same(statistics.extract(as_batch(rows).slice(5, 20)), whole.take(np.arange(5, 25)))


def test_what_is_beyond_the_longest_text_changes_nothing_but_does_not_reach_the_neighbour(monkeypatch):
    rows: list[Battle] = [(["hello"], ["ab " + "😀" * 9], ["hello there"]), (["hello"], ["hello"], ["hello"])]
    for longest in range(12, 17):
        monkeypatch.setattr(textbytes, "MAX_BYTES", longest)
        alone = Features.concatenate([statistics.extract(as_batch([row])) for row in rows])
        found = statistics.extract(as_batch(rows))
        same(found, alone)
        assert math.expm1(found.answers[0, 1, TEXT_STATISTICS.index("words")]) == pytest.approx(2)


def test_only_other_scripts_are_measured_otherwise_than_by_earlier_releases():
    as_before = (
        "",
        "Don’t — “naïve” Việt Nam, 5 m²!",
        "Ελλάδα; Привет, мир",
        "你好，世界。かー한국어",
        "😀👨\u200d👩",
        "a\u200cb",
    )
    rows: list[Battle] = [([a], [b], [a + b]) for a, b in itertools.product(as_before, repeat=2)]
    same(statistics.extract(as_batch(rows), version=2), statistics.extract(as_batch(rows), version=3))
    rows = [(["ภาษาไทย"], ["မြန်မာဘာသာ"], ["हिन्दी।"])]
    before, now = (statistics.extract(as_batch(rows), version=version) for version in statistics.VERSIONS)
    assert (before.words != now.words).nnz


def test_an_empty_batch_has_no_features_and_no_probabilities(trained):
    empty = statistics.extract(as_batch([]))
    assert len(empty) == 0
    assert empty.prompt.shape == (0, len(TEXT_STATISTICS))
    assert empty.answers.shape == (0, 2, len(ANSWER_STATISTICS))
    assert empty.pair.shape == (0, len(PAIR_STATISTICS))
    assert empty.words.shape == (0, BUCKETS)
    assert trained.model.probabilities(empty).shape == (0, 3)
    some = statistics.extract(as_batch([(["a"], ["b"], ["c"])]))
    same(Features.concatenate([empty, some, empty]), some)


def test_null_lists_and_null_turns_are_empty_texts():
    rows = [(None, [], [None]), ([""], [""], [""]), ([None, "a b", None], ["x"], ["y"])]
    found = statistics.extract(as_batch(rows))
    assert np.isfinite(found.prompt).all()
    turns, nulls, empty = (TEXT_STATISTICS.index(name) for name in ("turns", "null turns", "empty"))
    np.testing.assert_allclose(np.expm1(found.prompt[:, turns]), [0, 1, 3], rtol=1e-6)
    assert found.prompt[:, nulls].tolist() == [0, 0, 2]
    assert found.prompt[:, empty].tolist() == [1, 1, 0]
    assert found.answers[:, :, nulls].tolist() == [[0, 1], [0, 0], [0, 0]]
    assert found.answers[:, :, empty].tolist() == [[1, 1], [1, 1], [0, 0]]


# Statistics of a text


def slow_words(text: str) -> list[str]:
    """Words of ASCII text as they are counted: case and which digits do not matter."""
    return re.findall(r"[a-z0]+", re.sub(r"[0-9]", "0", text.lower()))


def slow_statistics(text: str) -> dict[str, float]:
    """Of ASCII text; independent of how :mod:`prefcli.models.features.statistics` counts."""
    words = slow_words(text)
    raw = re.findall(r"[A-Za-z0-9]+", text)
    lines = [line for line in text.split("\n") if line]
    spelt = [re.sub(r"[0-9]", "0", line.lower()) for line in lines]
    stripped = [re.sub(r"^[ \t]{0,8}", "", line) for line in lines]
    paragraphs = [part for part in re.split(r"\n\n+", text) if part.strip("\n")]
    solid = [character for character in text if character > " "]
    first, last = (solid[0], solid[-1]) if solid else (" ", " ")
    runs = {n: [tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for n in (1, 2, 3, 4)}
    bullets = sum(bool(re.match(r"[-*+] ", line)) for line in stripped)
    numbered = sum(bool(re.match(r"[0-9]{1,2}[.)] ", line)) for line in stripped)
    sentences = len(re.findall(r"""[.!?](?=[ \n"')*]|$)""", text))
    letters = sum(c.isalpha() for c in text)
    capitals = sum(c.isupper() for c in text)

    def share(part: float, whole: float) -> float:
        return part / max(whole, 1)

    found: dict[str, float] = {
        "characters": len(text),
        "words": len(words),
        "distinct words": len(set(words)),
        "lines": len(lines),
        "paragraphs": len(paragraphs),
        "sentences": sentences,
        "list items": bullets,
        "numbered items": numbered,
        "headings": sum(bool(re.match(r"#[# ]", line)) for line in stripped),
        "table rows": sum(line.startswith("|") for line in stripped),
        "indented lines": sum(line[0] in " \t" for line in lines),
        "bold": len(re.findall(r"(?=\*\*)", text)) // 2,
        "code fences": len(re.findall(r"(?=```)", text)),
        "code fence left open": len(re.findall(r"(?=```)", text)) % 2,
        "links": text.count("://") + text.count("]("),
        "capitals": capitals,
        "digits": sum(c.isdigit() for c in text),
        "commas": text.count(","),
        "question marks": text.count("?"),
        "brackets": sum(text.count(c) for c in "([{"),
        "backticks": text.count("`"),
        "longest line": max(map(len, lines), default=0),
        "words per sentence": share(len(words), sentences),
        "words per paragraph": share(len(words), len(paragraphs)),
        "share of capitals": share(capitals, letters),
        "share of digits": share(sum(c.isdigit() for c in text), len(text)),
        "share of spaces": share(text.count(" ") + text.count("\t"), len(text)),
        "share of line breaks": share(text.count("\n"), len(text)),
        "share of punctuation": share(sum(33 <= ord(c) < 127 and not c.isalnum() for c in text), len(text)),
        "share beyond ASCII": 0,
        "word length": share(sum(map(len, words)), len(words)),
        "share of long words": share(sum(len(word) >= 6 for word in words), len(words)),
        "share of short words": share(sum(len(word) <= 3 for word in words), len(words)),
        "share of capitalised words": share(sum(word[0].isupper() for word in raw), len(words)),
        "share of words in capitals": share(
            sum(len(word) > 1 and word[0].isupper() and word[-1].isupper() for word in raw), len(words)
        ),
        "distinct words per word": share(len(set(words)), len(words)),
        "distinct pairs per pair": share(len(set(runs[2])), len(runs[2])),
        "distinct triples per triple": share(len(set(runs[3])), len(runs[3])),
        "most frequent word": share(max(Counter(words).values(), default=0), len(words)),
        "distinct lines per line": share(len(set(spelt)), len(lines)),
        "share of list lines": share(bullets + numbered, len(lines)),
        "empty": not text,
        "begins with a capital": first.isupper(),
        "begins with a digit": first.isdigit(),
        "begins with markup": first in "#*`|-<[{_>",
        "ends as a sentence": last in '.!?"',
        "ends as a question": last == "?",
        "ends with a letter or digit": last.isalnum(),
        "ends with a colon or comma": last in ":,;-",
        "ends with markup": last in "`|*>]})#",
    }
    openings = set()
    for kind, phrases in PHRASES.items():
        spelled = {tuple(slow_words(phrase)) for phrase in phrases}
        hits = [i for n in runs for i, run in enumerate(runs[n]) if run in spelled]
        found[kind] = len(hits)
        if any(place < 3 for place in hits):
            openings.add(kind)
    found["begins eagerly"] = "eager openings" in openings
    found["begins with a refusal"] = bool(openings & {"refusals", "apologies", "self mentions"})
    found["share of English words"] = share(found["English words"], len(words))
    found["share of first person"] = share(found["first person"], len(words))
    return found


markdown = st.lists(
    st.sampled_from(
        (
            "the", "The", "NASA", "I", "I'm", "sorry", "I cannot", "as an AI", "of course", "don't", "word", "longer",
            "1999", "2024", "3.14", "a", "b", "c", " ", " ", " ", "\n", "\n", "\n\n", "\t", ". ", "! ", "?", ", ", ":",
            "\n- ", "\n  * ", "\n1. ", "\n12) ", "\n## ", "\n#tag", "\n| a | b |", "**", "`", "```", "\n```\n",
            "http://x.y", "[a](b)", "(", "{", '"', "'", "_", "-",
        )
    ),
    max_size=40,
).map("".join)  # fmt: skip


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(markdown)
def test_statistics_are_those_of_a_slow_program(text):
    found = measured(text)
    for name, value in slow_statistics(text).items():
        assert found[name] == pytest.approx(float(value), rel=1e-5, abs=1e-6), name


def test_statistics_of_a_known_answer():
    """Among them are "1." as a sentence, and "I'm" as "i" and "i'm"."""
    text = (
        "# Title\n\nI'm sorry, but I cannot help. Really!\n\n\n"
        "- one **bold** item\n- two\n  * three\n1. first\n10) tenth\n\n```py\nx = 12\n```\n| a | b |\nSee [this](http://x.y)"
    )
    found = measured(text)
    expected = {
        "lines": 12, "paragraphs": 4, "sentences": 3, "headings": 1, "list items": 3, "numbered items": 2,
        "table rows": 1, "indented lines": 1, "bold": 1, "code fences": 2, "code fence left open": 0, "links": 2,
        "digits": 5, "words": 28, "refusals": 2, "apologies": 1, "first person": 3, "turns": 1,
        "begins with markup": 1, "begins with a refusal": 0, "longest line": 37, "ends with markup": 1,
    }  # fmt: skip
    assert {name: round(found[name], 4) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("", "paragraphs", 0),
        ("\n\n\n", "paragraphs", 0),
        ("\na\n", "paragraphs", 1),
        ("a\n\n\n\nb\nc", "paragraphs", 2),
        ("a\n\nb", "lines", 2),
        ("Line 1\nline 2\nother", "distinct lines per line", 2 / 3),
        ("a\na\x00", "distinct lines per line", 1),
        ("cafe\u0301 中文 😀", "characters", 10),
        ("ab中", "share of Han", 1 / 3),
        ("Ж中", "share of Cyrillic", 1 / 2),
        ("한a", "share of Hangul", 1 / 2),
        ("éa", "share of accented Latin", 1 / 2),
        ("😀", "share of emoji", 1),
        ("かa", "share of kana", 1 / 2),
        ("אa", "share of Hebrew", 1 / 2),
        ("مa", "share of Arabic", 1 / 2),
        ("ก", "share of South Asian", 1),
        ("你好，世界。", "words", 4),
        ("• one\n• two", "list items", 2),
        ("123. no item", "numbered items", 0),
        ("#hashtag", "headings", 0),
        ("v1.5 is e.g.", "sentences", 1),
        ("Well, I apologize.", "begins with a refusal", 1),
        ("One two three sorry", "begins with a refusal", 0),
        ("SORRY", "apologies", 1),
        ("I don’t have access", "refusals", 1),
        ("I cannot. I can't. I won't.", "refusals", 3),
        ("Sure! Here is", "begins eagerly", 1),
        ("  \n- item", "begins with markup", 1),
        ("done. \n", "ends as a sentence", 1),
        ("really?", "ends as a question", 1),
        ("世界", "ends with a letter or digit", 1),
        ("as follows:", "ends with a colon or comma", 1),
        ("```\ncut", "code fence left open", 1),
    ],
)
def test_a_statistic_of_a_text(text, name, value):
    assert measured(text)[name] == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_no_phrase_is_of_two_kinds():
    """Each spelling is looked up once, so it could count for one kind only."""
    spelled = [tuple(slow_words(phrase)) for phrases in PHRASES.values() for phrase in phrases]
    assert [phrase for phrase, times in Counter(spelled).items() if times > 1] == []


def test_names_are_unique():
    for columns in (TEXT_STATISTICS, ANSWER_STATISTICS, PAIR_STATISTICS, COLUMNS):
        assert len(set(columns)) == len(columns)


# Statistics of two texts


def slow_overlap(one: str, other: str, kinds: Callable[[str], set[Any]]) -> tuple[float, float, float]:
    """Share of the first one's in the other, of the other's in the first, and Jaccard."""
    a, b = kinds(one), kinds(other)
    both = len(a & b)
    return both / max(len(a), 1), both / max(len(b), 1), both / max(len(a | b), 1)


def pairs_of(text: str) -> set[Any]:
    words = slow_words(text)
    return set(itertools.pairwise(words))


def long_words_of(text: str) -> set[Any]:
    return {word for word in slow_words(text) if len(word) >= 6}


def words_of(text: str) -> set[Any]:
    return set(slow_words(text))


def cosine(a: Counter[Any], b: Counter[Any]) -> float:
    product = sum(a[key] * b[key] for key in a)
    return product / max(math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values())), 1)


def bytes_of(text: str) -> Counter[Any]:
    return Counter(text.replace(" ", "").replace("\n", "").encode())


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(markdown, markdown, markdown)
def test_overlaps_are_those_of_a_slow_program(prompt, a, b):
    answer, pair = answer_statistics(prompt, a, b), pair_statistics(a, b)
    shared, shared_pairs, shared_long = (slow_overlap(prompt, a, of) for of in (words_of, pairs_of, long_words_of))
    expected = {
        "prompt's words in answer": shared[0],
        "answer's words in prompt": shared[1],
        "words shared with prompt": shared[2],
        "prompt's long words in answer": shared_long[0],
        "answer's long words in prompt": shared_long[1],
        "prompt's pairs in answer": shared_pairs[0],
        "answer's pairs in prompt": shared_pairs[1],
        "bytes like prompt's": cosine(bytes_of(prompt), bytes_of(a)),
    }
    for name, value in expected.items():
        assert answer[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    one, other = slow_words(a), slow_words(b)
    alike = [x == y for x, y in zip(one[:5], other[:5], strict=False)]
    expected = {
        "words shared": slow_overlap(a, b, words_of)[2],
        "word pairs shared": slow_overlap(a, b, pairs_of)[2],
        "long words shared": slow_overlap(a, b, long_words_of)[2],
        "smaller answer's words in the other": max(slow_overlap(a, b, words_of)[:2]),
        "word cosine": cosine(Counter(one), Counter(other)),
        "bytes alike": cosine(bytes_of(a), bytes_of(b)),
        "answers identical": a == b,
        "same first words": (alike + [False]).index(False),
        "length apart": abs(math.log1p(len(a) + 2) - math.log1p(len(b) + 2)),
    }
    for name, value in expected.items():
        assert pair[name] == pytest.approx(float(value), rel=1e-5, abs=1e-6), name


def test_overlap_of_known_answers():
    found = pair_statistics("Red green blue red", "red GREEN yellow")
    assert found["words shared"] == pytest.approx(2 / 4)
    assert found["word pairs shared"] == pytest.approx(1 / 4)
    assert found["smaller answer's words in the other"] == pytest.approx(2 / 3)
    assert found["word cosine"] == pytest.approx((2 + 1) / math.sqrt(6 * 3))
    assert found["same first words"] == 2
    assert found["answers identical"] == 0
    assert pair_statistics("same thing", "same thing")["answers identical"] == 1
    assert answer_statistics("what is 中文", "中文 中文", "")["letters beyond ASCII unlike prompt's"] == pytest.approx(
        4 / 15 - 2 / 16
    )


@unhurried
@given(markdown, markdown)
def test_words_are_weighed_by_how_much_more_often_one_answer_has_them(a, b):
    def weights(text: str) -> Counter[Any]:
        words = slow_words(text)
        return Counter(words) + Counter(itertools.pairwise(words))

    one, other = weights(a), weights(b)
    differences = [math.log1p(one[key]) - math.log1p(other[key]) for key in one.keys() | other.keys()]
    found = statistics.extract(as_batch([([], [a], [b])])).words
    assert sorted(found.data.tolist()) == pytest.approx(sorted(filter(None, differences)), abs=3e-4)


def test_words_of_a_bucket_do_not_depend_on_where_they_stand():
    rows: list[Battle] = [([], ["alpha"], [""]), ([], [""], ["before\n\n (ALPHA)"]), ([], ["alpha 1"], ["Alpha 2"])]
    words = statistics.extract(as_batch(rows)).words
    (bucket,) = words[0].indices
    assert words[0, bucket] == pytest.approx(math.log(2), abs=2e-4)
    assert words[1, bucket] == -words[0, bucket]
    assert words[2].nnz == 0


# Learning


def test_the_demo_is_predicted_far_better_than_by_the_prior(trained):
    held = slice(len(trained.battles) - 300, None)
    labels = trained.labels[held]
    probabilities = trained.model.probabilities(trained.battles.take(np.arange(len(trained.battles))[held]))
    assert metrics.log_loss(probabilities, labels) < metrics.prior_log_loss(labels) - 0.1


def test_a_preference_for_some_words_is_learnt_without_spaces_between_words():
    """The small version of benchmarks/languages.py."""
    votes = languages.make_votes(1200, seed=2)
    english, *others = (languages.held_out_loss(votes, language, 300) for language in ("English", "Thai", "Burmese"))
    assert english < metrics.prior_log_loss(votes.labels[-300:]) - 0.15
    assert others == pytest.approx([english] * 2, abs=0.06)


def test_importances_name_the_word_score_first_and_sum_to_one(trained):
    importances = trained.model.importances()
    assert importances[0][0] == names.WORD_SCORE
    assert importances[0][1] > 0.3
    assert sum(share for _, share in importances) == pytest.approx(1)
    shares = [share for _, share in importances]
    assert shares == sorted(shares, reverse=True)
    known = {*ANSWER_STATISTICS, *PAIR_STATISTICS, names.WORD_SCORE, *(c for c in COLUMNS if c.startswith("prompt"))}
    assert {name for name, _ in importances} <= known


def test_liked_words_weigh_more_than_disliked_ones(trained):
    def score(word: str) -> float:
        found = statistics.extract(as_batch([([], [word], [""])])).words
        return float(word_model.word_scores(found, trained.model.word_weights)[0])

    assert min(map(score, synthetic.LIKED)) > max(map(score, synthetic.DISLIKED))


def test_the_word_scores_of_training_battles_come_from_models_that_did_not_see_their_prompts(trained):
    """Random votes on answers with a word of their own each, which a model could only memorise."""
    random = np.random.default_rng(0)
    rows: list[Battle] = [([f"q{i}"], [f"{chr(97 + i % 26)}x{'y' * (i // 26)}"], ["other"]) for i in range(200)]
    margins = random.choice([-1.0, 1.0], 200)
    groups = np.arange(200)
    folds = split_folds(groups, (margins > 0).astype(np.int64), 4, 0)
    battles = statistics.extract(as_batch(rows))
    weights, scores = word_model.cross_fit(
        battles, lambda rows: margins[rows], folds, FitProgress(200, 4, lambda *_: None)
    )
    assert np.corrcoef(word_model.word_scores(battles.words, weights), margins)[0, 1] > 0.9
    assert abs(np.corrcoef(scores, margins)[0, 1]) < 0.4


def test_ridge_regressions_of_parts_agree_with_dense_solutions(trained, monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK_ENTRIES", 1000)  # of a few battles
    battles, targets, _ = trained.few(120)
    is_inside = np.ones((120, 2), dtype=bool)
    is_inside[::3, 0] = False
    margins = np.stack([targets[:, 0] - targets[:, 1], targets[:, 2]], axis=1)[:, None] * is_inside[:, :, None]
    found = word_model.ridge(battles, margins, is_inside)
    for part, inside in enumerate(is_inside.T):
        words = battles.words[inside]
        used = np.unique(words.indices)
        dense = words[:, used].toarray().astype(np.float64)
        dense /= np.sqrt(1 + (dense**2).sum(axis=1, keepdims=True))
        rarity = np.sqrt(1 + np.log((len(dense) + 1) / (1 + (words[:, used] != 0).sum(axis=0).A1)))
        scaled = dense * rarity
        kernel = scaled @ scaled.T + word_model.RIDGE_PENALTY * np.eye(len(dense))
        solved = rarity[:, None] * (scaled.T @ np.linalg.solve(kernel, margins[inside, part]))
        np.testing.assert_allclose(found[used, part], solved, atol=1e-5)
        assert not np.delete(found[:, part], used, axis=0).any()


def test_progress_says_which_fit_is_on_and_goes_up_to_its_end(trained, monkeypatch):
    monkeypatch.setattr(BoosterSettings, "for_battles", few_rounds(3))
    reported: list[tuple[str, float, float]] = []
    models.fit(*trained.few(100), threads=1, progress=lambda *what: reported.append(what))
    names, done, _ = zip(*reported, strict=True)
    choices = [f"choosing rounds {number}/{INNER_FOLDS}" for number in range(1, INNER_FOLDS + 1)]
    assert list(dict.fromkeys(names)) == ["words", *choices, "final fit", "networks"]
    assert list(done) == sorted(done)
    assert reported[-1][1] == pytest.approx(reported[-1][2])


def test_the_expected_rounds_follow_what_the_inner_folds_needed():
    """Of 4 folds of 1,000 battles: 5 steps of words, 4 choices with 10 rounds in vain, the final fit, of 4/3, and 4
    networks."""
    progress = FitProgress(1000, 4, lambda *_: None)
    words, networks, patience = 5 * WORD_ROUNDS, 4 * NETWORK_ROUNDS, 10
    assert progress.expected == pytest.approx(
        words + 4 * 25 + 25 * 4 / 3 + networks
    )  # no more than the largest number of rounds, which is 25 here
    progress.words(5)
    losses = [1.0, 0.9, 0.8, 0.7, *[0.75] * patience]  # best at 4
    report = progress.choosing()
    report(SimpleNamespace(iteration=0, evaluation_result_list=[("", "", losses[0], False)]))
    progress.chosen(losses)
    assert progress.expected == pytest.approx(words + len(losses) + 3 * (4 + patience) + 4 * 4 / 3 + networks)


# Soft labels


def test_certain_soft_labels_are_labels(trained):
    from prefcli.data.selection import no_soft_labels, training_targets

    battles, targets, keys = trained.few(200)
    labels = trained.labels[:200].astype(np.int64)
    hard = training_targets(labels, no_soft_labels(200))
    soft = training_targets(np.full(200, -1), targets)
    one, other = (models.fit(battles, t, keys, threads=1) for t in (hard, soft))
    assert boosting.to_text(one.booster) == boosting.to_text(other.booster)
    np.testing.assert_array_equal(one.word_weights, other.word_weights)


def test_a_soft_label_is_a_row_for_every_outcome_weighing_its_share():
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    targets = np.array([[0.5, 0.5, 0], [0, 0, 1], [0.25, 0.25, 0.5]], dtype=np.float32)
    soft = boosting.BoosterData(rows, targets).take(np.array([2, 0, 1]), {})
    assert soft.data.tolist() == rows[[2, 2, 2, 0, 0, 1]].tolist()
    assert list(soft.label) == [0, 1, 2, 0, 1, 2]
    assert list(soft.weight) == [0.25, 0.25, 0.5, 0.5, 0.5, 1]


def test_a_half_and_half_label_trains_as_two_rows_of_half_weight(trained):
    import lightgbm

    battles, targets, _ = trained.few(150)
    rows = table(battles, np.zeros(150))
    targets = targets.copy()
    targets[::3] = 0.5, 0.5, 0
    double = [(row, label, share) for row in range(150) for label, share in enumerate(targets[row]) if share]
    place, labels, weights = map(np.array, zip(*double, strict=True))
    by_hand = lightgbm.Dataset(rows[place], labels, weight=weights, params={"max_bin": 63, "verbosity": -1})
    parameters = few_rounds(5)(150).parameters(0, 1)
    ours = lightgbm.train(parameters, boosting.BoosterData(rows, targets).take(np.arange(150), {}), 5)
    assert ours.model_to_string() == lightgbm.train(parameters, by_hand, 5).model_to_string()


def test_an_even_soft_label_pulls_towards_neither_answer(trained):
    battles, _, keys = trained.few(300)
    model = models.fit(battles, np.tile(np.float32([0.5, 0.5, 0]), (300, 1)), keys, threads=1)
    assert not model.word_weights.any()
    assert np.abs(np.diff(model.probabilities(battles)[:, :2])).max() < 0.05


def test_battles_without_an_outcome_are_left_out(trained):
    battles, targets, keys = trained.few(200)
    some = np.arange(200) % 3 > 0
    unknown = np.where(some[:, None], targets, 0).astype(np.float32)
    one = models.fit(battles, unknown, keys, threads=1)
    other = models.fit(battles.take(np.flatnonzero(some)), targets[some], keys[some], threads=1)
    assert boosting.to_text(one.booster) == boosting.to_text(other.booster)
    np.testing.assert_array_equal(one.word_weights, other.word_weights)
    assert models.fit(battles, unknown * 0, keys).booster is None


# The same model again


@pytest.mark.slow
def test_a_seed_gives_a_model_and_another_seed_another(trained):
    few = trained.few(200)
    one, again, other = (models.fit(*few, seed=seed, threads=1) for seed in (1, 1, 2))
    assert boosting.to_text(one.booster) == boosting.to_text(again.booster)
    np.testing.assert_array_equal(one.word_weights, again.word_weights)
    assert trees_of(one) != trees_of(other)


@pytest.mark.slow
def test_the_seed_draws_the_inner_folds_and_the_boosters_samples(trained, monkeypatch):
    seeds: list[int] = []
    with_seed_0 = lambda *what: seeds.append(what[-1]) or split_folds(*what[:-1], 0)  # noqa: E731
    monkeypatch.setattr("prefcli.models.features.model.split_folds", with_seed_0)
    one, other = (models.fit(*trained.few(200), seed=seed, threads=1) for seed in (1, 2))
    assert seeds == [1, 2]
    assert trees_of(one) != trees_of(other)


def trees_of(model: FeaturesModel) -> str:
    """The booster without its parameters, among which the seed stands."""
    return boosting.to_text(model.booster).partition("\nparameters:")[0].partition("Tree=0")[2]


@pytest.mark.slow
def test_the_number_of_threads_changes_nothing(trained, monkeypatch):
    monkeypatch.setattr(BoosterSettings, "for_battles", few_rounds(4))
    few = trained.few(200)
    one, two = (models.fit(*few, threads=threads) for threads in (1, 2))
    assert boosting.to_text(one.booster) == boosting.to_text(two.booster)
    np.testing.assert_array_equal(one.word_weights, two.word_weights)
    np.testing.assert_array_equal(one.probabilities(few[0]), two.probabilities(few[0]))


def test_larger_data_get_larger_trees(monkeypatch):
    monkeypatch.undo()
    few, many = BoosterSettings.for_battles(models.SMALL_DATASET - 1), BoosterSettings.for_battles(models.SMALL_DATASET)
    assert few.num_leaves < many.num_leaves
    assert few.learning_rate < many.learning_rate


# Too little data


@pytest.mark.parametrize("label", [0, 1, 2])
def test_twenty_battles_give_the_smoothed_prior_and_no_more(trained, label):
    battles, targets, keys = trained.few(20)
    targets = np.tile(np.eye(3, dtype=np.float32)[label], (20, 1))
    model = models.fit(battles, targets, keys)
    won = [21 / 23, 1 / 23, 1 / 23] if label < 2 else [1 / 23, 1 / 23, 21 / 23]
    expected = [(won[0] + won[1]) / 2] * 2 + [won[2]]
    assert model.booster is None
    assert model.importances() == []
    np.testing.assert_allclose(model.probabilities(battles), np.tile(expected, (20, 1)))
    probabilities = model.probabilities(battles)
    np.testing.assert_array_equal(probabilities[:, 0], probabilities[:, 1])


def test_no_battles_give_equal_shares(trained):
    model = models.fit(*trained.few(0))
    np.testing.assert_allclose(model.prior, [1 / 3] * 3)


def test_a_single_prompt_gives_the_prior(trained):
    battles, targets, _ = trained.few(200)
    model = models.fit(battles, targets, np.zeros(200, dtype=np.int64))
    assert model.booster is None
    totals = targets.sum(axis=0, dtype=np.float64) + 1
    np.testing.assert_allclose(model.prior, np.array([totals[:2].mean(), totals[:2].mean(), totals[2]]) / 203)


@pytest.mark.parametrize("sizes", [(106, 1, 1, 1), (21, 70, 1, 15, 1), (60, 60, 1, 1), (3,) * 20])
def test_prompts_of_very_different_sizes_are_no_error(trained, sizes):
    battles, targets, _ = trained.few(sum(sizes))
    model = models.fit(battles, targets, np.repeat(np.arange(len(sizes)), sizes), threads=1)
    probabilities = model.probabilities(battles)
    assert np.isfinite(np.log(probabilities)).all()


@pytest.mark.parametrize("label", [0, 1, 2])
def test_training_data_with_one_outcome_only_are_no_error(trained, label):
    battles, _, keys = trained.few(300)
    model = models.fit(battles, np.tile(np.eye(3, dtype=np.float32)[label], (300, 1)), keys, threads=1)
    assert model.booster is not None
    probabilities = model.probabilities(battles)
    assert np.isfinite(np.log(probabilities)).all()
    if label == 2:
        assert probabilities[:, 2].min() > 0.9
    else:
        assert probabilities[:, 2].max() < 0.1
        assert probabilities[:, label].mean() > 0.5


# Folders


def test_a_saved_model_is_loaded_to_the_bit(trained, folder):
    loaded = models.load(folder, threads=1)
    np.testing.assert_array_equal(loaded.probabilities(trained.battles), trained.model.probabilities(trained.battles))
    np.testing.assert_array_equal(loaded.word_weights, trained.model.word_weights)
    assert loaded.importances() == trained.model.importances()
    loaded.save(folder.parent / "again")
    for name in (BOOSTER, WEIGHTS, MANIFEST):
        assert (folder.parent / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == sorted((BOOSTER, WEIGHTS, MANIFEST))


def test_a_saved_prior_is_loaded_to_the_bit(trained, tmp_path):
    model = models.fit(*trained.few(20))
    model.save(tmp_path / "prior")
    loaded = models.load(tmp_path / "prior")
    assert loaded.booster is None
    np.testing.assert_array_equal(loaded.probabilities(trained.battles), model.probabilities(trained.battles))


def refused(folder: Path, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        models.load(folder)
    assert caught.value.where == str(folder)
    assert caught.value.hint == "Train it again."
    assert "\n" not in caught.value.what


@pytest.mark.parametrize("name", [BOOSTER, WEIGHTS, MANIFEST])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, f"{name} is missing")


def test_a_missing_folder_is_an_error(tmp_path):
    refused(tmp_path / "nowhere", "features.json is missing")


@pytest.mark.parametrize("name", [BOOSTER, WEIGHTS])
def test_what_is_not_as_it_was_saved_never_reaches_a_parser(folder, name, monkeypatch):
    """LightGBM may crash on damaged text."""
    import lightgbm

    def parse(*_: Any, **__: Any) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(lightgbm, "Booster", parse)
    whole = (folder / name).read_bytes()
    for place in (0, len(whole) // 3, len(whole) - 1):
        (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(folder, f"{name} is damaged")
    for kept in (0, len(whole) // 2, len(whole) - 1):
        (folder / name).write_bytes(whole[:kept])
        refused(folder, f"{name} is damaged")
    (folder / name).write_bytes(whole)
    with pytest.raises(AssertionError, match="parsed"):
        models.load(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"{}", b'"text"', b"[" * 100_000, b"{" + b'"a":{' * 50_000],
    ids=["empty", "open", "list", "null", "bytes", "nothing in it", "text", "deep list", "deep object"],
)  # fmt: skip
def test_a_damaged_manifest_is_an_error(folder, content):
    (folder / MANIFEST).write_bytes(content)
    refused(folder, "features.json|cannot be loaded")


def test_a_truncated_manifest_is_an_error(folder):
    whole = (folder / MANIFEST).read_bytes()
    for kept in range(0, len(whole) - 2, len(whole) // 15):
        (folder / MANIFEST).write_bytes(whole[:kept])
        refused(folder, "cannot be loaded")


def changed(folder: Path, **changes: Any) -> None:
    """Change the manifest; the digests are those of the files as they are."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (BOOSTER, WEIGHTS)}
    manifest |= changes
    (folder / MANIFEST).write_text(json.dumps({k: v for k, v in manifest.items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 99}, r"another version of prefcli: its format differ \(99, here 4\)"),
        ({"features": 0}, rf"another version of prefcli: its features differ \(0, here {statistics.VERSION}\)"),
        ({"columns": list(COLUMNS[1:])}, "another version of prefcli: its columns differ"),
        ({"columns": list(COLUMNS[::-1])}, "another version of prefcli: its columns differ"),
        ({"sha256": {}}, "cannot be loaded: 'booster.txt'"),
        ({"sha256": None}, "cannot be loaded"),
        ({"sha256": "text"}, "cannot be loaded"),
        ({"boosted": ...}, "cannot be loaded: 'boosted'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder, changes, says):
    changed(folder, **changes)
    refused(folder, says)


def test_a_model_of_earlier_statistics_predicts_and_is_not_part_of_a_resumed_training(folder):
    fold: Any = SimpleNamespace(folder=folder)
    battles = as_batch([(["ภาษาไทย"], ["ภาษา ไทย"], ["ภาษาไทยภาษาไทย"])])
    fitter = FeaturesFitter.__new__(FeaturesFitter)
    now = fitter._load_fitted(fold)
    assert now is not None
    changed(folder, features=2)
    before = models.load(folder)
    as_before = now.probabilities(statistics.extract(battles, version=2))
    np.testing.assert_allclose(np.exp(before.logits(battles)[0]), as_before, rtol=1e-12)
    assert (before.logits(battles)[0] != now.logits(battles)[0]).any()
    assert fitter._load_fitted(fold) is None


@pytest.mark.parametrize(
    "arrays",
    [
        {"word_weights": np.zeros(BUCKETS // 2, np.float32), "prior": np.full(3, 1 / 3)},
        {"word_weights": np.zeros((1, BUCKETS), np.float32), "prior": np.full(3, 1 / 3)},
        {"word_weights": np.zeros(BUCKETS, np.float32), "prior": np.full(2, 1 / 2)},
    ],
    ids=["few weights", "a matrix", "two outcomes"],
)
def test_arrays_of_other_shapes_are_refused(folder, arrays):
    from safetensors.numpy import save_file

    save_file(arrays, folder / WEIGHTS)
    changed(folder)
    refused(folder, "model.safetensors has arrays of other shapes")


@pytest.mark.parametrize("name", ["word_weights", "prior"])
def test_numbers_that_are_not_finite_are_refused(folder, name):
    from safetensors.numpy import load_file, save_file

    arrays = load_file(folder / WEIGHTS)
    arrays[name][1] = np.nan
    save_file(arrays, folder / WEIGHTS)
    changed(folder)
    refused(folder, "model.safetensors has numbers that are not finite")


def test_a_missing_array_and_a_file_of_another_kind_are_refused(folder):
    from safetensors.numpy import save_file

    save_file({"prior": np.full(3, 1 / 3)}, folder / WEIGHTS)
    changed(folder)
    refused(folder, "cannot be loaded: 'word_weights'")
    (folder / WEIGHTS).write_bytes(b"no tensors")
    changed(folder)
    refused(folder, "cannot be loaded")


def test_a_booster_of_another_model_is_refused(folder):
    import lightgbm

    random = np.random.default_rng(0)
    for columns, classes in ((3, 3), (len(COLUMNS), 2)):
        data = lightgbm.Dataset(random.random((60, columns)), np.arange(60) % classes)
        parameters = {"objective": "multiclass", "num_class": classes, "verbosity": -1, "num_threads": 1}
        (folder / BOOSTER).write_text(lightgbm.train(parameters, data, 1).model_to_string())
        changed(folder)
        refused(folder, "booster.txt is of another model")
    (folder / BOOSTER).write_text("no booster")
    changed(folder)
    refused(folder, "booster.txt is damaged")


def test_a_folder_in_a_files_place_is_an_error(folder):
    (folder / BOOSTER).unlink()
    (folder / BOOSTER).mkdir()
    refused(folder, "cannot be loaded")


# What it costs


@pytest.mark.slow
def test_neither_torch_nor_transformers_nor_nltk_is_loaded(trained, tmp_path):
    trained.model.save(tmp_path / "saved")
    program = f"""
import sys
import numpy as np
from test_features import as_batch
from pathlib import Path
from prefcli.models.features import statistics
from prefcli.models import features as models
from prefcli.models.features import booster as boosting
found = statistics.extract(as_batch([([f"q {{i}}"], ["a b c"] * (i % 3), ["d e"]) for i in range(80)]))
boosting.BoosterSettings.for_battles = lambda battles: boosting.BoosterSettings(4, 0.1, 5, 0.5, 3, 3)
model = models.fit(found, np.eye(3, dtype=np.float32)[np.arange(80) % 3], np.arange(80), threads=1)
assert model.booster is not None
model.probabilities(found)
models.load(Path({str(tmp_path / "saved")!r})).probabilities(found)
print([name for name in ("torch", "transformers", "nltk") if name in sys.modules])
"""
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r})\n{program}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
