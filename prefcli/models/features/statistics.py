"""What the `features` architecture sees of a battle: numbers about its texts, and which words one answer has more of.

Statistics of the prompt, of each answer and of what they share are for a booster; the difference of the answers'
word counts, hashed, is for a linear model. Everything is counted for a whole batch at once
(:mod:`.textbytes`), and every text by itself: what is measured of an answer depends neither on the side it
stands on nor on its neighbours in the batch. So exchanging A and B exchanges two slices of :attr:`Features.answers`
and negates :attr:`Features.words`, exactly.

Nothing here is learnt from data. The lists of phrases are English; other languages are measured by all the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefcli.battles import TEXT_FIELDS, TURN_SEPARATOR
from prefcli.models.features import textbytes
from prefcli.models.features.textbytes import Hashes, Numbers, Spelled, Texts, Words

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Statistics = NDArray[np.float32]

VERSION = 2
"""Raise it when the same battle would give other numbers: saved models then refuse to be used."""

BUCKETS = 1 << 18
"""Words and word pairs are told apart by their hash modulo this."""

CHUNK_BYTES = 1 << 20
"""About so much text is measured at a time; what is counted then stays in the processor's caches."""
CHUNK_BATTLES = 2048

PHRASES: dict[str, tuple[str, ...]] = {
    "refusals": (
        "i cannot", "i can't", "i am not able", "i'm not able", "i am unable", "i'm unable", "i won't", "i will not",
        "cannot provide", "can't provide", "cannot assist", "can't assist", "cannot help", "can't help",
        "unable to provide", "unable to assist", "not able to provide", "do not have access", "don't have access",
        "do not have the ability", "don't have the ability", "don't have enough information", "against my",
        "not appropriate", "inappropriate", "unethical", "illegal",
    ),
    "apologies": ("sorry", "i apologize", "my apologies", "apologies", "unfortunately", "regret"),
    "self mentions": (
        "as an ai", "as a language model", "as an artificial intelligence", "ai language model", "ai assistant",
        "language model", "i'm an ai", "i am an ai", "my training", "my knowledge", "openai", "i'm just an",
    ),
    "hedges": (
        "may", "might", "could", "perhaps", "possibly", "probably", "likely", "it seems", "it depends", "i think",
        "i believe", "in general", "generally", "typically", "usually", "not sure", "it is possible", "it's possible",
    ),
    "cautions": (
        "important to note", "it is important", "it's important", "please note", "keep in mind", "be careful",
        "be aware", "consult", "professional", "however", "note that", "remember",
    ),
    "first person": ("i", "me", "my", "mine", "myself", "i'm", "i'd", "i've"),
    "second person": ("you", "your", "yours", "yourself"),
    "first person plural": ("we", "us", "our", "let's"),
    "courtesies": (
        "please", "thank you", "thanks", "you're welcome", "feel free", "let me know", "hope this helps",
        "happy to help", "glad to", "any other questions", "any questions", "further assistance", "good luck",
    ),
    "eager openings": (
        "sure", "certainly", "of course", "absolutely", "great question", "here is", "here are", "here's", "below is",
    ),
    "connectives": (
        "first", "second", "third", "finally", "then", "next", "therefore", "thus", "moreover", "furthermore",
        "additionally", "in addition", "for example", "for instance", "such as", "because", "although", "while",
        "on the other hand", "as a result",
    ),
    "closings": ("in conclusion", "in summary", "overall", "to summarize", "ultimately", "in short"),
    "negations": ("not", "no", "never", "n't", "none", "nothing", "can't", "don't", "doesn't", "isn't", "won't"),
    "questions back": (
        "could you", "can you", "would you", "do you", "please provide", "more information", "more context",
        "please clarify", "more details", "what do you", "did you mean",
    ),
    "emphasis": ("very", "really", "extremely", "highly", "crucial", "essential", "key", "significant", "vital"),
    "placeholders": ("your name", "insert", "lorem ipsum", "example com", "todo", "placeholder"),
    "English words": (
        "the", "of", "and", "to", "a", "in", "is", "it", "that", "for", "on", "with", "as", "are", "this", "be",
        "by", "an", "or", "from",
    ),
}  # fmt: skip
"""Phrases whose occurrences are counted, by what they tell."""

