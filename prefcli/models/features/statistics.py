"""What the `features` architecture sees of a battle: numbers about its texts, and which words one answer has more of.

Statistics of the prompt, of each answer and of what they share (:mod:`.names`) are for a booster; the difference of the
answers' word counts, hashed, is for a linear model. A whole batch is counted at once (:mod:`.textbytes`), but every
text by itself: what is measured of an answer depends neither on its side nor on the other battles of the batch. So
swapping A and B swaps two slices of :attr:`Features.answers` and negates :attr:`Features.words`, exactly.

Nothing here is learned from data.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefcli.battles import TEXT_FIELDS, TURN_SEPARATOR
from prefcli.models.features import textbytes
from prefcli.models.features.names import (
    ANSWER_STATISTICS,
    COUNTED_BYTES,
    LOG_STATISTICS,
    PAIR_STATISTICS,
    PHRASES,
    SCRIPTS,
    TEXT_STATISTICS,
)
from prefcli.models.features.textbytes import Flags, Hashes, Numbers, PrefixHashes, Texts, Words
from prefcli.threads import map_in_threads

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Statistics = NDArray[np.float32]
Columns = dict[str, NDArray[np.generic]]

VERSION = 3
"""Raise when the same battle would give other numbers."""
VERSION_WITHOUT_CLUSTERS = 2
"""Models of this version are measured as they were trained, see :func:`.textbytes.word_bounds`."""
VERSIONS = (VERSION_WITHOUT_CLUSTERS, VERSION)

BUCKETS = 1 << 18
"""Words and word pairs are counted by their hash modulo this."""

CHUNK_BYTES = 1 << 19
"""About so much text is measured at a time, so that the counts stay in the processor's caches."""
CHUNK_BATTLES = 2048

CHUNK_ENTRIES = 1 << 22
"""About so many counts of words are computed with at a time, so that temporary copies stay small."""

LONG_WORD = 6
"""Bytes from which a word counts as long, that is, as likely to carry content."""


@dataclass(frozen=True)
class BattleStatistics:
    """Statistics of n battles, without their words."""

    prompt: Statistics
    """:data:`TEXT_STATISTICS` of the prompts; shape ``[n, len(TEXT_STATISTICS)]``."""
    answers: Statistics
    """:data:`ANSWER_STATISTICS` of A and B; shape ``[n, 2, len(ANSWER_STATISTICS)]``."""
    pair: Statistics
    """:data:`PAIR_STATISTICS`; shape ``[n, len(PAIR_STATISTICS)]``."""

    def __len__(self) -> int:
        return len(self.prompt)

    def statistics(self, rows: NDArray[np.integer]) -> BattleStatistics:
        """Those of the battles at these positions, in this order."""
        return BattleStatistics(self.prompt[rows], self.answers[rows], self.pair[rows])


@dataclass(frozen=True)
class Features(BattleStatistics):
    """Numbers about n battles."""

    words: csr_matrix
    """How much more often A has the words and word pairs of each bucket than B, sparse; shape ``[n, BUCKETS]``."""

    def take(self, rows: NDArray[np.integer]) -> Features:
        """The battles at these positions, in this order."""
        return Features(self.prompt[rows], self.answers[rows], self.pair[rows], self.words[rows])

    load = take

    def word_chunks(self) -> Iterator[tuple[slice, csr_matrix]]:
        """The words of all battles, about :data:`CHUNK_ENTRIES` at a time, and whose they are."""
        for chunk in entry_chunks(self.words.indptr):
            yield chunk, self.words[chunk]

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


def entry_chunks(offsets: NDArray[np.integer]) -> Iterator[slice]:
    """Rows whose entries are at most :data:`CHUNK_ENTRIES`, or a single row; row ``i`` ends at ``offsets[i + 1]``."""
    start = 0
    while start < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[start] + CHUNK_ENTRIES, side="right")) - 1
        yield slice(start, max(stop, start + 1))
        start = max(stop, start + 1)


def extract(batch: pa.RecordBatch, version: int = VERSION) -> Features:
    """Measure the battles of a canonical batch (see :mod:`prefcli.battles`), as one of :data:`VERSIONS` does.

    Beyond the result, memory does not grow with the batch.
    """
    return Features.concatenate(map_in_threads(functools.partial(_measure, version=version), _chunks(batch)))


