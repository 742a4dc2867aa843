"""The features architecture: what it measures, that sides are exact mirrors, and that nothing damaged is loaded."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefcli import demo, features, metrics, textbytes
from prefcli.battles import labels_of, make_batch
from prefcli.errors import ModelError
from prefcli.features import ANSWER_STATISTICS, PAIR_STATISTICS, TEXT_STATISTICS, Features, extract
from prefcli.models import features as models
from prefcli.models.features import FeaturesModel
from prefcli.readers import open_battles
from prefcli.targets import training_targets

TURNS = pa.list_(pa.string())
Row = tuple[list[str | None], list[str | None], list[str | None]]


def as_batch(rows: list[Row]) -> pa.RecordBatch:
    fields = ("prompt", "response_a", "response_b")
    columns = {name: pa.array([row[i] for row in rows], TURNS) for i, name in enumerate(fields)}
    return make_batch({"id": pa.array([str(i) for i in range(len(rows))], pa.string()), **columns})


def measured(text: str, prompt: str = "a question") -> dict[str, float]:
    """The statistics of an answer by name, logarithms undone."""
    values = extract(as_batch([([prompt], [text], ["other"])])).answers[0, 0]
    found = dict(zip(ANSWER_STATISTICS, values.tolist(), strict=True))
    return {k: float(np.expm1(v)) if k in features._LOGARITHMS else v for k, v in found.items()}


@pytest.fixture(scope="module")
def battles(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.RecordBatch, np.ndarray, np.ndarray]:
    """The demo's battles as one batch, their labels and prompts."""
    file = demo.write(tmp_path_factory.mktemp("demo"), train=900, test=10).train
    table = pa.Table.from_batches([batch for batch, _ in open_battles(file).batches()]).combine_chunks()
    return table.to_batches()[0], labels_of(table), table["prompt_key"].to_numpy()


def hard(labels: np.ndarray) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[labels]


@pytest.fixture(scope="module")
def model(battles: tuple[pa.RecordBatch, np.ndarray, np.ndarray]) -> FeaturesModel:
    batch, labels, keys = battles
    return models.fit(extract(batch), hard(labels), keys)


# What is measured


def test_text_statistics_are_those_counted_by_hand() -> None:
    text = (
        "# Title\n\nSorry, I cannot do that. But here's a list:\n- one ITEM\n- two items\n1. first\n2) second\n\n"
        "```py\nx = 1\n```\nIs it **bold**? See https://a.b/c [d](e).\n| a | b |\n"
    )
    found = measured(text)
    expected = {
        "headings": 1, "list items": 2, "numbered items": 2, "code fences": 2, "table rows": 1, "bold": 1,
        "links": 2, "question marks": 1, "pipes": 3, "number signs": 1, "refusals": 1, "apologies": 1, "turns": 1,
        "lines": 11, "code fence left open": 0, "empty": 0, "begins with markup": 1, "ends with markup": 1,
        "begins with a refusal": 1, "characters": len(text), "digits": sum(c.isdigit() for c in text),
        "capitals": sum(c.isupper() for c in text), "commas": 1,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("", "empty", 1), ("", "words", 0), ("", "paragraphs", 0), ("one", "paragraphs", 1),
        ("one\n\ntwo\n\nthree", "paragraphs", 3), ("One. Two! Three? ", "sentences", 3),
        ("3.14 is pi", "sentences", 0), ("```\nopen", "code fence left open", 1),
        ("Sure, here it is", "begins eagerly", 1), ("Well, sure", "ends with a letter or digit", 1),
        ("Well then:", "ends with a colon or comma", 1), ("He said so.", "ends as a sentence", 1),
        ("ends so?", "ends as a question", 1), ("7 things", "begins with a digit", 1),
        ("word word word other", "most frequent word", 0.75), ("word word word other", "distinct words", 2),
        ("same\nsame\nother", "distinct lines per line", 2 / 3), ("日本語", "words", 3), ("naïve café", "words", 2),
        ("don't", "words", 2), ("As an AI language model, no", "begins with a refusal", 1),
    ],
)  # fmt: skip
def test_single_statistics(text: str, name: str, value: float) -> None:
    assert measured(text)[name] == pytest.approx(value, abs=1e-3)


