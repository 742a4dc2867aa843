"""Words, their hashes and their runs, found for many texts at once, against plain Python one text at a time."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefcli.models.features import textbytes
from prefcli.models.features.textbytes import PrefixHashes, Texts, Words

#: Text that looks like text, and everything else that UTF-8 can hold.
ANY_TEXT = st.one_of(
    st.text(max_size=30),
    st.text(
        st.sampled_from("aAzZ09 \n\t'’.,-_*`#é\u00a0ª«ßЖ中々，。かー한ก\u0301\u200d\ufe0f😀👍\x00\x7f\x85"), max_size=40
    ),
    st.text(st.sampled_from("a 中😀·กเาำ็๏๒ຂແາကမ္်ါ။កំ្ខ។ꦏ꧀ꦸ꧉हिं्।\u200c\u200dབོ་שـ،؟ế֊"), max_size=40),
)
unhurried = settings(deadline=None, max_examples=100)

OTHER_SCRIPT = re.compile("[\u0580-\u1fff\ua980-\uaadf]")
CLUSTERED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaadf]"
)
STACKING = (0x1039, 0x17D2, 0x1A60, 0x1B44, 0xA9C0)  # the next consonant is written below


def words_of(*texts: str, clusters: bool = True) -> list[list[str]]:
    """The words of some texts that are measured together."""
    many, words = measured(texts, clusters=clusters)
    found: list[list[str]] = [[] for _ in texts]
    for text, start, end in zip(words.text, words.starts, words.ends, strict=True):
        found[text].append(bytes(many.data[start:end]).decode())
    return found


def measured(texts: Sequence[str], *, clusters: bool = True) -> tuple[Texts, Words]:
    many = Texts.from_arrow(pa.array(texts, pa.string()))
    return many, Words.from_texts(many, PrefixHashes.from_texts(many), clusters=clusters)


def kind(character: str) -> str:
    """What a character is to words: ``part`` of one, a word ``alone``, or what ``separates`` them."""
    code = ord(character)
    if code < 0x80:
        return "part" if character.isalnum() else "separates"
    if code < 0xC0:
        return "part" if character in "ªºµ²³¹¼½¾" else "separates"
    if character in "々〆〇":
        return "alone"
    for first, last in (
        (0x2000, 0x206F), (0x3000, 0x303F), (0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65)
    ):  # fmt: skip
        if first <= code <= last:
            return "separates"
    return "alone" if 0x3000 <= code <= 0xDFFF or code > 0xFFFF else "part"


def slow_words(text: str, *, clusters: bool = True) -> list[str]:
    found: list[str] = []
    in_word = going = False
    for before, character, after in zip(" " + text, text, text[1:] + " ", strict=False):
        what = kind(character)
        if clusters and OTHER_SCRIPT.match(character):
            category = unicodedata.category(character)[0]
            if category == "P":
                what = "separates"
            elif CLUSTERED.match(character):
                what = "alone"
                is_mark = category not in "LNS" or character in "ะาำๅະາຳຽ"
                belongs = is_mark or before in "เแโใไເແໂໃໄ" or ord(before) in STACKING or after in "\u1039\u103a"
                if in_word and CLUSTERED.match(before) and belongs:
                    what = "joins"
        elif clusters and character in "\u200c\u200d" and in_word and "\u0800" <= before < "\u2000":
            what, going = "part", True
        if what == "joins" or (what == "part" and going):
            found[-1] += character
        elif what != "separates":
            found.append(character)
        in_word, going = what != "separates", what == "part"
    return found


# Words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\t .,;!? *** --- ", []),
        ("Hello, world!", ["Hello", "world"]),
        ("well-known snake_case C++ 3.14", ["well", "known", "snake", "case", "C", "3", "14"]),
        ("don't", ["don", "t"]),
        ("don’t “quote” a—b…c", ["don", "t", "quote", "a", "b", "c"]),
        ("«Où ?» ¿Qué? a\u00a0b", ["Où", "Qué", "a", "b"]),
        ("5 m² 20 µm nº ½", ["5", "m²", "20", "µm", "nº", "½"]),
        ("naïve Straße Привет мир", ["naïve", "Straße", "Привет", "мир"]),
        ("cafe\u0301 \u0301", ["cafe\u0301", "\u0301"]),
        ("你好，世界。", ["你", "好", "世", "界"]),
        ("！hello，ok（yes）", ["hello", "ok", "yes"]),
        ("人々、〆切・「か」", ["人", "々", "〆", "切", "・", "か"]),
        ("한국어abc漢字", ["한", "국", "어", "abc", "漢", "字"]),
        ("ภาษาไทย เด็กๆ 2คน", ["ภา", "ษา", "ไท", "ย", "เด็", "ก", "ๆ", "2", "ค", "น"]),
        ("ພາສາລາວ ແມ່ນ້ຳ", ["ພາ", "ສາ", "ລາ", "ວ", "ແມ່", "ນ້ຳ"]),
        ("ကျောင်းသား၊ အဂ္ဂ။", ["ကျောင်း", "သား", "အဂ္ဂ"]),
        ("ភាសាខ្មែរ។", ["ភា", "សា", "ខ្មែ", "រ"]),
        ("ꦱꦸꦏ꧀ꦩ꧉ ᬩᬮᬶᬅᬓ᭄ᬱᬭ", ["ꦱꦸ", "ꦏ꧀ꦩ", "ᬩ", "ᬮᬶ", "ᬅ", "ᬓ᭄ᬱ", "ᬭ"]),
        ("བོད་སྐད་ཡིན།", ["བོད", "སྐད", "ཡིན"]),
        ("हिन्दी, भाषा। क्\u200dष श्री\u200cमान् ශ්\u200dරී", ["हिन्दी", "भाषा", "क्\u200dष", "श्री\u200cमान्", "ශ්\u200dරී"]),
        ("می\u200cخواهم؟ שלום־עולם ሰላም፡ዓለም።", ["می", "خواهم", "שלום", "עולם", "ሰላም", "ዓለም"]),
        ("Tiếng Việt", ["Tiếng", "Việt"]),
        ("กab中ขc😀ก้", ["ก", "ab", "中", "ข", "c", "😀", "ก้"]),
        ("fun😀fun👍🏽", ["fun", "😀", "fun", "👍", "🏽"]),
        ("👨\u200d👩", ["👨", "👩"]),
        ("a\x00b\x07c\x7fd\x85e", ["a", "b", "c", "d", "e"]),
        ("مرحبا، عالم", ["مرحبا", "عالم"]),
    ],
)
def test_words_are_runs_of_letters_and_digits(text, words):
    assert words_of(text) == [words]


@pytest.mark.parametrize(
    ("text", "words"),
    [("ภาษาไทย हिन्दी।", ["ภาษาไทย", "हिन्दी।"]), ("مرحبا، عالم", ["مرحبا،", "عالم"]), ("क्\u200dष", ["क्", "ष"])],
)
def test_earlier_models_see_the_words_that_they_were_trained_on(text, words):
    assert words_of(text, clusters=False) == [words]


@unhurried
@given(st.lists(ANY_TEXT, max_size=5), st.booleans())
def test_words_are_those_of_a_slow_loop_over_characters(texts, clusters):
    assert words_of(*texts, clusters=clusters) == [slow_words(text, clusters=clusters) for text in texts]


@unhurried
@given(st.lists(ANY_TEXT, min_size=1, max_size=5))
def test_positions_are_dealt_to_the_texts_they_are_in(texts):
    many = Texts.from_arrow(pa.array(texts, pa.string()))
    raw = [text.encode() for text in texts]
    assert len(many) == len(texts)
    assert [bytes(many.data[a:b]) for a, b in zip(many.offsets[:-1], many.offsets[1:], strict=True)] == [
        b"\n" + text + b"\n" for text in raw
    ]
    spaces = np.flatnonzero(many.data == ord(" "))
    assert many.per_text(spaces).tolist() == [text.count(b" ") for text in raw]
    assert many.text_of(spaces).tolist() == [i for i, text in enumerate(raw) for _ in range(text.count(b" "))]
    assert many.histogram().tolist() == [
        np.bincount(np.frombuffer(b"\n" + text + b"\n", np.uint8), minlength=256).tolist() for text in raw
    ]


def test_no_texts_have_no_words():
    many, words = measured([])
    assert len(many) == len(many.data) == len(words.hashes) == 0
    assert many.histogram().shape == (0, 256)
    assert words_of() == []


def test_a_slice_of_texts_is_measured_as_the_same_texts_alone():
    texts = pa.array(["before", "one two", "", "three", "after"])
    sliced, alone = Texts.from_arrow(texts.slice(1, 3)), Texts.from_arrow(pa.array(["one two", "", "three"]))
    assert sliced.data.tolist() == alone.data.tolist()
    assert sliced.offsets.tolist() == alone.offsets.tolist()


@pytest.mark.parametrize("character", ["a", "é", "中", "😀"])
@pytest.mark.parametrize("longest", range(5, 11))
def test_of_a_long_text_the_beginning_counts_up_to_a_whole_character(monkeypatch, character, longest):
    monkeypatch.setattr(textbytes, "MAX_BYTES", longest)
    text = "ab " + character * 20
    kept = text.encode()[:longest].decode(errors="ignore")
    assert words_of(text, "hello", "short") == [slow_words(kept), ["hello"], ["short"]]


# Hashes


@unhurried
@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_equal_spellings_have_equal_hashes_wherever_they_stand(before, text, after):
    def spelling(of: str) -> bytes:
        return re.sub(rb"[0-9]", b"0", bytes(of.encode()).lower())

    many, words = measured([text, f"{before} {text} {after}", after])
    by_hash: dict[int, set[bytes]] = {}
    by_spelling: dict[bytes, set[int]] = {}
    for start, end, value in zip(words.starts, words.ends, words.hashes.tolist(), strict=True):
        word = spelling(bytes(many.data[start:end]).decode())
        by_hash.setdefault(value, set()).add(word)
        by_spelling.setdefault(word, set()).add(value)
    assert all(len(found) == 1 for found in (*by_hash.values(), *by_spelling.values()))


def test_case_and_digits_are_ignored_and_nothing_else():
    _, words = measured(["Word word WORD", "a1b2 A9B0", "1999 2024 20 É é word words wor\u0434"])
    value = words.hashes.tolist()
    assert len(set(value[:3])) == 1
    assert value[3] == value[4]
    assert value[5] == value[6]
    assert len({value[0], value[3], *value[5:]}) == 8  # É and é differ: only ASCII has its case ignored
    assert value[10] == value[0]


def test_many_different_words_have_different_hashes():
    letters = "abcdefghijklmnopqrstuvwxyzäßж中"
    some = {a + b + c for a in letters for b in letters for c in letters[:12]}
    some |= {"a" * length for length in range(4, 400)} | {"ab" * length + "b" for length in range(4, 200)}
    several = sorted(word for word in some if "中" not in word)
    _, words = measured([" ".join(several)])
    assert len(words.hashes) == len(several) > 9000
    assert len(set(words.hashes.tolist())) == len(several)
    assert len(set((words.hashes >> np.uint64(textbytes.ROW_BITS)).tolist())) == len(several)  # what keys keep of it


def test_a_null_character_counts_in_a_hash():
    many = Texts.from_arrow(pa.array(["a", "a\x00", "\x00a", ""]))
    assert len(set(PrefixHashes.from_texts(many).hashes(many.offsets[:-1] + 1, many.offsets[1:] - 1).tolist())) == 4


# N-grams of words


@unhurried
@given(st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=6), max_size=4), st.integers(1, 4))
def test_ngrams_stay_within_their_text_and_have_distinct_hashes(rows, length):
    _, words = measured([" ".join(row) for row in rows])
    expected = [(i, tuple(row[j : j + length])) for i, row in enumerate(rows) for j in range(len(row) - length + 1)]
    text, hashes, place = words.ngrams(length)
    assert text.tolist() == [i for i, _ in expected]
    assert len(hashes) == len(place) == len(expected)
    seen = dict(zip(hashes.tolist(), (run for _, run in expected), strict=True))
    assert [seen[value] for value in hashes.tolist()] == [run for _, run in expected]
    assert len(seen) == len({run for _, run in expected})
    starts = np.cumsum([0, *map(len, rows)])
    assert place.tolist() == [starts[i] + j for i, row in enumerate(rows) for j in range(len(row) - length + 1)]


def test_phrases_have_the_hashes_of_their_runs():
    phrases = ["sorry", "don't", "As an AI", "on the other hand"]
    _, words = measured(["on the Other hand: as an ai I don’t. SORRY!"])
    for length, value in textbytes.phrase_hashes(phrases):
        assert value in words.ngrams(length)[1].tolist()
    assert [length for length, _ in textbytes.phrase_hashes(phrases)] == [1, 2, 3, 4]


def test_distinct_keys_keep_their_text_and_are_counted():
    _, words = measured(["b a b", "", "a a c"])
    keys, times = textbytes.unique_counts(textbytes.keys(words.text, words.hashes))
    assert textbytes.rows_of(keys).tolist() == [0, 0, 2, 2]
    assert sorted(times.tolist()) == [1, 1, 2, 2]
    assert (np.diff(keys.astype(object)) > 0).all()
    assert [len(part) for part in textbytes.unique_counts(np.empty(0, dtype=np.uint64))] == [0, 0]
