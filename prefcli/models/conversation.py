"""A prompt and one answer as the conversation that they are: what stands around each turn, as text and as token ids.

A reward run is read by tools that render a conversation with the tokenizer's chat template and encode the whole text.
Here every turn is tokenised once, by itself, so what is around it has to be known: five pieces of text
(:class:`ConversationTemplate`), taken from the chat template of a model or made of special tokens or words. The run's
own chat template is written from the pieces (:func:`chat_template`), and so writes what the model was trained on: no
date, no other special case, and white space around a turn is left out in both.

Tokens may depend on the characters beside them. Each turn is therefore encoded together with the text up to the nearest
added tokens, which tokenizers never merge with anything (:class:`Surroundings`).

No torch here: exported models use the same code.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli.errors import ModelError
from prefcli.models.tokens import Ragged, token_ids

PIECES = ("start", "reply", "prompt", "last_reply", "end")
"""What stands before the first prompt, before a reply that is not the last, before a later prompt, before the last
reply, and after it."""
MAX_RENDERED_TURNS = 4
"""A chat template is taken apart in conversations of 1 to so many turns."""
MARKERS = ("Quixote", "Zanzibar")
"""Beginnings of texts that no chat template contains."""

PROBES = (
    "", "Hello.", "a", "7", "(x)", '"quoted"', "- item\n- item", "one\n\ntwo", "is this so?", "你好。", "مرحبا", "नमस्ते",
    "🙂", "def f():\n    return 1", "…", "3.", "I'm", "'s", ":", ">", "<", "]", "[", "é", "*bold*", "a  b\tc", "#",
    "\\",
)  # fmt: skip
"""Texts whose first or last characters a tokenizer might merge with their neighbours."""


@dataclass(frozen=True)
class Surroundings:
    """The text before and after a turn, up to the nearest added tokens, and its token ids."""

    before: str
    after: str
    before_ids: tuple[int, ...]
    after_ids: tuple[int, ...]


@dataclass(frozen=True)
class ConversationTemplate:
    """What stands around the turns of a conversation; see :data:`PIECES`."""

    pieces: Mapping[str, str]
    ids: Mapping[str, tuple[int, ...]]
    """The token ids of each piece."""
    turns: Mapping[str, Surroundings]
    """By the piece before the turn."""

    @staticmethod
    def from_pieces(tokenizer: Any, pieces: Mapping[str, str]) -> ConversationTemplate:
        """The template of five texts in the ids of a tokenizer."""
        added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, added)) or r"(?!)")
        matches = {name: list(pattern.finditer(text)) for name, text in pieces.items()}
        befores = {name: text[matches[name][-1].start() if matches[name] else 0 :] for name, text in pieces.items()}
        afters = {name: text[: matches[name][0].end() if matches[name] else None] for name, text in pieces.items()}
        following = {"start": "reply", "reply": "prompt", "prompt": "reply", "last_reply": "end"}
        texts = [*pieces.values(), *befores.values(), *afters.values()]
        ids = dict(zip(texts, map(tuple, token_ids(tokenizer, texts)), strict=True))
        turns = {
            name: Surroundings(befores[name], afters[then], ids[befores[name]], ids[afters[then]])
            for name, then in following.items()
        }
        return ConversationTemplate(dict(pieces), {name: ids[text] for name, text in pieces.items()}, turns)

    def to_json(self) -> dict[str, Any]:
        """The template as JSON; see :meth:`from_json`."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(saved: Mapping[str, Any]) -> ConversationTemplate:
        """The template that :meth:`to_json` gave."""

        def ids(values: Sequence[Any]) -> tuple[int, ...]:
            return tuple(map(int, values))

        turns = {
            str(name): Surroundings(
                str(turn["before"]), str(turn["after"]), ids(turn["before_ids"]), ids(turn["after_ids"])
            )
            for name, turn in saved["turns"].items()
        }
        pieces = {name: str(saved["pieces"][name]) for name in PIECES}
        return ConversationTemplate(pieces, {name: ids(saved["ids"][name]) for name in PIECES}, turns)

    def names(self, turns: int) -> list[str]:
        """The pieces of a conversation of so many turns, one before each text and one after the last."""
        middle = ["reply", "prompt"] * (turns - 1)
        return ["start", *middle, "last_reply", "end"]

    def overhead(self, turns: Any) -> Any:
        """Tokens in a conversation of so many turns (a number or an array) that are not the texts'."""
        size = {name: len(ids) for name, ids in self.ids.items()}
        return size["start"] + (turns - 1) * (size["reply"] + size["prompt"]) + size["last_reply"] + size["end"]

    def render(self, texts: Sequence[str]) -> str:
        """A conversation as text; prompts and replies alternate, each is stripped of white space around it."""
        names = self.names(len(texts) // 2)
        return "".join(self.pieces[name] + text.strip() for name, text in zip(names, [*texts, ""], strict=True))

    def tokenise(self, tokenizer: Any, texts: Sequence[str], places: Sequence[str]) -> list[list[int]]:
        """The token ids of each turn's text where it stands (the piece before it), without those of the pieces."""
        turns = [self.turns[place] for place in places]
        stripped = [text.strip() for text in texts]
        inside = token_ids(
            tokenizer, [turn.before + text + turn.after for turn, text in zip(turns, stripped, strict=True)]
        )
        result = []
        for turn, text, ids in zip(turns, stripped, inside, strict=True):
            first, last = len(turn.before_ids), len(ids) - len(turn.after_ids)
            fits = tuple(ids[:first]) == turn.before_ids and tuple(ids[last:]) == turn.after_ids and first <= last
            # Where a token reaches over the boundary, the text has tokens of its own: find_differences counts these.
            result.append(ids[first:last] if fits else token_ids(tokenizer, [text])[0])
        return result

    def tokenise_columns(self, tokenizer: Any, *columns: pa.ChunkedArray) -> list[tuple[Ragged, Ragged]]:
        """Prompts (the first column) and answers as token ids, each with the number of tokens in every turn.

        Turns that are null or missing are empty: an answer has as many as its prompt, or more.
        """
        prompt_rows, *answer_rows = ([[turn or "" for turn in turns or ()] for turns in c.to_pylist()] for c in columns)
        texts, places, counts = [], [], []
        for turns in prompt_rows:
            texts += turns or [""]
            places += ["start", *["prompt"] * (len(turns) - 1)]
            counts.append(max(len(turns), 1))
        for answers in answer_rows:
            for turns, prompt in zip(answers, prompt_rows, strict=True):
                count = max(len(turns), len(prompt), 1)
                texts += turns + [""] * (count - len(turns))
                places += [*["reply"] * (count - 1), "last_reply"]
                counts.append(count)
        flat = Ragged.from_rows(self.tokenise(tokenizer, texts, places))
        turns_of_row = np.array(counts, dtype=np.int64)
        lengths = Ragged.from_lengths(flat.lengths.astype(np.int32), turns_of_row)
        ids = flat.merge_rows(turns_of_row)
        per_column = np.arange(len(counts)).reshape(len(columns), -1)
        return [(ids.take(rows), lengths.take(rows)) for rows in per_column]


def interleave(prompt: NDArray[Any], answer: NDArray[Any]) -> NDArray[np.int64]:
    """A number for each turn of prompt and answer, in the order of the conversation; those of missing turns are 0."""
    result = np.zeros((max(len(prompt), len(answer)), 2), dtype=np.int64)
    result[: len(prompt), 0] = prompt
    result[: len(answer), 1] = answer
    return result.reshape(-1)


def from_chat_template(tokenizer: Any, where: str) -> ConversationTemplate:
    """The template in a tokenizer's own chat template.

    Raises
    ------
    ModelError
        If it fails, cannot be taken apart, or its texts have other tokens as a whole than piece by piece.
    """
    from prefcli.encoders import chat_templates

    counts = range(1, MAX_RENDERED_TURNS + 1)
    markers = [[f"{name}{i}x" for i in range(2 * n)] for n in counts for name in MARKERS]
    conversations = [
        [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * len(row), row, strict=False)]
        for row in markers
    ]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    rendered = chat_templates.render(tokenizer.chat_template, conversations, special, where)
    around = [_split(text, row) for text, row in zip(rendered, markers, strict=True)]
    last = around[-1]
    if last is not None:
        pieces = dict(zip(PIECES, (*last[:3], *last[-2:]), strict=True))
        template = ConversationTemplate.from_pieces(tokenizer, pieces)
        expected = [[pieces[name] for name in template.names(n)] for n in counts for _ in MARKERS]
        if around == expected and not find_differences(template, tokenizer):
            return template
    raise ModelError(
        "the tokenizer's chat template writes messages in a way that depends on their texts or number, or its tokens "
        "reach over the ends of messages",
        where=where,
        hint="Leave it unused: --template tokens, or words.",
    )


