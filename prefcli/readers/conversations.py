"""Conversations as lists of messages (role and content), and the alignment of a battle's two conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefcli.errors import one_line
from prefcli.readers.cells import Location, RawBatch, excerpt, first_null_row, json_excerpt, string_column

Message = tuple[Any, str | None]
"""Role as the file spells it, and text; None where the message holds none."""

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_HINT = 'Expected a list of messages, such as [{"role": "user", "content": "Hello"}, {"role": "assistant", ...}].'


@dataclass(frozen=True)
class Dialogue:
    """A conversation as turns: prompts and responses, two lists of equal length."""

    prompts: list[str | None]
    responses: list[str | None]


def message_column(raw: RawBatch, name: str, location: Location) -> tuple[list[list[Message]], int]:
    """A column of conversations, and how many parts of messages were dropped because they are not text."""
    column = raw.columns[name]
    if not isinstance(column, list) and pa.types.is_nested(column.type):
        return _messages_from_arrow(column, name, location)
    cells = column if isinstance(column, list) else string_column(raw, name, location).to_pylist()
    total_dropped = 0
    conversations = []
    for row, cell in enumerate(cells):
        if isinstance(cell, str):
            try:
                cell = json.loads(cell)
            except (ValueError, RecursionError) as error:
                raise location.error(f"broken JSON: {one_line(error)}", row=row, column=name, hint=_HINT) from None
        if not isinstance(cell, list) or not all(isinstance(message, dict) for message in cell):
            found = "nothing" if cell is None else json_excerpt(cell)
            raise location.error(f"expected a conversation, found {found}", row=row, column=name, hint=_HINT)
        messages = []
        for message in cell:
            text, dropped = _message_text(message.get("content", message.get("value")), row, name, location)
            messages.append((message.get("role", message.get("from")), text))
            total_dropped += dropped
        conversations.append(messages)
    return conversations, total_dropped


def _message_text(content: Any, row: int, name: str, location: Location) -> tuple[str | None, int]:
    """A message's text (a string, or the text of its typed parts), and how many parts are not text."""
    if content is None or isinstance(content, str):
        return content, 0
    if isinstance(content, list) and all(isinstance(part, (dict, str)) for part in content):
        parts = [part if isinstance(part, str) else part.get("text") for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        return "\n".join(texts) if texts else None, len(parts) - len(texts)
    raise location.error(
        f"a message's content is {json_excerpt(content)}", row=row, column=name, hint="Expected text or parts."
    )


def _messages_from_arrow(column: pa.Array, name: str, location: Location) -> tuple[list[list[Message]], int]:
    """Only roles and texts become Python objects: converting whole structs is many times slower."""
    if not _is_list_of_structs(column.type, "role", "content"):
        raise location.error(f"expected conversations, found {one_line(column.type, 60)}", column=name, hint=_HINT)
    if column.null_count:
        row = first_null_row(column)
        raise location.error("expected a conversation, found nothing", row=row, column=name, hint=_HINT)
    try:
        messages = column.flatten()
        roles = pc.struct_field(messages, "role").cast(pa.string()).to_pylist()
        texts, dropped = _message_texts(pc.struct_field(messages, "content"), name, location)
    except pa.ArrowException as error:
        raise location.error(f"cannot read the conversations: {one_line(error)}", column=name, hint=_HINT) from None
    pairs = list(zip(roles, texts, strict=True))
    return [pairs[start:end] for start, end in _spans(column)], dropped


def _is_list_of_structs(kind: pa.DataType, *fields: str) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return False
    return set(fields) <= {field.name for field in kind.value_type}


def _message_texts(content: pa.Array, name: str, location: Location) -> tuple[list[str | None], int]:
    """:func:`_message_text` of a whole column."""
    if not pa.types.is_nested(content.type):
        return content.cast(pa.string()).to_pylist(), 0
    if not _is_list_of_structs(content.type, "text"):
        raise location.error(f"a message's content is {one_line(content.type, 60)}", column=name, hint=_HINT)
    parts = pc.struct_field(content.flatten(), "text").cast(pa.string()).to_pylist()
    texts: list[str | None] = []
    dropped = 0
    for start, end in _spans(content):
        present = [part for part in parts[start:end] if part is not None]
        dropped += end - start - len(present)
        texts.append("\n".join(present) if present else None)
    return texts, dropped


def _spans(lists: pa.Array) -> list[tuple[int, int]]:
    """Where each list begins and ends in the flattened values."""
    ends = np.cumsum(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []


def to_dialogue(messages: Sequence[Message], row: int, name: str, location: Location) -> Dialogue:
    """Messages as turns.

    System messages are put before the first prompt. Consecutive messages of one role are one. A prompt without a
    response gets the response None, and the reverse.

    Raises
    ------
    InputError
        On an unknown role, or a conversation without messages.
    """
    prompts: list[str | None] = []
    responses: list[str | None] = []
    system: list[str] = []
    previous = ""
    for file_role, text in messages:
        role = _ROLES.get(str(file_role).lower())
        if role is None:
            raise location.error(
                f"unknown role {excerpt(file_role)}", row=row, column=name, hint="Expected user, assistant or system."
            )
        if role == "system":
            system += [text] if text else []
            continue
        if role == "user" and previous == "user":
            prompts[-1] = _join(prompts[-1], text)
        elif role == "user":
            prompts.append(text)
            responses.append(None)
        else:
            if not prompts:
                prompts.append(None)
                responses.append(None)
            responses[-1] = _join(responses[-1], text)
        previous = role
    if not prompts:
        raise location.error("the conversation is empty", row=row, column=name, hint=_HINT)
    if system:
        prompts[0] = "\n\n".join([*system, *([prompts[0]] if prompts[0] else [])])
    return Dialogue(prompts, responses)


def _join(first: str | None, second: str | None) -> str | None:
    return second if first is None else first if second is None else f"{first}\n{second}"


@dataclass(frozen=True)
class AlignedTurns:
    """A battle's prompt and two responses, turn by turn."""

    prompt: list[str | None]
    response_a: list[str | None]
    response_b: list[str | None]
    diverged: bool
    """Whether the prompts diverged, so that later turns were dropped."""


def align(a: Dialogue, b: Dialogue, row: int, columns: str, location: Location) -> AlignedTurns:
    """The turns before the prompts of the two dialogues differ.

    Raises
    ------
    InputError
        If they differ from the start.
    """
    shared = 0
    for prompt_a, prompt_b in zip(a.prompts, b.prompts, strict=False):
        if prompt_a != prompt_b:
            break
        shared += 1
    if not shared:
        raise location.error(
            f"the two conversations begin with different prompts: {excerpt(a.prompts[0])} and {excerpt(b.prompts[0])}",
            row=row,
            column=columns,
            hint="A battle is two answers to one prompt.",
        )
    diverged = shared < max(len(a.prompts), len(b.prompts))
    return AlignedTurns(a.prompts[:shared], a.responses[:shared], b.responses[:shared], diverged)