_COUNTED_BYTES: dict[str, str] = {
    "commas": ",", "colons": ":", "semicolons": ";", "question marks": "?", "exclamation marks": "!",
    "double quotes": '"', "single quotes": "'", "brackets": "([{", "digits": "0123456789", "slashes": "/\\",
    "stars": "*", "underscores": "_", "hyphens": "-", "pipes": "|", "operators": "+=<>^~%", "dollars": "$",
    "backticks": "`", "number signs": "#", "at signs": "@&",
}  # fmt: skip
_CAPITALS, _SMALL = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"

_SCRIPTS: dict[str, tuple[int, int]] = {
    "accented Latin": (0xC3, 0xC9), "Greek": (0xCD, 0xCF), "Cyrillic": (0xD0, 0xD3), "Hebrew": (0xD7, 0xD7),
    "Arabic": (0xD8, 0xDD), "South Asian": (0xE0, 0xE0), "symbols": (0xE2, 0xE2), "kana": (0xE3, 0xE3),
    "Han": (0xE4, 0xE9), "Hangul": (0xEA, 0xED), "emoji": (0xF0, 0xF0),
}  # fmt: skip
"""Scripts by the first byte of their characters in UTF-8: coarse, but a table look-up."""

_LOGARITHMS = (
    "characters", "words", "distinct words", "lines", "paragraphs", "sentences", "list items", "numbered items",
    "headings", "bold", "code fences", "table rows", "links", "indented lines", "capitals", "turns",
    "longest line", "bytes per line", "words per sentence", "words per paragraph",
    *_COUNTED_BYTES, *PHRASES,
)  # fmt: skip
_SHARES = (
    "share of capitals", "share of digits", "share of punctuation", "share of spaces", "share of line breaks",
    "share beyond ASCII", *(f"share of {name}" for name in _SCRIPTS),
    "word length", "share of long words", "share of short words", "share of capitalised words",
    "share of words in capitals",
    "distinct words per word", "distinct pairs per pair", "distinct triples per triple", "most frequent word",
    "distinct lines per line", "share of list lines", "share of English words", "share of first person",
    "null turns", "empty",
    "begins with a capital", "begins with a digit", "begins with markup", "begins eagerly", "begins with a refusal",
    "ends as a sentence", "ends as a question", "ends with a letter or digit", "ends with a colon or comma",
    "ends with markup", "code fence left open",
)  # fmt: skip
TEXT_STATISTICS = (*_LOGARITHMS, *_SHARES)
"""Measured of each of the three texts."""

PROMPT_OVERLAPS = (
    "prompt's words in answer", "answer's words in prompt", "words shared with prompt",
    "prompt's long words in answer", "answer's long words in prompt", "prompt's pairs in answer",
    "answer's pairs in prompt", "bytes like prompt's", "letters beyond ASCII unlike prompt's",
)  # fmt: skip
ANSWER_STATISTICS = (*TEXT_STATISTICS, *PROMPT_OVERLAPS)
PAIR_STATISTICS = (
    "words shared", "word pairs shared", "long words shared", "smaller answer's words in the other", "word cosine",
    "bytes alike", "answers identical", "same first words", "length apart",
)  # fmt: skip
"""Measured of both answers together; exchanging the answers changes none."""


@dataclass(frozen=True)
class Features:
    """Numbers about n battles.

    Attributes
    ----------
    prompt:
        :data:`TEXT_STATISTICS` of the prompts; shape ``[n, len(TEXT_STATISTICS)]``.
    answers:
        :data:`ANSWER_STATISTICS` of A and B; shape ``[n, 2, len(ANSWER_STATISTICS)]``.
    pair:
        :data:`PAIR_STATISTICS`; shape ``[n, len(PAIR_STATISTICS)]``.
    words:
        How much more weight A gives to each bucket of words and word pairs than B, sparse; shape ``[n, BUCKETS]``.
    """

    prompt: Statistics
    answers: Statistics
    pair: Statistics
    words: csr_matrix

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, rows: NDArray[np.integer]) -> Features:
        """The battles at some positions."""
        return Features(self.prompt[rows], self.answers[rows], self.pair[rows], self.words[rows])

    def exchanged(self) -> Features:
        """The same battles with A and B exchanged."""
        return Features(self.prompt, self.answers[:, ::-1], self.pair, -self.words)

    @staticmethod
    def concatenate(parts: Sequence[Features]) -> Features:
        """Several batches as one."""
        from scipy.sparse import vstack

        if len(parts) == 1:
            return parts[0]
        return Features(
            np.concatenate([part.prompt for part in parts]),
            np.concatenate([part.answers for part in parts]),
            np.concatenate([part.pair for part in parts]),
            vstack([part.words for part in parts], format="csr"),
        )