def _split(rendered: str, texts: Sequence[str]) -> list[str] | None:
    """What stands before, between and after the texts; None unless each is there once, in this order."""
    if any(rendered.count(text) != 1 for text in texts):
        return None
    parts = re.split("|".join(map(re.escape, texts)), rendered)
    return parts if [*re.findall("|".join(map(re.escape, texts)), rendered)] == list(texts) else None


def from_special_tokens(tokenizer: Any, around: Sequence[Sequence[int]]) -> ConversationTemplate:
    """The template of a tokenizer's special tokens: ``around`` are those before, between and after a pair of texts."""
    start, middle, end = ("".join(tokenizer.convert_ids_to_tokens(list(ids))) for ids in around)
    return ConversationTemplate.from_pieces(
        tokenizer, dict(zip(PIECES, (start, middle, middle, middle, end), strict=True))
    )


def from_words(tokenizer: Any, beginning: Sequence[int], words: Sequence[str]) -> ConversationTemplate:
    """The template in words: ``words`` before a prompt, before an answer, and after the last.

    Each text ends with the token that ends texts (where the tokenizer has one), so that no token reaches over its end.
    """
    prompt, answer, question = words
    start = "".join(tokenizer.convert_ids_to_tokens(list(beginning)))
    ends = tokenizer.eos_token or tokenizer.sep_token or ""
    pieces = (start + prompt, ends + answer, f"{ends}\n\n{prompt}", ends + answer, ends + question)
    return ConversationTemplate.from_pieces(tokenizer, dict(zip(PIECES, pieces, strict=True)))


