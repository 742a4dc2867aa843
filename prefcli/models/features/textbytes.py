"""Many texts as one buffer of bytes: words, their hashes and n-grams, found for all texts at once.

A Python loop over characters or words handles about a megabyte a second; the array operations here handle tens. Texts
lie one after the other as UTF-8, words are positions in it, and everything is compared by 64-bit hashes. This module
knows nothing about battles or about what is worth counting (see :mod:`prefcli.models.features.statistics`).

A word is a run of letters, marks, digits and bytes beyond ASCII. Chinese, Japanese and Korean characters and emoji are
words by themselves. Other scripts written without spaces between words (Thai, Lao, Burmese, Khmer, relatives)
are cut into clusters: a letter with the marks, the vowels and the subjoined or final consonants that belong to it.
Punctuation separates, that of other scripts and the full-width kind included: "don’t" is two words.
"""

from __future__ import annotations

import functools
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Flags = NDArray[np.bool_]

MAX_BYTES = 200_000
"""Of a text that are read: far more than any answer has, and a bound for memory."""

ROW_BITS = 16
"""Of a key that pairs a text's number with a hash: at most 65,536 texts are handled together."""
HASH_BITS = 64 - ROW_BITS

BREAK = 10
"""A line break."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Of the polynomial hash; odd, so that it has an inverse modulo 2**64."""
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))


# 0 is replaced by a byte that UTF-8 does not have, because it would add nothing to a hash.
_FOLDS = bytes.maketrans(b"\x00" + b"123456789", b"\xff" + b"000000000")
_FOLDED: Bytes = np.frombuffer(bytes(range(256)).lower().translate(_FOLDS), dtype=np.uint8)
"""What each byte counts as in a hash: capitals as small letters, every digit as 0."""

_WORD_BYTES: Flags = np.isin(np.arange(256), [*(string.ascii_letters + string.digits).encode(), *range(0x80, 0x100)])
"""Which bytes are parts of words."""

_SINGLE_WORDS: Bytes = np.zeros(256, dtype=np.uint8)
_SINGLE_WORDS[0xE3:0xEE], _SINGLE_WORDS[0xF0:0xF8] = 3, 4
"""By a character's first byte its length in bytes, if it is a word by itself; 0 for others.

U+3000 to U+D7FF (kana, Han, Hangul) have first bytes E3 to ED, characters beyond U+FFFF F0 and above."""


def _separators() -> Flags:
    """Which characters from U+0080 to U+FFFF separate words.

    Latin signs (except ª º µ, superscript digits and fractions), general punctuation, East Asian punctuation (except
    々 〆 〇) and its full-width forms.
    """
    table = np.zeros(1 << 16, dtype=bool)
    for first, last in (
        (0x80, 0xBF), (0x2000, 0x206F), (0x3000, 0x303F),
        (0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65),
    ):  # fmt: skip
        table[first : last + 1] = True
    table[[ord(letter) for letter in "ªºµ²³¹¼½¾々〆〇"]] = False
    return table


_SEPARATORS = _separators()
_ZWNJ, _ZWJ = 0x200C, 0x200D
"""Within words of Indic scripts; elsewhere they separate."""

_CLUSTERED, _STARTS, _JOINS_NEXT, _JOINS_PREVIOUS = 1, 2, 4, 8
"""Flags of a character in a script that is cut into clusters: that it is one; that it starts a cluster, unless the
character before it joins the next or the one after it joins the previous."""

_CLUSTER_SCRIPTS = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F),
    (0xA980, 0xA9FF), (0xAA60, 0xAADF),
)  # fmt: skip
"""Thai, Lao; Burmese; Khmer; Tai Le, New Tai Lue; Tai Tham; Balinese; Javanese; extended Burmese, Tai Viet."""


