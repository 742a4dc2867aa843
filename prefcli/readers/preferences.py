"""Chosen and rejected answers: HH-RLHF's transcripts, UltraFeedback, RewardBench, TRL's preference datasets.

These files say which answer won by the column it stands in. Which of the two becomes A is decided by a hash of the
battle's content, so that the side carries no signal; there are no ties.

Layouts as their public documentation describes them: the dataset cards of Anthropic/hh-rlhf,
HuggingFaceH4/ultrafeedback_binarized and allenai/reward-bench, and TRL's page "Dataset formats and types".
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pyarrow as pa

from prefcli.battles import TEXT_FIELDS
from prefcli.outcomes import A, B
from prefcli.readers.cells import Place, RawBatch, excerpt, lists_of_turns, strings, texts
from prefcli.readers.conversations import Exchanges, Meeting, Message, conversations, exchanges, meeting
from prefcli.readers.layouts import Converted, Layout, converted, identifiers

_SIDES = ("chosen", "rejected")
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_ID_COLUMNS = ("id", "prompt_id")


def _convert(raw: RawBatch, place: Place) -> Converted:
    sides = [_cells(raw, name, place) for name in _SIDES]
    prompts, dropped = _cells(raw, "prompt", place) if "prompt" in raw else ([None] * raw.num_rows, 0)
    dropped += sum(skipped for _, skipped in sides)
    names = [texts(raw, f"{side}_model", place) if f"{side}_model" in raw else None for side in _SIDES]
    fields: dict[str, list[Any]] = {name: [] for name in (*TEXT_FIELDS, "label", "model_a", "model_b")}
    cut = 0
    for row, (prompt, chosen, rejected) in enumerate(zip(prompts, sides[0][0], sides[1][0], strict=True)):
        met = _meeting(prompt, chosen, rejected, row, place)
        cut += met.cut
        label = side_of_chosen(met)
        answers = (met.response_a, met.response_b) if label == A else (met.response_b, met.response_a)
        who = tuple(column[row] if column else None for column in names)
        fields["prompt"].append(met.prompt)
        fields["label"].append(label)
        for side, answer, model in zip("ab", answers, who if label == A else who[::-1], strict=True):
            fields[f"response_{side}"].append(answer)
            fields[f"model_{side}"].append(model)
    columns: dict[str, Any] = {
        "id": identifiers(raw, place, *_ID_COLUMNS),
        "label": pa.array(fields["label"], pa.int8()),
        **{name: pa.array(fields[name], pa.string()) for name in ("model_a", "model_b")},
    }
    surrogates = 0
    for name in TEXT_FIELDS:
        columns[name], repaired = lists_of_turns(fields[name], name, place)
        surrogates += repaired
    return converted(columns, surrogates, diverged=cut, dropped_parts=dropped)


def side_of_chosen(met: Meeting) -> int:
    """On which side the chosen answer (here ``response_a``) shall stand: A or B, by a hash of the content.

    The hash sees the two answers in alphabetical order and decides whether the first of them becomes A. So it knows
    nothing of which was chosen, and the same two answers always stand in the same order, whoever won.
    """
    answers = ["\x1e".join(turn or "" for turn in answer) for answer in (met.response_a, met.response_b)]
    first, second = sorted(answers)
    text = "\x1f".join(["\x1e".join(turn or "" for turn in met.prompt), first, second])
    exchange = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=1).digest()[0] & 1
    return B if (answers[0] != first) ^ bool(exchange) else A


def _cells(raw: RawBatch, name: str, place: Place) -> tuple[list[Any], int]:
    """A column of texts, or of conversations; and how many parts of messages were left out."""
    if raw.is_nested(name):
        if _holds_lists_of_text(raw.columns[name]):
            raise place.error(
                f"{name} holds lists of answers",
                column=name,
                hint="Expected pairs: one chosen and one rejected answer.",
            )
        return conversations(raw, name, place)
    return strings(raw, name, place).to_pylist(), 0


def _holds_lists_of_text(column: Any) -> bool:
    if not isinstance(column, list):
        return bool(pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type))
    return any(isinstance(item, str) for cell in column if isinstance(cell, list) for item in cell[:1])


def _meeting(prompt: Any, chosen: Any, rejected: Any, row: int, place: Place) -> Meeting:
    """The battle that a row tells, the chosen answer as A."""
    for name, cell in zip(_SIDES, (chosen, rejected), strict=True):
        if cell is None:
            raise place.error("no answer", row=row, column=name, hint="Every row needs both answers.")
    plain = prompt is None and isinstance(chosen, str) and isinstance(rejected, str)
    if plain and not (_TRANSCRIPT.search(chosen) and _TRANSCRIPT.search(rejected)):
        return _without_prompt(chosen, rejected, row, place)
    sides = []
    for name, cell in zip(_SIDES, (chosen, rejected), strict=True):
        told = _messages(prompt, cell)
        sides.append(exchanges(told, row, name, place))
    first, second = (_answered(side, row, name, place) for side, name in zip(sides, _SIDES, strict=True))
    return meeting(first, second, row, "chosen and rejected", place)


def _messages(prompt: Any, answer: Any) -> list[Message]:
    """Prompt and answer as one conversation, in whichever of the known forms they stand."""
    if isinstance(answer, str):
        if prompt is None:
            return _transcript(answer)
        before = _transcript(prompt) if isinstance(prompt, str) else list(prompt)
        return [*before, ("assistant", answer)]
    if isinstance(prompt, list):
        return [*prompt, *answer]
    asks = any(role in ("user", "human") for role, _ in answer)
    return list(answer) if asks or prompt is None else [("user", prompt), *answer]


def _transcript(text: str) -> list[Message]:
    """HH-RLHF's form, ``\\n\\nHuman: ... \\n\\nAssistant: ...``; other text is one question."""
    pieces = _TRANSCRIPT.split("\n\n" + text.lstrip("\n") if text.startswith(("\n", "Human:")) else text)
    if len(pieces) == 1:
        return [("user", text)]
    told: list[Message] = [("system", pieces[0].strip())] if pieces[0].strip() else []
    spoken = [(speaker.lower(), words.strip()) for speaker, words in zip(pieces[1::2], pieces[2::2], strict=True)]
    if spoken and spoken[-1] == ("assistant", ""):
        spoken.pop()  # a prompt that ends where the answer begins
    return told + spoken


