"""The names of the statistics, and the phrases, characters and scripts that are counted for them.

The lists of phrases are English; other languages are measured by everything else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
"""Phrases that are counted, by kind."""

COUNTED_BYTES: dict[str, str] = {
    "commas": ",", "colons": ":", "semicolons": ";", "question marks": "?", "exclamation marks": "!",
    "double quotes": '"', "single quotes": "'", "brackets": "([{", "digits": "0123456789", "slashes": "/\\",
    "stars": "*", "underscores": "_", "hyphens": "-", "pipes": "|", "operators": "+=<>^~%", "dollars": "$",
    "backticks": "`", "number signs": "#", "at signs": "@&",
}  # fmt: skip

SCRIPTS: dict[str, tuple[int, int]] = {
    "accented Latin": (0xC3, 0xC9), "Greek": (0xCD, 0xCF), "Cyrillic": (0xD0, 0xD3), "Hebrew": (0xD7, 0xD7),
    "Arabic": (0xD8, 0xDD), "South Asian": (0xE0, 0xE0), "symbols": (0xE2, 0xE2), "kana": (0xE3, 0xE3),
    "Han": (0xE4, 0xE9), "Hangul": (0xEA, 0xED), "emoji": (0xF0, 0xF0),
}  # fmt: skip
"""Scripts by the first byte of their characters in UTF-8: coarse, but a table look-up."""

LOG_STATISTICS = (
    "characters", "words", "distinct words", "lines", "paragraphs", "sentences", "list items", "numbered items",
    "headings", "bold", "code fences", "table rows", "links", "indented lines", "capitals", "turns",
    "longest line", "bytes per line", "words per sentence", "words per paragraph",
    *COUNTED_BYTES, *PHRASES,
)  # fmt: skip
SHARE_STATISTICS = (
    "share of capitals", "share of digits", "share of punctuation", "share of spaces", "share of line breaks",
    "share beyond ASCII", *(f"share of {name}" for name in SCRIPTS),
    "word length", "share of long words", "share of short words", "share of capitalised words",
    "share of words in capitals",
    "distinct words per word", "distinct pairs per pair", "distinct triples per triple", "most frequent word",
    "distinct lines per line", "share of list lines", "share of English words", "share of first person",
    "null turns", "empty",
    "begins with a capital", "begins with a digit", "begins with markup", "begins eagerly", "begins with a refusal",
    "ends as a sentence", "ends as a question", "ends with a letter or digit", "ends with a colon or comma",
    "ends with markup", "code fence left open",
)  # fmt: skip
TEXT_STATISTICS = (*LOG_STATISTICS, *SHARE_STATISTICS)
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
"""Measured of both answers together; swapping the answers changes none."""

WORD_SCORE = "score of the words"
COLUMNS = (
    *(f"prompt: {name}" for name in TEXT_STATISTICS),
    *(f"pair: {name}" for name in PAIR_STATISTICS),
    *(f"{side}: {name}" for side in ("A", "B", "A - B") for name in ANSWER_STATISTICS),
    f"A - B: {WORD_SCORE}",
)
"""What the booster sees of a battle, see :func:`.model.table`."""
AUTHOR_COLUMNS = (
    *(f"{side}: author strength" for side in ("A", "B", "A - B")),
    "A - B: author strength by words",
)
"""What it also sees where the training battles name the models that answered, see :mod:`.authors`."""

DESCRIPTIONS: dict[str, str] = {
    WORD_SCORE: "which words the answers use",
    "list items": "list items with bullets", "bold": "bold passages", "capitals": "capital letters",
    "longest line": "bytes in the longest line",
    "first person": 'first person ("I", "my")', "second person": 'second person ("you", "your")',
    "first person plural": 'first person plural ("we", "our")',
    "self mentions": "mentions of being an AI", "hedges": 'hedges ("may", "perhaps")',
    "cautions": 'cautions ("keep in mind", "however")', "courtesies": 'courtesies ("please", "feel free")',
    "eager openings": '"sure", "of course" and the like', "connectives": 'connectives ("first", "for example")',
    "closings": 'closings ("in conclusion")', "emphasis": 'emphasis ("very", "crucial")',
    "distinct words per word": "share of words that are not repeated",
    "distinct pairs per pair": "share of word pairs that are not repeated",
    "distinct triples per triple": "share of word triples that are not repeated",
    "distinct lines per line": "share of lines that are not repeated",
    "most frequent word": "share of the most frequent word", "null turns": "turns without text",
    "begins eagerly": 'begins with "sure" or the like',
    "prompt's words in answer": "share of the prompt's words in it",
    "answer's words in prompt": "share of its words that the prompt has",
    "words shared with prompt": "share of words in both it and the prompt",
    "prompt's long words in answer": "share of the prompt's long words in it",
    "answer's long words in prompt": "share of its long words that the prompt has",
    "prompt's pairs in answer": "share of the prompt's word pairs in it",
    "answer's pairs in prompt": "share of its word pairs that the prompt has",
    "bytes like prompt's": "likeness of its letters to the prompt's",
    "letters beyond ASCII unlike prompt's": "letters beyond ASCII, more than in the prompt",
    "words shared": "words that both answers have", "word pairs shared": "word pairs that both answers have",
    "long words shared": "long words that both answers have", "word cosine": "likeness of the answers' words",
    "bytes alike": "likeness of the answers' letters", "same first words": "first words that are the same",
    "length apart": "difference of the logarithms of the lengths",
    "author strength": "strength of models that write like this",
    "author strength by words": "strength of models with such words",
}  # fmt: skip
"""Of the statistics whose names do not say what they are."""


def describe(statistic: str) -> str:
    """A statistic in words for users."""
    side, colon, name = statistic.rpartition(": ")
    return f"{side}{colon}{DESCRIPTIONS.get(name, name)}"


def statistic_of(column: str) -> str:
    """The statistic that a column of :data:`COLUMNS` is of: one for A, B and A - B; the prompt's are called so."""
    side, _, name = column.partition(": ")
    return column if side == "prompt" else name


NUMBERS = frozenset({
    "bytes per line", "words per sentence", "words per paragraph", "word length", "length apart", WORD_SCORE,
    *map(statistic_of, AUTHOR_COLUMNS),
})  # fmt: skip
COUNTS = frozenset({*LOG_STATISTICS, "null turns", "same first words"}) - NUMBERS
FLAGS = frozenset(name for name in (*TEXT_STATISTICS, *PAIR_STATISTICS) if name.startswith(("begins ", "ends "))) | {
    "begins eagerly",
    "empty",
    "code fence left open",
    "answers identical",
}


def unit_of(statistic: str) -> str:
    """What the values of a statistic are: ``count``, ``yes/no`` (1 and 0), ``number``, or ``share`` (1 is all)."""
    name = statistic.removeprefix("prompt: ")
    for unit, names in {"count": COUNTS, "yes/no": FLAGS, "number": NUMBERS}.items():
        if name in names:
            return unit
    return "share"


def in_units(statistic: str, columns: NDArray[np.float32]) -> NDArray[np.float64]:
    """Columns of a statistic as numbers that a reader knows: counts are kept as logarithms; to six digits."""
    values = columns.astype(np.float64)
    if statistic.removeprefix("prompt: ") in LOG_STATISTICS:
        values = np.expm1(values)
    return np.array([float(f"{value:.6g}") for value in values.ravel()]).reshape(values.shape)