def extract(batch: pa.RecordBatch) -> Features:
    """Measure the battles of a canonical batch (see :mod:`prefcli.battles`).

    Memory beyond the result does not grow with the batch.
    """
    return Features.concatenate([_measure(part) for part in _chunks(batch)])


def _chunks(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in slices of about :data:`CHUNK_BYTES` of text; at least one, perhaps empty."""
    size = np.zeros(batch.num_rows + 1, dtype=np.int64)
    for name in TEXT_FIELDS:
        lengths = pc.binary_length(_joined(batch.column(batch.schema.get_field_index(name))))
        size[1:] += lengths.to_numpy(zero_copy_only=False)
    ends = np.cumsum(size)
    start = 0
    while start < batch.num_rows or start == 0:
        stop = int(np.searchsorted(ends, ends[start] + CHUNK_BYTES, side="right")) - 1
        stop = min(max(stop, start + 1), start + CHUNK_BATTLES, batch.num_rows)
        yield batch.slice(start, stop - start)
        start = max(stop, 1)


def _joined(column: pa.ListArray) -> pa.Array:
    """Each battle's turns as one text; null turns are empty."""
    turns = column.flatten()
    ends = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(ends)]).astype(np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(starts), turns.fill_null("")), TURN_SEPARATOR)


def _measure(batch: pa.RecordBatch) -> Features:
    """:func:`extract` for a few battles: their 3n texts together, prompts first, then A, then B."""
    n = batch.num_rows
    columns = [batch.column(batch.schema.get_field_index(name)) for name in TEXT_FIELDS]
    joined = [_joined(column) for column in columns]
    texts = Texts.of(pa.concat_arrays(joined))
    counts = _Counts.of(texts)
    turns = np.concatenate([_turns(column) for column in columns])
    statistics = _text_statistics(counts, turns)
    overlaps, pair = _overlaps(counts, n)
    pair[:, PAIR_STATISTICS.index("answers identical")] = _flags(pc.equal(joined[1], joined[2]))
    answers = np.concatenate([statistics[n:], overlaps], axis=1).reshape(2, n, len(ANSWER_STATISTICS))
    return Features(
        prompt=statistics[:n],
        answers=np.ascontiguousarray(answers.transpose(1, 0, 2)),
        pair=pair,
        words=_word_difference(counts, n),
    )


def _flags(array: pa.Array) -> Numbers:
    return np.asarray(array.cast(pa.int8()).to_numpy(zero_copy_only=False), dtype=np.int64)


def _turns(column: pa.ListArray) -> Numbers:
    """Turns of each battle, and how many of them are null; shape ``[n, 2]``."""
    turns = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(turns)])
    nulls = np.concatenate([[0], np.cumsum(_flags(column.flatten().is_null()))])
    return np.stack([turns, nulls[ends[1:]] - nulls[ends[:-1]]], axis=1)


@dataclass(frozen=True)
class _Counts:
    """What statistics are made of: bytes, words, and each text's distinct words and runs of words.

    ``distinct`` holds for 1, 2, 3 words the keys (see :func:`.textbytes.keys`) and their counts; ``long`` the
    keys of distinct words of at least :data:`LONG_WORD` bytes.
    """

    texts: Texts
    spelled: Spelled
    words: Words
    histogram: Numbers
    distinct: tuple[tuple[Hashes, Numbers], ...]
    long: Hashes

    @staticmethod
    def of(texts: Texts) -> _Counts:
        spelled = Spelled.of(texts)
        words = Words.of(texts, spelled)
        distinct = tuple(textbytes.distinct(textbytes.keys(*words.runs(length))) for length in (1, 2, 3))
        long = words.ends - words.starts >= LONG_WORD
        keys, _ = textbytes.distinct(textbytes.keys(words.text[long], words.hashes[long]))
        return _Counts(texts, spelled, words, texts.histogram(), distinct, keys)

    def per_text(self, rows: Numbers) -> Numbers:
        """How often each text's number occurs in ``rows``."""
        return np.bincount(rows, minlength=len(self.texts))


