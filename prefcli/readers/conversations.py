"""Cells -> messages -> turns: every form that prompts, answers and conversations are written in."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefcli.readers.cells import Location, excerpt, json_excerpt, parse_nested
from prefcli.readers.paths import as_text, is_missing

Message = tuple[str, str | None]
"""``user``, ``assistant``, ``system`` or ``tool``, and text; None where the message holds none."""

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}
_TEXT_KEYS = ("content", "value", "text")
_HINT = 'Expected a list of messages, such as [{"role": "user", "content": "Hello"}, {"role": "assistant", ...}].'
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT_START = re.compile(r"\n\n+(Human|Assistant):|\n*Human:.*\n\nAssistant:", re.DOTALL)


@dataclass
class Reader:
    """Reads the cells of one row; remembers the row for its errors, and how many parts are not text."""

    location: Location
    row: int = 0
    column: str = ""
    dropped_parts: int = 0

    def error(self, what: str, hint: str = "") -> Exception:
        """An error at the current row and column."""
        return self.location.error(what, row=self.row, column=self.column, hint=hint)

    def messages(self, cell: Any, column: str, role: str) -> list[Message]:
        """A cell as messages; plain text is one message of the role.

        Raises
        ------
        InputError
            If it is none of the known forms.
        """
        self.column = column
        if isinstance(cell, dict):
            if isinstance(cell.get("messages"), (list, tuple)):
                return self._logged(cell)
            return [self._message(cell, role)]
        if isinstance(cell, (list, tuple)):
            return [self._message(item) for item in cell]
        return [(role, None if cell is None else as_text(cell))]

    def conversation(self, cell: Any, column: str) -> list[Message]:
        """A cell that has to hold a whole conversation."""
        self.column = column
        if isinstance(cell, str):
            cell = self.conversation_cell(cell)
        if is_missing(cell) or not isinstance(cell, (list, tuple, dict)):
            found = "nothing" if is_missing(cell) else json_excerpt(cell)
            raise self.error(f"expected a conversation, found {found}", _HINT)
        messages = self.messages(cell, column, "")
        if not any(role != "system" for role, _ in messages):
            raise self.error("the conversation is empty", _HINT)
        if not any(role == "user" for role, _ in messages):
            raise self.error("the conversation holds no message of the user", "A battle is two answers to one prompt.")
        return messages

    def conversation_cell(self, text: str) -> Any:
        """Text that holds a conversation as JSON, or as Python writes it."""
        try:
            return parse_nested(text.strip())
        except (ValueError, RecursionError) as error:
            raise self.error(f"broken JSON: {error}; the cell begins {excerpt(text)}", _HINT) from None

    def _logged(self, state: dict[str, Any]) -> list[Message]:
        """An object with ``messages``; in FastChat's logs user and assistant alternate under any names.

        The first ``offset`` messages are examples that the prompt template holds.
        """
        if "offset" not in state:
            return [self._message(item) for item in state["messages"]]
        offset = state["offset"] if isinstance(state["offset"], int) else 0
        messages = []
        for number, item in enumerate(state["messages"][offset:]):
            text = item[1] if isinstance(item, (list, tuple)) and len(item) == 2 else None
            text = text[0] if isinstance(text, (list, tuple)) and text else text  # text and images
            if text is not None or number % 2 == 0:
                messages.append((("user", "assistant")[number % 2], self._text(text)))
        return messages

    def _message(self, item: Any, default_role: str = "") -> Message:
        if type(item) is dict and type(text := item.get("content")) is str:  # the usual form, at once
            role = _ROLES.get(item["role"]) if type(item.get("role")) is str else None
            if role is not None:
                return role, text
        if isinstance(item, (list, tuple)) and len(item) == 2:
            file_role, content = item
        elif isinstance(item, dict) and (default_role or {"role", "from"} & set(item)):
            file_role = item.get("role", item.get("from", default_role))
            content = next((item[key] for key in _TEXT_KEYS if item.get(key) is not None), None)
            if content is None and not set(item) & {*_TEXT_KEYS, "tool_calls"}:
                hint = f"{_HINT} Paths lead into objects: --columns NAME={self.column}.{next(iter(item), 'KEY')}"
                raise self.error(f"a turn is {json_excerpt(item)}, neither text nor a message", hint)
        else:
            raise self.error(f"expected a conversation, found {json_excerpt(item)}", _HINT)
        role = _ROLES.get(str(file_role).strip().lower())
        if role is None:
            raise self.error(f"unknown role {excerpt(file_role)}", "Expected user, assistant, system or tool.")
        return role, self._text(content)

    def _text(self, content: Any) -> str | None:
        """A message's text: a string, or the text of its typed parts."""
        if content is None or isinstance(content, str):
            return content
        if isinstance(content, list) and all(isinstance(part, (dict, str)) for part in content):
            parts = [part if isinstance(part, str) else part.get("text", part.get("value")) for part in content]
            texts = [part for part in parts if isinstance(part, str)]
            self.dropped_parts += len(parts) - len(texts)
            return "\n".join(texts) if texts else None
        raise self.error(f"a message's content is {json_excerpt(content)}", "Expected text or parts.")


