"""The ``nltk`` normalisation against a plain NLTK program: differences in tokens and lemmas, and speed.

::

    python benchmarks/text_vs_nltk.py train.csv --nltk-data ~/nltk_data

``train.csv`` (or ``.parquet``) is in Kaggle's layout. The NLTK data needed are ``punkt_tab``, ``stopwords`` and
``wordnet``; prefcli itself needs none. ``--freeze tests/data/nltk_tokens.json`` instead rewrites the tests' expected
tokens and lemmas from real NLTK.

The plain program, :func:`plain_tokens`, is what notebooks do: ``word_tokenize``, lower case, stop words out, special
characters out, ``WordNetLemmatizer``. It shares no code with prefcli. Timings are wall clock; both programs take turns.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import os
import random
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from prefcli import text as ours
from prefcli.battles import TEXT_FIELDS
from prefcli.text import nltk_tokens
from prefcli.text.parallel import normalise_stream
from prefcli.text.wordnet import lemmatize

# The plain program


@functools.cache
def nltk_parts():
    """NLTK's functions and data, loaded once so that loading is not timed."""
    from nltk.corpus import stopwords, wordnet
    from nltk.stem import WordNetLemmatizer
    from nltk.tokenize import word_tokenize

    wordnet.ensure_loaded()
    return word_tokenize, frozenset(stopwords.words("english")), WordNetLemmatizer()


@functools.cache
def is_special(character: str) -> bool:
    return unicodedata.category(character)[0] in "PSC" and character not in "\u200c\u200d"


def without_special(token: str) -> str:
    """The token's letters, marks and numbers; a special character only where it joins two digits."""
    if token.isalnum():
        return token
    kept = ""
    dropped = True  # a mark goes where the character before it went
    for before, character, after in zip(" " + token, token, token[1:] + " ", strict=False):
        if unicodedata.category(character)[0] != "M" and character not in "\u200c\u200d":
            dropped = is_special(character) and not (before.isdecimal() and after.isdecimal())
        if not dropped:
            kept += character
    return kept if any(unicodedata.category(character)[0] in "LN" for character in kept) else ""


def plain_tokens(text: str) -> list[str]:
    word_tokenize, stop_words, lemmatizer = nltk_parts()
    return plain_rest(word_tokenize(text), stop_words, lemmatizer)


def plain_rest(tokens: Iterable[str], stop_words: frozenset[str], lemmatizer) -> list[str]:
    lower = [token.lower() for token in tokens]
    words = [without_special(token) for token in lower if token not in stop_words]
    return [lemmatizer.lemmatize(word) for word in words if word]


# Fidelity


