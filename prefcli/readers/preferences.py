"""Chosen and rejected answers: HH-RLHF's transcripts, UltraFeedback, RewardBench, TRL's preference datasets.

In these files the column says which answer won. A hash of the battle's content decides which of the two becomes A, so
that the side carries no signal; there are no ties.

Layouts as their public documentation describes them: the dataset cards of Anthropic/hh-rlhf,
HuggingFaceH4/ultrafeedback_binarized and allenai/reward-bench, and TRL's page "Dataset formats and types".
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

import pyarrow as pa

from prefcli.battles import TEXT_FIELDS
from prefcli.outcomes import A, B
from prefcli.readers.cells import Location, RawBatch, excerpt, string_column, string_list, turns_array
from prefcli.readers.conversations import AlignedTurns, Message, align, message_column, to_dialogue
from prefcli.readers.layouts import CountedBatch, Layout, build_batch, id_column

_SIDES = ("chosen", "rejected")
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_ID_COLUMNS = ("id", "prompt_id")


def _convert(raw: RawBatch, location: Location) -> CountedBatch:
    chosen_cells, dropped_chosen = _cells(raw, "chosen", location)
    rejected_cells, dropped_rejected = _cells(raw, "rejected", location)
    prompts, dropped = _cells(raw, "prompt", location) if "prompt" in raw else ([None] * raw.num_rows, 0)
    models = [
        string_list(raw, f"{side}_model", location) if f"{side}_model" in raw else [None] * raw.num_rows
        for side in _SIDES
    ]
    columns: dict[str, list[Any]] = {name: [] for name in (*TEXT_FIELDS, "label", "model_a", "model_b")}
    diverged = 0
    for row, (prompt, chosen, rejected, *names) in enumerate(
        zip(prompts, chosen_cells, rejected_cells, *models, strict=True)
    ):
        turns = _align_row(prompt, chosen, rejected, row, location)
        diverged += turns.diverged
        label = side_of_chosen(turns)
        responses = [turns.response_a, turns.response_b]
        if label == B:
            responses.reverse()
            names.reverse()
        columns["prompt"].append(turns.prompt)
        columns["label"].append(label)
        for side, response, name in zip("ab", responses, names, strict=True):
            columns[f"response_{side}"].append(response)
            columns[f"model_{side}"].append(name)
    ids = id_column(raw, location, *_ID_COLUMNS)
    fields = {name: turns_array(columns[name], name, location) for name in TEXT_FIELDS}
    return build_batch(
        {
            "id": ids,
            "label": pa.array(columns["label"], pa.int8()),
            **{name: pa.array(columns[name], pa.string()) for name in ("model_a", "model_b")},
        },
        fields,
        diverged=diverged,
        dropped_parts=dropped + dropped_chosen + dropped_rejected,
    )


def side_of_chosen(turns: AlignedTurns) -> int:
    """Whether the chosen answer (here ``response_a``) becomes A or B, by a hash of the content.

    The hash sees the two answers in alphabetical order and decides whether the first of them becomes A. It does not
    depend on which was chosen, so the same two answers always stand in the same order, whoever won.
    """
    chosen, rejected = ("\x1e".join(turn or "" for turn in side) for side in (turns.response_a, turns.response_b))
    first, second = sorted((chosen, rejected))
    text = "\x1f".join(["\x1e".join(turn or "" for turn in turns.prompt), first, second])
    swap = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=1).digest()[0] & 1
    return B if (chosen != first) ^ bool(swap) else A


def _cells(raw: RawBatch, name: str, location: Location) -> tuple[list[Any], int]:
    """A column of texts or of conversations, and how many parts of messages were dropped."""
    if not raw.is_nested(name):
        return string_column(raw, name, location).to_pylist(), 0
    if _has_lists_of_text(raw.columns[name]):
        raise location.error(
            f"{name} holds lists of answers", column=name, hint="Expected pairs: one chosen and one rejected answer."
        )
    return message_column(raw, name, location)


def _has_lists_of_text(column: Any) -> bool:
    if not isinstance(column, list):
        return bool(pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type))
    return any(isinstance(item, str) for cell in column if isinstance(cell, list) for item in cell[:1])


def _align_row(prompt: Any, chosen: Any, rejected: Any, row: int, location: Location) -> AlignedTurns:
    """The battle of one row, with the chosen answer as A."""
    cells = {"chosen": chosen, "rejected": rejected}
    for name, cell in cells.items():
        if cell is None:
            raise location.error("no answer", row=row, column=name, hint="Every row needs both answers.")
    plain = prompt is None and isinstance(chosen, str) and isinstance(rejected, str)
    if plain and not (_TRANSCRIPT.search(chosen) and _TRANSCRIPT.search(rejected)):
        return _split_common_prompt(chosen, rejected, row, location)
    dialogues = {name: to_dialogue(_messages(prompt, cell), row, name, location) for name, cell in cells.items()}
    for name, dialogue in dialogues.items():
        if all(response is None for response in dialogue.responses):
            raise location.error("the conversation holds no answer", row=row, column=name)
    return align(dialogues["chosen"], dialogues["rejected"], row, "chosen and rejected", location)


def _messages(prompt: Any, answer: Any) -> list[Message]:
    """Prompt and answer as one conversation, from any of the documented forms."""
    if isinstance(answer, str):
        if prompt is None:
            return _parse_transcript(answer)
        context = _parse_transcript(prompt) if isinstance(prompt, str) else list(prompt)
        return [*context, ("assistant", answer)]
    if isinstance(prompt, list):
        return [*prompt, *answer]
    has_prompt = any(role in ("user", "human") for role, _ in answer)
    return list(answer) if has_prompt or prompt is None else [("user", prompt), *answer]


def _parse_transcript(text: str) -> list[Message]:
    """HH-RLHF's form, ``\\n\\nHuman: ... \\n\\nAssistant: ...``; other text is one user message."""
    pieces = _TRANSCRIPT.split("\n\n" + text.lstrip("\n") if text.startswith(("\n", "Human:")) else text)
    if len(pieces) == 1:
        return [("user", text)]
    system: list[Message] = [("system", pieces[0].strip())] if pieces[0].strip() else []
    messages = [(role.lower(), content.strip()) for role, content in zip(pieces[1::2], pieces[2::2], strict=True)]
    if messages[-1] == ("assistant", ""):
        messages.pop()  # a prompt that ends where the answer begins
    return system + messages