LONG_WORD = 6
"""Bytes from which a word counts as long, that is, as likely to carry content."""


def _text_statistics(counts: _Counts, turns: Numbers) -> Statistics:
    """:data:`TEXT_STATISTICS` of each text."""
    found = _bytes(counts) | _lines(counts) | _words(counts) | _phrases(counts) | _edges(counts)
    found["turns"], found["null turns"] = turns[:, 0], turns[:, 1]
    found["share of English words"] = _ratio(found["English words"], found["words"])
    found["share of first person"] = _ratio(found["first person"], found["words"])
    found["words per sentence"] = _ratio(found["words"], found["sentences"])
    found["words per paragraph"] = _ratio(found["words"], found["paragraphs"])
    values = np.stack([found[name] for name in TEXT_STATISTICS], axis=1).astype(np.float32)
    values[:, : len(_LOGARITHMS)] = np.log1p(values[:, : len(_LOGARITHMS)])
    return values


def _ratio(part: NDArray[np.generic], whole: NDArray[np.generic]) -> NDArray[np.float64]:
    """``part / whole``; 0 where there is nothing to divide by, and ``part`` where ``whole`` is below 1."""
    return np.asarray(part, dtype=np.float64) / np.maximum(whole, 1)


def _bytes(counts: _Counts) -> dict[str, NDArray[np.generic]]:
    """Statistics of which bytes there are."""
    histogram = counts.histogram

    def of(characters: str) -> Numbers:
        return histogram[:, [ord(character) for character in characters]].sum(axis=1)

    leads = histogram[:, 0xC0:].sum(axis=1)
    characters = histogram[:, :0x80].sum(axis=1) + leads - 2  # two line breaks frame each text
    breaks = of("\n") - 2
    found: dict[str, NDArray[np.generic]] = {name: of(which) for name, which in _COUNTED_BYTES.items()}
    found |= {
        "characters": characters,
        "capitals": of(_CAPITALS),
        "share of capitals": _ratio(of(_CAPITALS), of(_CAPITALS) + of(_SMALL)),
        "share of digits": _ratio(found["digits"], characters),
        "share of punctuation": _ratio(of(_PUNCTUATION), characters),
        "share of spaces": _ratio(of(" \t"), characters),
        "share of line breaks": _ratio(breaks, characters),
        "share beyond ASCII": _ratio(leads, characters),
        "empty": characters == 0,
    }
    for name, (first, last) in _SCRIPTS.items():
        found[f"share of {name}"] = _ratio(histogram[:, first : last + 1].sum(axis=1), characters)
    return found


def _lines(counts: _Counts) -> dict[str, NDArray[np.generic]]:
    """Statistics of lines: paragraphs, sentences, and markup at their beginnings."""
    texts, data = counts.texts, counts.texts.data
    padded = np.concatenate([data, np.full(4, textbytes.BREAK, dtype=np.uint8)])
    breaks = np.flatnonzero(data == textbytes.BREAK)
    starts, ends = breaks[:-1] + 1, breaks[1:]
    filled = ends > starts
    starts, ends = starts[filled], ends[filled]
    text = texts.text_of(starts)
    indented = (padded[starts] == ord(" ")) | (padded[starts] == ord("\t"))
    first = starts.copy()
    for _ in range(8):  # list items are indented by a few spaces at most; what is deeper is left as it is
        first += (padded[first] == ord(" ")) | (padded[first] == ord("\t"))
    lead, second, third, fourth = (padded[np.minimum(first + step, len(data))] for step in range(4))
    digit, digit_too = _is_digit(lead), _is_digit(second)
    bullet = np.isin(lead, _codes("-*+")) & (second == ord(" "))
    bullet |= (lead == 0xE2) & (second == 0x80) & (third == 0xA2)
    numbered = digit & np.isin(second, _codes(".)")) & (third == ord(" "))
    numbered |= digit & digit_too & np.isin(third, _codes(".)")) & (fourth == ord(" "))
    after_blank = data[starts - 2] == textbytes.BREAK  # a text's first line too: another text's end is before it
    stop = np.flatnonzero(np.isin(data, _codes(".!?")))
    stop = stop[np.isin(padded[stop + 1], _codes(" \n\"')*"))]
    length = np.zeros(len(texts), dtype=np.int64)
    np.maximum.at(length, text, ends - starts)
    lines = counts.per_text(text)
    distinct, _ = textbytes.distinct(textbytes.keys(text, counts.spelled.hashes(starts, ends)))
    items, numbers = counts.per_text(text[bullet]), counts.per_text(text[numbered])
    characters = np.diff(texts.bounds)
    return {
        "lines": lines,
        "paragraphs": counts.per_text(text[after_blank]),
        "sentences": texts.per_text(stop),
        "list items": items,
        "numbered items": numbers,
        "share of list lines": _ratio(items + numbers, lines),
        "headings": counts.per_text(text[(lead == ord("#")) & np.isin(second, _codes("# "))]),
        "table rows": counts.per_text(text[lead == ord("|")]),
        "indented lines": counts.per_text(text[indented]),
        "longest line": length,
        "bytes per line": _ratio(characters, lines),
        "distinct lines per line": _ratio(counts.per_text(textbytes.rows_of(distinct)), lines),
        "bold": _doubled(texts, "*"),
        "code fences": _fences(texts),
        "code fence left open": _fences(texts) % 2,
        "links": _followed(texts, ":", b"//") + _followed(texts, "]", b"("),
    }