def find_differences(
    template: ConversationTemplate, tokenizer: Any, conversations: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """The conversations (prompts and replies in turn) that have other tokens as a whole than piece by piece.

    Without ``conversations`` some are made of :data:`PROBES`.
    """
    if conversations is None:
        specials = [token for token in tokenizer.all_special_tokens if isinstance(token, str)]
        probes = [*PROBES, *specials]
        conversations = [[first, second] for first, second in zip(probes, probes[::-1], strict=True)]
        conversations = [*conversations, [*probes, *probes], [*probes[::-1], *probes]]
    rendered = [template.render(texts) for texts in conversations]
    differences = []
    for texts, text, whole in zip(conversations, rendered, token_ids(tokenizer, rendered), strict=True):
        names = template.names(len(texts) // 2)
        parts = [*template.tokenise(tokenizer, texts, names[:-1]), []]
        pieced = [number for name, part in zip(names, parts, strict=True) for number in (*template.ids[name], *part)]
        if pieced != list(whole):
            differences.append(text)
    return differences


CHAT_TEMPLATE = """\
{%- set given = namespace(system=[], messages=[]) -%}
{%- for message in messages -%}
{%- set text = message.content if message.content is defined and message.content is not none else '' -%}
{%- if text is not string -%}{{ raise_exception('this reward model reads messages of text only') }}{%- endif -%}
{%- if message.role == 'system' and not given.messages -%}
{%- set given.system = given.system + ([text] if text else []) -%}
{%- elif message.role == ['user', 'assistant'][given.messages | length % 2] -%}
{%- set given.messages = given.messages + [text] -%}
{%- else -%}
{{ raise_exception('this reward model reads conversations in which user and assistant take turns') }}
{%- endif -%}
{%- endfor -%}
{%- set last = given.messages | length - 1 - given.messages | length % 2 -%}
{%- for text in given.messages -%}
{%- if loop.first -%}
{{ START }}{%- set text = (given.system + ([text] if text else [])) | join('\\n\\n') -%}
{%- elif loop.index0 % 2 == 0 -%}
{{ PROMPT }}
{%- elif loop.index0 == last -%}
{{ LAST_REPLY }}
{%- else -%}
{{ REPLY }}
{%- endif -%}
{{ text | trim }}
{%- endfor -%}
{%- if given.messages | length % 2 == 0 -%}
{{ END }}
{%- elif add_generation_prompt -%}
{{ LAST_REPLY }}
{%- endif -%}
"""


def chat_template(template: ConversationTemplate) -> str:
    """A chat template in Jinja that writes conversations as :meth:`ConversationTemplate.render` does.

    Text of the system stands before the first prompt, as in battles that are read from conversations. Messages that
    were not in the training (a tool's, two prompts in a row, images) are refused.
    """

    def quoted(text: str) -> str:
        escaped = text.replace("\\", "\\\\").replace("'", "\\'")
        return "'" + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + "'"

    names = re.compile("|".join(sorted(map(str.upper, PIECES), key=len, reverse=True)))
    return names.sub(lambda match: quoted(template.pieces[match[0].lower()]), CHAT_TEMPLATE)


def reward_tokenizer(tokenizer: Any, template: ConversationTemplate) -> Any:
    """The tokenizer of a reward run: other tools get from it the tokens that the model was trained on.

    It has the chat template; a rendered conversation is encoded without further special tokens, and a pair of texts as
    prompt and answer, all of one token type. Where the token that pads would also end every sequence, another one pads:
    transformers looks for the last token that is not padding.

    It is transformers' general class, because those of many families replace what stands around texts when they are
    loaded. A tokenizer written in Python only gets the chat template.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        from tokenizers import processors
        from transformers import PreTrainedTokenizerFast

        names = [name for name in ("start", "last_reply", "end") if template.ids[name]]
        tokens = {name: tokenizer.convert_ids_to_tokens(list(template.ids[name])) for name in names}
        pair = [part for part in ("start", "$A", "last_reply", "$B", "end") if part in names or part.startswith("$")]
        backend.post_processor = processors.TemplateProcessing(
            single=["$A"],
            pair=[f"{part}:0" for part in pair],
            special_tokens=[{"id": name, "ids": list(template.ids[name]), "tokens": tokens[name]} for name in names],
        )
        # transformers 4 sets what its configuration does not name to False.
        before_words = json.loads(backend.to_str())["pre_tokenizer"] or {}
        prefix_space = {key: value for key, value in before_words.items() if key == "add_prefix_space"}
        kept = (
            "model_max_length",
            "padding_side",
            "truncation_side",
            "model_input_names",
            "clean_up_tokenization_spaces",
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            **{name: getattr(tokenizer, name) for name in kept},
            **tokenizer.special_tokens_map,
            **prefix_space,
        )
    tokenizer.chat_template = chat_template(template)
    last = template.ids["end"][-1] if template.ids["end"] else None
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == last:
        others = [token for token in tokenizer.all_special_tokens if tokenizer.convert_tokens_to_ids(token) != last]
        if others:
            tokenizer.pad_token = tokenizer.unk_token if tokenizer.unk_token in others else others[0]
    return tokenizer
