"""Battles as token ids: every field tokenised once, without special tokens, in flat arrays.

No torch here: exported models use the same code.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli.battles import TEXT_FIELDS, TURN_SEPARATOR, labels_of, texts_of

if TYPE_CHECKING:
    from prefcli.models.conversation import ConversationTemplate

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths in one flat array: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``."""

    values: Ids
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Ids:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @staticmethod
    def from_rows(rows: Sequence[Sequence[int]]) -> Ragged:
        offsets = _offsets(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)))
        values = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1]))
        return Ragged(values, offsets)

    @staticmethod
    def from_lengths(values: Ids, lengths: NDArray[np.integer]) -> Ragged:
        return Ragged(values, _offsets(lengths))

    @staticmethod
    def concatenate(parts: Sequence[Ragged]) -> Ragged:
        lengths = np.concatenate([part.lengths for part in parts])
        return Ragged.from_lengths(np.concatenate([part.values for part in parts]), lengths)

    def take(self, rows: NDArray[np.integer]) -> Ragged:
        """The rows at these positions, in this order."""
        offsets = _offsets(self.lengths[rows])
        # The source of each value: its place in the new array, shifted by how far its row has moved.
        shifts = np.repeat(self.offsets[rows] - offsets[:-1], np.diff(offsets))
        return Ragged(self.values[np.arange(offsets[-1]) + shifts], offsets)

    def merge_rows(self, counts: NDArray[np.int64]) -> Ragged:
        """The first ``counts[0]`` rows become one row, the next ``counts[1]`` another, ..."""
        return Ragged(self.values, self.offsets[_offsets(counts)])


def _offsets(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


@dataclass(frozen=True)
class Field:
    """One field of one battle: its token ids, and how many of them each turn has (one turn where that is unknown)."""

    ids: Ids
    turns: Ids


@dataclass(frozen=True)
class TokenisedBattles:
    """Battles as token ids, without special tokens: what neural models train on and predict."""

    columns: tuple[Ragged, ...]
    """The ids of prompt, answer A and answer B."""
    labels: NDArray[np.int64]
    """Shape ``[n]``, -1 where unknown."""
    turns: tuple[Ragged, ...] | None = None
    """For each field the tokens in every turn; None where turns were joined before they were tokenised."""

    def __len__(self) -> int:
        return len(self.labels)

    def fields(self, row: int) -> tuple[Field, Field, Field]:
        """Prompt, answer A and answer B of one battle."""
        ids = [column[row] for column in self.columns]
        turns = [column[row] for column in self.turns] if self.turns else [np.array([len(i)], np.int32) for i in ids]
        prompt, a, b = map(Field, ids, turns)
        return prompt, a, b

    def take(self, rows: NDArray[np.integer]) -> TokenisedBattles:
        """The battles at these positions, in this order."""
        turns = self.turns and tuple(column.take(rows) for column in self.turns)
        return TokenisedBattles(tuple(column.take(rows) for column in self.columns), self.labels[rows], turns)


def tokenise(
    tokenizer: Any,
    batches: Iterable[pa.RecordBatch],
    *,
    by_turn: bool = False,
    conversation: ConversationTemplate | None = None,
) -> TokenisedBattles:
    """Tokenise every field of every battle of canonical batches once.

    With ``by_turn`` every turn by itself, so that the turns are known when a conversation is cut; otherwise the turns
    are joined first. With ``conversation`` every turn as it stands between that template's pieces.
    """
    empty = Ragged(np.empty(0, np.int32), np.zeros(1, np.int64))
    columns, turn_columns = ([[empty] for _ in TEXT_FIELDS] for _ in range(2))
    labels = [np.empty(0, np.int64)]
    for batch in batches:
        table = pa.Table.from_batches([batch])
        texts = [table[name] for name in TEXT_FIELDS]
        if conversation is not None:
            fields = conversation.tokenise_columns(tokenizer, *texts)
        elif by_turn:
            fields = [_tokenise_by_turn(tokenizer, column) for column in texts]
        else:
            fields = [(Ragged.from_rows(token_ids(tokenizer, texts_of(column))), empty) for column in texts]
        for number, (ids, turn_lengths) in enumerate(fields):
            columns[number].append(ids)
            turn_columns[number].append(turn_lengths)
        labels.append(labels_of(table))
    ids_of, turns_of = (tuple(map(Ragged.concatenate, parts)) for parts in (columns, turn_columns))
    return TokenisedBattles(ids_of, np.concatenate(labels), turns_of if by_turn or conversation is not None else None)


def _tokenise_by_turn(tokenizer: Any, column: pa.ChunkedArray) -> tuple[Ragged, Ragged]:
    """A field's ids, and the tokens in each of its turns."""
    texts, counts = _split_turns(column)
    turns = Ragged.from_rows(token_ids(tokenizer, texts))
    return turns.merge_rows(counts), Ragged.from_lengths(turns.lengths.astype(np.int32), counts)


def _split_turns(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """Every turn that has text, each but a field's last followed by the separator, and their number per row."""
    texts: list[str] = []
    counts = np.zeros(len(column), dtype=np.int64)
    for row, turns in enumerate(column.to_pylist()):
        filled = [turn for turn in turns or () if turn]
        texts += [turn + TURN_SEPARATOR for turn in filled[:-1]] + filled[-1:]
        counts[row] = len(filled)
    return texts, counts


def token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens, however long."""
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