def _answered(told: Exchanges, row: int, name: str, place: Place) -> Exchanges:
    if not any(answer is not None for answer in told.answered):
        raise place.error("the conversation holds no answer", row=row, column=name)
    return told


def _without_prompt(chosen: str, rejected: str, row: int, place: Place) -> Meeting:
    """TRL's implicit prompt: what both texts begin with, up to the last white space of it."""
    if chosen == rejected:
        return Meeting([chosen], [""], [""], False)
    alike = next((i for i, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]), None)
    shared = _without_last_word(chosen[:alike] if alike is not None else min(chosen, rejected, key=len))
    if not shared.strip():
        raise place.error(
            f"no prompt: chosen and rejected do not begin alike ({excerpt(chosen, 20)}, {excerpt(rejected, 20)})",
            row=row,
            column="chosen and rejected",
            hint="Name the prompt's column with --columns prompt=NAME, if there is one.",
        )
    return Meeting([shared.rstrip()], [chosen[len(shared) :]], [rejected[len(shared) :]], False)


def _without_last_word(text: str) -> str:
    # Looked for from behind: from the front, text without white space takes quadratic time.
    word = re.split(r"\s", text[::-1], maxsplit=1)[0]
    return text[: len(text) - len(word)]


PREFERENCES = Layout(
    name="preferences",
    family="pairs",
    summary="chosen and rejected answers (HH-RLHF, UltraFeedback, RewardBench, TRL): no ties, sides by a hash",
    needs=_SIDES,
    may_have=("prompt", *_ID_COLUMNS, "chosen_model", "rejected_model"),
    convert=_convert,
)
