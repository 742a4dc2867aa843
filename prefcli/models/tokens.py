"""Token ids of a pool of battles as a cached stage: a second training on the same battles does not tokenise again.

The stage ``tokens`` is named by what determines it: the preprocessed battles, which of them are used, the tokenizer's
whole definition, and whether turns are kept apart. Read back, the ids are views of the file's columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from prefcli.battles import TEXT_FIELDS
from prefcli.models.packing import Ragged, TokenisedBattles, tokenise
from prefcli.reporting import Reporter
from prefcli.storage.workspace import Stage, StageWriter, Workspace

if TYPE_CHECKING:
    from prefcli.data.selection import TrainingData

VERSION = 1
"""Raise when the same text and tokenizer would give other ids or columns."""

COLUMNS = (*TEXT_FIELDS, *(f"{name}_turns" for name in TEXT_FIELDS))


def tokenised(
    pool: TrainingData, tokenizer: Any, workspace: Workspace, reporter: Reporter, *, by_turn: bool
) -> TokenisedBattles:
    """Token ids of the pool's battles, through the stage ``tokens``.

    Parameters
    ----------
    pool:
        The battles.
    tokenizer:
        A Hugging Face tokenizer. Those without a definition of their own (written in Python) are not cached.
    workspace, reporter:
        Where the stage lives, and who is told.
    by_turn:
        See :func:`prefcli.models.packing.tokenise`.
    """
    definition = getattr(tokenizer, "backend_tokenizer", None)
    if definition is None:
        with reporter.track("tokenising", len(pool)) as progress:
            return tokenise(tokenizer, pool.batches(), progress, by_turn=by_turn)

    def produce(writer: StageWriter) -> Mapping[str, Any]:
        count = 0
        with reporter.track("tokenising", len(pool)) as progress:
            for batch in pool.batches():
                if batch.num_rows:
                    battles = tokenise(tokenizer, iter([batch]), by_turn=by_turn)
                    count += sum(len(column.values) for column in _columns(battles)[: len(TEXT_FIELDS)])
                    arrays = [pa.ListArray.from_arrays(_offsets(c), pa.array(c.values)) for c in _columns(battles)]
                    writer.write(pa.RecordBatch.from_arrays(arrays, names=list(COLUMNS[: len(arrays)])))
                    progress.advance(batch.num_rows)
        return {"tokens": count}

    used = hashlib.sha256()
    for stage, rows in pool.stages:
        used.update(f"{stage.fingerprint}\n".encode())
        used.update(np.ascontiguousarray(rows, dtype=np.int64).tobytes())
    import tokenizers

    options = {
        "tokenizer": hashlib.sha256(definition.to_str().encode()).hexdigest(),
        "tokenizers": tokenizers.__version__,
        "by_turn": by_turn,
    }
    stage = workspace.stage(
        "tokens", version=VERSION, source=used.hexdigest(), options=options, produce=produce, reporter=reporter
    )
    how = "reused from the cache" if stage.reused else "done"
    reporter.note(f"tokenised: {stage.metadata['counts']['tokens']:,} tokens ({how})")
    return _read(stage, pool)


def _columns(battles: TokenisedBattles) -> list[Ragged]:
    return [battles.prompt, battles.response_a, battles.response_b, *(battles.turns or ())]


def _offsets(column: Ragged) -> pa.Array:
    return pa.array(column.ends.astype(np.int32))


def _read(stage: Stage, pool: TrainingData) -> TokenisedBattles:
    table = stage.table()
    fields = [_ragged(table[name]) for name in table.column_names]
    turns = (fields[3], fields[4], fields[5]) if len(fields) == len(COLUMNS) else None
    return TokenisedBattles(fields[0], fields[1], fields[2], pool.labels, turns)


def _ragged(column: pa.ChunkedArray) -> Ragged:
    return Ragged.concatenate(
        [Ragged.with_lengths(chunk.flatten().to_numpy(), chunk.value_lengths().to_numpy()) for chunk in column.chunks]
    )