WORDS = st.lists(st.sampled_from("alpha beta gamma Delta epsilon zeta eta theta".split()), max_size=14)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=5))
def test_overlaps_are_those_of_sets_and_counts(rows: list[tuple[list[str], ...]]) -> None:
    """Against plain Python sets and counters."""
    found = extract(as_batch([tuple([" ".join(words)] for words in row) for row in rows]))
    pair = {name: found.pair[:, i] for i, name in enumerate(PAIR_STATISTICS)}
    answer = {name: found.answers[:, :, i] for i, name in enumerate(ANSWER_STATISTICS)}
    for i, row in enumerate(rows):
        prompt, a, b = ([word.lower() for word in words] for words in row)
        sets = [set(words) for words in (prompt, a, b)]
        pairs = [set(itertools.pairwise(words)) for words in (a, b)]
        counts = [Counter(words) for words in (a, b)]
        dot = sum(counts[0][word] * counts[1][word] for word in counts[0])
        norms = [sum(n * n for n in count.values()) ** 0.5 for count in counts]
        assert pair["words shared"][i] == pytest.approx(len(sets[1] & sets[2]) / max(len(sets[1] | sets[2]), 1))
        assert pair["word pairs shared"][i] == pytest.approx(
            len(pairs[0] & pairs[1]) / max(len(pairs[0] | pairs[1]), 1)
        )
        assert pair["word cosine"][i] == pytest.approx(dot / max(norms[0] * norms[1], 1), abs=1e-6)
        assert pair["answers identical"][i] == (" ".join(row[1]) == " ".join(row[2]))
        for side in (0, 1):
            both = len(sets[0] & sets[side + 1])
            assert answer["prompt's words in answer"][i, side] == pytest.approx(both / max(len(sets[0]), 1))
            assert answer["answer's words in prompt"][i, side] == pytest.approx(both / max(len(sets[side + 1]), 1))
        first = next((n for n in range(5) if a[n : n + 1] != b[n : n + 1] or not a[n:]), 5)
        assert pair["same first words"][i] == first


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="abcXYZ019 .,\n'-", max_size=80))
def test_words_are_runs_of_letters_and_digits(text: str) -> None:
    texts = textbytes.Texts.of(pa.array([text]))
    starts, ends = textbytes.word_bounds(texts.data)
    found = [bytes(texts.data[s:e]).decode() for s, e in zip(starts, ends, strict=True)]
    assert found == re.findall(r"[a-zA-Z0-9]+", text)


def test_hashes_tell_words_apart_and_ignore_place_case_and_digits() -> None:
    words = [f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyzabcd"]
    texts = textbytes.Texts.of(pa.array([" ".join(words), " ".join(reversed(words)), "ALPHA 12 Alpha 34 alpha"]))
    found = textbytes.Words.of(texts, textbytes.Spelled.of(texts))
    first, second, third = (found.hashes[found.text == i] for i in range(3))
    assert len(set(first.tolist())) == len(words)
    assert first.tolist() == second[::-1].tolist()
    assert len(set(third.tolist())) == 2


# Sides are mirrors

odd_text = st.one_of(
    st.none(),
    st.sampled_from(
        [
            "",
            " ",
            "\n\n",
            "\u0301",
            "e\u0301\u0301",
            "👩‍👩‍👧 ok",
            "\x00\x1b[31m",
            "مرحبا بالعالم",
            "漢字かな",
            "a" * 5000,
        ]
    ),
    st.text(max_size=60),
    st.lists(st.sampled_from((*demo.LIKED, *demo.DISLIKED)), max_size=40).map(" ".join),
)
odd_turns = st.lists(odd_text, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(odd_turns, odd_turns, odd_turns), min_size=1, max_size=6), st.booleans())
def test_exchanged_answers_get_exactly_exchanged_probabilities(
    model: FeaturesModel, rows: list[Row], identical: bool
) -> None:
    if identical:
        rows = [(prompt, a, a) for prompt, a, _ in rows]
    there, back = extract(as_batch(rows)), extract(as_batch([(prompt, b, a) for prompt, a, b in rows]))
    mirrored = there.exchanged()
    assert np.array_equal(mirrored.answers, back.answers)
    assert np.array_equal(mirrored.pair, back.pair)
    assert (mirrored.words != back.words).nnz == 0
    one, two = model.probabilities(there), model.probabilities(back)
    assert np.array_equal(one, two[:, [1, 0, 2]])
    assert len(metrics.find_improper(one / one.sum(axis=1, keepdims=True))) == 0
    if identical:
        assert np.array_equal(one[:, 0], one[:, 1])
    logits, exchanged = model.logits(as_batch(rows), swap_average=True)
    assert exchanged is not None
    assert np.array_equal(exchanged, logits[:, [1, 0, 2]])
    assert np.allclose(metrics.softmax(logits), one, atol=1e-12)


