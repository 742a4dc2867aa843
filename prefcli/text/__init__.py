"""What is done to the text of a battle before a model sees it: three named normalisations.

``nltk`` is the classical notebook's preprocessing: word tokens, no stop words, no special characters, lemmas. The
tokens come from NLTK's own tokenizer and the lemmas are NLTK's, but nothing is downloaded (:mod:`prefcli.text.wordnet`
and ``assets/`` hold what is needed), and every distinct piece of text between two spaces is worked out only once.
``raw`` leaves the text as it is; ``light`` tidies it for modern encoders. ``docs/text.md`` has the rules and examples.

This module reads and writes no files (see :mod:`prefcli.readers`, :mod:`prefcli.storage`), knows nothing of
encoders' tokens (see :mod:`prefcli.models.packing`) and does not look at languages: stop words and lemmas are English,
other languages pass through as words.

``python -m prefcli.text`` prints the table in ``assets/character-classes.txt`` from this Python's Unicode database.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import threading
import types
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from prefcli.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

#: The columns of a battle that hold text; the other columns are passed on untouched.
TEXT_COLUMNS = ("prompt", "response_a", "response_b")
ANSWER_COLUMNS = ("response_a", "response_b")


@dataclass(frozen=True)
class Normalisation:
    """One named way to normalise text.

    Attributes
    ----------
    name:
        What the user types.
    version:
        Part of a stage's fingerprint: raised whenever the same text gives another result.
    summary:
        One line for ``--help``.
    keeps, loses:
        What is left of a text and what is gone.
    """

    name: str
    version: int
    summary: str
    keeps: str
    loses: str


NORMALISATIONS: Mapping[str, Normalisation] = types.MappingProxyType(
    {
        normalisation.name: normalisation
        for normalisation in (
            Normalisation(
                name="nltk",
                version=2,
                summary="NLTK word tokens, lower case, no stop words, no special characters, lemmas",
                keeps="words of every script with their accents and combining marks, numbers, the order of the words",
                loses="case, English stop words (with them 'not' and 'no'), punctuation, symbols, emoji, markup, line "
                "breaks, and English plurals",
            ),
            Normalisation(
                name="raw",
                version=1,
                summary="the text as it is",
                keeps="everything",
                loses="nothing",
            ),
            Normalisation(
                name="light",
                version=1,
                summary="Unicode NFC, tidy whitespace, no control characters",
                keeps="every word, case, punctuation, markup, emoji, line breaks, indentation",
                loses="control and invisible formatting characters, runs of spaces inside a line, spaces at its end, "
                "more than one blank line in a row, the difference between composed and decomposed accents",
            ),
        )
    }
)


@dataclass(frozen=True)
class TextCounts:
    """What a normalisation did, in numbers; adds up with ``+``.

    Attributes
    ----------
    turns:
        Turns that are not null.
    emptied:
        Turns that had text (more than whitespace) before and have none after.
    emptied_answers:
        Answers (all turns of one response together) that had text before and have none left.
    bytes_in, bytes_out:
        UTF-8 bytes of all turns, before and after.
    """

    turns: int = 0
    emptied: int = 0
    emptied_answers: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def __add__(self, other: TextCounts) -> TextCounts:
        return TextCounts(
            self.turns + other.turns,
            self.emptied + other.emptied,
            self.emptied_answers + other.emptied_answers,
            self.bytes_in + other.bytes_in,
            self.bytes_out + other.bytes_out,
        )


def check(normalisation: str) -> Normalisation:
    """The normalisation of this name.

    Raises
    ------
    InputError
        If there is none.
    """
    if normalisation not in NORMALISATIONS:
        raise InputError(
            f"there is no text normalisation {normalisation!r}", hint=f"Choose one of {', '.join(NORMALISATIONS)}."
        )
    return NORMALISATIONS[normalisation]


def identity(normalisation: str) -> dict[str, str | int]:
    """Everything that decides what a normalisation makes of a text: part of a cache's fingerprint.

    NLTK's tokenizer differs a little between its releases, so its version belongs to it where it is used.
    """
    known: dict[str, str | int] = {"text": normalisation, "text_version": check(normalisation).version}
    if normalisation == "nltk":
        known["nltk"] = importlib.metadata.version("nltk")
    return known


def normalise_text(text: str, normalisation: str = "nltk") -> str:
    """Normalise one text.

    Parameters
    ----------
    text:
        Any string. Lone surrogates, which no file can hold, become U+FFFD first, in every normalisation.
    normalisation:
        A name in :data:`NORMALISATIONS`.

    Returns
    -------
    str
        The normalised text; for ``nltk`` the tokens joined by single spaces.

    Raises
    ------
    InputError
        There is no such normalisation.
    """
    return _normaliser(normalisation)([_well_formed(text)])[0]


def normalise_batch(battles: pa.RecordBatch, normalisation: str) -> tuple[pa.RecordBatch, TextCounts]:
    """Normalise the text columns of one batch of battles in this process.

    Every turn keeps its place, null stays null, other columns and the schema's metadata pass through untouched.

    Parameters
    ----------
    battles:
        Has the columns of :data:`TEXT_COLUMNS`, each ``list<string>``.
    normalisation:
        A name in :data:`NORMALISATIONS`.

    Returns
    -------
    battles, counts:
        A batch with the same rows and schema (``raw``: the very same batch), and what happened to it.

    Raises
    ------
    InputError
        There is no such normalisation, or a text column is missing.
    """
    import numpy as np
    import pyarrow as pa

    normalise = _normaliser(normalisation)
    check_columns(battles)
    counts = TextCounts()
    columns = list(battles.columns)
    for name in TEXT_COLUMNS:
        position = battles.schema.get_field_index(name)
        lists = columns[position]
        turns = lists.flatten()  # without the turns of null lists
        before = turns.to_pylist()
        size = utf8_bytes(turns)
        if normalisation == "raw":
            counts += TextCounts(turns=len(turns) - turns.null_count, bytes_in=size, bytes_out=size)
            continue
        places = [place for place, turn in enumerate(before) if turn is not None]
        after: list[str | None] = [None] * len(before)
        for place, turn in zip(places, normalise([before[place] for place in places]), strict=True):
            after[place] = turn
        normalised = pa.array(after, type=turns.type)
        ends = np.cumsum(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
        starts = np.concatenate([np.zeros(1, dtype=np.int64), ends])
        columns[position] = type(lists).from_arrays(
            pa.array(starts, type=pa.int64() if pa.types.is_large_list(lists.type) else pa.int32()),
            normalised,
            type=lists.type,
            mask=lists.is_null() if lists.null_count else None,
        )
        had = np.array([turn is not None and bool(turn) and not turn.isspace() for turn in before], dtype=bool)
        has = np.array([turn is not None and bool(turn) and not turn.isspace() for turn in after], dtype=bool)
        emptied_answers = 0
        if name in ANSWER_COLUMNS:
            emptied_answers = int(np.sum(_any_in_list(had, starts) & ~_any_in_list(has, starts)))
        counts += TextCounts(
            turns=len(places),
            emptied=int(np.sum(had & ~has)),
            emptied_answers=emptied_answers,
            bytes_in=size,
            bytes_out=utf8_bytes(normalised),
        )
    if normalisation == "raw":
        return battles, counts
    return pa.RecordBatch.from_arrays(columns, schema=battles.schema), counts


def check_columns(battles: pa.RecordBatch) -> None:
    missing = [name for name in TEXT_COLUMNS if name not in battles.schema.names]
    if missing:
        raise InputError(
            f"The battles have no column {', '.join(missing)}.",
            hint=f"Found: {', '.join(battles.schema.names)}.",
        )


def utf8_bytes(turns: pa.Array) -> int:
    import pyarrow.compute as pc

    return pc.sum(pc.binary_length(turns)).as_py() or 0


def _any_in_list(flags: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """For lists that start at ``starts`` (one more entry than lists): does any of its entries have its flag set?"""
    import numpy as np

    so_far = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(flags, dtype=np.int64)])
    return so_far[starts[1:]] > so_far[starts[:-1]]


def _well_formed(text: str) -> str:
    """The text without lone surrogates; two that belong together become the character they stand for."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


