"""A few numbers per battle: lengths, markup, script, and hashes that find equal texts.

Arrow's kernels compute them a batch at a time, so that only these numbers stay in memory, not the texts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefcli.battles import TEXT_FIELDS, FlatTurns, int_column, labels_of
from prefcli.groups import find_scripts

IntArray = NDArray[np.int64]

THREADS = 2
ANSWERS = ("response_a", "response_b")

MARKUP: dict[str, tuple[str, ...]] = {
    # The line break comes first in the pattern for the beginning of a line: RE2 then searches for the break alone,
    # which is many times faster. A second pattern looks at the beginning of the text.
    "list items": (r"\n[ \t]*(?:[-*+\x{2022}]|[0-9]{1,2}[.)])[ \t]", r"^[ \t]*(?:[-*+\x{2022}]|[0-9]{1,2}[.)])[ \t]"),
    "headings": (r"\n#{1,6} ", r"^#{1,6} "),
    "code blocks": (r"```",),
    "bold": (r"\*\*[^*\n]+\*\*",),
    "tables": (r"\n\|", r"^\|"),
}
"""Markdown in an answer: name -> regular expressions whose matches are counted."""

CHARACTERS_PER_TOKEN = 4.5
EXTRA_BYTES_PER_TOKEN = 3
"""A rule of thumb for an English-centred subword vocabulary, see :func:`estimate_tokens`."""
TOKENS_EXPLAINED = "tokens are estimated: characters / 4.5 + bytes beyond ASCII / 3"


@dataclass(frozen=True)
class BattleStats:
    """Numbers about n battles. Hashes are equal for equal texts, within this process only."""

    label: IntArray  # [n], -1 where unknown
    both_bad: IntArray  # [n], 1 where the voter called both answers bad, -1 where the source has no such column
    prompt_key: IntArray  # [n], equal for equal prompts (prefcli.battles.prompt_key)
    prompt_hash: IntArray  # [n]
    answer_hash: IntArray  # [n, 2], of A and B
    turns: IntArray  # [n], turns of the prompt
    characters: IntArray  # [n, 3], of prompt, A and B, all turns together
    tokens: IntArray  # [n, 3], estimated, of prompt, A and B
    nulls: IntArray  # [n, 3], null turns of prompt, A and B
    markup: IntArray  # [n, len(MARKUP), 2], matches in A and B
    script: IntArray  # [n], script of the prompt as a position in prefcli.groups.SCRIPT_NAMES

    @staticmethod
    def concatenate(parts: list[BattleStats]) -> BattleStats:
        """Several batches as one."""
        names = [field.name for field in fields(BattleStats)]
        return BattleStats(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def where(self, mask: NDArray[np.bool_]) -> BattleStats:
        """Some of the battles."""
        return BattleStats(*(getattr(self, field.name)[mask] for field in fields(BattleStats)))


def measure_all(batches: Iterable[pa.RecordBatch]) -> tuple[BattleStats, IntArray, tuple[str, ...]]:
    """Measure canonical batches in threads, which helps because Arrow's kernels release the GIL.

    Returns
    -------
    tuple
        The numbers; the models A and B of each battle as positions in the names, -1 where unknown, shape ``[n, 2]``;
        the names.
    """
    position: dict[str, int] = {}
    models: list[IntArray] = []
    stats: list[BattleStats] = []
    with ThreadPoolExecutor(THREADS) as pool:
        pending: deque[Future[BattleStats]] = deque()
        for batch in batches:
            models.append(np.stack([_model_codes(batch, side, position) for side in ("model_a", "model_b")], axis=1))
            pending.append(pool.submit(measure, batch))
            if len(pending) > THREADS:  # so that only a few batches are in memory
                stats.append(pending.popleft().result())
        stats += [future.result() for future in pending]
    return BattleStats.concatenate(stats), np.concatenate(models), tuple(position)


def _model_codes(batch: pa.RecordBatch, side: str, position: dict[str, int]) -> IntArray:
    """Each battle's model as its position; ``position`` grows by new names. -1 where unknown."""
    column = batch.column(side)
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes = np.array([position.setdefault(name, len(position)) for name in encoded.dictionary.to_pylist()] or [-1])
    indices = int_column(encoded.indices, missing=-1)
    return np.where(indices >= 0, codes[indices], -1)


def measure(batch: pa.RecordBatch) -> BattleStats:
    """Measure a canonical batch."""
    table = pa.Table.from_batches([batch])
    turns = {name: FlatTurns.of(batch.column(name)) for name in TEXT_FIELDS}
    characters = {name: pc.utf8_length(field.texts) for name, field in turns.items()}
    return BattleStats(
        label=labels_of(table),
        both_bad=int_column(table["both_bad"]) if "both_bad" in table.column_names else np.full(len(table), -1),
        prompt_key=table["prompt_key"].to_numpy(),
        prompt_hash=turns["prompt"].hashes(),
        answer_hash=np.stack([turns[name].hashes() for name in ANSWERS], axis=1),
        turns=np.diff(turns["prompt"].offsets),
        characters=np.stack([turns[name].per_battle(characters[name]) for name in TEXT_FIELDS], axis=1),
        tokens=np.stack([estimate_tokens(turns[name], characters[name]) for name in TEXT_FIELDS], axis=1),
        nulls=np.stack([turns[name].per_battle(turns[name].nulls) for name in TEXT_FIELDS], axis=1),
        markup=np.stack([count_markup(turns[name]) for name in ANSWERS], axis=2),
        script=find_scripts(turns["prompt"]),
    )


def estimate_tokens(turns: FlatTurns, characters: pa.Array) -> IntArray:
    """Estimate how many tokens an English-centred subword tokenizer makes of each battle's text.

    One for every :data:`CHARACTERS_PER_TOKEN` characters, and one for every :data:`EXTRA_BYTES_PER_TOKEN` bytes that
    UTF-8 needs beyond one per character: about half a token for a Cyrillic letter and one for a Han character. It
    shows what a length limit would cut before a tokenizer is chosen.
    """
    length = turns.per_battle(characters)
    extra = turns.per_battle(pc.binary_length(turns.texts)) - length
    return np.ceil(length / CHARACTERS_PER_TOKEN + extra / EXTRA_BYTES_PER_TOKEN).astype(np.int64)


def count_markup(turns: FlatTurns) -> IntArray:
    """How often each of :data:`MARKUP` occurs in each battle's text; shape ``[n, len(MARKUP)]``."""
    counts = [
        sum(turns.per_battle(pc.count_substring_regex(turns.texts, pattern)) for pattern in patterns)
        for patterns in MARKUP.values()
    ]
    return np.stack(counts, axis=1)
