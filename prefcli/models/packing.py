"""Fields -> sequences for an encoder, under a budget of tokens, and what was cut, field by field.

Sequences are put together from a battle's tokenised fields (prompt, response A, response B) when a batch is made
(:class:`Packing`); which fields each has depends on the architecture (:class:`InputFormat`). A sequence longer than the
budget is cut by one rule, :func:`allocate_budget`: what a short field does not need goes to the long ones. So no field
is ever removed, and :class:`TruncationReport` says what was lost. Which tokens a cut field keeps is the ``truncation``:
its ``head``, as Hugging Face does it, or ``head-tail``: the last turns of a long conversation, and the beginning and
the end of a long turn, with a visible mark between them.

No torch here: exported models use the same code.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcli.battles import TEXT_FIELDS
from prefcli.errors import ModelError, plural
from prefcli.models import conversation
from prefcli.models.conversation import ConversationTemplate
from prefcli.models.tokens import Field, Ids, TokenisedBattles, token_ids
from prefcli.reporting import SILENT, Reporter

MARK = " … "
"""Stands where text was left out, in the encoder's own tokens."""

MIN_TEXT_TOKENS = 3
"""Tokens of text that must fit beside the template: one for each field."""

PAIR_WORDS = ("Question:\n", "\n\nAnswer:\n", "\n\nHow good is this answer:")
BOTH_WORDS = ("Question:\n", "\n\nAnswer A:\n", "\n\nAnswer B:\n", "\n\nWhich answer is better:")
"""What a language model reads before each field and after the last, where its judgement is taken."""


MIN_TURN_TOKENS = 16
"""A conversation loses its first turns if each of its texts could not keep so many tokens."""

EXAMPLES = (("alpha", "omega"), ("people", "prefer"))
"""Pairs of texts that show where a tokenizer puts its special tokens."""


def allocate_budget(lengths: NDArray[np.integer], budget: int) -> NDArray[np.int64]:
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
class TruncationReport:
    """What the budget cut, over all battles."""

    battles: int
    battles_cut: int
    tokens: int
    tokens_cut: dict[str, int]
    """Per field: prompt, response_a, response_b."""

    def __str__(self) -> str:
        if not self.battles_cut:
            return "nothing was cut"
        fields = ", ".join(f"{name} {count:,}" for name, count in self.tokens_cut.items() if count)
        return (
            f"{self.battles_cut:,} of {plural(self.battles, 'battle')} ({self.battles_cut / self.battles:.1%}) cut, "
            f"{sum(self.tokens_cut.values()) / self.tokens:.1%} of all tokens ({fields})"
        )


@dataclass(frozen=True)
class Packed:
    """A sequence for an encoder, and where in it each field begins and ends."""

    ids: Ids
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SequenceTemplate:
    """The token ids before each field of a sequence and after the last one."""

    prefixes: tuple[tuple[int, ...], ...]
    suffix: tuple[int, ...]

    @property
    def overhead(self) -> int:
        """Tokens in a sequence that are not the fields'."""
        return sum(map(len, self.prefixes)) + len(self.suffix)

    def join(self, fields: Sequence[Ids]) -> Packed:
        """One sequence of the fields, as many as there are prefixes."""
        parts: list[Any] = []
        spans = []
        end = 0
        for prefix, ids in zip(self.prefixes, fields, strict=True):
            start = end + len(prefix)
            end = start + len(ids)
            parts += [prefix, ids]
            spans.append((start, end))
        parts.append(self.suffix)
        return Packed(np.concatenate([np.asarray(part, dtype=np.int32) for part in parts]), tuple(spans))


@dataclass(frozen=True)
class Template:
    """What stands around the fields: the special tokens of an encoder, or words for a language model."""

    pair: SequenceTemplate
    """For a prompt and one answer."""
    both: SequenceTemplate
    """For a prompt and both answers."""
    last_type: int | None
    """The token type of the last field; None if the tokenizer has no token types."""

    @staticmethod
    def from_tokenizer(tokenizer: Any, kind: str = "tokens") -> Template:
        """The template of a kind, ``tokens`` or ``words``, in the ids of a tokenizer."""
        return _word_template(tokenizer) if kind == "words" else _special_token_template(tokenizer)

    def sequence(self, fields: int) -> SequenceTemplate:
        """What stands around two or three fields."""
        return {2: self.pair, 3: self.both}[fields]