@dataclass(frozen=True)
class Dialogue:
    """A conversation as turns: prompts and responses, two lists of equal length."""

    prompts: list[str | None]
    responses: list[str | None]


def to_dialogue(messages: Sequence[Message]) -> Dialogue:
    """Messages as turns.

    System messages are put before the first prompt. Consecutive messages of one role are one. What a tool returned is
    a prompt. A prompt without a response gets the response None, and the reverse.
    """
    prompts: list[str | None] = []
    responses: list[str | None] = []
    system: list[str] = []
    previous = ""
    for role, text in messages:
        if role == "system":
            system += [text] if text else []
            continue
        if role == "assistant":
            if not prompts:
                prompts.append(None)
                responses.append(None)
            responses[-1] = _join(responses[-1], text)
        elif prompts and previous != "assistant":
            prompts[-1] = _join(prompts[-1], text)
        else:
            prompts.append(text)
            responses.append(None)
        previous = role
    if system and prompts:
        prompts[0] = "\n\n".join([*system, *([prompts[0]] if prompts[0] else [])])
    return Dialogue(prompts, responses)


def _join(first: str | None, second: str | None) -> str | None:
    if first is None or second is None:
        return second if first is None else first
    if not first or not second:
        return first or second
    return f"{first}\n{second}"


@dataclass(frozen=True)
class AlignedTurns:
    """A battle's prompt and two responses, turn by turn."""

    prompt: list[str | None]
    response_a: list[str | None]
    response_b: list[str | None]
    diverged: bool = False
    """Whether the prompts diverged, so that later turns were dropped."""


def align(a: Sequence[Message], b: Sequence[Message], reader: Reader) -> AlignedTurns:
    """The turns before the prompts of the two conversations differ.

    Where tools returned different things to the two models, these are no prompts, but part of the models' work.

    Raises
    ------
    InputError
        If the prompts differ from the start.
    """
    turns = _align(to_dialogue(a), to_dialogue(b), reader)
    if turns.diverged and any(role == "tool" for role, _ in [*a, *b]):
        without = [[message for message in side if message[0] != "tool"] for side in (a, b)]
        turns = _align(to_dialogue(without[0]), to_dialogue(without[1]), reader)
    return turns


def _align(a: Dialogue, b: Dialogue, reader: Reader) -> AlignedTurns:
    shared = 0
    for prompt_a, prompt_b in zip(a.prompts, b.prompts, strict=False):
        if prompt_a != prompt_b:
            break
        shared += 1
    if not shared:
        raise reader.error(
            f"the two conversations begin with different prompts: {excerpt(a.prompts[0])} and {excerpt(b.prompts[0])}",
            "A battle is two answers to one prompt.",
        )
    diverged = shared < max(len(a.prompts), len(b.prompts))
    return AlignedTurns(a.prompts[:shared], a.responses[:shared], b.responses[:shared], diverged)


@dataclass(frozen=True)
class Texts:
    """A prompt and its answers (two in a battle), as cells of the file, with the names of the columns for messages."""

    answers: tuple[Any, ...]
    names: tuple[str, ...]
    """Of the answers."""
    prompt: Any = None
    prompt_name: str = ""
    """Empty if the file has no prompt besides the answers."""
    system: Any = None
    history: Any = None
    transcripts: bool = True
    """Whether texts such as ``\\n\\nHuman: ... \\n\\nAssistant: ...`` are conversations."""
    common_prompt: bool = False
    """Whether the common beginning of the answers is the prompt."""