@functools.cache
def _clusters() -> Bytes:
    """The flags of each character up to U+FFFF; 0 for scripts that are not cut into clusters."""
    table = np.zeros(1 << 16, dtype=np.uint8)
    for first, last in _CLUSTER_SCRIPTS:
        table[first : last + 1] = _CLUSTERED
        for code in range(first, last + 1):
            if unicodedata.category(chr(code))[0] in "LNS":
                table[code] |= _STARTS
    table[[ord(vowel) for vowel in "ะาำๅະາຳຽ"]] = _CLUSTERED  # written after their consonant, and letters to Unicode
    for first, last in ((0x0E40, 0x0E44), (0x0EC0, 0x0EC4)):  # vowels written before their consonant
        table[first : last + 1] |= _JOINS_NEXT
    table[[0x1039, 0x17D2, 0x1A60, 0x1B44, 0xA9C0]] |= _JOINS_NEXT  # what follows is written below
    table[[0x1039, 0x103A]] |= _JOINS_PREVIOUS  # ends a syllable in Burmese, together with the consonant before it
    return table


@functools.cache
def _all_separators() -> Flags:
    """:data:`_SEPARATORS`, and the punctuation of the scripts from U+0580 (Armenian) to U+1FFF and of Javanese.

    The mark between Tibetan syllables is among it.
    """
    table = _SEPARATORS.copy()
    for first, last in ((0x0580, 0x1FFF), (0xA980, 0xAADF)):
        for code in range(first, last + 1):
            table[code] |= unicodedata.category(chr(code))[0] == "P"
    return table


@dataclass(frozen=True)
class Texts:
    """Texts one after the other."""

    data: Bytes
    """UTF-8, each text between two line breaks, so that every line has one on both sides."""
    offsets: Numbers
    """Text ``i`` with its line breaks is ``data[offsets[i]:offsets[i + 1]]``; shape ``[n + 1]``."""

    @staticmethod
    def from_arrow(texts: pa.Array) -> Texts:
        """From strings without nulls; of those longer than :data:`MAX_BYTES` the beginning."""
        raw = texts.cast(pa.large_binary())
        if len(raw) and (pc.max(pc.binary_length(raw)).as_py() or 0) > MAX_BYTES:
            beginnings = (text[:MAX_BYTES].decode("utf-8", "ignore") for text in raw.to_pylist())  # whole characters
            raw = pa.array([text.encode() for text in beginnings], pa.large_binary())
        line_break = pa.scalar(b"\n", pa.large_binary())
        framed = pc.binary_join_element_wise(line_break, raw, line_break, pa.scalar(b"", pa.large_binary()))
        offsets = np.frombuffer(framed.buffers()[1], dtype=np.int64)[framed.offset : framed.offset + len(framed) + 1]
        data = np.frombuffer(framed.buffers()[2], dtype=np.uint8) if len(framed) else np.empty(0, dtype=np.uint8)
        return Texts(data[offsets[0] : offsets[-1]], offsets - offsets[0])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def per_text(self, positions: Numbers) -> Numbers:
        """How many of some ascending positions in ``data`` are in each text; shape ``[n]``."""
        return np.diff(np.searchsorted(positions, self.offsets))

    def text_of(self, positions: Numbers) -> Numbers:
        """The number of the text that each of some ascending positions in ``data`` is in."""
        return np.repeat(np.arange(len(self)), self.per_text(positions))

    def histogram(self) -> Numbers:
        """How often each byte occurs in each text, the line breaks around it included; shape ``[n, 256]``."""
        cells = np.repeat(np.arange(len(self), dtype=np.int64) << 8, np.diff(self.offsets))
        cells += self.data
        return np.bincount(cells, minlength=len(self) << 8).reshape(len(self), 256)


