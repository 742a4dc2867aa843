"""The three named normalisations, for one text and for a batch of battles."""

from __future__ import annotations

import importlib.metadata
import re
import types
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefcli.battles import TEXT_FIELDS
from prefcli.errors import InputError, did_you_mean

#: Name -> version. The version is part of a stage's fingerprint: raise it when the same text gives another result.
NORMALISATIONS: Mapping[str, int] = types.MappingProxyType({"nltk": 2, "raw": 1, "light": 1})


@dataclass(frozen=True)
class TextCounts:
    """What a normalisation did, in numbers; adds up with ``+``."""

    turns: int = 0
    """Turns that are not null."""
    emptied: int = 0
    """Turns that had text (more than whitespace) before and have none after."""
    emptied_answers: int = 0
    """Answers (all turns of one response together) that had text before and have none left."""
    bytes_in: int = 0
    """UTF-8 bytes of all turns, before; ``bytes_out`` after."""
    bytes_out: int = 0

    def __add__(self, other: TextCounts) -> TextCounts:
        return TextCounts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def check_normalisation(normalisation: str) -> None:
    """Raise ``InputError`` if there is no normalisation of this name."""
    if normalisation not in NORMALISATIONS:
        raise InputError(
            f"there is no text normalisation {normalisation!r}",
            hint=did_you_mean(normalisation, NORMALISATIONS) or f"Choose one of {', '.join(NORMALISATIONS)}.",
        )


def normalisation_identity(normalisation: str) -> dict[str, str | int]:
    """Everything that decides what a normalisation makes of a text: part of a stage's fingerprint.

    For ``nltk`` that includes two libraries: releases of NLTK differ a little in their tokenizer, and releases of
    regex in the version of Unicode that says which characters are special.
    """
    check_normalisation(normalisation)
    parts: dict[str, str | int] = {"text": normalisation, "text_version": NORMALISATIONS[normalisation]}
    if normalisation == "nltk":
        parts |= {library: importlib.metadata.version(library) for library in ("nltk", "regex")}
    return parts


def normalise_text(text: str, normalisation: str = "nltk") -> str:
    """Normalise one text, any string; ``nltk`` gives the tokens joined by single spaces.

    Lone surrogates, which no file can hold, become U+FFFD first, in every normalisation.

    Raises
    ------
    InputError
        There is no such normalisation.
    """
    check_normalisation(normalisation)
    return _normalise([replace_surrogates(text)], normalisation)[0]


def normalise_batch(battles: pa.RecordBatch, normalisation: str) -> tuple[pa.RecordBatch, TextCounts]:
    """Normalise the text of one batch of battles in this process, and count what happened to it.

    Every turn keeps its place, null stays null, other columns and the schema's metadata pass through unchanged.

    Parameters
    ----------
    battles:
        Has the columns of :data:`prefcli.battles.TEXT_FIELDS`, each ``list<string>``.
    normalisation:
        A name in :data:`NORMALISATIONS`.

    Raises
    ------
    InputError
        There is no such normalisation, or a text column is missing.
    """
    check_normalisation(normalisation)
    check_columns(battles)
    total = TextCounts()
    columns = list(battles.columns)
    for name in TEXT_FIELDS:
        position = battles.schema.get_field_index(name)
        columns[position], counts = _normalise_column(columns[position], normalisation, is_answer=name != "prompt")
        total += counts
    return pa.RecordBatch.from_arrays(columns, schema=battles.schema), total


def normalise_turns(turns: pa.Array, normalisation: str) -> pa.Array:
    """Normalise a column of turns (``list<string>``) in this process; null stays null.

    Raises
    ------
    InputError
        There is no such normalisation.
    """
    check_normalisation(normalisation)
    return _normalise_column(turns, normalisation, is_answer=False)[0]


def _normalise_column(
    lists: pa.ListArray | pa.LargeListArray, normalisation: str, *, is_answer: bool
) -> tuple[pa.Array, TextCounts]:
    before = lists.flatten()  # without the turns of null lists
    after = before
    if normalisation != "raw":
        texts = _normalise(before.drop_null().to_pylist(), normalisation)
        after = pc.replace_with_mask(before, before.is_valid(), pa.array(texts, type=before.type))
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    column = type(lists).from_arrays(
        pa.array(offsets, type=pa.int64() if pa.types.is_large_list(lists.type) else pa.int32()),
        after,
        type=lists.type,
        mask=lists.is_null() if lists.null_count else None,
    )
    had_text, has_text = _has_text(before), _has_text(after)
    rows = np.repeat(np.arange(len(lists)), lengths)
    return column, TextCounts(
        turns=len(before) - before.null_count,
        emptied=int(np.sum(had_text & ~has_text)),
        emptied_answers=len(np.setdiff1d(rows[had_text], rows[has_text])) if is_answer else 0,
        bytes_in=utf8_bytes(before),
        bytes_out=utf8_bytes(after),
    )


def _has_text(turns: pa.Array) -> np.ndarray:
    """For each turn: does it hold more than whitespace?"""
    has_text = pc.and_(pc.not_equal(turns, ""), pc.invert(pc.utf8_is_space(turns)))
    return has_text.fill_null(False).to_numpy(zero_copy_only=False)


def check_columns(battles: pa.RecordBatch) -> None:
    """Raise ``InputError`` if a text column is missing."""
    missing = [name for name in TEXT_FIELDS if name not in battles.schema.names]
    if missing:
        raise InputError(
            f"the battles have no column {', '.join(missing)}", hint=f"Found: {', '.join(battles.schema.names)}."
        )


def utf8_bytes(turns: pa.Array) -> int:
    """The UTF-8 bytes of all turns together."""
    return pc.sum(pc.binary_length(turns)).as_py() or 0


def replace_surrogates(text: str) -> str:
    """The text with U+FFFD for lone surrogates; two that belong together become the character they stand for."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _normalise(texts: Sequence[str], normalisation: str) -> list[str]:
    if normalisation == "nltk":
        from prefcli.text.nltk_tokens import normalise_nltk

        return normalise_nltk(texts)
    if normalisation == "light":
        return [_normalise_light(text) for text in texts]
    return list(texts)


#: Control characters other than tab and line feed, and characters that are invisible and part of no word: soft hyphen,
#: zero-width space, word joiner, byte order mark, direction marks. (The zero-width joiners are part of words.)
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)
_OTHER_SPACE = re.compile("[^\\S\n\t ]")
_SPACES_IN_LINE = re.compile("(?<=\\S)[\t ]{2,}")
_BLANK_LINES = re.compile("\n{3,}")


def _normalise_light(text: str) -> str:
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    text = "\n".join(line.rstrip() for line in text.splitlines())
    text = _SPACES_IN_LINE.sub(" ", _OTHER_SPACE.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", text).strip("\n")
