"""Text normalisation: what is done to the text of a battle before a model sees it.

Three are named: ``nltk`` is the original notebook's preprocessing (:mod:`prefcli.text.nltk_tokens`), ``raw`` leaves
the text as it is, ``light`` tidies it for modern encoders. ``docs/text.md`` has the rules and examples.

This package reads and writes no files (see :mod:`prefcli.readers`, :mod:`prefcli.storage`) and knows nothing of
encoders' tokens (see :mod:`prefcli.models.packing`).
"""

from prefcli.text.normalise import (
    NORMALISATIONS,
    TextCounts,
    check_normalisation,
    normalisation_identity,
    normalise_batch,
    normalise_text,
    normalise_turns,
)

__all__ = [
    "NORMALISATIONS",
    "TextCounts",
    "check_normalisation",
    "normalisation_identity",
    "normalise_batch",
    "normalise_text",
    "normalise_turns",
]