@dataclass(frozen=True)
class PrefixHashes:
    """Hashes of any substring of some texts, ignoring case and the values of digits.

    The hash of the bytes ``b`` is the polynomial ``sum_j b[j] * BASE**j`` modulo 2**64, mixed. With its prefix sums
    that of a substring is one subtraction and one division by a power of ``BASE``.
    """

    sums: Hashes
    inverses: Hashes

    @staticmethod
    def from_texts(texts: Texts) -> PrefixHashes:
        powers = _powers(_BASE, len(texts.data))
        sums = np.empty(len(texts.data) + 1, dtype=np.uint64)
        sums[0] = 0
        np.cumsum(powers * _FOLDED[texts.data], out=sums[1:])
        return PrefixHashes(sums, _powers(_INVERSE, len(texts.data) + 1))

    def hashes(self, starts: Numbers, ends: Numbers) -> Hashes:
        """Hashes of ``data[start:end]``, equal for equal substrings wherever they are."""
        return mix((self.sums[ends] - self.sums[starts]) * self.inverses[starts])


@dataclass(frozen=True)
class Words:
    """The words of some texts in their order; arrays of shape ``[w]``."""

    text: Numbers
    """The number of the text that the word is in, ascending."""
    starts: Numbers
    ends: Numbers
    """Where it begins and ends in ``Texts.data``."""
    hashes: Hashes
    """See :class:`PrefixHashes`."""

    @staticmethod
    def from_texts(texts: Texts, prefix_hashes: PrefixHashes, *, clusters: bool = True) -> Words:
        starts, ends = word_bounds(texts.data, clusters=clusters)
        return Words(texts.text_of(starts), starts, ends, prefix_hashes.hashes(starts, ends))

    def ngrams(self, length: int) -> tuple[Numbers, Hashes, Numbers]:
        """Every ``length`` successive words within a text: number of the text, hash, number of the first word."""
        count = max(0, len(self.hashes) - length + 1)
        in_one_text = self.text[:count] == self.text[len(self.text) - count :]
        hashes = self.hashes[:count]
        for step in range(1, length):
            hashes = combine_hashes(hashes, self.hashes[step : step + count])
        return self.text[:count][in_one_text], hashes[in_one_text], np.flatnonzero(in_one_text)


def word_bounds(data: Bytes, *, clusters: bool = True) -> tuple[Numbers, Numbers]:
    """Where the words in a buffer of UTF-8 begin and end; the buffer begins and ends with a line break.

    Without ``clusters`` as before they were cut: scripts without spaces are runs, unless they are Chinese, Japanese or
    Korean, and punctuation of scripts other than these and Latin belongs to the word it touches.
    """
    in_word = _WORD_BYTES[data]
    starts = np.zeros(len(data) + 1, dtype=bool)
    starts[1:-1] = ~in_word[:-1]
    leads = np.flatnonzero(data >= (0xD6 if clusters else 0xE2))  # few in most texts, so they are handled apart
    if len(leads):
        lead = data[leads]
        single = leads[_SINGLE_WORDS[lead] > 0]
        starts[single] = True
        starts[single + _SINGLE_WORDS[data[single]]] = True
        if clusters:
            _cut_other_scripts(data, leads, in_word, starts)
        else:
            three = leads[(lead == 0xE2) | (lead == 0xE3) | (lead == 0xEF)]
            _separate(three[_SEPARATORS[_code_points(data, three)]], 3, in_word, starts)
    signs = np.flatnonzero(data == 0xC2)  # U+0080 to U+00BF
    if len(signs):
        _separate(signs[_SEPARATORS[data[signs + 1]]], 2, in_word, starts)
    starts[:-1] &= in_word
    starts[-1] = False
    last = in_word.copy()
    last[:-1] &= ~in_word[1:] | starts[1:-1]
    return np.flatnonzero(starts), np.flatnonzero(last) + 1


def _separate(positions: Numbers, length: int, in_word: Flags, starts: Flags) -> None:
    """Characters of so many bytes at these positions are not in words."""
    for step in range(length):
        in_word[positions + step] = False
    starts[positions + length] = True


def _code_points(data: Bytes, positions: Numbers) -> Numbers:
    """Of the characters of three bytes at these positions."""
    code = (data[positions] & 0x0F).astype(np.int64) << 12 | (data[positions + 1] & 0x3F).astype(np.int64) << 6
    return code | (data[positions + 2] & 0x3F)


