"""Rankings to preference pairs for training: files that TRL and LLaMA-Factory read, and prefcli too.

A pair is a prompt with a chosen and a rejected answer. Its margin is the difference of the two scores, in log-odds; its
probability is the model's for "the chosen answer is preferred", in which a tie does not count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefcli.data import rows
from prefcli.errors import InputError
from prefcli.metrics import plural
from prefcli.options import PairOptions
from prefcli.outcomes import TIE, A, B

if TYPE_CHECKING:
    import pyarrow as pa

    from prefcli.prediction.ranking import Ranked

Row = dict[str, Any]
Message = tuple[str, str]
"""``user`` or ``assistant``, and a text."""

MAX_ALL_PAIRS = 1000
"""Answers of a prompt of which all pairs are written: 1,000 have half a million."""

_ROLES = {"trl": {"user": "user", "assistant": "assistant"}, "llama-factory": {"user": "human", "assistant": "gpt"}}
_KEYS = {"trl": ("role", "content"), "llama-factory": ("from", "value")}


@dataclass(frozen=True)
class PreferencePair:
    """Two answers of one prompt, by their positions in :class:`~prefcli.prediction.ranking.Ranked`."""

    chosen: int
    rejected: int
    margin: float
    """Score of the chosen answer minus that of the rejected one."""
    probability: float
    """That the chosen answer is preferred: not the rejected one, and no tie."""


@dataclass(frozen=True)
class PairFile:
    """Where preference pairs are written, and which."""

    path: Path
    """JSON lines, JSON or Parquet, by its name."""
    options: PairOptions


@dataclass
class PairCounts:
    """What was written, and what was left out and why."""

    prompts: int = 0
    rows: int = 0
    without: int = 0
    """Prompts that gave no row."""
    single: int = 0
    """Prompts of fewer than two different answers."""
    repeated: int = 0
    """Answers that repeat another answer of their prompt: the best-ranked of them stands for all."""
    ambiguous: int = 0
    """Answers without a label for KTO: chosen in one pair, rejected in another."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> how many pairs."""

    def leave_out(self, reason: str, count: int) -> None:
        """Count pairs that are left out for a reason."""
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count

    def sentences(self) -> list[str]:
        """What was left out, in words for the user."""
        notes = []
        if self.left_out:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
            notes.append(f"pairs left out: {reasons}")
        if self.repeated:
            notes.append(f"{plural(self.repeated, 'answer')} left out: the same text as another one of the prompt")
        if self.ambiguous:
            notes.append(f"{plural(self.ambiguous, 'answer')} left out: chosen in one pair, rejected in another")
        if self.without:
            some = f", {self.single:,} of them with fewer than two different answers" if self.single else ""
            notes.append(f"{self.without:,} of {plural(self.prompts, 'prompt')} without a row{some}")
        return notes


def choose(ranked: Ranked, options: PairOptions, counts: PairCounts | None = None) -> list[PreferencePair]:
    """The preference pairs of one prompt.

    Answers of the same text count once, as the best-ranked of them, so they are never paired. Pairs are left out if a
    tie is more probable than that the chosen answer is preferred, or if nothing tells them apart; if the two answers'
    own comparison contradicts the ranking, which is fitted to all comparisons; if probability or margin are below
    their minimum; and, the least probable first, over the limit of pairs for one prompt.

    Parameters
    ----------
    ranked:
        The prompt's answers with their scores and probabilities.
    options:
        Which pairs.
    counts:
        Gets what was left out.

    Returns
    -------
    Pairs in the ranking's order: of the chosen answer, then of the rejected one.

    Raises
    ------
    InputError
        If all pairs of more than :data:`MAX_ALL_PAIRS` answers are asked for.
    """
    counts = counts if counts is not None else PairCounts()
    order = _different(ranked)
    counts.repeated += len(ranked.ranking) - len(order)
    chosen, rejected = _selected(order, options.select, ranked.id)
    decided = _Comparison.of(ranked, chosen, rejected)
    keep = np.ones(len(chosen), dtype=bool)
    for reason, fails in (
        ("as ties", decided.is_tie),
        ("as their own comparison contradicts the ranking", decided.better < decided.worse),
        (f"below probability {options.min_probability:g}", decided.better < options.min_probability),
        (f"below margin {options.min_margin:g}", decided.margin < options.min_margin),
        (f"as the layout {options.layout} cannot hold their turns", _unfit(ranked, chosen, rejected, options)),
    ):
        counts.leave_out(reason, int((keep & fails).sum()))
        keep &= ~fails
    remaining = np.flatnonzero(keep)
    if options.max_per_prompt and len(remaining) > options.max_per_prompt:
        counts.leave_out("over the limit of a prompt", len(remaining) - options.max_per_prompt)
        likeliest = np.argsort(-decided.better[remaining], kind="stable")[: options.max_per_prompt]
        remaining = remaining[np.sort(likeliest)]
    return [
        PreferencePair(int(chosen[i]), int(rejected[i]), float(decided.margin[i]), float(decided.better[i]))
        for i in remaining
    ]