def to_turns(texts: Texts, reader: Reader) -> AlignedTurns:
    """The battle of one row.

    Raises
    ------
    InputError
        If an answer or the prompt is missing, or the parts do not fit together.
    """
    context = _context(texts, reader)
    if texts.common_prompt and not context and _are_plain(texts):
        return _split_common_prompt(texts.answers[0], texts.answers[1], reader)
    sides = _sides(context, texts, reader)
    reader.column = " and ".join(texts.names)
    turns = align(sides[0], sides[1], reader)
    for response, name in zip((turns.response_a, turns.response_b), texts.names, strict=True):
        _check_answered(response, name, reader)
    return turns


def to_dialogues(texts: Texts, reader: Reader) -> list[Dialogue]:
    """The conversation that each answer of one row ends; their prompts are the same.

    Raises
    ------
    InputError
        If an answer or the prompt is missing, or the answers are to different prompts.
    """
    dialogues = [to_dialogue(side) for side in _sides(_context(texts, reader), texts, reader)]
    for dialogue, name in zip(dialogues, texts.names, strict=True):
        _check_answered(dialogue.responses, name, reader)
        if dialogue.prompts != dialogues[0].prompts:
            reader.column = name
            raise reader.error(
                f"the answers are to different prompts: {excerpt(dialogues[0].prompts[-1])} and "
                f"{excerpt(dialogue.prompts[-1])}",
                "The answers of a row are to one prompt.",
            )
    return dialogues


def _are_plain(texts: Texts) -> bool:
    """Whether the answers are texts, and no transcripts of conversations."""
    if not all(isinstance(cell, str) for cell in texts.answers):
        return False
    return not (texts.transcripts and all(map(is_transcript, texts.answers)))


def _sides(context: list[Message], texts: Texts, reader: Reader) -> list[list[Message]]:
    """Each answer with what precedes it."""
    if not context and _are_plain(texts):
        reader.column = " and ".join(dict.fromkeys(texts.names))
        raise reader.error("no prompt", "Name the prompt's column with --columns prompt=NAME.")
    answers = list(zip(texts.answers, texts.names, strict=True))
    if len(context) == 1 and all(isinstance(cell, str) for cell in texts.answers):
        answers = _without_repeated_prompt(context[0][1] or "", answers)
    return [_side(context, cell, name, texts, reader) for cell, name in answers]


def _check_answered(response: Sequence[str | None], name: str, reader: Reader) -> None:
    if response[-1] is None:
        reader.column = name
        raise reader.error("the conversation holds no answer", "Its last message should be the assistant's.")


def _context(texts: Texts, reader: Reader) -> list[Message]:
    """The messages before the answers: system text, earlier turns and prompt."""
    context: list[Message] = []
    if not is_missing(texts.system) and texts.system != "":
        context += [("system", text) for _, text in reader.messages(texts.system, "system", "system")]
    history = texts.history
    if isinstance(history, str) and history.strip():
        reader.column = "history"
        history = reader.conversation_cell(history)
    if isinstance(history, (list, tuple)):
        for pair in history:
            if isinstance(pair, (list, tuple)) and len(pair) == 2 and str(pair[0]).lower() not in _ROLES:
                texts_of_pair = [None if is_missing(text) else as_text(text) for text in pair]
                context += list(zip(("user", "assistant"), texts_of_pair, strict=True))
            else:
                context += reader.messages([pair], "history", "user")
    if not texts.prompt_name:
        return context
    if is_missing(texts.prompt) or texts.prompt == []:
        if all(_is_conversation(cell, texts, reader) for cell in texts.answers):
            return context
        reader.column = texts.prompt_name
        raise reader.error("no prompt", "Every row needs a prompt.")
    if isinstance(texts.prompt, str) and texts.transcripts and _TRANSCRIPT_START.match(texts.prompt):
        messages = parse_transcript(texts.prompt)
        return context + (messages[:-1] if messages[-1] == ("assistant", "") else messages)  # the answer follows
    return context + reader.messages(texts.prompt, texts.prompt_name, "user")


def _is_conversation(cell: Any, texts: Texts, reader: Reader) -> bool:
    return any(role == "user" for role, _ in _answer(cell, texts.names[0], texts, reader))


def _answer(cell: Any, name: str, texts: Texts, reader: Reader) -> list[Message]:
    if is_missing(cell):
        reader.column = name
        raise reader.error("no answer", "Every row needs both answers.")
    if isinstance(cell, str) and texts.transcripts and (_TRANSCRIPT_START.match(cell) or not texts.prompt_name):
        return parse_transcript(cell)
    return reader.messages(cell, name, "assistant")