def _special_token_template(tokenizer: Any) -> Template:
    """``prefix first middle second [middle third] suffix``, as a pair of texts is encoded."""
    prefix, middle, suffix = _around_texts(tokenizer, 2)
    encoded = tokenizer(*EXAMPLES[0])
    types = encoded.get("token_type_ids")
    last_of_text = len(encoded["input_ids"]) - len(suffix) - 1
    return Template(
        SequenceTemplate((prefix, middle), suffix),
        SequenceTemplate((prefix, middle, middle), suffix),
        int(types[last_of_text]) if types is not None else None,
    )


def _word_template(tokenizer: Any) -> Template:
    """:data:`PAIR_WORDS` and :data:`BOTH_WORDS`, after whatever the tokenizer begins a text with."""
    beginning, _ = _around_texts(tokenizer, 1)

    def sequence(words: Sequence[str]) -> SequenceTemplate:
        before, *others = (tuple(part) for part in token_ids(tokenizer, list(words)))
        return SequenceTemplate((beginning + before, *others[:-1]), others[-1])

    return Template(sequence(PAIR_WORDS), sequence(BOTH_WORDS), None)


def conversation_template(
    tokenizer: Any, kind: str, where: str, reporter: Reporter = SILENT
) -> tuple[str, ConversationTemplate]:
    """The conversation template of a kind, and which kind it is.

    Parameters
    ----------
    tokenizer, where:
        An encoder's, and the encoder's name for messages.
    kind:
        ``chat``: the tokenizer's own chat template; ``tokens`` or ``words``, as for other architectures; ``auto``: the
        first of these that the tokenizer has.
    reporter:
        Receives a warning if ``auto`` cannot use the tokenizer's chat template.

    Raises
    ------
    ModelError
        If the tokenizer has no such template.
    """
    if kind == "chat" and not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template", where=where, hint="Use --template tokens, or words.")
    if kind in ("auto", "chat") and tokenizer.chat_template:
        try:
            return "chat", conversation.from_chat_template(tokenizer, where)
        except ModelError as error:
            if kind == "chat":
                raise
            reporter.warn(f"{error.what}; it is not used")
    if kind != "words":
        around = _around_texts(tokenizer, 2)
        if all(around[1:]):
            return "tokens", conversation.from_special_tokens(tokenizer, around)
        if kind == "tokens":
            raise ModelError(
                "the tokenizer puts no special tokens between two texts or after them",
                where=where,
                hint="Use --template words.",
            )
    return "words", conversation.from_words(tokenizer, _around_texts(tokenizer, 1)[0], PAIR_WORDS)


def _around_texts(tokenizer: Any, count: int) -> list[tuple[int, ...]]:
    """The ids that a tokenizer puts before, between and after one text or two.

    Raises
    ------
    ModelError
        If they cannot be found: the ids of a text alone are not among those of the pair, or what stands around them
        depends on the text.
    """
    around = [_split(tokenizer, texts[:count]) for texts in EXAMPLES]
    if around[0] is None or around[0] != around[1]:
        raise ModelError(
            "the tokenizer encodes a text alone in another way than among special tokens",
            hint="Try --template words, or another encoder." if count == 2 else "Choose another encoder.",
        )
    return around[0]


def _split(tokenizer: Any, texts: Sequence[str]) -> list[tuple[int, ...]] | None:
    """The ids before, between and after the texts; None if a text's own ids do not occur in their order."""
    ids = list(tokenizer(*texts)["input_ids"])
    around, end = [], 0
    for text in token_ids(tokenizer, list(texts)):
        places = (start for start in range(end, len(ids)) if ids[start : start + len(text)] == text)
        start = next(places, None) if text else None
        if start is None:
            return None
        around.append(tuple(ids[end:start]))
        end = start + len(text)
    return [*around, tuple(ids[end:])]


def _mark_ids(tokenizer: Any, truncation: str) -> Ids:
    return np.array(token_ids(tokenizer, [MARK])[0] if truncation == "head-tail" else [], dtype=np.int32)