def labelled_answers(
    ranked: Ranked, pairs: Sequence[PreferencePair], counts: PairCounts | None = None
) -> dict[int, bool]:
    """Answers with a label for KTO: whether they are desirable.

    K. Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization" (2024).

    - An answer that is chosen in all its pairs is desirable, one that is rejected in all of them is not; one that is
      both has no label.
    - An answer in no pair gets the label of the answers with which it ties, if these agree.

    Returns
    -------
    Position of the answer -> label, in the ranking's order.
    """
    roles: dict[int, set[bool]] = {}
    for pair in pairs:
        roles.setdefault(pair.chosen, set()).add(True)
        roles.setdefault(pair.rejected, set()).add(False)
    labels = {answer: both for answer, both in roles.items() if len(both) == 1}
    if counts is not None:
        counts.ambiguous += len(roles) - len(labels)
    paired = np.array(list(labels), dtype=np.intp)
    for answer in _different(ranked) if labels else ():
        if answer not in roles:
            ties = _Comparison.of(ranked, np.full(len(paired), answer), paired).is_tie
            agreed = set().union(*(roles[other] for other in paired[ties].tolist()))
            if len(agreed) == 1:
                labels[int(answer)] = agreed
    order = {int(answer): place for place, answer in enumerate(ranked.ranking)}
    return {answer: labels[answer] == {True} for answer in sorted(labels, key=order.__getitem__)}


@dataclass(frozen=True)
class _Comparison:
    """Comparisons of pairs of answers, arrays ``[n]``."""

    better: NDArray[np.float64]
    """Probability that the first is preferred."""
    worse: NDArray[np.float64]
    margin: NDArray[np.float64]
    is_tie: NDArray[np.bool_]

    @staticmethod
    def of(ranked: Ranked, first: NDArray[np.intp], second: NDArray[np.intp]) -> _Comparison:
        probabilities = ranked.between(first, second)
        better, worse, tie = (probabilities[:, outcome] for outcome in (A, B, TIE))
        margin = ranked.scores[first] - ranked.scores[second]
        is_tie = (margin == 0) | (better == worse) | (tie > np.maximum(better, worse))
        return _Comparison(better, worse, margin, is_tie)


def _different(ranked: Ranked) -> NDArray[np.intp]:
    """Answers of different texts, best first."""
    first_of: dict[tuple[str, ...], int] = {}
    for answer in ranked.ranking.tolist():
        first_of.setdefault(tuple(turn or "" for turn in ranked.responses[answer]), answer)
    return np.array(list(first_of.values()), dtype=np.intp)


def _selected(order: NDArray[np.intp], select: str, prompt_id: str) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Chosen and rejected answers of the pairs, each ``[n]``."""
    if len(order) < 2:
        return order[:0], order[:0]
    if select == "best-worst":
        return order[:1], order[-1:]
    if select == "best-rest":
        return np.repeat(order[:1], len(order) - 1), order[1:]
    refuse_too_many(len(order), f"prompt {prompt_id[:40]!r}")
    first, second = np.triu_indices(len(order), 1)
    return order[first], order[second]


def refuse_too_many(answers: int, which: str) -> None:
    """Refuse to take all pairs of more than :data:`MAX_ALL_PAIRS` answers; ``which`` prompt they belong to."""
    if answers > MAX_ALL_PAIRS:
        raise InputError(
            f"{which} has {answers:,} answers, too many for all pairs (at most {MAX_ALL_PAIRS:,})",
            hint="Use --pairs-select best-rest or best-worst.",
        )


def _unfit(
    ranked: Ranked, chosen: NDArray[np.intp], rejected: NDArray[np.intp], options: PairOptions
) -> NDArray[np.bool_]:
    """Pairs that a layout cannot hold: plain text has no turns, LLaMA-Factory's answers have one."""
    turns = len(ranked.prompt)
    if options.layout == "trl" or turns == 1 or (options.ties == "kto" and options.layout == "llama-factory"):
        return np.zeros(len(chosen), dtype=bool)
    if options.layout == "trl-text":
        return np.ones(len(chosen), dtype=bool)
    return np.array([_shared_turns(ranked, int(a), int(b)) < turns - 1 for a, b in zip(chosen, rejected, strict=True)])


def _shared_turns(ranked: Ranked, first: int, second: int) -> int:
    """How many turns two answers have in common at their beginning, the last turn not counted."""
    turns = zip(ranked.responses[first], ranked.responses[second], strict=False)
    shared = next((turn for turn, (a, b) in enumerate(turns) if (a or "") != (b or "")), len(ranked.prompt))
    return min(shared, len(ranked.prompt) - 1)


def _conversation(ranked: Ranked, answer: int) -> list[Message]:
    """The messages of a prompt and an answer, user and assistant in turn; a turn without text is empty."""
    turns = zip_longest(ranked.prompt, ranked.responses[answer])
    return [message for user, reply in turns for message in (("user", user or ""), ("assistant", reply or ""))]