def _codes(characters: str) -> NDArray[np.uint8]:
    return np.frombuffer(characters.encode("ascii"), dtype=np.uint8)


def _is_digit(values: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (values >= ord("0")) & (values <= ord("9"))


def _followed(texts: Texts, character: str, following: bytes) -> Numbers:
    """How often a character is followed by some others in each text."""
    at = np.flatnonzero(texts.data == ord(character))
    for step, code in enumerate(following, start=1):
        at = at[texts.data[at + step] == code]  # texts end with line breaks, where every search stops
    return texts.per_text(at)


def _doubled(texts: Texts, character: str) -> Numbers:
    """Stretches between doubled characters, as in ``**bold**``."""
    return _followed(texts, character, character.encode()) // 2


def _fences(texts: Texts) -> Numbers:
    return _followed(texts, "`", b"``")


def _words(counts: _Counts) -> dict[str, NDArray[np.generic]]:
    """Statistics of words and of how often they repeat."""
    words, data = counts.words, counts.texts.data
    lengths = words.ends - words.starts
    total = counts.per_text(words.text)
    capital = (data[words.starts] >= ord("A")) & (data[words.starts] <= ord("Z"))
    last = data[words.ends - 1]
    shouted = capital & (last >= ord("A")) & (last <= ord("Z")) & (lengths > 1)
    found: dict[str, NDArray[np.generic]] = {
        "words": total,
        "word length": _ratio(np.bincount(words.text, lengths, len(counts.texts)), total),
        "share of long words": _ratio(counts.per_text(words.text[lengths >= LONG_WORD]), total),
        "share of short words": _ratio(counts.per_text(words.text[lengths <= 3]), total),
        "share of capitalised words": _ratio(counts.per_text(words.text[capital]), total),
        "share of words in capitals": _ratio(counts.per_text(words.text[shouted]), total),
    }
    names = ("distinct words per word", "distinct pairs per pair", "distinct triples per triple")
    for length, (name, (keys, _)) in enumerate(zip(names, counts.distinct, strict=True)):
        kinds = counts.per_text(textbytes.rows_of(keys))
        found[name] = _ratio(kinds, total - length)
        if not length:
            found["distinct words"] = kinds
    most = np.zeros(len(counts.texts), dtype=np.int64)
    keys, times = counts.distinct[0]
    np.maximum.at(most, textbytes.rows_of(keys), times)
    found["most frequent word"] = _ratio(most, total)
    return found


@functools.cache
def _phrase_tables() -> dict[int, tuple[Hashes, Numbers]]:
    """Number of words -> hashes of the phrases of so many words, ascending, and their place in :data:`PHRASES`."""
    found: dict[int, list[tuple[int, int]]] = {}
    for kind, phrases in enumerate(PHRASES.values()):
        for length, value in textbytes.hashes_of(phrases):
            found.setdefault(length, []).append((value, kind))
    tables = {}
    for length, pairs in found.items():
        pairs.sort()
        hashes, kinds = zip(*pairs, strict=True)
        tables[length] = np.array(hashes, dtype=np.uint64), np.array(kinds, dtype=np.int64)
    return tables


def _phrases(counts: _Counts) -> dict[str, NDArray[np.generic]]:
    """How often each kind of phrase occurs, and whether the text begins with some."""
    kinds = len(PHRASES)
    found = np.zeros(len(counts.texts) * kinds, dtype=np.int64)
    first_word = np.searchsorted(counts.words.text, np.arange(len(counts.texts)))
    opening = np.zeros((len(counts.texts), kinds), dtype=bool)
    for length, (hashes, kind_of) in _phrase_tables().items():
        text, runs, place = counts.words.ngrams_at(length)
        at = np.minimum(np.searchsorted(hashes, runs), len(hashes) - 1)
        hit = np.flatnonzero(hashes[at] == runs)
        found += np.bincount(text[hit] * kinds + kind_of[at[hit]], minlength=len(found))
        early = hit[place[hit] - first_word[text[hit]] < 3]
        opening[text[early], kind_of[at[early]]] = True
    names = list(PHRASES)
    result: dict[str, NDArray[np.generic]] = dict(zip(names, found.reshape(-1, kinds).T, strict=True))
    result["begins eagerly"] = opening[:, names.index("eager openings")]
    result["begins with a refusal"] = (
        opening[:, names.index("refusals")]
        | opening[:, names.index("apologies")]
        | opening[:, names.index("self mentions")]
    )
    return result


def _edges(counts: _Counts) -> dict[str, NDArray[np.generic]]:
    """How texts begin and end, white space apart."""
    data, bounds = counts.texts.data, counts.texts.bounds
    solid = np.flatnonzero(data > ord(" "))
    ends = np.searchsorted(solid, bounds)
    some = ends[1:] > ends[:-1]
    first, last = (np.full(len(counts.texts), ord(" "), dtype=np.uint8) for _ in range(2))
    first[some] = data[solid[ends[:-1][some]]]
    last[some] = data[solid[ends[1:][some] - 1]]
    letter = (last >= 0x80) | _is_digit(last) | np.isin(last, _codes(_CAPITALS + _SMALL))
    return {
        "begins with a capital": np.isin(first, _codes(_CAPITALS)),
        "begins with a digit": _is_digit(first),
        "begins with markup": np.isin(first, _codes("#*`|-<[{_>")),
        "ends as a sentence": np.isin(last, _codes('.!?"')),
        "ends as a question": last == ord("?"),
        "ends with a letter or digit": letter,
        "ends with a colon or comma": np.isin(last, _codes(":,;-")),
        "ends with markup": np.isin(last, _codes("`|*>]})#")),
    }


def _shared(keys: Hashes, first: int, second: int, n: int, counts: Numbers | None = None) -> _Overlap:
    """What the ``n`` texts from number ``first`` on share with those from ``second`` on, of distinct keys."""
    row = textbytes.rows_of(keys)
    edges = np.searchsorted(row, [first, first + n, second, second + n])
    one, other = keys[edges[0] : edges[1]], keys[edges[2] : edges[3]]
    moved = other - (np.uint64(second - first) << np.uint64(textbytes.HASH_BITS))
    at = np.minimum(np.searchsorted(one, moved), max(len(one) - 1, 0))
    hit = np.flatnonzero(one[at] == moved) if len(one) else np.empty(0, dtype=np.int64)
    products = np.zeros(n, dtype=np.float64)
    if counts is not None:
        product = counts[edges[0] : edges[1]][at[hit]] * counts[edges[2] : edges[3]][hit]
        products += np.bincount(row[edges[2] : edges[3]][hit] - second, product, n)
    return _Overlap(
        both=np.bincount(row[edges[2] : edges[3]][hit] - second, minlength=n),
        first=np.bincount(row[edges[0] : edges[1]] - first, minlength=n),
        second=np.bincount(row[edges[2] : edges[3]] - second, minlength=n),
        products=products,
    )


@dataclass(frozen=True)
class _Overlap:
    """Sizes of two sets and of what they share; ``products`` sums the products of the shared words' counts."""

    both: Numbers
    first: Numbers
    second: Numbers
    products: NDArray[np.float64]

    @property
    def jaccard(self) -> NDArray[np.float64]:
        return _ratio(self.both, self.first + self.second - self.both)


def _overlaps(counts: _Counts, n: int) -> tuple[Statistics, Statistics]:
    """:data:`PROMPT_OVERLAPS` of A and of B, shape ``[2n, .]``, and :data:`PAIR_STATISTICS`, shape ``[n, .]``."""
    (words, times), (pairs, _), _ = counts.distinct
    histogram = counts.histogram.astype(np.float64)
    histogram[:, [ord(" "), textbytes.BREAK]] = 0
    norm = np.sqrt((histogram**2).sum(axis=1))
    beyond = _ratio(counts.histogram[:, 0xC0:].sum(axis=1), np.diff(counts.texts.bounds))

    def alike(first: int, second: int) -> NDArray[np.float64]:
        product = (histogram[first : first + n] * histogram[second : second + n]).sum(axis=1)
        return product / np.maximum(norm[first : first + n] * norm[second : second + n], 1)

    answers = []
    for start in (n, 2 * n):
        word, pair, long = (_shared(keys, 0, start, n) for keys in (words, pairs, counts.long))
        answers.append(
            np.stack(
                [
                    _ratio(word.both, word.first), _ratio(word.both, word.second), word.jaccard,
                    _ratio(long.both, long.first), _ratio(long.both, long.second),
                    _ratio(pair.both, pair.first), _ratio(pair.both, pair.second),
                    alike(0, start), beyond[start : start + n] - beyond[:n],
                ],
                axis=1,
            )
        )  # fmt: skip
    word, pair, long = (
        _shared(words, n, 2 * n, n, times),
        _shared(pairs, n, 2 * n, n),
        _shared(counts.long, n, 2 * n, n),
    )
    squares = np.bincount(textbytes.rows_of(words), times**2, 3 * n)
    sizes = np.log1p(np.diff(counts.texts.bounds))
    together = np.stack(
        [
            word.jaccard, pair.jaccard, long.jaccard, _ratio(word.both, np.minimum(word.first, word.second)),
            word.products / np.maximum(np.sqrt(squares[n : 2 * n] * squares[2 * n :]), 1),
            alike(n, 2 * n), np.zeros(n), _same_beginning(counts.words, n),
            np.abs(sizes[n : 2 * n] - sizes[2 * n :]),
        ],
        axis=1,
    )  # fmt: skip
    return np.concatenate(answers).astype(np.float32), together.astype(np.float32)


def _same_beginning(words: Words, n: int) -> NDArray[np.float64]:
    """How many of the first five words both answers share, in order, from the first on."""
    starts = np.searchsorted(words.text, np.arange(3 * n + 1))
    same, going = np.zeros(n), np.ones(n, dtype=bool)
    for step in range(5):
        a, b = starts[n : 2 * n] + step, starts[2 * n : 3 * n] + step
        going &= (a < starts[n + 1 : 2 * n + 1]) & (b < starts[2 * n + 1 : 3 * n + 1])
        if not going.any():
            break
        last = len(words.hashes) - 1
        going &= words.hashes[np.minimum(a, last)] == words.hashes[np.minimum(b, last)]
        same += going
    return same


def _word_difference(counts: _Counts, n: int) -> csr_matrix:
    """:attr:`Features.words`: of every word and pair of words ``log(1 + times in A) - log(1 + times in B)``."""
    from scipy.sparse import csr_matrix

    rows, buckets, values = [], [], []
    for keys, times in counts.distinct[:2]:
        row = textbytes.rows_of(keys)
        answers = row >= n
        row = row[answers] - n
        rows.append(row % n)
        buckets.append((keys[answers] & np.uint64(BUCKETS - 1)).astype(np.int32))
        # Rounded so that sums are exact in float32 whatever their order: words that share a bucket cost no symmetry.
        weights = np.round(np.log1p(times[answers]) * 4096) / 4096
        values.append(np.where(row < n, weights, -weights))
    parts = (np.concatenate(values), (np.concatenate(rows), np.concatenate(buckets)))
    matrix = csr_matrix(parts, shape=(n, BUCKETS), dtype=np.float32)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix
