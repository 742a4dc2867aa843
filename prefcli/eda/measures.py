"""What can be measured about each battle's text: lengths, markup, script, and hashes that find equal texts.

Everything is computed a batch at a time by Arrow's kernels, so that of the text only numbers stay in memory.
"""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefcli.battles import TEXT_FIELDS, int_column, labels_of

Numbers = NDArray[np.int64]

ANSWERS = ("response_a", "response_b")

MARKUP: dict[str, tuple[str, ...]] = {
    # A line that begins so, written with its line break first: RE2 then searches for the break alone, many times
    # faster. The text's own beginning is looked at apart.
    "list items": (r"\n[ \t]*(?:[-*+\x{2022}]|[0-9]{1,2}[.)])[ \t]", r"^[ \t]*(?:[-*+\x{2022}]|[0-9]{1,2}[.)])[ \t]"),
    "headings": (r"\n#{1,6} ", r"^#{1,6} "),
    "code blocks": (r"```",),
    "bold": (r"\*\*[^*\n]+\*\*",),
    "tables": (r"\n\|", r"^\|"),
}
"""Markdown in an answer: name -> regular expressions whose matches are counted."""

SCRIPTS = {
    "Latin": "LATIN",
    "Cyrillic": "CYRILLIC",
    "Han": "CJK",
    "Kana": "HIRAGANA KATAKANA",
    "Hangul": "HANGUL",
    "Arabic": "ARABIC",
    "Hebrew": "HEBREW",
    "Greek": "GREEK",
    "Devanagari": "DEVANAGARI",
    "Thai": "THAI",
}
"""Scripts, and the first words of their letters' names in Unicode."""
OTHER_SCRIPT, NO_LETTERS = "other", "no letters"
SCRIPT_LETTERS = 2000
"""So many characters are enough to tell a text's script."""
SCRIPT_NAMES = (*SCRIPTS, OTHER_SCRIPT, NO_LETTERS)

CHARACTERS_PER_TOKEN = 4.5
EXTRA_BYTES_PER_TOKEN = 3
"""Of an English-centred subword vocabulary: a rule of thumb, see :func:`estimated_tokens`."""
TOKENS_EXPLAINED = "tokens are estimated: characters / 4.5 + bytes beyond ASCII / 3"


@dataclass(frozen=True)
class Measured:
    """Measurements of n battles; arrays of shape ``[n]``, the answers' ``[n, 2]`` for A and B.

    Attributes
    ----------
    label:
        -1 where unknown.
    both_bad:
        1 where the voter found both answers bad, -1 where the source does not tell.
    prompt_key, prompt_hash, answer_hash:
        Equal for equal prompts (:func:`prefcli.battles.prompt_key`), prompts and answers; the hashes only within
        this process.
    turns:
        Of the prompt.
    characters:
        Of prompt, A and B, all turns together; shape ``[n, 3]``.
    tokens:
        Estimated, likewise.
    nulls:
        Null turns in prompt, A and B, likewise.
    markup:
        Matches of each of :data:`MARKUP` in the answers; shape ``[n, len(MARKUP), 2]``.
    script:
        Position in :data:`SCRIPT_NAMES` of the prompt's script.
    """

    label: Numbers
    both_bad: Numbers
    prompt_key: Numbers
    prompt_hash: Numbers
    answer_hash: Numbers
    turns: Numbers
    characters: Numbers
    tokens: Numbers
    nulls: Numbers
    markup: Numbers
    script: Numbers

    @staticmethod
    def together(parts: list[Measured]) -> Measured:
        """Several batches as one."""
        return Measured(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Measured)))


def measure(batch: pa.RecordBatch) -> Measured:
    """Measure a canonical batch."""
    table = pa.Table.from_batches([batch])
    flat = {name: _Flat.of(batch.column(batch.schema.get_field_index(name))) for name in TEXT_FIELDS}
    characters = {name: pc.utf8_length(one.texts) for name, one in flat.items()}
    return Measured(
        label=labels_of(table),
        both_bad=_flags(batch),
        prompt_key=table["prompt_key"].to_numpy(),
        prompt_hash=flat["prompt"].hashes(),
        answer_hash=np.stack([flat[name].hashes() for name in ANSWERS], axis=1),
        turns=np.diff(flat["prompt"].ends),
        characters=np.stack([flat[name].per_battle(characters[name]) for name in TEXT_FIELDS], axis=1),
        tokens=np.stack([estimated_tokens(flat[name], characters[name]) for name in TEXT_FIELDS], axis=1),
        nulls=np.stack([flat[name].per_battle(flat[name].nulls) for name in TEXT_FIELDS], axis=1),
        markup=np.stack([markup(flat[name]) for name in ANSWERS], axis=2),
        script=script(flat["prompt"], characters["prompt"]),
    )