def _split_common_prompt(chosen: str, rejected: str, row: int, location: Location) -> AlignedTurns:
    """TRL's implicit prompt: the common beginning of both texts, up to its last white space."""
    if chosen == rejected:
        return AlignedTurns([chosen], [""], [""], diverged=False)
    prompt = _without_last_word(os.path.commonprefix([chosen, rejected]))  # noqa: RUF071  (not paths)
    if not prompt.strip():
        raise location.error(
            f"no prompt: chosen and rejected do not begin alike ({excerpt(chosen, 20)}, {excerpt(rejected, 20)})",
            row=row,
            column="chosen and rejected",
            hint="Name the prompt's column with --columns prompt=NAME, if there is one.",
        )
    return AlignedTurns([prompt.rstrip()], [chosen[len(prompt) :]], [rejected[len(prompt) :]], diverged=False)


def _without_last_word(text: str) -> str:
    # Searched backwards: a forward search takes quadratic time on text without white space.
    word = re.split(r"\s", text[::-1], maxsplit=1)[0]
    return text[: len(text) - len(word)]


PREFERENCES = Layout(
    name="preferences",
    family="pairs",
    summary="chosen and rejected answers (HH-RLHF, UltraFeedback, RewardBench, TRL): no ties, sides by a hash",
    required=_SIDES,
    optional=("prompt", *_ID_COLUMNS, "chosen_model", "rejected_model"),
    convert=_convert,
    has_ties=False,
)