def _chunks(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in slices of about :data:`CHUNK_BYTES` of text; at least one, perhaps empty."""
    sizes = np.zeros(batch.num_rows + 1, dtype=np.int64)
    for name in TEXT_FIELDS:
        sizes[1:] += pc.binary_length(_join_turns(batch.column(name))).to_numpy(zero_copy_only=False)
    offsets = np.cumsum(sizes)
    start = 0
    while start < batch.num_rows or start == 0:
        stop = int(np.searchsorted(offsets, offsets[start] + CHUNK_BYTES, side="right")) - 1
        stop = min(max(stop, start + 1), start + CHUNK_BATTLES, batch.num_rows)
        yield batch.slice(start, stop - start)
        start = max(stop, 1)


def _turn_offsets(column: pa.ListArray) -> Numbers:
    """Battle ``i`` has the turns ``offsets[i]:offsets[i + 1]`` of the flattened column."""
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _join_turns(column: pa.ListArray) -> pa.Array:
    """Each battle's turns as one text; null turns are empty."""
    offsets = pa.array(_turn_offsets(column).astype(np.int32))
    return pc.binary_join(pa.ListArray.from_arrays(offsets, column.flatten().fill_null("")), TURN_SEPARATOR)


def _measure(batch: pa.RecordBatch, version: int) -> Features:
    """:func:`extract` for a few battles: their 3n texts together, prompts first, then A, then B."""
    n = batch.num_rows
    columns = [batch.column(name) for name in TEXT_FIELDS]
    joined = [_join_turns(column) for column in columns]
    texts = Texts.from_arrow(pa.concat_arrays(joined))
    counts = _TextCounts.from_texts(texts, clusters=version > VERSION_WITHOUT_CLUSTERS)
    turns = np.concatenate([_count_turns(column) for column in columns])
    statistics = _text_statistics(counts, turns)
    overlaps, pair = _overlap_statistics(counts, n)
    pair[:, PAIR_STATISTICS.index("answers identical")] = _as_integers(pc.equal(joined[1], joined[2]))
    answers = np.concatenate([statistics[n:], overlaps], axis=1).reshape(2, n, len(ANSWER_STATISTICS))
    return Features(
        prompt=statistics[:n],
        answers=np.ascontiguousarray(answers.transpose(1, 0, 2)),
        pair=pair,
        words=_word_difference(counts, n),
    )


def _as_integers(array: pa.Array) -> Numbers:
    return np.asarray(array.cast(pa.int8()).to_numpy(zero_copy_only=False), dtype=np.int64)


def _count_turns(column: pa.ListArray) -> Numbers:
    """Turns of each battle, and how many of them are null; shape ``[n, 2]``."""
    offsets = _turn_offsets(column)
    nulls = np.concatenate([[0], np.cumsum(_as_integers(column.flatten().is_null()))])
    return np.stack([np.diff(offsets), np.diff(nulls[offsets])], axis=1)


@dataclass(frozen=True)
class _TextCounts:
    """What the statistics are computed from: each text's bytes, words and distinct n-grams of words."""

    texts: Texts
    prefix_hashes: PrefixHashes
    words: Words
    histogram: Numbers
    ngrams: tuple[tuple[Hashes, Numbers], ...]
    """For 1, 2 and 3 words the distinct keys (:func:`.textbytes.keys`) and their counts."""
    long_words: Hashes
    """Keys of the distinct words of at least :data:`LONG_WORD` bytes."""

    @staticmethod
    def from_texts(texts: Texts, *, clusters: bool) -> _TextCounts:
        prefix_hashes = PrefixHashes.from_texts(texts)
        words = Words.from_texts(texts, prefix_hashes, clusters=clusters)
        ngrams = tuple(textbytes.unique_counts(textbytes.keys(*words.ngrams(length)[:2])) for length in (1, 2, 3))
        is_long = words.ends - words.starts >= LONG_WORD
        long_words, _ = textbytes.unique_counts(textbytes.keys(words.text[is_long], words.hashes[is_long]))
        return _TextCounts(texts, prefix_hashes, words, texts.histogram(), ngrams, long_words)

    def per_text(self, text: Numbers) -> Numbers:
        """How often each text's number occurs in ``text``."""
        return np.bincount(text, minlength=len(self.texts))


def _text_statistics(counts: _TextCounts, turns: Numbers) -> Statistics:
    """:data:`.names.TEXT_STATISTICS` of each text."""
    columns = _bytes(counts) | _lines(counts) | _words(counts) | _phrases(counts) | _edges(counts)
    columns["turns"], columns["null turns"] = turns[:, 0], turns[:, 1]
    columns["share of English words"] = _ratio(columns["English words"], columns["words"])
    columns["share of first person"] = _ratio(columns["first person"], columns["words"])
    columns["words per sentence"] = _ratio(columns["words"], columns["sentences"])
    columns["words per paragraph"] = _ratio(columns["words"], columns["paragraphs"])
    values = np.stack([columns[name] for name in TEXT_STATISTICS], axis=1).astype(np.float32)
    values[:, : len(LOG_STATISTICS)] = np.log1p(values[:, : len(LOG_STATISTICS)])
    return values


def _ratio(part: NDArray[np.generic], whole: NDArray[np.generic]) -> NDArray[np.float64]:
    """``part / whole``; ``part`` where ``whole`` is below 1."""
    return np.asarray(part, dtype=np.float64) / np.maximum(whole, 1)


def _bytes(counts: _TextCounts) -> Columns:
    """Statistics of which bytes there are."""
    histogram = counts.histogram

    def count(characters: str) -> Numbers:
        return histogram[:, [ord(character) for character in characters]].sum(axis=1)

    leads = histogram[:, 0xC0:].sum(axis=1)
    characters = histogram[:, :0x80].sum(axis=1) + leads - 2  # two line breaks frame each text
    columns: Columns = {name: count(which) for name, which in COUNTED_BYTES.items()}
    columns |= {
        "characters": characters,
        "capitals": count(string.ascii_uppercase),
        "share of capitals": _ratio(count(string.ascii_uppercase), count(string.ascii_letters)),
        "share of digits": _ratio(columns["digits"], characters),
        "share of punctuation": _ratio(count(string.punctuation), characters),
        "share of spaces": _ratio(count(" \t"), characters),
        "share of line breaks": _ratio(count("\n") - 2, characters),
        "share beyond ASCII": _ratio(leads, characters),
        "empty": characters == 0,
    }
    for name, (first, last) in SCRIPTS.items():
        columns[f"share of {name}"] = _ratio(histogram[:, first : last + 1].sum(axis=1), characters)
    return columns


def _lines(counts: _TextCounts) -> Columns:
    """Statistics of lines: paragraphs, sentences, and markup at their beginnings."""
    texts, data = counts.texts, counts.texts.data
    padded = np.concatenate([data, np.full(4, textbytes.BREAK, dtype=np.uint8)])
    breaks = np.flatnonzero(data == textbytes.BREAK)
    starts, ends = breaks[:-1] + 1, breaks[1:]
    not_empty = ends > starts
    starts, ends = starts[not_empty], ends[not_empty]
    text = texts.text_of(starts)
    indented = (padded[starts] == ord(" ")) | (padded[starts] == ord("\t"))
    first = starts.copy()
    for _ in range(8):  # list items are indented by a few spaces; deeper lines are not list items
        first += (padded[first] == ord(" ")) | (padded[first] == ord("\t"))
    lead, second, third, fourth = (padded[np.minimum(first + step, len(data))] for step in range(4))
    digit, two_digits = _is_digit(lead), _is_digit(lead) & _is_digit(second)
    bullet = np.isin(lead, _codes("-*+")) & (second == ord(" "))
    bullet |= (lead == 0xE2) & (second == 0x80) & (third == 0xA2)
    numbered = digit & np.isin(second, _codes(".)")) & (third == ord(" "))
    numbered |= two_digits & np.isin(third, _codes(".)")) & (fourth == ord(" "))
    after_blank = data[starts - 2] == textbytes.BREAK  # also a text's first line, which another text's end precedes
    stops = np.flatnonzero(np.isin(data, _codes(".!?")))
    stops = stops[np.isin(padded[stops + 1], _codes(" \n\"')*"))]
    longest = np.zeros(len(texts), dtype=np.int64)
    np.maximum.at(longest, text, ends - starts)
    lines = counts.per_text(text)
    distinct, _ = textbytes.unique_counts(textbytes.keys(text, counts.prefix_hashes.hashes(starts, ends)))
    bullets, numbers = counts.per_text(text[bullet]), counts.per_text(text[numbered])
    fences = _count_sequence(texts, "`", b"``")
    return {
        "lines": lines,
        "paragraphs": counts.per_text(text[after_blank]),
        "sentences": texts.per_text(stops),
        "list items": bullets,
        "numbered items": numbers,
        "share of list lines": _ratio(bullets + numbers, lines),
        "headings": counts.per_text(text[(lead == ord("#")) & np.isin(second, _codes("# "))]),
        "table rows": counts.per_text(text[lead == ord("|")]),
        "indented lines": counts.per_text(text[indented]),
        "longest line": longest,
        "bytes per line": _ratio(np.diff(texts.offsets), lines),
        "distinct lines per line": _ratio(counts.per_text(textbytes.rows_of(distinct)), lines),
        "bold": _count_sequence(texts, "*", b"*") // 2,
        "code fences": fences,
        "code fence left open": fences % 2,
        "links": _count_sequence(texts, ":", b"//") + _count_sequence(texts, "]", b"("),
    }


def _codes(characters: str) -> NDArray[np.uint8]:
    return np.frombuffer(characters.encode("ascii"), dtype=np.uint8)


def _is_digit(values: NDArray[np.uint8]) -> Flags:
    return (values >= ord("0")) & (values <= ord("9"))


def _count_sequence(texts: Texts, character: str, following: bytes) -> Numbers:
    """How often a character is followed by some others in each text."""
    positions = np.flatnonzero(texts.data == ord(character))
    for step, code in enumerate(following, start=1):
        # Never beyond the end: every text ends with a line break, at which nothing matches.
        positions = positions[texts.data[positions + step] == code]
    return texts.per_text(positions)


def _words(counts: _TextCounts) -> Columns:
    """Statistics of words and of how often they repeat."""
    words, data = counts.words, counts.texts.data
    lengths = words.ends - words.starts
    total = counts.per_text(words.text)
    first, last = data[words.starts], data[words.ends - 1]
    capitalised = (first >= ord("A")) & (first <= ord("Z"))
    in_capitals = capitalised & (last >= ord("A")) & (last <= ord("Z")) & (lengths > 1)

    def share(selected: Flags) -> NDArray[np.float64]:
        return _ratio(counts.per_text(words.text[selected]), total)

    unigrams, times = counts.ngrams[0]
    highest = np.zeros(len(counts.texts), dtype=np.int64)
    np.maximum.at(highest, textbytes.rows_of(unigrams), times)
    distinct = [counts.per_text(textbytes.rows_of(keys)) for keys, _ in counts.ngrams]
    return {
        "words": total,
        "word length": _ratio(np.bincount(words.text, lengths, len(counts.texts)), total),
        "share of long words": share(lengths >= LONG_WORD),
        "share of short words": share(lengths <= 3),
        "share of capitalised words": share(capitalised),
        "share of words in capitals": share(in_capitals),
        "distinct words": distinct[0],
        "distinct words per word": _ratio(distinct[0], total),
        "distinct pairs per pair": _ratio(distinct[1], total - 1),
        "distinct triples per triple": _ratio(distinct[2], total - 2),
        "most frequent word": _ratio(highest, total),
    }


@functools.cache
def _phrase_tables() -> dict[int, tuple[Hashes, Numbers]]:
    """Number of words -> ascending hashes of the phrases with so many words, and their kinds' places in PHRASES."""
    by_length: dict[int, list[tuple[int, int]]] = {}
    for kind, phrases in enumerate(PHRASES.values()):
        for length, value in textbytes.phrase_hashes(phrases):
            by_length.setdefault(length, []).append((value, kind))
    tables = {}
    for length, pairs in by_length.items():
        hashes, kinds = zip(*sorted(pairs), strict=True)
        tables[length] = np.array(hashes, dtype=np.uint64), np.array(kinds, dtype=np.int64)
    return tables


def _phrases(counts: _TextCounts) -> Columns:
    """How often each kind of phrase occurs, and whether the text begins with some."""
    kinds = len(PHRASES)
    occurrences = np.zeros(len(counts.texts) * kinds, dtype=np.int64)
    first_word = np.searchsorted(counts.words.text, np.arange(len(counts.texts)))
    in_opening = np.zeros((len(counts.texts), kinds), dtype=bool)
    for length, (hashes, kind_of) in _phrase_tables().items():
        text, ngrams, place = counts.words.ngrams(length)
        nearest = np.minimum(np.searchsorted(hashes, ngrams), len(hashes) - 1)
        hits = np.flatnonzero(hashes[nearest] == ngrams)
        occurrences += np.bincount(text[hits] * kinds + kind_of[nearest[hits]], minlength=len(occurrences))
        early = hits[place[hits] - first_word[text[hits]] < 3]
        in_opening[text[early], kind_of[nearest[early]]] = True
    names = list(PHRASES)
    columns: Columns = dict(zip(names, occurrences.reshape(-1, kinds).T, strict=True))
    columns["begins eagerly"] = in_opening[:, names.index("eager openings")]
    refusals = [names.index(name) for name in ("refusals", "apologies", "self mentions")]
    columns["begins with a refusal"] = np.any(in_opening[:, refusals], axis=1)
    return columns


def _edges(counts: _TextCounts) -> Columns:
    """How texts begin and end, white space apart."""
    data = counts.texts.data
    visible = np.flatnonzero(data > ord(" "))
    offsets = np.searchsorted(visible, counts.texts.offsets)
    not_blank = offsets[1:] > offsets[:-1]
    first, last = (np.full(len(counts.texts), ord(" "), dtype=np.uint8) for _ in range(2))
    first[not_blank] = data[visible[offsets[:-1][not_blank]]]
    last[not_blank] = data[visible[offsets[1:][not_blank] - 1]]
    return {
        "begins with a capital": np.isin(first, _codes(string.ascii_uppercase)),
        "begins with a digit": _is_digit(first),
        "begins with markup": np.isin(first, _codes("#*`|-<[{_>")),
        "ends as a sentence": np.isin(last, _codes('.!?"')),
        "ends as a question": last == ord("?"),
        "ends with a letter or digit": (last >= 0x80) | np.isin(last, _codes(string.ascii_letters + string.digits)),
        "ends with a colon or comma": np.isin(last, _codes(":,;-")),
        "ends with markup": np.isin(last, _codes("`|*>]})#")),
    }


@dataclass(frozen=True)
class _Overlap:
    """Sizes of two sets of words and of what they share; ``products`` sums products of the shared words' counts."""

    both: Numbers
    first: Numbers
    second: Numbers
    products: NDArray[np.float64]

    @property
    def jaccard(self) -> NDArray[np.float64]:
        return _ratio(self.both, self.first + self.second - self.both)


def _overlap(keys: Hashes, first: int, second: int, n: int, counts: Numbers | None = None) -> _Overlap:
    """What the ``n`` texts from number ``first`` on share with those from ``second`` on, of distinct keys."""
    text = textbytes.rows_of(keys)
    bounds = np.searchsorted(text, [first, first + n, second, second + n])
    in_first, in_second = slice(bounds[0], bounds[1]), slice(bounds[2], bounds[3])
    first_keys = keys[in_first]
    second_keys = keys[in_second] - (np.uint64(second - first) << np.uint64(textbytes.HASH_BITS))
    second_text = text[in_second] - second
    nearest = np.minimum(np.searchsorted(first_keys, second_keys), max(len(first_keys) - 1, 0))
    shared = np.empty(0, dtype=np.int64)
    if len(first_keys):
        shared = np.flatnonzero(first_keys[nearest] == second_keys)
    products = np.zeros(n, dtype=np.float64)
    if counts is not None:
        product = counts[in_first][nearest[shared]] * counts[in_second][shared]
        products += np.bincount(second_text[shared], product, n)
    return _Overlap(
        both=np.bincount(second_text[shared], minlength=n),
        first=np.bincount(text[in_first] - first, minlength=n),
        second=np.bincount(second_text, minlength=n),
        products=products,
    )


def _overlap_statistics(counts: _TextCounts, n: int) -> tuple[Statistics, Statistics]:
    """PROMPT_OVERLAPS of A and of B, shape ``[2n, .]``, and PAIR_STATISTICS, shape ``[n, .]`` (:mod:`.names`)."""
    (words, times), (pairs, _), _ = counts.ngrams
    histogram = counts.histogram.astype(np.float64)
    histogram[:, [ord(" "), textbytes.BREAK]] = 0
    norm = np.sqrt((histogram**2).sum(axis=1))
    beyond_ascii = _ratio(counts.histogram[:, 0xC0:].sum(axis=1), np.diff(counts.texts.offsets))

    def byte_cosine(first: int, second: int) -> NDArray[np.float64]:
        product = (histogram[first : first + n] * histogram[second : second + n]).sum(axis=1)
        return product / np.maximum(norm[first : first + n] * norm[second : second + n], 1)

    answers = []
    for start in (n, 2 * n):
        word, pair, long = (_overlap(keys, 0, start, n) for keys in (words, pairs, counts.long_words))
        answers.append([
            _ratio(word.both, word.first), _ratio(word.both, word.second), word.jaccard,
            _ratio(long.both, long.first), _ratio(long.both, long.second),
            _ratio(pair.both, pair.first), _ratio(pair.both, pair.second),
            byte_cosine(0, start), beyond_ascii[start : start + n] - beyond_ascii[:n],
        ])  # fmt: skip
    word = _overlap(words, n, 2 * n, n, times)
    pair, long = (_overlap(keys, n, 2 * n, n) for keys in (pairs, counts.long_words))
    squares = np.bincount(textbytes.rows_of(words), times**2, 3 * n)
    sizes = np.log1p(np.diff(counts.texts.offsets))
    between_answers = [
        word.jaccard, pair.jaccard, long.jaccard, _ratio(word.both, np.minimum(word.first, word.second)),
        word.products / np.maximum(np.sqrt(squares[n : 2 * n] * squares[2 * n :]), 1),
        byte_cosine(n, 2 * n), np.zeros(n), _common_first_words(counts.words, n),
        np.abs(sizes[n : 2 * n] - sizes[2 * n :]),
    ]  # fmt: skip
    return np.concatenate(answers, axis=1).T.astype(np.float32), np.stack(between_answers, axis=1).astype(np.float32)


def _common_first_words(words: Words, n: int) -> NDArray[np.float64]:
    """How many words both answers begin with in common, up to five."""
    first_word = np.searchsorted(words.text, np.arange(3 * n + 1))
    common, equal_so_far = np.zeros(n), np.ones(n, dtype=bool)
    for step in range(5):
        a, b = first_word[n : 2 * n] + step, first_word[2 * n : 3 * n] + step
        equal_so_far &= (a < first_word[n + 1 : 2 * n + 1]) & (b < first_word[2 * n + 1 : 3 * n + 1])
        if not equal_so_far.any():
            break
        last = len(words.hashes) - 1
        equal_so_far &= words.hashes[np.minimum(a, last)] == words.hashes[np.minimum(b, last)]
        common += equal_so_far
    return common


def _word_difference(counts: _TextCounts, n: int) -> csr_matrix:
    """:attr:`Features.words`: of every word and word pair ``log(1 + times in A) - log(1 + times in B)``."""
    from scipy.sparse import csr_matrix

    rows, buckets, values = [], [], []
    for keys, times in counts.ngrams[:2]:
        text = textbytes.rows_of(keys)
        in_answers = text >= n
        answer = text[in_answers] - n
        rows.append(answer % n)
        buckets.append((keys[in_answers] & np.uint64(BUCKETS - 1)).astype(np.int32))
        # Rounded so that sums are exact in float32 in any order: words that share a bucket do not break the symmetry.
        weights = np.round(np.log1p(times[in_answers]) * 4096) / 4096
        values.append(np.where(answer < n, weights, -weights))
    parts = (np.concatenate(values), (np.concatenate(rows), np.concatenate(buckets)))
    matrix = csr_matrix(parts, shape=(n, BUCKETS), dtype=np.float32)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix
