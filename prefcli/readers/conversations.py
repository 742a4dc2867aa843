"""Conversations as lists of messages (role and content), and the two of a battle brought together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefcli.errors import one_line
from prefcli.readers.cells import Place, RawBatch, excerpt, first_null, shown, strings

Message = tuple[Any, str | None]
"""Role as it stands in the file, and text; None where the message holds none."""

_SPEAKERS = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_HINT = 'Expected a list of messages, such as [{"role": "user", "content": "Hello"}, {"role": "assistant", ...}].'


@dataclass(frozen=True)
class Exchanges:
    """A conversation as pairs of what was asked and what was answered; both lists are equally long."""

    asked: list[str | None]
    answered: list[str | None]


def conversations(raw: RawBatch, name: str, place: Place) -> tuple[list[list[Message]], int]:
    """A column of conversations, and how many parts of messages that are not text (images, say) were left out."""
    column = raw.columns[name]
    if not isinstance(column, list) and pa.types.is_nested(column.type):
        return _from_arrow(column, name, place)
    cells = column if isinstance(column, list) else strings(raw, name, place).to_pylist()
    dropped = 0
    rows = []
    for row, cell in enumerate(cells):
        if isinstance(cell, str):
            try:
                cell = json.loads(cell)
            except (ValueError, RecursionError) as error:
                raise place.error(f"broken JSON: {one_line(error)}", row=row, column=name, hint=_HINT) from None
        if not isinstance(cell, list) or not all(isinstance(message, dict) for message in cell):
            found = "nothing" if cell is None else shown(cell)
            raise place.error(f"expected a conversation, found {found}", row=row, column=name, hint=_HINT)
        messages = []
        for message in cell:
            text, skipped = _content(message.get("content", message.get("value")), row, name, place)
            messages.append((message.get("role", message.get("from")), text))
            dropped += skipped
        rows.append(messages)
    return rows, dropped


def _content(content: Any, row: int, name: str, place: Place) -> tuple[str | None, int]:
    """A message's text: a string, or the text of its typed parts; and how many parts are no text."""
    if content is None or isinstance(content, str):
        return content, 0
    if isinstance(content, list) and all(isinstance(part, (dict, str)) for part in content):
        found = [part if isinstance(part, str) else part.get("text") for part in content]
        told = [text for text in found if isinstance(text, str)]
        return "\n".join(told) if told else None, len(found) - len(told)
    raise place.error(f"a message's content is {shown(content)}", row=row, column=name, hint="Expected text or parts.")


def _from_arrow(column: pa.Array, name: str, place: Place) -> tuple[list[list[Message]], int]:
    """Only the leaves that matter become Python objects: a struct at a time is many times slower."""
    if not _is_list_of(column.type, "role", "content"):
        raise place.error(f"expected conversations, found {one_line(column.type, 60)}", column=name, hint=_HINT)
    if column.null_count:
        raise place.error("expected a conversation, found nothing", row=first_null(column), column=name, hint=_HINT)
    try:
        messages = column.flatten()
        roles = pc.struct_field(messages, "role").cast(pa.string()).to_pylist()
        content = pc.struct_field(messages, "content")
        texts, dropped = _told(content, name, place)
    except pa.ArrowException as error:
        raise place.error(f"cannot read the conversations: {one_line(error)}", column=name, hint=_HINT) from None
    pairs = list(zip(roles, texts, strict=True))
    return [pairs[start:end] for start, end in _spans(column)], dropped


def _is_list_of(kind: pa.DataType, *fields: str) -> bool:
    """Whether a type is lists of structs with these fields."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return False
    return set(fields) <= {field.name for field in kind.value_type}


def _told(content: pa.Array, name: str, place: Place) -> tuple[list[str | None], int]:
    """The texts of messages, and how many of their parts are no text."""
    if not pa.types.is_nested(content.type):
        return content.cast(pa.string()).to_pylist(), 0
    if not _is_list_of(content.type, "text"):
        raise place.error(f"a message's content is {one_line(content.type, 60)}", column=name, hint=_HINT)
    told = pc.struct_field(content.flatten(), "text").cast(pa.string()).to_pylist()
    texts: list[str | None] = []
    dropped = 0
    for start, end in _spans(content):
        here = [text for text in told[start:end] if text is not None]
        dropped += end - start - len(here)
        texts.append("\n".join(here) if here else None)
    return texts, dropped


def _spans(lists: pa.Array) -> list[tuple[int, int]]:
    """Where each list begins and ends in the flattened values."""
    ends = np.cumsum(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []


def exchanges(messages: Sequence[Message], row: int, name: str, place: Place) -> Exchanges:
    """Messages -> exchanges. What the system says is put before the first question; messages of the same speaker
    that follow each other are one turn; a question without an answer is answered by None, and the reverse.

    Raises
    ------
    InputError
        On an unknown role, or a conversation without messages.
    """
    asked: list[str | None] = []
    answered: list[str | None] = []
    preface: list[str] = []
    last = ""
    for role, text in messages:
        speaker = _SPEAKERS.get(str(role).lower())
        if speaker is None:
            raise place.error(
                f"unknown role {excerpt(role)}", row=row, column=name, hint="Expected user, assistant or system."
            )
        if speaker == "system":
            preface += [text] if text else []
            continue
        if speaker == "user" and last != "user":
            asked.append(text)
            answered.append(None)
        elif speaker == "user":
            asked[-1] = _joined(asked[-1], text)
        else:
            if not asked:
                asked.append(None)
                answered.append(None)
            answered[-1] = _joined(answered[-1], text)
        last = speaker
    if not asked:
        raise place.error("the conversation is empty", row=row, column=name, hint=_HINT)
    if preface:
        asked[0] = "\n\n".join([*preface, *([asked[0]] if asked[0] else [])])
    return Exchanges(asked, answered)


def _joined(first: str | None, second: str | None) -> str | None:
    return second if first is None else first if second is None else f"{first}\n{second}"


@dataclass(frozen=True)
class Meeting:
    """Two conversations about the same questions."""

    prompt: list[str | None]
    response_a: list[str | None]
    response_b: list[str | None]
    cut: bool
    """Whether the questions diverged and what followed was left out."""


def meeting(first: Exchanges, second: Exchanges, row: int, columns: str, place: Place) -> Meeting:
    """The exchanges up to where the two conversations' questions differ.

    Raises
    ------
    InputError
        If they differ from the start.
    """
    shared = 0
    for question, other in zip(first.asked, second.asked, strict=False):
        if question != other:
            break
        shared += 1
    if not shared:
        begins = " and ".join(excerpt(side.asked[0]) for side in (first, second))
        raise place.error(
            f"the two conversations begin with different prompts: {begins}",
            row=row,
            column=columns,
            hint="A battle is two answers to one prompt.",
        )
    cut = shared < max(len(first.asked), len(second.asked))
    return Meeting(first.asked[:shared], first.answered[:shared], second.answered[:shared], cut)
