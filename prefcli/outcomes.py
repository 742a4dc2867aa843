"""A, B, tie: the three outcomes of a battle, in the one order used everywhere.

Labels are the positions in :data:`OUTCOMES`: 0 for A, 1 for B, 2 for tie. Probabilities, logits and counts are
arrays whose last axis has length 3 in that order.
"""

from __future__ import annotations

from typing import Final, NamedTuple

A: Final = 0
B: Final = 1
TIE: Final = 2

OUTCOMES: Final = ("A", "B", "tie")

WINNER_COLUMNS: Final = ("winner_model_a", "winner_model_b", "winner_tie")
"""Kaggle's column names: one-hot labels in ``train.csv``, probabilities in a submission."""

SOFT_LABEL_COLUMNS: Final = ("p_a", "p_b", "p_tie")
"""Names of the optional soft labels in the canonical table of battles."""

SWAPPED: Final = (B, A, TIE)
"""Index that gives the outcomes of the battles with A and B swapped: ``probabilities[..., SWAPPED]``."""


class Probabilities(NamedTuple):
    """Probabilities that people prefer A, prefer B, or call it a tie; they sum to 1."""

    a: float
    b: float
    tie: float
