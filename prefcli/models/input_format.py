"""Which sequences a neural architecture reads of a battle, how long they are, and what they lose.

No torch here: exported models use the same code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcli.models.packing import Packed, Packing, TruncationReport
from prefcli.models.tokens import Field, TokenisedBattles


@dataclass(frozen=True)
class InputFormat:
    """The sequences of a battle.

    Attributes
    ----------
    sequences:
        For each sequence the fields in it: 0 is the prompt, 1 answer A, 2 answer B.
    """

    sequences: tuple[tuple[int, ...], ...]

    @property
    def encodes_answers_separately(self) -> bool:
        """Whether each answer has a sequence of its own: both orders then need one pass through the encoder."""
        return len(self.sequences) > 1

    def pack(self, packing: Packing, fields: tuple[Field, Field, Field]) -> list[Packed]:
        """The sequences of one battle."""
        return [packing.pack([fields[i] for i in sequence]) for sequence in self.sequences]

    def lengths(self, packing: Packing, battles: TokenisedBattles) -> NDArray[np.int64]:
        """Length of the longest sequence of each battle, shape ``[n]``."""
        columns = battles.columns
        return np.max([packing.lengths(*(columns[i] for i in sequence)) for sequence in self.sequences], axis=0)

    def truncation_report(self, packing: Packing, battles: TokenisedBattles) -> TruncationReport:
        """What no sequence holds."""
        columns = battles.columns
        kept = np.zeros((len(battles), len(columns)), dtype=np.int64)
        for sequence in self.sequences:
            fields = list(sequence)
            kept[:, fields] = np.maximum(kept[:, fields], packing.kept_tokens(*(columns[i] for i in fields)))
        return TruncationReport.from_kept(battles, kept)


PAIR_INPUT = InputFormat(((0, 1), (0, 2)))
"""The prompt with either answer."""
JOINT_INPUT = InputFormat(((0, 1, 2),))
"""The prompt and both answers."""

INPUT_FORMATS = {"siamese": PAIR_INPUT, "cross-encoder": JOINT_INPUT}
