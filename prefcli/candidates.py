"""The canonical Arrow table of candidates: questions with several answers each, to be ranked.

How files become this table is the affair of :mod:`prefcli.readers`.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from prefcli.battles import TURNS, prompt_key

ANSWERS = pa.list_(TURNS)

LIST_COLUMNS = ("responses", "completions", "answers", "candidates", "outputs", "generations")
"""Names of columns that hold the answers to a prompt."""
CANDIDATE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", TURNS, nullable=False),
        pa.field("responses", ANSWERS, nullable=False),
        pa.field("models", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float64())),
        pa.field("prompt_key", pa.int64(), nullable=False),
    ]
)
"""One row per question. ``responses`` are its answers, at least one, each a list of turns. ``models`` and ``scores``
are parallel to them, null where the file does not name models or score answers. Ids are spelled as in the file."""


def make_candidates(columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """A record batch in the canonical schema, with ``prompt_key`` computed; missing columns are null."""
    keys = pa.array([prompt_key(turns or ()) for turns in columns["prompt"].to_pylist()], pa.int64())
    columns = {**columns, "prompt_key": keys}
    arrays = [
        columns[field.name].cast(field.type) if field.name in columns else pa.nulls(len(keys), field.type)
        for field in CANDIDATE_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=CANDIDATE_SCHEMA)
