"""How each neural architecture reads a battle: which sequences it is shown, how long they are, what they lose.

No torch here: the modules inherit it, and a model that was exported to ONNX reads the same way without them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcli.models.packing import CutReport, Field, Packed, Packing, TokenisedBattles


class PairInput:
    """Two sequences a battle: the prompt with either answer."""

    sequences = 2
    reads_answers_apart = True
    """Exchanging the answers exchanges what the encoder gave: both orders cost one pass through it."""

    @staticmethod
    def compose(packing: Packing, fields: tuple[Field, Field, Field]) -> list[Packed]:
        """The two sequences of a battle."""
        prompt, a, b = fields
        return [packing.pack((prompt, a)), packing.pack((prompt, b))]

    @staticmethod
    def lengths(packing: Packing, battles: TokenisedBattles) -> NDArray[np.int64]:
        """Length of the longer sequence of each battle, shape ``[n]``: what padding is decided by."""
        return np.maximum(
            packing.lengths(battles.prompt, battles.response_a), packing.lengths(battles.prompt, battles.response_b)
        )

    @staticmethod
    def cut(packing: Packing, battles: TokenisedBattles) -> CutReport:
        """What no sequence sees."""
        with_a = packing.kept(battles.prompt, battles.response_a)
        with_b = packing.kept(battles.prompt, battles.response_b)
        kept = np.stack([np.maximum(with_a[:, 0], with_b[:, 0]), with_a[:, 1], with_b[:, 1]], axis=1)
        return CutReport.of(battles, kept)


class JointInput:
    """One sequence a battle: the prompt, A, B."""

    sequences = 1
    reads_answers_apart = False

    @staticmethod
    def compose(packing: Packing, fields: tuple[Field, Field, Field]) -> list[Packed]:
        """The one sequence of a battle."""
        return [packing.pack(fields)]

    @staticmethod
    def lengths(packing: Packing, battles: TokenisedBattles) -> NDArray[np.int64]:
        """Length of each battle's sequence, shape ``[n]``."""
        return packing.lengths(battles.prompt, battles.response_a, battles.response_b)

    @staticmethod
    def cut(packing: Packing, battles: TokenisedBattles) -> CutReport:
        """What the sequence does not hold."""
        return CutReport.of(battles, packing.kept(battles.prompt, battles.response_a, battles.response_b))


INPUT_FORMATS: dict[str, Any] = {"siamese": PairInput, "cross-encoder": JointInput}
