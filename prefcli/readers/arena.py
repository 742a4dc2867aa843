"""Chatbot Arena's published conversations and MT-bench's judgments: ``conversation_a``, ``conversation_b``, ``winner``.

Layouts as their dataset cards on the Hugging Face Hub describe them: lmsys/chatbot_arena_conversations,
lmarena-ai/arena-human-preference-100k and -140k, lmsys/mt_bench_human_judgments.
"""

from __future__ import annotations

import re

from prefcli.battles import TEXT_FIELDS
from prefcli.readers.cells import Location, RawBatch, excerpt, string_list, turns_array
from prefcli.readers.conversations import Dialogue, align, message_column, to_dialogue
from prefcli.readers.layouts import CountedBatch, Layout, build_batch, id_column, model_columns
from prefcli.readers.rows import winner_column

_CONVERSATIONS = ("conversation_a", "conversation_b")


def _convert_arena(raw: RawBatch, location: Location) -> CountedBatch:
    return _convert(raw, location, [None] * raw.num_rows)


def _convert_mt_bench(raw: RawBatch, location: Location) -> CountedBatch:
    """Turns after the judged one are dropped: the judge of turn 1 has not seen turn 2."""
    judged_turns: list[int | None] = []
    for row, cell in enumerate(string_list(raw, "turn", location)):
        if cell is None or not re.fullmatch(r"[1-9][0-9]{0,5}", cell):
            raise location.error(f"expected a turn from 1, found {excerpt(cell or '')}", row=row, column="turn")
        judged_turns.append(int(cell))
    batch, counts = _convert(raw, location, judged_turns)
    # MT-bench does not distinguish bad ties from good ones, so the column would claim what nobody said.
    return batch.drop_columns(["both_bad"]) if "both_bad" in batch.schema.names else batch, counts


def _convert(raw: RawBatch, location: Location, max_turns: list[int | None]) -> CountedBatch:
    sides: list[list[Dialogue]] = []
    dropped_parts = 0
    for name in _CONVERSATIONS:
        conversations, dropped = message_column(raw, name, location)
        sides.append([to_dialogue(messages, row, name, location) for row, messages in enumerate(conversations)])
        dropped_parts += dropped
    columns = {"id": id_column(raw, location, "id", "question_id"), **model_columns(raw, location)}
    turns: dict[str, list[list[str | None]]] = {name: [] for name in TEXT_FIELDS}
    diverged = 0
    for row, (a, b, count) in enumerate(zip(*sides, max_turns, strict=True)):
        aligned = align(a, b, row, " and ".join(_CONVERSATIONS), location)
        diverged += aligned.diverged
        for name in TEXT_FIELDS:
            turns[name].append(getattr(aligned, name)[:count])
    fields = {name: turns_array(turns[name], name, location) for name in TEXT_FIELDS}
    if "winner" in raw:
        columns |= winner_column(raw, location)
    return build_batch(columns, fields, diverged=diverged, dropped_parts=dropped_parts)


ARENA = Layout(
    name="arena",
    family="conversations",
    summary="Chatbot Arena's conversations (33k, 100k, 140k): lists of messages, winner in words",
    required=_CONVERSATIONS,
    optional=("id", "question_id", "model_a", "model_b", "winner"),
    convert=_convert_arena,
)

MT_BENCH = Layout(
    name="mt-bench",
    family="conversations",
    summary="MT-bench's judgments: conversations, several judges of one pair, each of one turn",
    required=(*_CONVERSATIONS, "judge", "turn"),
    optional=("question_id", "model_a", "model_b", "winner"),
    convert=_convert_mt_bench,
    excluded=("tstamp", "anony"),
)