def _pair_row(ranked: Ranked, pair: PreferencePair, row_id: str, layout: str) -> Row:
    texts: Row
    if layout == "trl-text":
        answers = (ranked.responses[answer][-1] or "" for answer in (pair.chosen, pair.rejected))
        texts = dict(zip(("prompt", "chosen", "rejected"), (ranked.prompt[-1] or "", *answers), strict=True))
    else:
        chosen, rejected = (_conversation(ranked, answer) for answer in (pair.chosen, pair.rejected))
        shared = 2 * _shared_turns(ranked, pair.chosen, pair.rejected) + 1
        prompt, *sides = (_messages(part, layout) for part in (chosen[:shared], chosen[shared:], rejected[shared:]))
        if layout == "llama-factory":
            texts = {"conversations": prompt, "chosen": sides[0][0], "rejected": sides[1][0]}
        else:
            texts = {"prompt": prompt, "chosen": sides[0], "rejected": sides[1]}
    return {
        "id": row_id,
        **texts,
        "margin": pair.margin,
        "probability": pair.probability,
        "chosen_model": ranked.models[pair.chosen] if ranked.models else None,
        "rejected_model": ranked.models[pair.rejected] if ranked.models else None,
        "chosen_index": pair.chosen,
        "rejected_index": pair.rejected,
    }


def _labelled_row(ranked: Ranked, answer: int, label: bool, row_id: str, layout: str) -> Row:
    texts: Row
    if layout == "trl-text":
        texts = {"prompt": ranked.prompt[-1] or "", "completion": ranked.responses[answer][-1] or "", "label": label}
    elif layout == "trl":
        messages = _messages(_conversation(ranked, answer), layout)
        texts = {"prompt": messages[:-1], "completion": messages[-1:], "label": label}
    else:
        texts = {"conversations": _messages(_conversation(ranked, answer), layout), "kto_tag": label}
    model = ranked.models[answer] if ranked.models else None
    return {"id": row_id, **texts, "score": float(ranked.scores[answer]), "model": model, "index": answer}


def _messages(messages: Sequence[Message], layout: str) -> list[dict[str, str]]:
    role_key, text_key = _KEYS[layout]
    return [{role_key: _ROLES[layout][role], text_key: text} for role, text in messages]


@contextlib.contextmanager
def writing(file: PairFile, counts: PairCounts) -> Iterator[Callable[[Ranked], None]]:
    """A function that adds a prompt's pairs to a file, which is there when the block ends without an error.

    Parameters
    ----------
    file:
        Where it is, and which pairs it gets.
    counts:
        Gets what was written and what was left out.

    Raises
    ------
    PrefcliError
        If the file cannot be written.
    InputError
        From the function, as :func:`choose` does.
    """
    with rows.row_writer(file.path, _schema(file.options)) as append:

        def add(ranked: Ranked) -> None:
            prompt_rows = _rows(ranked, file.options, counts)
            for row in prompt_rows:
                append(row)
            counts.prompts += 1
            counts.rows += len(prompt_rows)
            counts.without += not prompt_rows
            counts.single += len(_different(ranked)) < 2

        yield add


def _rows(ranked: Ranked, options: PairOptions, counts: PairCounts) -> list[Row]:
    """The rows of one prompt."""
    pairs = choose(ranked, options, counts)
    if options.ties == "kto":
        return [
            _labelled_row(ranked, answer, label, f"{ranked.id}-{number}", options.layout)
            for number, (answer, label) in enumerate(labelled_answers(ranked, pairs, counts).items(), start=1)
        ]
    numbered = options.select != "best-worst"
    return [
        _pair_row(ranked, pair, f"{ranked.id}-{number}" if numbered else ranked.id, options.layout)
        for number, pair in enumerate(pairs, start=1)
    ]


def _schema(options: PairOptions) -> pa.Schema:
    """The columns of a Parquet file."""
    import pyarrow as pa

    text = pa.string()
    message = pa.struct([(key, text) for key in _KEYS.get(options.layout, ())])
    messages = text if options.layout == "trl-text" else pa.list_(message)
    answer = message if options.layout == "llama-factory" else messages
    prompt = ("conversations" if options.layout == "llama-factory" else "prompt", messages)
    if options.ties == "kto":
        tag = [("kto_tag", pa.bool_())]
        labelled = tag if options.layout == "llama-factory" else [("completion", messages), ("label", pa.bool_())]
        own = [("score", pa.float64()), ("model", text), ("index", pa.int64())]
        return pa.schema([("id", text), prompt, *labelled, *own])
    numbers = [("margin", pa.float64()), ("probability", pa.float64())]
    models = [("chosen_model", text), ("rejected_model", text)]
    positions = [("chosen_index", pa.int64()), ("rejected_index", pa.int64())]
    return pa.schema([("id", text), prompt, ("chosen", answer), ("rejected", answer), *numbers, *models, *positions])
