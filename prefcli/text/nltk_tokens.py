"""The ``nltk`` normalisation: word tokens, no stop words, no special characters, lemmas.

The tokens come from NLTK's own tokenizer and the lemmas are NLTK's, but nothing is downloaded: ``assets/`` holds what
is needed. Every distinct chunk (a piece of text between two spaces) is normalised only once.

This module does not look at languages: stop words and lemmas are English, other languages pass through as words.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from typing import Any

import regex

from prefcli.text.wordnet import lemmatize

#: Distinct chunks that a process caches (about 100 MB with their results). Above it the cache is cleared.
_MAX_CACHED_CHUNKS = 400_000
#: Longer chunks (URLs, encoded data, text without spaces) hardly recur and are not cached.
_MAX_CACHED_LENGTH = 64
#: Characters of text whose chunks are looked up together, because a call of the tokenizer is expensive.
_MAX_BLOCK_CHARACTERS = 500_000
#: Characters given to the tokenizer at once.
_MAX_TOKENIZER_CHARACTERS = 100_000

_cache: dict[str, str] = {}
_cache_lock = threading.Lock()


def normalise_nltk(texts: Sequence[str]) -> list[str]:
    """For each text (without lone surrogates) its normalised tokens, joined by spaces.

    Text is split at whitespace into chunks. The result of a chunk does not depend on its neighbours (a period at its
    end counts as the end of a sentence), so it can be cached.
    """
    normalised: list[str] = []
    for block in _blocks(texts, _MAX_BLOCK_CHARACTERS):
        with _cache_lock:
            normalised += _normalise_block([_chunks(text) for text in block])
    return normalised


def _blocks(texts: Iterable[str], max_characters: int) -> Iterator[list[str]]:
    """Consecutive texts in lists of at most so many characters; a longer text is a list of its own."""
    block: list[str] = []
    size = 0
    for text in texts:
        if block and size + len(text) > max_characters:
            yield block
            block, size = [], 0
        block.append(text)
        size += len(text)
    if block:
        yield block


def _chunks(text: str) -> list[str]:
    """The text split at whitespace; chunks that are too long for any language are cut.

    The tokenizer runs two dozen regular expressions over a chunk, and NLTK stops them when they take long.
    """
    chunks = text.split()
    size = _MAX_TOKENIZER_CHARACTERS
    if len(text) <= size or max(map(len, chunks), default=0) <= size:
        return chunks
    return [chunk[start : start + size] for chunk in chunks for start in range(0, len(chunk), size)]


def _normalise_block(chunked: list[list[str]]) -> list[str]:
    new = {chunk for chunks in chunked for chunk in chunks}.difference(_cache)
    if new and len(_cache) > _MAX_CACHED_CHUNKS:
        _cache.clear()
        new = {chunk for chunks in chunked for chunk in chunks}
    ordered = sorted(new)
    for chunk, tokens in zip(ordered, tokenize_chunks(ordered), strict=True):
        _cache[chunk] = " ".join(normalise_tokens(tokens))
    normalised = [" ".join(filter(None, [_cache[chunk] for chunk in chunks])) for chunks in chunked]
    for chunk in new:
        if len(chunk) > _MAX_CACHED_LENGTH:
            del _cache[chunk]
    return normalised


#: Separates two chunks in front of the tokenizer: a private-use character, which no regular expression of NLTK's
#: names and which is a special character itself, so a chunk that holds it loses nothing by U+FFFD in its place.
_SEPARATOR, _REPLACEMENT = "\ue000", "\ufffd"
#: A period that ends a sentence, as NLTK's sentence splitter sees it: nothing but closing marks follows it in its
#: chunk, or a mark that ends a word; and it does not follow a lone d, m, s or t, which that splitter takes for
#: abbreviations. (Once special characters are gone, this matters only to stop words: "them." is not on the list.)
_FINAL_PERIOD = re.compile(r"""(?<=[^.\s])(?<![\s(\[*"“][dmstDMST])\.(?=[\])}>"'»”’]* |[)";}\]*:@'({\[‘’“”«»?!])""")


def tokenize_chunks(chunks: Sequence[str]) -> list[list[str]]:
    """The tokens of each chunk (a piece of text without whitespace) by NLTK's tokenizer.

    Many chunks go through the tokenizer at once, each as if it were alone and a sentence ended after it.
    """
    tokenize = _tokenizer()
    tokens_of_chunks: list[list[str]] = []
    for block in _blocks(chunks, _MAX_TOKENIZER_CHARACTERS):
        # The last chunk is followed by a separator, too: NLTK splits any period at the end of a text.
        joined = " " + "".join(f"{chunk.replace(_SEPARATOR, _REPLACEMENT)} {_SEPARATOR} " for chunk in block)
        tokens: list[str] = []
        for token in tokenize(_FINAL_PERIOD.sub(" .", joined)):
            if token == _SEPARATOR:
                tokens_of_chunks.append(tokens)
                tokens = []
            else:
                tokens.append(token)
    return tokens_of_chunks


def normalise_tokens(tokens: Iterable[str]) -> list[str]:
    """Lower-case tokens without stop words and special characters, as lemmas: the rule that makes ``nltk``."""
    stop_words = _stop_words()
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
def _stop_words() -> frozenset[str]:
    """NLTK's list of English stop words."""
    lines = resources.files("prefcli").joinpath("assets", "english-stop-words.txt").read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


# Special characters

#: Punctuation, symbols, control, formatting and private characters. Unassigned code points count as letters, which
#: most of them become in a later version of Unicode, but in the pictographs' blocks as symbols.
SPECIAL = r"[\p{P}\p{S}\p{C}--[\p{Cn}--\U0001F000-\U0001FAFF]--[\u200c\u200d]]"
#: Combining marks and zero-width joiners, which share the fate of the character before them.
MARK = r"[\p{M}\u200c\u200d]"
#: What leaves a token: marks at its start, and special characters that do not stand between two digits.
_REMOVED = regex.compile(rf"^{MARK}+|(?!(?<=\p{{Nd}}).\p{{Nd}}){SPECIAL}{MARK}*", regex.V1 | regex.DOTALL)


def strip_special(token: str) -> str:
    """A token without its special characters; empty where no letter and no number is left.

    A special character between two digits stays, because without it they would be another number (``3.14``, ``10:30``).
    """
    return _REMOVED.sub("", token)


# NLTK's tokenizer


@functools.cache
def _tokenizer() -> Callable[[str], list[str]]:
    """NLTK's word tokenizer, the one inside ``word_tokenize``, without the rest of NLTK if possible."""
    return (_tokenizer_alone() or _tokenizer_by_import()).tokenize


def _tokenizer_by_import() -> Any:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


def _tokenizer_alone() -> Any:
    """NLTK's word tokenizer without ``nltk/__init__``; None where this does not work.

    ``import nltk.tokenize.destructive`` runs ``nltk/__init__`` first, which imports all of NLTK and, through its
    classifiers and metrics, numpy, scipy and scikit-learn where they are installed: up to four seconds in every worker
    process for 25 regular expressions. The tokenizer's own module needs a few small ones. So during its import
    ``nltk`` and ``nltk.tokenize`` are empty packages that only know their folders. Afterwards both are removed from
    ``sys.modules``, and a later ``import nltk`` anywhere gets the real one.
    """
    if "nltk" in sys.modules:  # imported already: use it, and leave it as it is
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
    except Exception:  # an NLTK that is built otherwise: the plain import decides
        return None
    finally:
        for name in set(sys.modules) - before:
            if name == "nltk" or name.startswith("nltk."):
                del sys.modules[name]
