"""Battle -> token ids under a budget, and what was cut, field by field.

Fields (prompt, response A, response B) are tokenised once, without special tokens; sequences for the encoder are
put together from them when a batch is made. A sequence that would be longer than the budget is cut by one rule,
:func:`allot`: what a short field does not use goes to the long ones, and every field keeps its beginning. So no
side is ever removed silently, and :class:`CutReport` says what was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli.battles import TEXT_FIELDS, joined, labels_of
from prefcli.outcomes import OUTCOMES, SOFT_LABEL_COLUMNS

if TYPE_CHECKING:
    from prefcli.reporting import Progress

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths in one flat array: row ``i`` is ``values[ends[i]:ends[i + 1]]``."""

    values: Ids
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: int) -> Ids:
        return self.values[self.ends[row] : self.ends[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.ends)

    @staticmethod
    def of(rows: Sequence[Sequence[int]]) -> Ragged:
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        values = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(ends[-1]))
        return Ragged(values, ends)

    @staticmethod
    def concatenate(parts: Sequence[Ragged]) -> Ragged:
        lengths = np.concatenate([part.lengths for part in parts])
        return Ragged(
            np.concatenate([part.values for part in parts]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )

    def take(self, rows: NDArray[np.integer]) -> Ragged:
        return Ragged.of([self[int(row)].tolist() for row in rows])


@dataclass(frozen=True)
class TokenisedBattles:
    """Battles as token ids: what models train on and predict.

    Attributes
    ----------
    prompt, response_a, response_b:
        Token ids of each field, without special tokens.
    labels:
        Shape ``[n]``, -1 where unknown.
    soft:
        Soft labels, shape ``[n, 3]``; rows of NaN where there are none.
    """

    prompt: Ragged
    response_a: Ragged
    response_b: Ragged
    labels: NDArray[np.int64]
    soft: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def fields(self, row: int) -> tuple[Ids, Ids, Ids]:
        return self.prompt[row], self.response_a[row], self.response_b[row]

    def take(self, rows: NDArray[np.integer]) -> TokenisedBattles:
        """The battles at these positions, in this order."""
        return TokenisedBattles(
            self.prompt.take(rows),
            self.response_a.take(rows),
            self.response_b.take(rows),
            self.labels[rows],
            self.soft[rows],
        )

    def targets(self) -> NDArray[np.float32]:
        """What the loss compares with, shape ``[n, 3]``: soft labels where given, else the one-hot outcome.

        Rows without either are all zero and so weigh nothing.
        """
        known = self.labels >= 0
        targets = np.zeros((len(self), len(OUTCOMES)), dtype=np.float32)
        targets[known, self.labels[known]] = 1
        given = ~np.isnan(self.soft).any(axis=1)
        targets[given] = self.soft[given]
        return targets


def tokenise(tokenizer: Any, batches: Iterable[pa.RecordBatch], progress: Progress | None = None) -> TokenisedBattles:
    """Tokenise every field of every battle once.

    Parameters
    ----------
    tokenizer:
        A Hugging Face tokenizer.
    batches:
        Canonical record batches.
    progress:
        Advanced by the number of battles done.
    """
    ragged: dict[str, list[Ragged]] = {name: [] for name in TEXT_FIELDS}
    labels, soft = [], []
    for batch in batches:
        table = pa.Table.from_batches([batch])
        for name in TEXT_FIELDS:
            ragged[name].append(Ragged.of(_token_ids(tokenizer, joined(table[name]))))
        labels.append(labels_of(table))
        soft.append(_soft_labels(table))
        if progress is not None:
            progress.advance(batch.num_rows)
    if not labels:
        empty = Ragged(np.empty(0, np.int32), np.zeros(1, np.int64))
        return TokenisedBattles(empty, empty, empty, np.empty(0, np.int64), np.empty((0, len(OUTCOMES)), np.float32))
    prompt, response_a, response_b = (Ragged.concatenate(ragged[name]) for name in TEXT_FIELDS)
    return TokenisedBattles(prompt, response_a, response_b, np.concatenate(labels), np.concatenate(soft))


def _token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return list(encoded["input_ids"])


def _soft_labels(table: pa.Table) -> NDArray[np.float32]:
    if not set(SOFT_LABEL_COLUMNS) <= set(table.column_names):
        return np.full((table.num_rows, len(OUTCOMES)), np.nan, dtype=np.float32)
    columns = [table[name].cast(pa.float32()).to_numpy(zero_copy_only=False) for name in SOFT_LABEL_COLUMNS]
    return np.stack(columns, axis=1).astype(np.float32)


def allot(lengths: NDArray[np.integer], budget: int) -> NDArray[np.int64]:
    """How many tokens each field keeps so that together they fit the budget.

    Water-filling: fields shorter than an equal share are kept whole, and what they leave goes to the others in equal
    parts; a remainder goes to the longest. For two fields this is Hugging Face's ``longest_first``.

    Parameters
    ----------
    lengths:
        Tokens in each field, shape ``[..., fields]``.
    budget:
        Tokens available, at least 0.

    Returns
    -------
    Tokens kept, same shape; sums to at most ``budget`` along the last axis.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    fields = lengths.shape[-1]
    order = np.argsort(lengths, axis=-1, kind="stable")
    ascending = np.take_along_axis(lengths, order, axis=-1)
    left = np.full(lengths.shape[:-1], budget, dtype=np.int64)
    kept = np.empty_like(ascending)
    for position in range(fields):
        kept[..., position] = np.minimum(ascending[..., position], left // (fields - position))
        left = left - kept[..., position]
    result = np.empty_like(kept)
    np.put_along_axis(result, order, kept, axis=-1)
    return result


@dataclass(frozen=True)
class CutReport:
    """What the budget cut, over all battles."""

    battles: int
    battles_cut: int
    tokens: int
    tokens_cut: dict[str, int]
    """Per field: prompt, response_a, response_b."""

    @property
    def share_of_battles(self) -> float:
        return self.battles_cut / max(self.battles, 1)

    @property
    def share_of_tokens(self) -> float:
        return sum(self.tokens_cut.values()) / max(self.tokens, 1)

    def __str__(self) -> str:
        if not self.battles_cut:
            return "nothing was cut"
        fields = ", ".join(f"{name} {count:,}" for name, count in self.tokens_cut.items() if count)
        return (
            f"{self.battles_cut:,} of {self.battles:,} battles ({self.share_of_battles:.1%}) cut, "
            f"{self.share_of_tokens:.1%} of all tokens ({fields})"
        )


@dataclass(frozen=True)
class PairTemplate:
    """The special tokens a tokenizer puts around a pair: ``prefix first middle second suffix``.

    Learnt from the tokenizer itself (:meth:`of`), so that any of them works. ``second_type`` is the token type of
    the second segment, or None when the tokenizer has no token types.
    """

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    second_type: int | None

    @staticmethod
    def of(tokenizer: Any) -> PairTemplate:
        """Encode a pair of sentinel texts and look at what stands around them."""
        first, second = _token_ids(tokenizer, ["alpha", "omega"])
        encoded = tokenizer("alpha", "omega")
        ids = list(encoded["input_ids"])
        start_first = _find(ids, first, 0)
        start_second = _find(ids, second, start_first + len(first))
        prefix = tuple(ids[:start_first])
        middle = tuple(ids[start_first + len(first) : start_second])
        suffix = tuple(ids[start_second + len(second) :])
        types = encoded.get("token_type_ids")
        return PairTemplate(prefix, middle, suffix, int(types[start_second]) if types is not None else None)

    @property
    def overhead(self) -> int:
        """Special tokens in one sequence."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    def join(self, first: Ids, second: Ids) -> tuple[Ids, int]:
        """The sequence, and where the second segment begins."""
        parts = [
            np.array(self.prefix, dtype=np.int32),
            first,
            np.array(self.middle, dtype=np.int32),
            second,
            np.array(self.suffix, dtype=np.int32),
        ]
        return np.concatenate(parts), len(self.prefix) + len(first) + len(self.middle)


def _find(ids: list[int], part: list[int], start: int) -> int:
    for position in range(start, len(ids) - len(part) + 1):
        if ids[position : position + len(part)] == part:
            return position
    return start
