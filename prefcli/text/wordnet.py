"""WordNet's lemmas without WordNet: an embedded index of its words, and the rules that look them up.

NLTK's ``WordNetLemmatizer`` needs an 11 MB download and seconds to load, of which it uses two things: the lemmas of
each part of speech and the irregular forms. Both are in ``assets/wordnet-lemmas.txt.gz``; :func:`lemmatize` gives what
NLTK gives, for every word and part of speech. Senses, definitions and relations are not there.

To rebuild the index from Debian's ``wordnet-base`` (the result is the same bytes every time)::

    python -m prefcli.text.wordnet /usr/share/wordnet

The index is a gzipped ASCII text. Lines that start with ``#`` are Princeton's notice. ``[noun]``, ``[verb]``, ``[adj]``
and ``[adv]`` open the sorted lemmas of a part of speech, one a line, lower case, words of a compound joined by ``_``;
``[noun.exc]`` and so on open its irregular forms, one a line, as ``form lemma [lemma ...]``.
"""

from __future__ import annotations

import functools
import gzip
import io
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from prefcli.errors import InputError

INDEX_ASSET = "wordnet-lemmas.txt.gz"
LICENSE_ASSET = "WORDNET-LICENSE"

#: WordNet's file name for each part of speech; satellite adjectives are listed among the adjectives.
_SECTIONS: Mapping[str, str] = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}

#: The endings that WordNet's "morphy" replaces, and by what, in its order
#: (https://wordnet.princeton.edu/documentation/morphy7wn).
_ENDINGS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("s", ""),
        ("ses", "s"),
        ("ves", "f"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "verb": (
        ("s", ""),
        ("ies", "y"),
        ("es", "e"),
        ("es", ""),
        ("ed", "e"),
        ("ed", ""),
        ("ing", "e"),
        ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}


class _PartOfSpeech(NamedTuple):
    lemmas: frozenset[str]
    irregular: dict[str, list[str]]
    endings: tuple[tuple[str, str], ...]


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
    if pos not in _SECTIONS:
        raise InputError(f"'{pos}' is not a part of speech", hint=f"Use one of {', '.join(_SECTIONS)}.")
    lemmas, irregular, endings = _part_of_speech(_SECTIONS[pos])
    candidates = irregular.get(word)
    if candidates is None:
        candidates = [word[: -len(old)] + new for old, new in endings if word.endswith(old)]
    known = [candidate for candidate in (word, *candidates) if candidate in lemmas]
    return min(known, key=len) if known else word


@functools.cache
def _part_of_speech(section: str) -> _PartOfSpeech:
    """One part of speech, from the embedded index (parsed once in a process, 20 to 60 ms)."""
    packed = resources.files("prefcli").joinpath("assets", INDEX_ASSET).read_bytes()
    text = gzip.decompress(packed).decode("ascii")
    lemmas = _section(text, section).split("\n")
    irregular = (line.split(" ") for line in _section(text, f"{section}.exc").split("\n"))
    return _PartOfSpeech(frozenset(lemmas), {form: its_lemmas for form, *its_lemmas in irregular}, _ENDINGS[section])


def _section(text: str, name: str) -> str:
    """The lines of one section, without the line that opens it."""
    start = text.index(f"\n[{name}]\n") + len(name) + 4
    return text[start : text.index("\n[", start)]


def build_index(wordnet: Path) -> tuple[bytes, str]:
    """Build the embedded index from WordNet's database files.

    Parameters
    ----------
    wordnet:
        Folder with ``index.noun``, ``noun.exc`` and their siblings (Debian: ``/usr/share/wordnet``).

    Returns
    -------
    index, notice:
        The gzipped index (the same bytes for the same folder; the gzip header carries no time) and the text of
        Princeton's licence, taken from the head of ``index.noun``.

    Raises
    ------
    InputError
        A file is missing from the folder.
    """
    sections: list[str] = []
    notice = ""
    for name in dict.fromkeys(_SECTIONS.values()):
        head, lemmas = _read_index(wordnet / f"index.{name}")
        notice = notice or head
        irregular: dict[str, list[str]] = {}
        for line in _read_lines(wordnet / f"{name}.exc"):
            form, *its_lemmas = line.split()
            irregular[form] = its_lemmas  # the last of two lines for one form wins, as in NLTK
        sections += [f"[{name}]", *sorted(lemmas)]
        sections += [f"[{name}.exc]", *sorted(" ".join([form, *its_lemmas]) for form, its_lemmas in irregular.items())]
    comment = [f"# {line}".rstrip() for line in notice.splitlines()]
    text = "\n".join([*comment, *sections, "[end]", ""])
    packed = io.BytesIO()  # GzipFile, because gzip.compress writes another header on Python 3.10
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as file:
        file.write(text.encode("ascii"))
    return packed.getvalue(), notice


def _read_index(path: Path) -> tuple[str, set[str]]:
    """The notice at the head of one of WordNet's index files, and its lemmas."""
    notice: list[str] = []
    lemmas: set[str] = set()
    for line in _read_lines(path):
        if line.startswith("  "):  # the notice: two spaces, a line number, a space, the text
            notice.append(line.lstrip().partition(" ")[2].rstrip())
        else:
            lemmas.add(line.split(" ", 1)[0])
    return "\n".join(notice).strip() + "\n", lemmas


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist",
            hint="Give the folder of WordNet's database files (Debian: install wordnet-base, /usr/share/wordnet).",
        ) from None


def _main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise SystemExit("usage: python -m prefcli.text.wordnet FOLDER   (Debian: /usr/share/wordnet)")
    try:
        index, notice = build_index(Path(arguments[0]))
    except InputError as error:
        raise SystemExit("\n".join(error.lines())) from None
    assets = Path(str(resources.files("prefcli").joinpath("assets")))
    (assets / INDEX_ASSET).write_bytes(index)
    (assets / LICENSE_ASSET).write_text(notice, encoding="ascii", newline="\n")
    print(f"{assets / INDEX_ASSET}: {len(index):,} bytes")


if __name__ == "__main__":
    _main(sys.argv[1:])