@dataclass(frozen=True)
class Packing:
    """How fields become sequences."""

    template: Template
    max_length: int
    """Tokens in one sequence, special ones included."""
    truncation: str
    """``head`` or ``head-tail``."""
    mark: Ids
    """Token ids of :data:`MARK`; empty with ``head``."""

    @staticmethod
    def from_tokenizer(tokenizer: Any, max_length: int, truncation: str = "head", template: str = "tokens") -> Packing:
        mark = _mark_ids(tokenizer, truncation)
        return Packing(Template.from_tokenizer(tokenizer, template), max_length, truncation, mark)

    @property
    def by_turn(self) -> bool:
        """Whether fields have to be tokenised turn by turn (:func:`.tokens.tokenise`)."""
        return self.truncation == "head-tail"

    @property
    def conversation(self) -> ConversationTemplate | None:
        """What every turn is tokenised with (:func:`.tokens.tokenise`); None where only fields are known."""
        return None

    @property
    def last_type(self) -> int | None:
        """The token type of the last field; None where the encoder gets no token types."""
        return self.template.last_type

    def overhead(self, fields: int) -> int:
        """Tokens in the shortest sequence of so many fields that are not the fields'."""
        return self.template.sequence(fields).overhead

    def pack(self, fields: Sequence[Field]) -> Packed:
        """One sequence of the fields, cut to the budget."""
        sizes = allocate_budget(np.array([len(field.ids) for field in fields]), self._budget(len(fields))).tolist()
        return self.template.sequence(len(fields)).join(
            [self._truncate(field, size) for field, size in zip(fields, sizes, strict=True)]
        )

    def _truncate(self, field: Field, size: int) -> Ids:
        if len(field.ids) <= size:
            return field.ids
        return field.ids[:size] if self.truncation == "head" else head_and_tail(field, size, self.mark)

    def lengths(self, battles: TokenisedBattles, fields: Sequence[int]) -> NDArray[np.int64]:
        """Length of each battle's sequence of these fields, shape ``[n]``."""
        total = np.sum([battles.columns[i].lengths for i in fields], axis=0) + self.overhead(len(fields))
        return np.minimum(total, self.max_length)

    def _budget(self, fields: int) -> int:
        """Tokens that are left for the fields."""
        return max(self.max_length - self.overhead(fields), 0)

    def kept_tokens(self, battles: TokenisedBattles, fields: Sequence[int]) -> NDArray[np.int64]:
        """Tokens of text that each of these fields keeps, shape ``[n, fields]``; marks are not text."""
        lengths = np.stack([battles.columns[i].lengths for i in fields], axis=1)
        kept = allocate_budget(lengths, self._budget(len(fields)))
        return np.where(kept < lengths, np.maximum(kept - len(self.mark), 0), kept)


