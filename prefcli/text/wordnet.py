"""WordNet's lemmas without WordNet: an embedded index of its words, and the rules that look them up.

NLTK's ``WordNetLemmatizer`` needs an 11 MB download and seconds to load, of which it uses two things: the lemmas of
each part of speech and the irregular forms. Both are in ``assets/wordnet-lemmas.txt.gz``; :func:`lemmatize` gives what
NLTK gives, for every word and part of speech. Senses, definitions and relations are not there.

The index is a gzipped ASCII text, made by ``benchmarks/build_wordnet_index.py`` in the source repository. Lines that
start with ``#`` are Princeton's notice. ``[noun]``, ``[verb]``, ``[adj]`` and ``[adv]`` open the sorted lemmas of a
part of speech, one a line, lower case, words of a compound joined by ``_``; ``[noun.exc]`` and so on open its irregular
forms, one a line, as ``form lemma [lemma ...]``.
"""

from __future__ import annotations

import functools
import gzip
from collections.abc import Mapping
from importlib import resources

from prefcli.errors import InputError

INDEX_ASSET = "wordnet-lemmas.txt.gz"

#: WordNet's file name for each part of speech; satellite adjectives are listed among the adjectives.
SECTIONS: Mapping[str, str] = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}

#: The endings that WordNet's "morphy" replaces, and by what, in its order
#: (https://wordnet.princeton.edu/documentation/morphy7wn).
_ENDINGS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "noun": (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
             ("men", "man"), ("ies", "y")),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip


def lemmatize(word: str, pos: str = "n") -> str:
    """The shortest lemma that WordNet has for a word, as NLTK's ``WordNetLemmatizer.lemmatize``.

    Parameters
    ----------
    word:
        One token. WordNet's lemmas are lower case, so ``"Dogs"`` has none and is returned as it is.
    pos:
        Part of speech: ``"n"`` noun (NLTK's default), ``"v"`` verb, ``"a"`` or ``"s"`` adjective, ``"r"`` adverb.

    Returns
    -------
    str
        The lemma; the word itself where WordNet has none. Of lemmas of equal length the word itself wins, then the
        first in the order of the rules.

    Raises
    ------
    InputError
        ``pos`` is not a part of speech.
    """
    if pos not in SECTIONS:
        raise InputError(f"'{pos}' is not a part of speech", hint=f"Use one of {', '.join(SECTIONS)}.")
    section = SECTIONS[pos]
    lemmas, irregular = _part_of_speech(section)
    candidates = irregular.get(word)
    if candidates is None:
        candidates = [word[: -len(old)] + new for old, new in _ENDINGS[section] if word.endswith(old)]
    known = [candidate for candidate in (word, *candidates) if candidate in lemmas]
    return min(known, key=len) if known else word


@functools.cache
def _part_of_speech(section: str) -> tuple[frozenset[str], dict[str, list[str]]]:
    """Its lemmas and irregular forms, from the embedded index (parsed once in a process, 20 to 60 ms)."""
    packed = resources.files("prefcli").joinpath("assets", INDEX_ASSET).read_bytes()
    text = gzip.decompress(packed).decode("ascii")
    lemmas = _section(text, section).split("\n")
    irregular = (line.split(" ") for line in _section(text, f"{section}.exc").split("\n"))
    return frozenset(lemmas), {form: its_lemmas for form, *its_lemmas in irregular}


def _section(text: str, name: str) -> str:
    """The lines of one section, without the line that opens it."""
    start = text.index(f"\n[{name}]\n") + len(name) + 4
    return text[start : text.index("\n[", start)]
