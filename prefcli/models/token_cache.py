"""Token ids of training data as a cached stage: a second training on the same battles does not tokenise again.

The name of the stage ``tokens`` depends on the preprocessed battles, which of them are used, the tokenizer's whole
definition, and whether turns are kept apart. Read back, the ids are views of the file's columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from prefcli.battles import TEXT_FIELDS
from prefcli.models.tokens import Ragged, TokenisedBattles, tokenise
from prefcli.reporting import Reporter, followed
from prefcli.storage.workspace import StageWriter, Workspace

if TYPE_CHECKING:
    from prefcli.data.selection import TrainingData
    from prefcli.models.conversation import ConversationTemplate

VERSION = 1
"""Raise when the same text and tokenizer would give other ids or columns."""

COLUMNS = (*TEXT_FIELDS, *(f"{name}_turns" for name in TEXT_FIELDS))


def cached_tokens(
    data: TrainingData,
    tokenizer: Any,
    workspace: Workspace,
    reporter: Reporter,
    *,
    by_turn: bool,
    conversation: ConversationTemplate | None = None,
) -> TokenisedBattles:
    """Token ids of the training data's battles (:func:`.tokens.tokenise`), through the stage ``tokens``."""
    definition = getattr(tokenizer, "backend_tokenizer", None)
    if definition is None:  # tokenizers written in Python have none, so two of them look the same
        with reporter.track("tokenising", len(data)) as progress:
            batches = followed(data.batches(), progress)
            return tokenise(tokenizer, batches, by_turn=by_turn, conversation=conversation)

    def produce(writer: StageWriter) -> Mapping[str, Any]:
        count = 0
        with reporter.track("tokenising", len(data)) as progress:
            for batch in followed(data.batches(), progress):
                if batch.num_rows:
                    battles = tokenise(tokenizer, iter([batch]), by_turn=by_turn, conversation=conversation)
                    count += sum(len(column.values) for column in battles.columns)
                    columns = [*battles.columns, *(battles.turns or ())]
                    arrays = [
                        pa.ListArray.from_arrays(pa.array(c.offsets.astype(np.int32)), pa.array(c.values))
                        for c in columns
                    ]
                    writer.write(pa.RecordBatch.from_arrays(arrays, names=list(COLUMNS[: len(arrays)])))
        return {"tokens": count}

    source = hashlib.sha256()
    for stage, rows in data.stages:
        source.update(f"{stage.fingerprint}\n".encode())
        source.update(np.ascontiguousarray(rows, dtype=np.int64).tobytes())
    import tokenizers

    options: dict[str, Any] = {
        "tokenizer": hashlib.sha256(definition.to_str().encode()).hexdigest(),
        "tokenizers": tokenizers.__version__,
        "by_turn": by_turn,
    }
    if conversation is not None:
        options["conversation"] = conversation.to_json()
    stage = workspace.stage(
        "tokens", version=VERSION, source=source.hexdigest(), options=options, produce=produce, reporter=reporter
    )
    how = "reused from the cache" if stage.reused else "done"
    reporter.note(f"tokenised: {stage.metadata['counts']['tokens']:,} tokens ({how})")
    table = stage.table()
    columns = tuple(_ragged(column) for column in table.columns)
    return TokenisedBattles(columns[: len(TEXT_FIELDS)], data.labels, columns[len(TEXT_FIELDS) :] or None)


def _ragged(column: pa.ChunkedArray) -> Ragged:
    return Ragged.concatenate(
        [Ragged.from_lengths(chunk.flatten().to_numpy(), chunk.value_lengths().to_numpy()) for chunk in column.chunks]
    )