def _side(context: list[Message], cell: Any, name: str, texts: Texts, reader: Reader) -> list[Message]:
    """One answer with what precedes it; a prompt that the answer repeats is taken once."""
    answer = _answer(cell, name, texts, reader)
    reader.column = name
    if not any(role == "user" for role, _ in [*context, *answer]):
        raise reader.error(
            "no prompt: the conversation holds no message of the user", "Name it with --columns prompt=NAME."
        )
    core = _without_system(context)
    own = _without_system(answer)
    if own and own[0][0] == "user":  # a whole conversation
        system = [message for message in context if message[0] == "system" and message not in answer]
        if not core or _repeats(core, own):
            return system + answer
        if core[-1][0] == "user":
            raise reader.error(
                f"the conversation does not begin with {texts.prompt_name or 'the prompt'}: "
                f"{excerpt(own[0][1])}, {excerpt(core[0][1])}",
                f"If {name} holds the whole conversation, add --columns prompt=",
            )
    elif core and core[-1][0] == "assistant" and core[-1][1]:
        raise reader.error(
            f"{texts.prompt_name} ends with an answer: {excerpt(core[-1][1])}",
            "A prompt ends with a message of the user; paths leave the last one out: --columns prompt=NAME.:-1",
        )
    return context + answer


def _without_system(messages: Sequence[Message]) -> list[Message]:
    return [(role, text and text.strip()) for role, text in messages if role != "system"]


def _repeats(prompt: list[Message], conversation: list[Message]) -> bool:
    """Whether a conversation holds the prompt already: as its beginning, or as one of the user's messages."""
    if prompt[-1][0] == "assistant":
        prompt = prompt[:-1]
    if conversation[: len(prompt)] == prompt:
        return True
    return len(prompt) == 1 and prompt[0] in conversation


def is_transcript(text: str) -> bool:
    """Whether a text is in HH-RLHF's form, ``\\n\\nHuman: ... \\n\\nAssistant: ...``."""
    return bool(_TRANSCRIPT.search("\n\n" + text if text.startswith("Human:") else text))


def parse_transcript(text: str) -> list[Message]:
    """The messages of a transcript; without an answer after the last ``Assistant:`` its text is empty."""
    pieces = _TRANSCRIPT.split("\n\n" + text.lstrip("\n") if text.startswith(("\n", "Human:")) else text)
    system: list[Message] = [("system", pieces[0].strip())] if pieces[0].strip() else []
    roles = {"Human": "user", "Assistant": "assistant"}
    return system + [(roles[role], content.strip()) for role, content in zip(pieces[1::2], pieces[2::2], strict=True)]


def _without_repeated_prompt(prompt: str, answers: list[tuple[Any, str]]) -> list[tuple[Any, str]]:
    """Plain answers without the prompt, if both begin with it."""
    prompt = prompt.strip()
    if len(prompt.split()) < 3 and prompt[-1:] not in (".", "?", "!", ":"):
        return answers
    rests = [cell.lstrip().removeprefix(prompt) for cell, _ in answers]
    if all(
        cell.lstrip().startswith(prompt) and rest[:1].isspace() and rest.strip()
        for rest, (cell, _) in zip(rests, answers, strict=True)
    ):
        return [(rest.lstrip(), name) for rest, (_, name) in zip(rests, answers, strict=True)]
    return answers


def _split_common_prompt(a: str, b: str, reader: Reader) -> AlignedTurns:
    """TRL's implicit prompt: the common beginning of both texts, up to its last white space."""
    prompt = "" if a == b else _without_last_word(os.path.commonprefix([a, b]))  # noqa: RUF071  (not paths)
    if not prompt.strip():
        how = "are equal" if a == b else "do not begin alike"
        reader.column = "chosen and rejected"
        raise reader.error(
            f"no prompt: chosen and rejected {how} ({excerpt(a, 20)}, {excerpt(b, 20)})",
            "Name the prompt's column with --columns prompt=NAME, if there is one.",
        )
    return AlignedTurns([prompt.rstrip()], [a[len(prompt) :]], [b[len(prompt) :]])


def _without_last_word(text: str) -> str:
    # Searched backwards: a forward search takes quadratic time on text without white space.
    word = re.split(r"\s", text[::-1], maxsplit=1)[0]
    return text[: len(text) - len(word)]
