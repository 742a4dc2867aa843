"""From battles to the arrays a neural model is given, and its logits back in their places: all but the arithmetic.

No torch here: :class:`~prefcli.models.neural.NeuralModel` computes with torch, and
:class:`~prefcli.models.exported.ExportedModel` with ONNX Runtime, on the very same arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli.models.packing import CutReport, Packing, TokenisedBattles, tokenise
from prefcli.outcomes import OUTCOMES

CPU_TOKENS = 2 * 1024
GPU_TOKENS = 64 * 1024
"""Padded tokens in one forward pass. On a CPU what matters is that the activations stay near the caches and are not
freshly mapped pages each time (8,192 were measured at half the speed and three times the memory of 1,024); on a GPU
that there is enough to do."""

ORIGINAL_ORDER, SWAPPED_ORDER = False, True
Orders = tuple[bool, ...]
"""In which orders the answers are shown in one pass: straight, exchanged, or both."""


@dataclass(frozen=True)
class Pass:
    """One forward pass: which battles, in which orders, and the model's inputs, on the host."""

    rows: NDArray[np.integer]
    orders: Orders
    inputs: dict[str, Any]


def ahead(make: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """``make(item)`` of every item, in order, each made by a thread while the one before it is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefcli-batch") as thread:
        waiting = None
        for item in items:
            following = thread.submit(make, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


class BatchedModel:
    """What models of token ids share: battles in, logits out, a few battles at a time.

    Parameters
    ----------
    reading:
        How the architecture reads a battle, see :mod:`prefcli.models.input_format`.
    tokenizer:
        Called with texts, gives their token ids.
    packing:
        How a battle's fields become sequences.
    padding:
        The token id behind the end of a sequence.
    tokens:
        At most in one pass, padding included.
    """

    def __init__(self, reading: Any, tokenizer: Any, packing: Packing, padding: int, tokens: int) -> None:
        self.reading = reading
        self.tokenizer = tokenizer
        self.packing = packing
        self.padding = padding
        self.tokens = tokens

    def lengths(self, battles: TokenisedBattles) -> NDArray[np.int64]:
        """Length of the longest sequence of each battle, shape ``[n]``."""
        return np.asarray(self.reading.lengths(self.packing, battles))

    def cut(self, battles: TokenisedBattles) -> CutReport:
        """What the budget cuts."""
        report: CutReport = self.reading.cut(self.packing, battles)
        return report

    def arrays(
        self, battles: TokenisedBattles, rows: NDArray[np.integer], swapped: bool = False
    ) -> dict[str, NDArray[np.int64]]:
        """The input for some battles, padded to the longest of their sequences.

        Sequence ``s`` of battle ``i`` of ``n`` stands in row ``s * n + i``.
        """
        composed = []
        for row in rows:
            prompt, a, b = battles.fields(int(row))
            composed.append(self.reading.compose(self.packing, (prompt, b, a) if swapped else (prompt, a, b)))
        ordered = [sequences[s] for s in range(self.reading.sequences) for sequences in composed]
        width = max(len(packed.ids) for packed in ordered)
        input_ids = np.full((len(ordered), width), self.padding, dtype=np.int64)
        mask = np.zeros((len(ordered), width), dtype=np.int64)
        types = np.zeros((len(ordered), width), dtype=np.int64)
        last_type = self.packing.template.last_type
        for i, packed in enumerate(ordered):
            size = len(packed.ids)
            input_ids[i, :size] = packed.ids
            mask[i, :size] = 1
            types[i, packed.spans[-1][0] : size] = last_type or 0
        spans = np.array([packed.spans for packed in ordered], dtype=np.int64)
        arrays = {"input_ids": input_ids, "attention_mask": mask, "spans": spans}
        if last_type is not None:
            arrays["token_type_ids"] = types
        return arrays

    def inputs(self, battles: TokenisedBattles, rows: NDArray[np.integer], swapped: bool = False) -> dict[str, Any]:
        """:meth:`arrays` as the model takes them, on the host."""
        return dict(self.arrays(battles, rows, swapped))

    def passes(
        self, lengths: NDArray[np.int64], rows: NDArray[np.integer], at_most: int = 0, *, both_orders: bool = False
    ) -> list[tuple[NDArray[np.integer], Orders]]:
        """The forward passes over some battles: which of them, and in which orders their answers are shown.

        An architecture that reads the answers apart shows both orders in one pass, others need two.
        """
        pieces = list(self.micro_batches(lengths, rows, at_most))
        orders: list[Orders] = [(ORIGINAL_ORDER,)]
        if both_orders:
            apart = self.reading.reads_answers_apart
            orders = [(ORIGINAL_ORDER, SWAPPED_ORDER)] if apart else [(ORIGINAL_ORDER,), (SWAPPED_ORDER,)]
        return [(piece, shown) for shown in orders for piece in pieces]

    def prepared(self, battles: TokenisedBattles, passes: list[tuple[NDArray[np.integer], Orders]]) -> list[Pass]:
        """The inputs of some passes, on the host: everything that can be done before the device is free."""
        return [Pass(rows, orders, self.inputs(battles, rows, orders[0])) for rows, orders in passes]

    def micro_batches(
        self, lengths: NDArray[np.int64], rows: NDArray[np.integer], at_most: int = 0
    ) -> Iterator[NDArray[np.integer]]:
        """Cut ``rows`` into groups of like lengths that fit the token budget.

        Parameters
        ----------
        lengths:
            Of all battles (:meth:`lengths`).
        rows:
            Positions of the battles to group.
        at_most:
            Battles in a group; 0 leaves it to the token budget.
        """
        budget = self.tokens // self.reading.sequences
        ordered = rows[np.argsort(-lengths[rows], kind="stable")]
        start = 0
        while start < len(ordered):
            count = max(1, int(budget // max(int(lengths[ordered[start]]), 1)))
            if at_most:
                count = min(count, at_most)
            yield ordered[start : start + count]
            start += count

    def tokenise(self, batches: Iterator[pa.RecordBatch], progress: Any = None) -> TokenisedBattles:
        return tokenise(self.tokenizer, batches, progress, by_turn=self.packing.by_turn)

    def compute(self, prepared: Pass) -> NDArray[np.float64]:
        """Logits ``[len(orders) * n, 3]`` of one pass: all battles in the first order, then all in the second."""
        raise NotImplementedError

    def logits_of(
        self,
        battles: TokenisedBattles,
        *,
        both_orders: bool = False,
        done: Callable[[int], None] | None = None,
        in_step: Callable[[int], int] | None = None,
    ) -> NDArray[np.float64]:
        """Logits of tokenised battles, in their order, float64.

        Parameters
        ----------
        battles:
            Tokenised battles.
        both_orders:
            Also those of the battles with A and B exchanged.
        done:
            Told how many battles each step finished.
        in_step:
            Told how many forward passes there are to make, answers how many all processes make: the last is repeated.

        Returns
        -------
        Shape ``[orders, n, 3]``, with one order or two.
        """
        lengths = self.lengths(battles)
        logits = np.empty((1 + both_orders, len(battles), len(OUTCOMES)), dtype=np.float64)
        passes = self.passes(lengths, np.arange(len(battles)), both_orders=both_orders)
        passes += passes[-1:] * (in_step(len(passes)) - len(passes) if in_step is not None else 0)
        for (one,) in ahead(lambda item: self.prepared(battles, [item]), passes):
            found = self.compute(one)
            for order, part in zip(one.orders, np.split(found, len(one.orders)), strict=True):
                logits[int(order), one.rows] = part
            if done is not None and ORIGINAL_ORDER in one.orders:
                done(len(one.rows))
        return logits

    def logits(
        self, batch: pa.RecordBatch, *, swap_average: bool = False, done: Callable[[int], None] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Logits of a batch of battles, and with ``swap_average`` also those of the exchanged battles."""
        found = self.logits_of(self.tokenise(iter([batch])), both_orders=swap_average, done=done)
        return found[0], found[1] if swap_average else None