def _cut_other_scripts(data: Bytes, leads: Numbers, in_word: Flags, starts: Flags) -> None:
    """Clusters, and separators that are not Latin, where ``leads`` are the first bytes of characters from U+0580 on."""
    lead = data[leads]
    two = leads[lead < 0xE0]
    code = (data[two] & 0x1F).astype(np.int64) << 6 | (data[two + 1] & 0x3F)
    _separate(two[_all_separators()[code]], 2, in_word, starts)
    three = leads[np.isin(lead, (0xE0, 0xE1, 0xE2, 0xE3, 0xEA, 0xEF))]
    code = _code_points(data, three)
    flags = _clusters()[code]
    clustered, flags = three[flags > 0], flags[flags > 0]
    if len(clustered):
        next_to = clustered[1:] == clustered[:-1] + 3
        joined = np.zeros(len(clustered), dtype=bool)
        joined[1:] |= next_to & (flags[:-1] & _JOINS_NEXT > 0)
        joined[:-1] |= next_to & (flags[1:] & _JOINS_PREVIOUS > 0)
        starts[clustered + 3] = True
        starts[clustered] = (flags & _STARTS > 0) & ~joined
        starts[clustered[~np.append(False, next_to)]] = True
    joins = (code == _ZWNJ) | (code == _ZWJ)
    _separate(three[_all_separators()[code] & ~joins], 3, in_word, starts)
    joiners = three[joins]
    within = in_word[joiners - 1] & np.isin(data[np.maximum(joiners - 3, 0)], (0xE0, 0xE1))
    starts[joiners[within]] = False
    _separate(joiners[~within], 3, in_word, starts)


def phrase_hashes(phrases: Sequence[str]) -> list[tuple[int, int]]:
    """Number of words and hash of each phrase, as :meth:`Words.ngrams` gives them."""
    texts = Texts.from_arrow(pa.array(phrases, pa.string()))
    words = Words.from_texts(texts, PrefixHashes.from_texts(texts))
    result = []
    for number in range(len(phrases)):
        hashes = words.hashes[words.text == number]
        value = hashes[:1]
        for following in hashes[1:]:
            value = combine_hashes(value, np.array([following]))
        result.append((len(hashes), int(value[0])))
    return result


def combine_hashes(first: Hashes, second: Hashes) -> Hashes:
    """The hash of two things in this order, from theirs."""
    return mix(first * np.uint64(0xD6E8FEB86659FD93) + second)


def mix(values: Hashes) -> Hashes:
    """Spread the differences of values over all their bits (the finaliser of MurmurHash3, public domain)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


def keys(rows: Numbers, hashes: Hashes) -> Hashes:
    """Rows (below ``2**ROW_BITS``) and hashes as one number each, sorted by row first."""
    return (rows.astype(np.uint64) << np.uint64(HASH_BITS)) | (hashes >> np.uint64(ROW_BITS))


def rows_of(keyed: Hashes) -> Numbers:
    """The rows in :func:`keys`."""
    return (keyed >> np.uint64(HASH_BITS)).astype(np.int64)


def unique_counts(keyed: Hashes) -> tuple[Hashes, Numbers]:
    """Distinct keys, ascending, and how often each occurs."""
    ordered = np.sort(keyed)
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(ordered)), dtype=bool), ordered[1:] != ordered[:-1]]))
    return ordered[first], np.diff(np.append(first, len(ordered)))


def _powers(base: np.uint64, count: int) -> Hashes:
    """``base**0 .. base**(count - 1)`` modulo 2**64."""
    return _many_powers(base, 1 << count.bit_length())[:count]


@functools.lru_cache(maxsize=4)
def _many_powers(base: np.uint64, count: int) -> Hashes:
    powers = np.full(count, base, dtype=np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers, out=powers)