# The normalisations: each takes many well-formed texts and gives as many back, in the same order.


def _normaliser(normalisation: str) -> Callable[[Sequence[str]], list[str]]:
    normalisers: dict[str, Callable[[Sequence[str]], list[str]]] = {
        "nltk": _normalise_nltk,
        "raw": list,
        "light": _normalise_light,
    }
    if normalisation not in normalisers:
        raise InputError(
            f"There is no text normalisation '{normalisation}'.", hint=f"Choose one of {', '.join(NORMALISATIONS)}."
        )
    return normalisers[normalisation]


#: Control characters other than tab and line feed, and characters that are invisible and part of no word: soft hyphen,
#: zero-width space, word joiner, byte order mark, direction marks. (The zero-width joiners are part of words.)
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)
_OTHER_SPACE = re.compile("[^\\S\n\t ]")
_SPACES_IN_LINE = re.compile("(?<=\\S)[\t ]{2,}")
_BLANK_LINES = re.compile("\n{3,}")


def _normalise_light(texts: Sequence[str]) -> list[str]:
    return [_tidy(text) for text in texts]


def _tidy(text: str) -> str:
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    text = "\n".join(line.rstrip() for line in text.splitlines())
    text = _SPACES_IN_LINE.sub(" ", _OTHER_SPACE.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", text).strip("\n")


#: Distinct chunks a process remembers (about 100 MB with their results); past it the memory starts afresh.
_REMEMBERED_CHUNKS = 400_000
#: Longer chunks (URLs, encoded data, text without spaces) hardly recur and are not remembered.
_REMEMBERED_LENGTH = 64
#: Characters of text whose chunks are looked up together; the tokenizer has a high price per call.
_BLOCK_CHARS = 500_000
#: Characters given to the tokenizer at once.
_TOKENIZER_CHARACTERS = 100_000

_remembered: dict[str, str] = {}
_remembering = threading.Lock()


def _normalise_nltk(texts: Sequence[str]) -> list[str]:
    """Tokens without stop words and special characters, as lemmas, joined by spaces.

    Text is cut at whitespace into chunks. What becomes of a chunk does not depend on its neighbours (a period at its
    end counts as the end of a sentence), so each distinct chunk is worked out once and remembered.
    """
    normalised: list[str] = []
    start = 0
    while start < len(texts):
        stop, size = start, 0
        while stop < len(texts) and (size < _BLOCK_CHARS or stop == start):
            size += len(texts[stop])
            stop += 1
        with _remembering:
            normalised += _normalise_block([_chunks(text) for text in texts[start:stop]])
        start = stop
    return normalised


def _chunks(text: str) -> list[str]:
    """The text cut at whitespace, and what is too long without any (no language is) cut anyhow.

    The tokenizer looks at such a chunk as a whole with two dozen regular expressions, and NLTK stops them when they
    take long.
    """
    chunks = text.split()
    if len(text) <= _TOKENIZER_CHARACTERS or max(map(len, chunks), default=0) <= _TOKENIZER_CHARACTERS:
        return chunks
    size = _TOKENIZER_CHARACTERS
    return [chunk[start : start + size] for chunk in chunks for start in range(0, len(chunk), size)]


def _normalise_block(chunked: list[list[str]]) -> list[str]:
    new: set[str] = set()
    for chunks in chunked:
        new |= set(chunks).difference(_remembered)
    if new and len(_remembered) > _REMEMBERED_CHUNKS:
        _remembered.clear()
        new = {chunk for chunks in chunked for chunk in chunks}
    _remembered.update(_normalise(sorted(new)))
    normalised = [" ".join(filter(None, [_remembered[chunk] for chunk in chunks])) for chunks in chunked]
    for chunk in new:
        if len(chunk) > _REMEMBERED_LENGTH:
            del _remembered[chunk]
    return normalised


#: Stands between two chunks in front of the tokenizer: a private-use character, which no regular expression of NLTK's
#: names and which is a special character itself, so a chunk that holds it loses nothing by U+FFFD in its place.
_BETWEEN = "\ue000"
#: A period that ends a sentence, as NLTK's sentence splitter sees it: nothing but closing marks follows it in its
#: chunk, or a mark that ends a word; and it does not stand behind a lone d, m, s or t, which that splitter takes for
#: abbreviations. (Once special characters are gone, this matters only to stop words: "them." is not on the list.)
_FINAL_PERIOD = re.compile(r"""(?<=[^.\s])(?<![\s(\[*"“][dmstDMST])\.(?=[\])}>"'»”’]* |[)";}\]*:@'({\[‘’“”«»?!])""")


def _normalise(chunks: Sequence[str]) -> dict[str, str]:
    """What becomes of each chunk: its tokens, without stop words and special characters, as lemmas."""
    return {
        chunk: " ".join(normalise_tokens(tokens)) for chunk, tokens in zip(chunks, tokenize_chunks(chunks), strict=True)
    }


def tokenize_chunks(chunks: Sequence[str]) -> list[list[str]]:
    """The tokens of each chunk (a piece of text without whitespace) by NLTK's tokenizer.

    Many chunks go through the tokenizer at once, each as if it were alone and a sentence ended behind it.
    """
    tokenize = _tokenizer()
    found: list[list[str]] = []
    start = 0
    while start < len(chunks):
        stop, size = start, 0
        while stop < len(chunks) and (size + len(chunks[stop]) < _TOKENIZER_CHARACTERS or stop == start):
            size += len(chunks[stop]) + 3
            stop += 1
        alone = [chunk.replace(_BETWEEN, "\ufffd") for chunk in chunks[start:stop]]
        joined = " " + f" {_BETWEEN} ".join(alone) + " "
        tokens: list[str] = []
        for token in tokenize(_FINAL_PERIOD.sub(" .", joined)):
            if token == _BETWEEN:
                found.append(tokens)
                tokens = []
            else:
                tokens.append(token)
        found.append(tokens)
        start = stop
    return found


def normalise_tokens(tokens: Iterable[str]) -> list[str]:
    """Lower-case tokens without stop words and special characters, as lemmas: the rule that makes ``nltk``."""
    stop_words, lemmatize = _stop_words(), _lemmatizer()
    words: list[str] = []
    for token in tokens:
        lower = token.lower()
        if lower in stop_words:
            continue
        if not (lower.isascii() and lower.isalnum()):
            lower = strip_special(lower)
        if lower:
            words.append(lemmatize(lower))
    return words


@functools.cache
def _lemmatizer() -> Callable[[str], str]:
    """WordNet's, imported at the first use: ``python -m prefcli.text.wordnet`` imports this package before it runs."""
    from prefcli.text.wordnet import lemmatize

    return lemmatize


@functools.cache
def _stop_words() -> frozenset[str]:
    """NLTK's list of English stop words."""
    lines = _asset("english-stop-words.txt").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def _asset(name: str) -> str:
    return resources.files("prefcli").joinpath("assets", name).read_text(encoding="utf-8")


# Special characters


def strip_special(token: str) -> str:
    """A token without its special characters; empty where no letter and no number is left.

    Special characters are punctuation, symbols, control, formatting, private and unassigned-pictograph characters. A
    special character between two digits stays, because without it they would be another number (``3.14``, ``10:30``).
    Combining marks and zero-width joiners share the fate of the character before them.
    """
    classes = _character_classes()
    kept: list[str] = []
    previous_kept = word = False
    last = len(token) - 1
    for place, character in enumerate(token):
        kind = classes[character]
        if kind == "word":
            previous_kept = word = True
        elif kind == "special":
            previous_kept = 0 < place < last and token[place - 1].isdecimal() and token[place + 1].isdecimal()
        if previous_kept:
            kept.append(character)
    return "".join(kept) if word else ""


class _CharacterClasses(dict[str, str]):
    """Character -> ``word``, ``mark`` or ``special``, looked up in the table of ranges when first asked for."""

    def __init__(self, table: str) -> None:
        super().__init__()
        self._starts: list[int] = []
        self._kinds: list[str] = []
        for line in table.splitlines():
            if not line.startswith("#"):
                start, kind = line.split()
                self._starts.append(int(start, 16))
                self._kinds.append(kind)

    def __missing__(self, character: str) -> str:
        kind = self._kinds[bisect_right(self._starts, ord(character)) - 1]
        self[character] = kind
        return kind


@functools.cache
def _character_classes() -> _CharacterClasses:
    """The table that the repository carries, so that an older or newer Python gives the same tokens."""
    return _CharacterClasses(_asset("character-classes.txt"))


def character_class_table() -> str:
    """The table of character classes from this Python's Unicode database, as in ``assets/character-classes.txt``.

    Each line is the first code point of a range, in hexadecimal, and its class; a range ends where the next begins.
    Code points that Unicode has not assigned yet count as letters, except in the pictographs' blocks.
    """
    lines = [
        f"# Character classes for word tokens, from Unicode {unicodedata.unidata_version}: first code point, class.",
        "# special: categories P, S, C. mark: category M and the zero-width joiners. word: everything else.",
        "# Unassigned code points are words, but special in the blocks of pictographs (1F000-1FAFF).",
    ]
    previous = ""
    for code in range(0x110000):
        category = unicodedata.category(chr(code))
        if category[0] == "M" or code in (0x200C, 0x200D):
            kind = "mark"
        elif category == "Cn":
            kind = "special" if 0x1F000 <= code <= 0x1FAFF else "word"
        else:
            kind = "special" if category[0] in "PSC" else "word"
        if kind != previous:
            lines.append(f"{code:04X} {kind}")
            previous = kind
    return "\n".join(lines) + "\n"


# NLTK's tokenizer

_nltk_lock = threading.Lock()


@functools.cache
def _tokenizer() -> Callable[[str], list[str]]:
    """NLTK's word tokenizer, the one inside ``word_tokenize``; without the rest of NLTK where that can be had."""
    with _nltk_lock:
        tokenizer = _tokenizer_alone() or _tokenizer_by_import()
    return tokenizer.tokenize


def _tokenizer_by_import() -> Any:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


def _tokenizer_alone() -> Any:
    """NLTK's word tokenizer without ``nltk/__init__``; None where this does not work.

    ``import nltk.tokenize.destructive`` runs ``nltk/__init__`` first, which imports all of NLTK and, through its
    classifiers and metrics, numpy, scipy and scikit-learn where they are installed: up to four seconds in every worker
    process for 25 regular expressions. The tokenizer's own module needs a few small ones. So for the moment of import
    ``nltk`` and ``nltk.tokenize`` are empty packages that only know their folders; afterwards every trace is taken
    out of ``sys.modules`` again, and a later ``import nltk`` anywhere gets the real one.
    """
    if "nltk" in sys.modules:  # its price is paid, and it must not be touched
        return None
    before = set(sys.modules)
    try:
        spec = importlib.util.find_spec("nltk")
        folder = spec.submodule_search_locations[0]  # type: ignore[union-attr, index]
        for name, path in (("nltk", folder), ("nltk.tokenize", os.path.join(folder, "tokenize"))):
            package = types.ModuleType(name)
            package.__path__ = [path]
            sys.modules[name] = package
        return importlib.import_module("nltk.tokenize.destructive").NLTKWordTokenizer()
    except Exception:  # another NLTK than the ones known: whatever went wrong, the plain import decides
        return None
    finally:
        for name in set(sys.modules) - before:
            if name == "nltk" or name.startswith("nltk."):
                del sys.modules[name]
