"""From battles to the arrays of a forward pass, and from its logits back to battles: everything but the arithmetic.

No torch here: :class:`~prefcli.models.neural.NeuralModel` computes with torch, and
:class:`~prefcli.models.exported.ExportedModel` with ONNX Runtime, on the same arrays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli.battles import TEXT_FIELDS
from prefcli.models.packing import InputFormat, Packed, Packing, TruncationReport
from prefcli.models.tokens import TokenisedBattles, tokenise
from prefcli.outcomes import OUTCOMES

CPU_TOKENS = 2 * 1024
GPU_TOKENS = 64 * 1024
"""Padded tokens in one forward pass. On a CPU the activations should stay near the caches and not be freshly mapped
pages each time (8,192 were measured at half the speed and three times the memory of 1,024); a GPU needs enough work."""

ORIGINAL_ORDER, SWAPPED_ORDER = False, True
Orders = tuple[bool, ...]
"""The orders of the answers in one pass: original, swapped, or both."""


@dataclass(frozen=True)
class Pass:
    """One forward pass: the positions of its battles, the orders of their answers, and the inputs on the host."""

    rows: NDArray[np.integer]
    orders: Orders
    inputs: dict[str, Any]


def prefetch(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """``function(item)`` of every item, in order; each is computed by a thread while the one before it is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefcli-batch") as thread:
        current = None
        for item in items:
            following = thread.submit(function, item)
            if current is not None:
                yield current.result()
            current = following
        if current is not None:
            yield current.result()


def _different(sequences: Sequence[Packed]) -> tuple[list[Packed], NDArray[np.int64]]:
    """The different sequences, in an order that depends on nothing else, and the position of each one among them.

    The last bits of a matrix product depend on the row that a sequence has in it. With this order they do not depend on
    which answer is called A, and equal answers get equal numbers.
    """
    keys = [(packed.ids.tobytes(), packed.spans) for packed in sequences]
    first = dict(zip(keys, sequences, strict=True))
    position = {key: number for number, key in enumerate(sorted(first))}
    return [first[key] for key in position], np.array([position[key] for key in keys], dtype=np.int64)