@dataclass(frozen=True)
class ConversationPacking(Packing):
    """How a prompt and an answer become a conversation, turn by turn.

    All texts of a conversation share the budget, so each keeps what the equal share allows. Where that would be fewer
    than :data:`MIN_TURN_TOKENS` of each, the first turns are left out.
    """

    template: ConversationTemplate  # type: ignore[assignment]

    @staticmethod
    def of(template: ConversationTemplate, tokenizer: Any, max_length: int, truncation: str) -> ConversationPacking:
        return ConversationPacking(template, max_length, truncation, _mark_ids(tokenizer, truncation))

    @property
    def by_turn(self) -> bool:
        return True

    @property
    def conversation(self) -> ConversationTemplate:
        return self.template

    @property
    def last_type(self) -> None:
        return None

    def overhead(self, fields: int) -> int:
        return int(self.template.overhead(1))

    def pack(self, fields: Sequence[Field]) -> Packed:
        """One sequence of a prompt and an answer, cut to the budget; the spans are the last turn's."""
        prompt, answer = fields
        first, sizes = self._sizes(prompt.turns, answer.turns)
        parts = [np.split(field.ids, np.cumsum(field.turns)[:-1]) for field in fields]
        empty = np.empty(0, dtype=np.int32)
        texts = [text for turn in itertools.zip_longest(*parts, fillvalue=empty) for text in turn][2 * first :]
        cut = [
            self._truncate(Field(text, np.array([len(text)], dtype=np.int32)), size)
            for text, size in zip(texts, sizes.tolist(), strict=True)
        ]
        *before, last = (self.template.ids[name] for name in self.template.names(len(cut) // 2))
        packed = SequenceTemplate(tuple(before), last).join(cut)
        return Packed(packed.ids, packed.spans[-2:])

    def _sizes(self, prompt: Ids, answer: Ids) -> tuple[int, NDArray[np.int64]]:
        """The first turn that is kept, and the tokens of each text from there on, shape ``[2 * turns]``.

        ``prompt`` and ``answer`` are the tokens in each of their turns.
        """
        lengths = conversation.interleave(prompt, answer)
        needed = np.cumsum(np.minimum(lengths, MIN_TURN_TOKENS).reshape(-1, 2).sum(axis=1)[::-1])
        fits = needed + self.template.overhead(np.arange(1, len(needed) + 1)) <= self.max_length
        turns = max(int(fits.sum()), 1)
        budget = max(self.max_length - int(self.template.overhead(turns)), 0)
        return len(needed) - turns, allocate_budget(lengths[-2 * turns :], budget)

    def lengths(self, battles: TokenisedBattles, fields: Sequence[int]) -> NDArray[np.int64]:
        return np.minimum(self._uncut_lengths(battles, fields), self.max_length)

    def _uncut_lengths(self, battles: TokenisedBattles, fields: Sequence[int]) -> NDArray[np.int64]:
        assert battles.turns is not None
        turns = np.max([battles.turns[i].lengths for i in fields], axis=0)
        texts = np.sum([battles.columns[i].lengths for i in fields], axis=0)
        return np.asarray(texts + self.template.overhead(turns))

    def kept_tokens(self, battles: TokenisedBattles, fields: Sequence[int]) -> NDArray[np.int64]:
        assert battles.turns is not None
        kept = np.stack([battles.columns[i].lengths for i in fields], axis=1)
        for row in np.flatnonzero(self._uncut_lengths(battles, fields) > self.max_length):
            turns = [battles.turns[i][int(row)] for i in fields]
            first, sizes = self._sizes(*turns)
            text = np.where(sizes < conversation.interleave(*turns)[2 * first :], sizes - len(self.mark), sizes)
            kept[row] = np.maximum(text, 0).reshape(-1, 2).sum(axis=0)
        return kept


@dataclass(frozen=True)
class InputFormat:
    """Which sequences an architecture reads of a battle, how long they are, and what they lose."""

    sequences: tuple[tuple[int, ...], ...]
    """For each sequence the fields in it: 0 is the prompt, 1 answer A, 2 answer B."""
    scores_sequences: bool = False
    """Whether each sequence gets a number of its own, so that equal ones are computed once, in any order."""

    @property
    def encodes_answers_separately(self) -> bool:
        """Whether each answer has a sequence of its own: both orders then need one pass through the encoder."""
        return len(self.sequences) > 1

    def pack(self, packing: Packing, fields: tuple[Field, Field, Field]) -> list[Packed]:
        """The sequences of one battle."""
        return [packing.pack([fields[i] for i in sequence]) for sequence in self.sequences]

    def lengths(self, packing: Packing, battles: TokenisedBattles) -> NDArray[np.int64]:
        """Length of the longest sequence of each battle, shape ``[n]``."""
        return np.max([packing.lengths(battles, sequence) for sequence in self.sequences], axis=0)

    def kept_tokens(self, packing: Packing, battles: TokenisedBattles) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens of each field, and those of them that some sequence holds; both of shape ``[n, 3]``."""
        lengths = np.stack([column.lengths for column in battles.columns], axis=1)
        kept = np.zeros_like(lengths)
        for sequence in self.sequences:
            fields = list(sequence)
            kept[:, fields] = np.maximum(kept[:, fields], packing.kept_tokens(battles, fields))
        return lengths, kept

    def truncation_report(self, packing: Packing, battles: TokenisedBattles) -> TruncationReport:
        """What no sequence holds."""
        lengths, kept = self.kept_tokens(packing, battles)
        lost = lengths - kept
        return TruncationReport(
            battles=len(battles),
            battles_cut=int((lost > 0).any(axis=1).sum()),
            tokens=int(lengths.sum()),
            tokens_cut=dict(zip(TEXT_FIELDS, lost.sum(axis=0).tolist(), strict=True)),
        )


PAIR_INPUT = InputFormat(((0, 1), (0, 2)))
"""The prompt with either answer."""
JOINT_INPUT = InputFormat(((0, 1, 2),))
"""The prompt and both answers."""

ANSWER_INPUT = InputFormat(PAIR_INPUT.sequences, scores_sequences=True)
"""The same sequences, each with a number of its own."""

INPUT_FORMATS = {"siamese": PAIR_INPUT, "cross-encoder": JOINT_INPUT, "reward": ANSWER_INPUT}


def head_and_tail(field: Field, size: int, mark: Ids) -> Ids:
    """What remains of a field that is too long: its last turns, and the beginning and the end of a turn that is cut.

    Of more than ``size`` tokens so many are kept, with ``mark`` wherever something was left out, as far as it fits.
    """
    pieces: list[Ids] = []
    left, end = size, len(field.ids)
    for number in range(len(field.turns) - 1, -1, -1):
        turn = field.ids[end - int(field.turns[number]) : end]
        # If earlier turns exist, a mark must still fit in case they are left out.
        if len(turn) + (len(mark) if number else 0) <= left:
            pieces.append(turn)
            left -= len(turn)
            end -= len(turn)
            continue
        earlier_turns_mark = mark if number else mark[:0]
        text = left - len(mark) - len(earlier_turns_mark)
        if text >= 2:
            head, tail = (text + 1) // 2, text // 2
            pieces += [turn[-tail:], mark, turn[:head], earlier_turns_mark]
        elif left >= len(mark) and pieces:
            pieces.append(mark)
        else:
            pieces.append(turn[:left])
        break
    return np.concatenate(pieces[::-1]).astype(np.int32)