def differences(plain: list[str], normalised: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """The runs of tokens that differ: the plain program's and ours."""
    matcher = difflib.SequenceMatcher(None, plain, normalised, autojunk=False)
    for what, a, b, c, d in matcher.get_opcodes():
        if what != "equal":
            yield plain[a:b], normalised[c:d]


def token_difference(plain: list[str], normalised: list[str]) -> str:
    """The kind of a difference between NLTK's tokens and ours, before anything is removed."""
    quotes = {"''", "``", '"', "'"}
    if set(plain) | set(normalised) <= quotes:
        return "opening or closing quote (removed afterwards)"
    if "".join(plain).rstrip(".'`") == "".join(normalised).rstrip(".'`"):
        return "period of an abbreviation, split or not (removed afterwards)"
    if [token for token in plain if token.strip(".'`\"")] == [token for token in normalised if token.strip(".'`\"")]:
        return "period or quote alone (removed afterwards)"
    return "several of these side by side, or other"


def result_difference(plain: list[str], normalised: list[str], stop_words: frozenset[str]) -> str:
    """The kind of a difference between the plain program's result and ours."""
    if not normalised and all(len(token) == 1 and token in stop_words for token in plain):
        return "initial or list letter with a period that NLTK's sentence splitter left on ('A. Smith')"
    if not plain and all(len(token) == 1 and token in stop_words for token in normalised):
        return "letter with a period that NLTK's sentence splitter took off ('serum T.')"
    if not normalised and all(token in stop_words for token in plain):
        return "stop word with a period that NLTK's sentence splitter left on"
    return "other"


def compare(texts: Counter[str]) -> None:
    """Print the share of the plain program's tokens that ours has too (an extra token counts as one less)."""
    word_tokenize, stop_words, lemmatizer = nltk_parts()
    sums: Counter[str] = Counter()
    raw_kinds: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    examples: dict[str, Counter[str]] = {}
    distinct: set[str] = set()
    print(f"fidelity, on {len(texts):,} distinct answers' turns (each counted as often as it occurs):", flush=True)
    for text, times in texts.items():
        raw_plain = word_tokenize(text)
        raw_ours = [token for tokens in nltk_tokens.tokenize_chunks(text.split()) for token in tokens]
        plain = plain_rest(raw_plain, stop_words, lemmatizer)
        normalised = ours.normalise_text(text, "nltk").split()
        distinct.update(token.lower() for token in raw_plain)
        distinct.update(raw_plain)
        distinct.update(normalised)
        sums["raw"] += times * len(raw_plain)
        sums["normalised"] += times * len(plain)
        if raw_plain != raw_ours:
            for left, right in differences(raw_plain, raw_ours):
                sums["raw different"] += times * max(1, len(left))
                raw_kinds[token_difference(left, right)] += times
        if plain != normalised:
            for left, right in differences(plain, normalised):
                sums["normalised different"] += times * max(1, len(left))
                kind = result_difference(left, right, stop_words)
                kinds[kind] += times
                examples.setdefault(kind, Counter())[f"{' '.join(left)!r} -> {' '.join(right)!r}"] += times
    for name, title, kind_counts in (
        ("normalised", "tokens of the whole normalisation", kinds),
        ("raw", "tokens as the tokenizer gives them", raw_kinds),
    ):
        share = 1 - sums[f"{name} different"] / max(1, sums[name])
        print(f"  {title}: {sums[name]:,}, identical {share:.4%}; differing places by class:")
        for kind, number in kind_counts.most_common():
            print(f"    {number:>8,}  {kind}")
            if name == "normalised":
                print(f"              {', '.join(f'{e} x{n}' for e, n in examples[kind].most_common(4))}")
    for pos, title in (("n", "noun"), ("v", "verb"), ("a", "adjective"), ("r", "adverb")):
        wrong = [word for word in distinct if lemmatize(word, pos) != lemmatizer.lemmatize(word, pos)]
        print(f"  {title} lemmas: {len(distinct):,} distinct tokens, {len(wrong)} different {wrong[:5]}")


# Speed


def measure(battles: pa.Table, plain_megabytes: float) -> None:
    texts = [turn for name in TEXT_FIELDS for turns in battles[name].to_pylist() for turn in turns if turn]
    random.Random(0).shuffle(texts)
    sample: list[list[str]] = [[], []]
    size = [0.0, 0.0]
    for text in texts:
        half = int(size[0] > size[1])
        if size[half] >= plain_megabytes / 2:
            break
        sample[half].append(text)
        size[half] += len(text.encode()) / 1e6
    nltk_parts()
    rates: dict[str, list[float]] = {"plain": [], "same": [], "one": [], "two": []}
    for half in (0, 1):  # plain, ours, plain, ours: a machine that slows down slows both
        start = time.perf_counter()
        for text in sample[half]:
            " ".join(plain_tokens(text))
        rates["plain"].append(size[half] / (time.perf_counter() - start))
        nltk_tokens._cache.clear()
        start = time.perf_counter()
        nltk_tokens.normalise_nltk(sample[half])
        rates["same"].append(size[half] / (time.perf_counter() - start))
        for name, workers in (("one", 1), ("two", 2)):
            nltk_tokens._cache.clear()
            counts = ours.TextCounts()
            start = time.perf_counter()
            for _, batch_counts in normalise_stream(battles.to_batches(2000), "nltk", workers=workers):
                counts += batch_counts
            rates[name].append(counts.bytes_in / 1e6 / (time.perf_counter() - start))
    print(f"speed (from cold; a sample of {sum(size):.1f} MB, all turns are {counts.bytes_in / 1e6:.0f} MB):")
    plain = sum(rates["plain"]) / 2
    for name, title in (
        ("plain", "plain program, the sample"),
        ("same", "one process, the sample"),
        ("one", "one process, all turns"),
        ("two", "two processes, all turns"),
    ):
        rate = sum(rates[name]) / 2
        runs = ", ".join(f"{rate:.2f}" for rate in rates[name])
        print(f"  {title:<26} {rate:6.2f} MB/s   {rate / plain:5.1f} times   (runs: {runs})")
    print(f"  {counts.emptied:,} of {counts.turns:,} turns and {counts.emptied_answers:,} answers became empty")


# Input and the frozen sample


def read_battles(path: Path) -> pa.Table:
    """The text columns of a file in Kaggle's layout, as lists of turns."""
    import pandas as pd

    frame = pd.read_parquet(path, columns=list(TEXT_FIELDS)) if path.suffix == ".parquet" else pd.read_csv(path)
    columns = {}
    for name in TEXT_FIELDS:
        lists = [json.loads(cell) for cell in frame[name]]
        lists = [[None if turn is None else ours.normalise_text(turn, "raw") for turn in turns] for turns in lists]
        columns[name] = pa.array(lists, type=pa.list_(pa.string()))
    return pa.table(columns)


def freeze(path: Path) -> None:
    """Rewrite what real NLTK makes of the sample's texts and words."""
    sample = json.loads(path.read_text(encoding="utf-8"))
    lemmatizer = nltk_parts()[2]
    for entry in sample["texts"]:
        entry["tokens"] = " ".join(plain_tokens(entry["text"]))
    for pos, lemmas in sample["lemmas"].items():
        for word in lemmas:
            lemmas[word] = lemmatizer.lemmatize(word, pos)
    path.write_text(json.dumps(sample, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="battles in Kaggle's layout, .csv or .parquet")
    parser.add_argument("--nltk-data", type=Path, help="folder with NLTK's data (default: where NLTK looks)")
    parser.add_argument("--plain-mb", type=float, default=4.0, help="MB that the plain program is timed on")
    parser.add_argument("--limit", type=int, help="compare this many distinct turns only")
    parser.add_argument("--skip", choices=["fidelity", "speed"], help="leave one half out")
    parser.add_argument("--freeze", type=Path, metavar="FILE", help="rewrite the tests' frozen sample instead")
    options = parser.parse_args()
    if options.nltk_data:
        os.environ["NLTK_DATA"] = str(options.nltk_data)
    if options.freeze:
        freeze(options.freeze)
        return
    if options.data is None:
        parser.error("give a file of battles, or --freeze")
    battles = read_battles(options.data)
    if options.skip != "speed":
        measure(battles, options.plain_mb)
    if options.skip != "fidelity":
        answers = Counter(turn for name in TEXT_FIELDS[1:] for turns in battles[name].to_pylist() for turn in turns)
        del answers[None]
        compare(Counter(dict(list(answers.items())[: options.limit])))


if __name__ == "__main__":
    main()