@dataclass(frozen=True)
class _Flat:
    """A column of turns as all its texts (nulls as empty ones), and where each battle's end; shape ``[n + 1]``."""

    texts: pa.Array
    nulls: pa.Array
    ends: Numbers

    @staticmethod
    def of(column: pa.ListArray) -> _Flat:
        turns = column.flatten()
        ends = np.concatenate([[0], np.cumsum(int_column(pc.list_value_length(column)))])
        return _Flat(turns.fill_null("") if turns.null_count else turns, turns.is_null(), ends)

    def per_battle(self, per_text: pa.Array | Numbers) -> Numbers:
        """Sums over the turns of each battle."""
        values = per_text if isinstance(per_text, np.ndarray) else _numpy(per_text)
        if len(values) == len(self.ends) - 1 and (np.diff(self.ends) == 1).all():
            return values
        total = np.concatenate([[0], np.cumsum(values)])
        return total[self.ends[1:]] - total[self.ends[:-1]]

    def joined(self) -> pa.Array:
        """Each battle's turns as one text."""
        if len(self.texts) == len(self.ends) - 1 and (np.diff(self.ends) == 1).all():
            return self.texts
        lists = pa.ListArray.from_arrays(pa.array(self.ends.astype(np.int32)), self.texts)
        return pc.binary_join(lists, "\n")

    def hashes(self) -> Numbers:
        """64-bit hashes of each battle's text, equal for equal texts within this process."""
        return np.array([hash(text) for text in self.joined().cast(pa.binary()).to_pylist()], dtype=np.int64)


def estimated_tokens(flat: _Flat, characters: pa.Array) -> Numbers:
    """About how many tokens an English-centred subword tokenizer makes of each battle's text.

    One for every :data:`CHARACTERS_PER_TOKEN` characters, and one for every :data:`EXTRA_BYTES_PER_TOKEN` bytes that
    UTF-8 needs beyond one per character; so about half a token for a Cyrillic letter and one for a Han character. An
    estimate for seeing what a length limit would cut before a tokenizer is chosen, not a count.
    """
    length = flat.per_battle(characters)
    extra = flat.per_battle(pc.binary_length(flat.texts)) - length
    return np.ceil(length / CHARACTERS_PER_TOKEN + extra / EXTRA_BYTES_PER_TOKEN).astype(np.int64)


def markup(flat: _Flat) -> Numbers:
    """How often each of :data:`MARKUP` occurs in each battle's text; shape ``[n, len(MARKUP)]``."""
    counts = []
    for patterns in MARKUP.values():
        found = sum(_numpy(pc.count_substring_regex(flat.texts, pattern)) for pattern in patterns)
        counts.append(flat.per_battle(np.asarray(found)))
    return np.stack(counts, axis=1)


def script(flat: _Flat, characters: pa.Array) -> Numbers:
    """The script most letters of the beginning of each battle's text are in, as a position in :data:`SCRIPT_NAMES`.

    A text with kana is Kana however many Han characters stand beside them. A letter's script is told by its name in
    the Unicode Character Database.
    """
    joined = flat.joined()
    none = SCRIPT_NAMES.index(NO_LETTERS)
    found = np.where(_numpy(pc.match_substring_regex(joined, "[A-Za-z]")) > 0, 0, none)
    mixed = np.flatnonzero(flat.per_battle(pc.binary_length(flat.texts)) != flat.per_battle(characters))
    if not len(mixed):
        return found
    texts = pc.utf8_slice_codeunits(joined.take(pa.array(mixed)), 0, SCRIPT_LETTERS).to_pylist()
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    row = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    table = np.zeros(int(codes.max()) + 1, dtype=np.int64)
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        table[code] = _script_of(code)
    scripts = table[codes]
    cells = np.bincount(row * len(SCRIPT_NAMES) + scripts, minlength=len(texts) * len(SCRIPT_NAMES))
    counts = cells.reshape(len(texts), len(SCRIPT_NAMES))
    counts[:, none] = 0
    kana, han = SCRIPT_NAMES.index("Kana"), SCRIPT_NAMES.index("Han")
    counts[:, kana] += np.where(counts[:, kana] > 0, counts[:, han] + 1, 0)
    found[mixed] = np.where(counts.any(axis=1), counts.argmax(axis=1), none)
    return found


@functools.cache
def _script_of(code: int) -> int:
    """A character's script as a position in :data:`SCRIPT_NAMES`."""
    character = chr(code)
    if not character.isalpha():
        return SCRIPT_NAMES.index(NO_LETTERS)
    first = unicodedata.name(character, "").split(" ")[0]
    name = next((name for name, words in SCRIPTS.items() if first in words.split()), OTHER_SCRIPT)
    return SCRIPT_NAMES.index(name)


def _flags(batch: pa.RecordBatch) -> Numbers:
    if "both_bad" not in batch.schema.names:
        return np.full(batch.num_rows, -1, dtype=np.int64)
    column = batch.column(batch.schema.get_field_index("both_bad"))
    return int_column(column)


def _numpy(array: pa.Array) -> Numbers:
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.int64)
