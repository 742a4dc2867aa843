"""Battle -> token ids under a budget, and what was cut, field by field.

Fields (prompt, response A, response B) are tokenised once, without special tokens; sequences for the encoder are
put together from them when a batch is made (:class:`Packing`). A sequence that would be longer than the budget is cut
by one rule, :func:`allot`: what a short field does not use goes to the long ones. So no side is ever removed silently,
and :class:`CutReport` says what was lost. What a field keeps of its share is the ``truncation``: its ``head``, as
Hugging Face does it, or ``head-tail``: of a long conversation the last turns, of a long turn its beginning and its end
with a visible mark between them.
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
    from prefcli.reporting import Progress

Ids = NDArray[np.int32]

MARK = " … "
"""What stands where text was left out, in the encoder's own tokens."""

LEAST_TEXT = 3
"""Tokens of text that there must be room for: one for each field."""

PAIR_WORDS = ("Question:\n", "\n\nAnswer:\n", "\n\nHow good is this answer:")
BOTH_WORDS = ("Question:\n", "\n\nAnswer A:\n", "\n\nAnswer B:\n", "\n\nWhich answer is better:")
"""What a language model reads before each field and, at last, behind them: there its judgement is taken."""


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
        ends = _ends(lengths)
        return Ragged(np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int32, count=int(ends[-1])), ends)

    @staticmethod
    def with_lengths(values: Ids, lengths: NDArray[np.integer]) -> Ragged:
        return Ragged(values, _ends(lengths))

    @staticmethod
    def concatenate(parts: Sequence[Ragged]) -> Ragged:
        lengths = np.concatenate([part.lengths for part in parts])
        return Ragged.with_lengths(np.concatenate([part.values for part in parts]), lengths)

    def take(self, rows: NDArray[np.integer]) -> Ragged:
        """The rows at these positions, in this order."""
        ends = _ends(self.lengths[rows])
        # Where each value comes from: its place in the new array, shifted by how far its row has moved.
        moved = np.repeat(self.ends[rows] - ends[:-1], np.diff(ends))
        return Ragged(self.values[np.arange(ends[-1]) + moved], ends)

    def summed(self, counts: NDArray[np.int64]) -> Ragged:
        """Rows joined: the first ``counts[0]`` become one, the next ``counts[1]`` another, ..."""
        return Ragged(self.values, self.ends[_ends(counts)])