class BatchedModel:
    """What models of token ids share: battles in, logits out, a few battles at a time.

    ``tokenizer`` is called with texts and gives their token ids; ``max_tokens`` are those in one pass, padding
    included.
    """

    def __init__(
        self, input_format: InputFormat, tokenizer: Any, packing: Packing, pad_token_id: int, max_tokens: int
    ) -> None:
        self.input_format = input_format
        self.tokenizer = tokenizer
        self.packing = packing
        self.pad_token_id = pad_token_id
        self.max_tokens = max_tokens

    def lengths(self, battles: TokenisedBattles) -> NDArray[np.int64]:
        """Length of the longest sequence of each battle, shape ``[n]``."""
        return self.input_format.lengths(self.packing, battles)

    def truncation_report(self, battles: TokenisedBattles) -> TruncationReport:
        """What the budget cuts."""
        return self.input_format.truncation_report(self.packing, battles)

    def kept_tokens(self, batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens of each field of a batch of battles, and how many of them are read; both of shape ``[n, 3]``."""
        return self.input_format.kept_tokens(self.packing, self.tokenise(iter([batch])))

    def arrays(
        self, battles: TokenisedBattles, rows: NDArray[np.integer], swapped: bool = False
    ) -> dict[str, NDArray[np.int64]]:
        """The input for some battles, padded to the longest of their sequences.

        Sequence ``s`` of battle ``i`` of ``n`` is row ``s * n + i``. Where each sequence gets a number of its own,
        there is one row for each different sequence, and ``pairs`` ``[n, 2]`` says which are the answers of a battle.
        """
        per_battle = []
        for row in rows:
            prompt, a, b = battles.fields(int(row))
            per_battle.append(self.input_format.pack(self.packing, (prompt, b, a) if swapped else (prompt, a, b)))
        sequences = [packed for same_position in zip(*per_battle, strict=True) for packed in same_position]
        pairs = None
        if self.input_format.scores_sequences:
            sequences, positions = _different(sequences)
            pairs = positions.reshape(2, len(rows)).T.copy()
        width = max(len(packed.ids) for packed in sequences)
        input_ids = np.full((len(sequences), width), self.pad_token_id, dtype=np.int64)
        mask, types = np.zeros_like(input_ids), np.zeros_like(input_ids)
        last_type = self.packing.last_type
        for i, packed in enumerate(sequences):
            size = len(packed.ids)
            input_ids[i, :size] = packed.ids
            mask[i, :size] = 1
            types[i, packed.spans[-1][0] : size] = last_type or 0
        spans = np.array([packed.spans for packed in sequences], dtype=np.int64)
        arrays = {"input_ids": input_ids, "attention_mask": mask, "spans": spans}
        if pairs is not None:
            arrays["pairs"] = pairs  # and no token types: transformers' classifiers get none for a single text
        elif last_type is not None:
            arrays["token_type_ids"] = types
        return arrays

    def inputs(self, battles: TokenisedBattles, rows: NDArray[np.integer], swapped: bool = False) -> dict[str, Any]:
        """:meth:`arrays` in the form that the model takes, on the host."""
        raise NotImplementedError

    def passes(
        self, lengths: NDArray[np.int64], rows: NDArray[np.integer], max_battles: int = 0, *, both_orders: bool = False
    ) -> list[tuple[NDArray[np.integer], Orders]]:
        """The forward passes over some battles: positions of the battles, and the orders of their answers.

        An architecture that encodes the answers separately computes both orders in one pass, others need two.
        Parameters are those of :meth:`micro_batches`.
        """
        micro_batches = list(self.micro_batches(lengths, rows, max_battles))
        orders: list[Orders] = [(ORIGINAL_ORDER,)]
        if both_orders:
            one_pass = self.input_format.encodes_answers_separately
            orders = [(ORIGINAL_ORDER, SWAPPED_ORDER)] if one_pass else [(ORIGINAL_ORDER,), (SWAPPED_ORDER,)]
        return [(micro_batch, shown) for shown in orders for micro_batch in micro_batches]

    def prepare(self, battles: TokenisedBattles, rows: NDArray[np.integer], orders: Orders) -> Pass:
        """The inputs of one pass, on the host: everything that can be done before the device is free."""
        return Pass(rows, orders, self.inputs(battles, rows, orders[0]))

    def micro_batches(
        self, lengths: NDArray[np.int64], rows: NDArray[np.integer], max_battles: int = 0
    ) -> Iterator[NDArray[np.integer]]:
        """Split the positions ``rows`` into groups of similar lengths that fit the token budget.

        ``lengths`` are those of all battles (:meth:`lengths`). Without ``max_battles`` only the budget limits a group.
        """
        budget = self.max_tokens // len(self.input_format.sequences)
        ordered = rows[np.argsort(-lengths[rows], kind="stable")]
        start = 0
        while start < len(ordered):
            count = max(1, int(budget // max(int(lengths[ordered[start]]), 1)))
            if max_battles:
                count = min(count, max_battles)
            yield ordered[start : start + count]
            start += count

    def tokenise(self, batches: Iterator[pa.RecordBatch]) -> TokenisedBattles:
        packing = self.packing
        return tokenise(self.tokenizer, batches, by_turn=packing.by_turn, conversation=packing.conversation)

    def inference(self) -> contextlib.AbstractContextManager[object]:
        """What surrounds the passes of a prediction."""
        return contextlib.nullcontext()

    def compute(self, prepared: Pass) -> NDArray[np.float64]:
        """Logits ``[len(orders) * n, 3]`` of one pass: all battles in the first order, then all in the second."""
        raise NotImplementedError

    def logits_from_tokens(
        self,
        battles: TokenisedBattles,
        *,
        both_orders: bool = False,
        done: Callable[[int], None] | None = None,
        max_over_ranks: Callable[[int], int] | None = None,
    ) -> NDArray[np.float64]:
        """Logits of tokenised battles, in their order, float64.

        Parameters
        ----------
        both_orders:
            Also compute the logits of the battles with A and B swapped.
        done:
            Called with the number of battles that each step finished.
        max_over_ranks:
            Called with the number of passes here, returns the largest number of any process: so many are made, by
            repeating the last one.

        Returns
        -------
        Shape ``[orders, n, 3]``, with one order or two.
        """
        lengths = self.lengths(battles)
        logits = np.empty((1 + both_orders, len(battles), len(OUTCOMES)), dtype=np.float64)
        passes = self.passes(lengths, np.arange(len(battles)), both_orders=both_orders)
        if max_over_ranks is not None:
            passes += passes[-1:] * (max_over_ranks(len(passes)) - len(passes))
        with self.inference():
            for prepared in prefetch(lambda item: self.prepare(battles, *item), passes):
                result = self.compute(prepared)
                for order, part in zip(prepared.orders, np.split(result, len(prepared.orders)), strict=True):
                    logits[int(order), prepared.rows] = part
                if done is not None and ORIGINAL_ORDER in prepared.orders:
                    done(len(prepared.rows))
        return logits

    def logits(
        self, batch: pa.RecordBatch, *, swap_average: bool = False, done: Callable[[int], None] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Logits of a batch of battles, and with ``swap_average`` also those of the swapped battles."""
        logits = self.logits_from_tokens(self.tokenise(iter([batch])), both_orders=swap_average, done=done)
        return logits[0], logits[1] if swap_average else None


class AnswerScores:
    """What reward models have beside logits: the number of single answers. Mixed into a :class:`BatchedModel`."""

    def rewards(self: Any, batch: pa.RecordBatch, *, done: Callable[[int], None] | None = None) -> NDArray[np.float64]:
        """The reward of each answer, shape ``[n]``.

        Parameters
        ----------
        batch:
            Columns ``prompt`` and ``response``, lists of turns with the run's text normalisation.
        done:
            Called with the number of answers that each step finished.
        """
        logits: NDArray[np.float64] = self.logits_from_tokens(self.tokenise_answers(batch), done=done)
        return logits[0, :, 0]

    def tokenise_answers(self: Any, batch: pa.RecordBatch) -> TokenisedBattles:
        """Each answer as a battle against itself: equal sequences are computed once."""
        nothing = pa.nulls(batch.num_rows, pa.list_(pa.string()))
        columns = [batch.column("prompt"), batch.column("response"), nothing, pa.nulls(batch.num_rows, pa.int8())]
        tokens = self.tokenise(iter([pa.RecordBatch.from_arrays(columns, names=[*TEXT_FIELDS, "label"])]))
        ids, turns = (part and (part[0], part[1], part[1]) for part in (tokens.columns, tokens.turns))
        return replace(tokens, columns=ids, turns=turns)
