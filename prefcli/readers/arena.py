"""Chatbot Arena's published conversations and MT-bench's judgments: ``conversation_a``, ``conversation_b``, ``winner``.

Layouts as their dataset cards on the Hugging Face Hub describe them: lmsys/chatbot_arena_conversations,
lmarena-ai/arena-human-preference-100k and -140k, lmsys/mt_bench_human_judgments.
"""

from __future__ import annotations

import re
from typing import Any

from prefcli.battles import TEXT_FIELDS
from prefcli.readers.cells import Place, RawBatch, excerpt, lists_of_turns, texts
from prefcli.readers.conversations import Exchanges, conversations, exchanges, meeting
from prefcli.readers.layouts import Converted, Layout, converted, identifiers, models
from prefcli.readers.rows import named_winners

_CONVERSATIONS = ("conversation_a", "conversation_b")


def _convert_arena(raw: RawBatch, place: Place) -> Converted:
    return _convert(raw, place, [None] * raw.num_rows)


def _convert_mt_bench(raw: RawBatch, place: Place) -> Converted:
    """The judge of turn 1 has not judged what followed: the conversation is cut after the judged turn."""
    turns: list[int | None] = []
    for row, cell in enumerate(texts(raw, "turn", place)):
        if cell is None or not re.fullmatch(r"[1-9][0-9]{0,5}", cell):
            raise place.error(f"expected a turn from 1, found {excerpt(cell or '')}", row=row, column="turn")
        turns.append(int(cell))
    batch, counts = _convert(raw, place, turns)
    # MT-bench has no "both bad": the source does not tell, so the table does not either.
    return batch.drop_columns(["both_bad"]) if "both_bad" in batch.schema.names else batch, counts


def _convert(raw: RawBatch, place: Place, turns: list[int | None]) -> Converted:
    sides: list[list[Exchanges]] = []
    dropped = 0
    for name in _CONVERSATIONS:
        rows, skipped = conversations(raw, name, place)
        sides.append([exchanges(messages, row, name, place) for row, messages in enumerate(rows)])
        dropped += skipped
    columns: dict[str, Any] = {"id": identifiers(raw, place, "id", "question_id"), **models(raw, place)}
    fields: dict[str, list[list[str | None]]] = {name: [] for name in TEXT_FIELDS}
    cut = 0
    for row, (first, second, judged) in enumerate(zip(*sides, turns, strict=True)):
        met = meeting(first, second, row, " and ".join(_CONVERSATIONS), place)
        cut += met.cut
        for name in TEXT_FIELDS:
            fields[name].append(getattr(met, name)[:judged])
    surrogates = 0
    for name in TEXT_FIELDS:
        columns[name], repaired = lists_of_turns(fields[name], name, place)
        surrogates += repaired
    if "winner" in raw:
        columns |= named_winners(raw, place)
    return converted(columns, surrogates, diverged=cut, dropped_parts=dropped)


ARENA = Layout(
    name="arena",
    family="conversations",
    summary="Chatbot Arena's conversations (33k, 100k, 140k): lists of messages, winner in words",
    needs=_CONVERSATIONS,
    may_have=("id", "question_id", "model_a", "model_b", "winner"),
    convert=_convert_arena,
)

MT_BENCH = Layout(
    name="mt-bench",
    family="conversations",
    summary="MT-bench's judgments: conversations, several judges of one pair, each of one turn",
    needs=(*_CONVERSATIONS, "judge", "turn"),
    may_have=("question_id", "model_a", "model_b", "winner"),
    convert=_convert_mt_bench,
    without=("tstamp", "anony"),
)