def _ends(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


@dataclass(frozen=True)
class Field:
    """One field of one battle: its token ids, and how many of them each turn has (one turn where that is unknown)."""

    ids: Ids
    turns: Ids


@dataclass(frozen=True)
class TokenisedBattles:
    """Battles as token ids: what neural models train on and predict.

    Attributes
    ----------
    prompt, response_a, response_b:
        Token ids of each field, without special tokens.
    labels:
        Shape ``[n]``, -1 where unknown.
    turns:
        For each field the tokens in every turn; None where turns were joined before they were tokenised.
    """

    prompt: Ragged
    response_a: Ragged
    response_b: Ragged
    labels: NDArray[np.int64]
    turns: tuple[Ragged, Ragged, Ragged] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def fields(self, row: int) -> tuple[Field, Field, Field]:
        """Prompt, answer A and answer B of one battle."""
        ids = (self.prompt[row], self.response_a[row], self.response_b[row])
        if self.turns is None:
            prompt, a, b = (Field(part, np.array([len(part)], np.int32)) for part in ids)
        else:
            prompt, a, b = (Field(part, turns[row]) for part, turns in zip(ids, self.turns, strict=True))
        return prompt, a, b

    def take(self, rows: NDArray[np.integer]) -> TokenisedBattles:
        """The battles at these positions, in this order."""
        turns = None
        if self.turns is not None:
            turns = (self.turns[0].take(rows), self.turns[1].take(rows), self.turns[2].take(rows))
        return TokenisedBattles(
            self.prompt.take(rows), self.response_a.take(rows), self.response_b.take(rows), self.labels[rows], turns
        )


def tokenise(
    tokenizer: Any, batches: Iterable[pa.RecordBatch], progress: Progress | None = None, *, by_turn: bool = False
) -> TokenisedBattles:
    """Tokenise every field of every battle once.

    Parameters
    ----------
    tokenizer:
        A Hugging Face tokenizer.
    batches:
        Canonical record batches.
    progress:
        Advanced by the number of battles done.
    by_turn:
        Tokenise every turn by itself, so that the turns can be told apart when a conversation is cut; otherwise the
        turns are joined first.
    """
    ragged: dict[str, list[Ragged]] = {name: [] for name in TEXT_FIELDS}
    turns: dict[str, list[Ragged]] = {name: [] for name in TEXT_FIELDS}
    labels = [np.empty(0, np.int64)]
    for batch in batches:
        table = pa.Table.from_batches([batch])
        for name in TEXT_FIELDS:
            if by_turn:
                texts, counts = _split_turns(table[name])
                each = Ragged.of(_token_ids(tokenizer, texts))
                ragged[name].append(each.summed(counts))
                turns[name].append(Ragged(each.lengths.astype(np.int32), _ends(counts)))
            else:
                ragged[name].append(Ragged.of(_token_ids(tokenizer, texts_of(table[name]))))
        labels.append(labels_of(table))
        if progress is not None:
            progress.advance(batch.num_rows)
    empty = Ragged(np.empty(0, np.int32), np.zeros(1, np.int64))
    prompt, a, b = (Ragged.concatenate([empty, *ragged[name]]) for name in TEXT_FIELDS)
    prompt_turns, a_turns, b_turns = (Ragged.concatenate([empty, *turns[name]]) for name in TEXT_FIELDS)
    return TokenisedBattles(prompt, a, b, np.concatenate(labels), (prompt_turns, a_turns, b_turns) if by_turn else None)


def _split_turns(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """Every turn that has text, each but a field's last with the separator behind it, and their number per row."""
    texts: list[str] = []
    counts = np.zeros(len(column), dtype=np.int64)
    for row, turns in enumerate(column.to_pylist()):
        said = [turn for turn in turns or () if turn]
        texts += [turn + TURN_SEPARATOR for turn in said[:-1]] + said[-1:]
        counts[row] = len(said)
    return texts, counts


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

    @staticmethod
    def of(battles: TokenisedBattles, kept: NDArray[np.int64]) -> CutReport:
        """What is lost when each field keeps ``kept`` tokens, shape ``[n, 3]``."""
        fields = (battles.prompt, battles.response_a, battles.response_b)
        lengths = np.stack([field.lengths for field in fields], axis=1)
        lost = lengths - kept
        return CutReport(
            battles=len(battles),
            battles_cut=int((lost > 0).any(axis=1).sum()),
            tokens=int(lengths.sum()),
            tokens_cut=dict(zip(TEXT_FIELDS, lost.sum(axis=0).tolist(), strict=True)),
        )

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
class Frame:
    """What stands before each field of a sequence and behind the last one, as token ids."""

    leads: tuple[tuple[int, ...], ...]
    suffix: tuple[int, ...]

    @property
    def overhead(self) -> int:
        """Tokens in a sequence that are not the fields'."""
        return sum(map(len, self.leads)) + len(self.suffix)

    def join(self, fields: Sequence[Ids]) -> Packed:
        """One sequence of the fields, as many as there are leads."""
        parts: list[Any] = []
        spans = []
        end = 0
        for lead, ids in zip(self.leads, fields, strict=True):
            start = end + len(lead)
            end = start + len(ids)
            parts += [lead, ids]
            spans.append((start, end))
        parts.append(self.suffix)
        return Packed(np.concatenate([np.asarray(part, dtype=np.int32) for part in parts]), tuple(spans))


@dataclass(frozen=True)
class Template:
    """What stands around the fields: the special tokens of an encoder, or words for a language model.

    Attributes
    ----------
    pair:
        For a prompt and one answer.
    both:
        For a prompt and both answers.
    last_type:
        The token type of the last field, or None when the tokenizer has no token types.
    """

    pair: Frame
    both: Frame
    last_type: int | None

    @staticmethod
    def of(tokenizer: Any, kind: str = "tokens") -> Template:
        """The template of a kind, in the ids of a tokenizer: ``tokens`` or ``words``."""
        return Template._of_words(tokenizer) if kind == "words" else Template._of_tokens(tokenizer)

    @staticmethod
    def _of_tokens(tokenizer: Any) -> Template:
        """``prefix first middle second [middle third] suffix``, learnt from the tokenizer, so that any of them works.

        Encodes a pair of sentinel texts and looks at what stands around them.
        """
        first, second = _token_ids(tokenizer, ["alpha", "omega"])
        encoded = tokenizer("alpha", "omega")
        ids = list(encoded["input_ids"])
        start_first = _find(ids, first, 0)
        start_second = _find(ids, second, start_first + len(first))
        prefix = tuple(ids[:start_first])
        middle = tuple(ids[start_first + len(first) : start_second])
        suffix = tuple(ids[start_second + len(second) :])
        types = encoded.get("token_type_ids")
        return Template(
            Frame((prefix, middle), suffix),
            Frame((prefix, middle, middle), suffix),
            int(types[start_second]) if types is not None else None,
        )

    @staticmethod
    def _of_words(tokenizer: Any) -> Template:
        """:data:`PAIR_WORDS` and :data:`BOTH_WORDS`, after whatever the tokenizer begins a text with."""
        (first,) = _token_ids(tokenizer, ["alpha"])
        ids = list(tokenizer("alpha")["input_ids"])
        beginning = tuple(ids[: _find(ids, first, 0)])

        def frame(words: Sequence[str]) -> Frame:
            before, *others = (tuple(part) for part in _token_ids(tokenizer, list(words)))
            return Frame((beginning + before, *others[:-1]), others[-1])

        return Template(frame(PAIR_WORDS), frame(BOTH_WORDS), None)

    def frame(self, fields: int) -> Frame:
        """What stands around two or three fields."""
        return {2: self.pair, 3: self.both}[fields]


@dataclass(frozen=True)
class Packed:
    """A sequence for an encoder, and where in it each field begins and ends."""

    ids: Ids
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Packing:
    """How fields become sequences: the special tokens, the budget, and what is kept of a field that is too long.

    Attributes
    ----------
    template:
        What stands around the fields.
    max_length:
        Tokens in one sequence, special ones included.
    truncation:
        ``head`` or ``head-tail``.
    mark:
        Token ids of :data:`MARK`; empty with ``head``.
    """

    template: Template
    max_length: int
    truncation: str
    mark: Ids

    @staticmethod
    def of(tokenizer: Any, max_length: int, truncation: str = "head", template: str = "tokens") -> Packing:
        mark = _token_ids(tokenizer, [MARK])[0] if truncation == "head-tail" else []
        return Packing(Template.of(tokenizer, template), max_length, truncation, np.array(mark, dtype=np.int32))

    @property
    def by_turn(self) -> bool:
        """Whether fields have to be tokenised turn by turn (:func:`tokenise`)."""
        return self.truncation == "head-tail"

    def pack(self, fields: Sequence[Field]) -> Packed:
        """One sequence of the fields, cut to the budget."""
        kept = allot(np.array([len(field.ids) for field in fields]), self._budget(len(fields))).tolist()
        return self.template.frame(len(fields)).join(
            [self._cut(field, size) for field, size in zip(fields, kept, strict=True)]
        )

    def _cut(self, field: Field, size: int) -> Ids:
        if len(field.ids) <= size:
            return field.ids
        return field.ids[:size] if self.truncation == "head" else keep_ends(field, size, self.mark)

    def lengths(self, *fields: Ragged) -> NDArray[np.int64]:
        """Length of each sequence made of these fields, shape ``[n]``."""
        total = np.sum([field.lengths for field in fields], axis=0) + self.template.frame(len(fields)).overhead
        return np.minimum(total, self.max_length)

    def _budget(self, fields: int) -> int:
        """Tokens that are left for the fields."""
        return max(self.max_length - self.template.frame(fields).overhead, 0)

    def kept(self, *fields: Ragged) -> NDArray[np.int64]:
        """Tokens of text that each field keeps, shape ``[n, fields]``; marks are not text."""
        lengths = np.stack([field.lengths for field in fields], axis=1)
        kept = allot(lengths, self._budget(len(fields)))
        return np.where(kept < lengths, np.maximum(kept - len(self.mark), 0), kept)


def keep_ends(field: Field, size: int, mark: Ids) -> Ids:
    """What remains of a field that is too long: its last turns, and of a turn that is cut its beginning and its end.

    Parameters
    ----------
    field:
        Longer than ``size`` tokens.
    size:
        Tokens to keep, marks included.
    mark:
        Stands wherever something was left out, as far as there is room for it.
    """
    pieces: list[Ids] = []
    room, end = size, len(field.ids)
    for number in range(len(field.turns) - 1, -1, -1):
        turn = field.ids[end - int(field.turns[number]) : end]
        # Turns before this one will be missing: room for the mark that says so.
        needed = len(turn) + (len(mark) if number else 0)
        if needed <= room:
            pieces.append(turn)
            room -= len(turn)
            end -= len(turn)
            continue
        earlier = mark if number else mark[:0]
        text = room - len(mark) - len(earlier)
        if text >= 2:
            head, tail = (text + 1) // 2, text // 2
            pieces += [turn[-tail:], mark, turn[:head], earlier]
        elif room >= len(mark) and pieces:
            pieces.append(mark)
        else:
            pieces.append(turn[:room])
        break
    return np.concatenate(pieces[::-1]).astype(np.int32)


def _find(ids: list[int], part: list[int], start: int) -> int:
    for position in range(start, len(ids) - len(part) + 1):
        if ids[position : position + len(part)] == part:
            return position
    return start