def test_the_model_is_no_constant(model: FeaturesModel, battles: Any) -> None:
    """Or the mirror test above would show nothing."""
    found = model.probabilities(extract(battles[0]))
    assert found[:, 0].std() > 0.1


def test_neighbours_batches_and_chunks_do_not_matter(battles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = battles[0].slice(0, 60)
    whole = extract(batch)
    alone = Features.concatenate([extract(batch.slice(i, 1)) for i in range(60)])
    monkeypatch.setattr(features, "CHUNK_BYTES", 700)
    monkeypatch.setattr(features, "CHUNK_BATTLES", 7)
    chunked = extract(batch)
    order = np.random.default_rng(0).permutation(60)
    shuffled = extract(batch.take(pa.array(order))).take(np.argsort(order))
    for other in (alone, chunked, shuffled):
        for name in ("prompt", "answers", "pair"):
            assert np.array_equal(getattr(whole, name), getattr(other, name))
        assert (whole.words != other.words).nnz == 0
    assert len(extract(batch.slice(0, 0))) == 0


# Learning


def test_it_learns_what_the_demo_hides_and_says_where_it_looked(battles: Any) -> None:
    batch, labels, keys = battles
    everything, rows = extract(batch), np.arange(len(labels))
    held = np.isin(keys, np.unique(keys)[::4])
    model = models.fit(everything.take(rows[~held]), hard(labels[~held]), keys[~held])
    loss = metrics.log_loss(model.probabilities(everything.take(rows[held])), labels[held])
    assert loss < metrics.prior_log_loss(labels[held]) - 0.1
    importances = model.importances()
    assert sum(share for _, share in importances) == pytest.approx(1)
    assert models.WORD_SCORE in dict(importances)
    assert [share for _, share in importances] == sorted((share for _, share in importances), reverse=True)


def booster_of(model: FeaturesModel) -> str:
    assert model.booster is not None
    return str(model.booster.model_to_string())


def test_the_same_seed_gives_the_same_model_on_any_number_of_threads(battles: Any) -> None:
    batch, labels, keys = battles
    everything = extract(batch.slice(0, 300))
    fitted = [
        models.fit(everything, hard(labels[:300]), keys[:300], seed=seed, threads=threads)
        for seed, threads in ((0, 1), (0, 2), (1, 1))
    ]
    texts = [re.sub(r"\[num_threads: \d+\]", "", booster_of(model)) for model in fitted]
    assert texts[0] == texts[1] != texts[2]
    assert np.array_equal(fitted[0].word_weights, fitted[1].word_weights)


def test_soft_labels_teach_as_many_weighted_votes_would(battles: Any) -> None:
    """A battle that half of the people gave to A and half to B is predicted near even, in both orders."""
    batch, labels, keys = battles
    everything = extract(batch.slice(0, 300))
    certain = training_targets(np.full(300, -1), hard(labels[:300]))
    plain = models.fit(everything, hard(labels[:300]), keys[:300])
    assert booster_of(models.fit(everything, certain, keys[:300])) == booster_of(plain)
    shares = np.tile(np.float32([0.5, 0.3, 0.2]), (300, 1))
    found = models.fit(everything, shares, keys[:300]).probabilities(everything)
    assert found.mean(axis=0) == pytest.approx([0.4, 0.4, 0.2], abs=0.03)


@pytest.mark.parametrize("kind", ["few battles", "one prompt", "one outcome"])
def test_with_too_little_to_learn_it_says_little(battles: Any, kind: str) -> None:
    batch, labels, keys = battles
    n = 20 if kind == "few battles" else 120
    labels, keys = labels[:n].copy(), keys[:n].copy()
    if kind == "one prompt":
        keys[:] = 7
    if kind == "one outcome":
        labels[:] = 2
    everything = extract(batch.slice(0, n))
    found = models.fit(everything, hard(labels), keys).probabilities(everything)
    assert len(metrics.find_improper(found / found.sum(axis=1, keepdims=True))) == 0
    if kind == "one outcome":
        assert found[:, 2].min() > 0.8
    else:
        wins = (labels != 2).sum()
        expected = [(wins + 2) / 2 / (n + 3), (wins + 2) / 2 / (n + 3), (n - wins + 1) / (n + 3)]
        assert found[0] == pytest.approx(expected)
        assert np.array_equal(found, np.tile(found[0], (n, 1)))


# Folders


def test_a_saved_model_gives_the_same_bits(tmp_path: Path, model: FeaturesModel, battles: Any) -> None:
    everything = extract(battles[0].slice(0, 50))
    model.save(tmp_path)
    again = models.load(tmp_path)
    assert np.array_equal(again.probabilities(everything), model.probabilities(everything))
    few = models.fit(everything.take(np.arange(10)), hard(battles[1][:10]), battles[2][:10])
    few.save(tmp_path / "few")
    assert np.array_equal(models.load(tmp_path / "few").probabilities(everything), few.probabilities(everything))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: _flip(f / "booster.txt"), "booster.txt is damaged"),
        (lambda f: (f / "booster.txt").write_text("tree\n"), "booster.txt is damaged"),
        (lambda f: _flip(f / "model.safetensors"), "model.safetensors is damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "features.json").unlink(), "features.json is missing"),
        (lambda f: (f / "features.json").write_text("{"), "cannot be loaded"),
        (lambda f: (f / "features.json").write_text("[]"), "no JSON object"),
        (lambda f: _edit(f / "features.json", features=0), "another version"),
        (lambda f: _edit(f / "features.json", columns=["x"]), "columns differ"),
        (lambda f: _edit(f / "features.json", sha256={}), "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_named_and_refused(tmp_path: Path, model: FeaturesModel, damage: Any, said: str) -> None:
    model.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=said):
        models.load(tmp_path)


def test_a_booster_of_other_columns_is_refused(tmp_path: Path, model: FeaturesModel) -> None:
    """Even with a checksum that fits: LightGBM would read beyond the end of a row."""
    import lightgbm

    from prefcli import files

    other = lightgbm.train(
        {"objective": "multiclass", "num_class": 3, "verbosity": -1},
        lightgbm.Dataset(np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3),
        2,
    )
    model.save(tmp_path)
    (tmp_path / "booster.txt").write_text(other.model_to_string())
    digests = {name: files.sha256(tmp_path / name) for name in ("booster.txt", "model.safetensors")}
    _edit(tmp_path / "features.json", sha256=digests)
    with pytest.raises(ModelError, match="4 columns"):
        models.load(tmp_path)


def test_every_column_has_a_name_of_its_own() -> None:
    for names in (TEXT_STATISTICS, ANSWER_STATISTICS, PAIR_STATISTICS, models.COLUMNS):
        assert len(set(names)) == len(names)


def test_nothing_heavy_is_loaded() -> None:
    program = (
        "import sys, pyarrow as pa, numpy as np; from prefcli.battles import make_batch; from prefcli import features;"
        "from prefcli.models import features as models;"
        "t = pa.array([['a b c']] * 60, pa.list_(pa.string())); ids = pa.array([str(i) for i in range(60)]);"
        "batch = make_batch({'id': ids, 'prompt': t, 'response_a': t, 'response_b': t});"
        "m = models.fit(features.extract(batch), np.eye(3, dtype=np.float32)[np.arange(60) % 3], np.arange(60));"
        "m.logits(batch); print([n for n in ('torch', 'transformers', 'nltk', 'tokenizers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
