"""The stage ``tokens`` holds the tokenizer's ids and is reused only for the same battles and tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prefcli import encoders, pipeline
from prefcli.data.selection import TrainingData, training_targets
from prefcli.data.synthetic import LIKED, NEUTRAL, Demo
from prefcli.models import tokens
from prefcli.models.batches import prefetch
from prefcli.models.token_cache import cached_tokens
from prefcli.reporting import SILENT
from prefcli.storage.workspace import Workspace


def training_data(demo_files: Demo, workspace: Workspace, rows: list[int]) -> TrainingData:
    stage = pipeline.preprocess(demo_files.train, workspace, text="raw").stage
    n, chosen = len(rows), np.array(rows)
    labels = np.zeros(n, dtype=np.int64)
    targets = training_targets(labels, np.full((n, 3), np.nan))
    return TrainingData(((stage, chosen),), [str(row) for row in rows], labels, chosen, targets)


@pytest.mark.parametrize("by_turn", [False, True])
def test_ids_from_the_cache_are_those_of_the_tokenizer(
    demo_files: Demo, workspace: Workspace, bert_folder: Path, by_turn: bool
) -> None:
    tokenizer = encoders.load_tokenizer(bert_folder)
    data = training_data(demo_files, workspace, list(range(0, 240, 3)))
    expected = tokens.tokenise(tokenizer, data.batches(), by_turn=by_turn)
    for _ in range(2):
        found = cached_tokens(data, tokenizer, workspace, SILENT, by_turn=by_turn)
        for one, other in ((found.columns[0], expected.columns[0]), (found.columns[2], expected.columns[2])):
            assert np.array_equal(one.values, other.values)
            assert np.array_equal(one.offsets, other.offsets)
        assert (found.turns is not None) == by_turn
        for row in (0, 17, 79):
            for one, other in zip(found.fields(row), expected.fields(row), strict=True):
                assert one.ids.tolist() == other.ids.tolist()
                assert one.turns.tolist() == other.turns.tolist()
    assert len(list(workspace.stages.glob("tokens-*.parquet"))) == 1


def test_other_battles_another_tokenizer_or_other_turns_are_another_stage(
    demo_files: Demo, workspace: Workspace, bert_folder: Path
) -> None:
    tokenizer = encoders.load_tokenizer(bert_folder)
    other = encoders.train_tokenizer([" ".join(LIKED + NEUTRAL[:40])] * 3)
    all_data = [training_data(demo_files, workspace, rows) for rows in ([1, 2, 3], [1, 2, 4])]
    for arguments in ((all_data[0], tokenizer, False), (all_data[1], tokenizer, False), (all_data[0], other, False), (all_data[0], tokenizer, True)):  # fmt: skip  # noqa: E501
        data, used, by_turn = arguments
        found = cached_tokens(data, used, workspace, SILENT, by_turn=by_turn)
        assert found.columns[0].values.tolist() == tokens.tokenise(used, data.batches(), by_turn=by_turn).columns[0].values.tolist()  # fmt: skip  # noqa: E501
    assert len(list(workspace.stages.glob("tokens-*.parquet"))) == 4


def test_a_damaged_cache_of_tokens_is_rebuilt(demo_files: Demo, workspace: Workspace, bert_folder: Path) -> None:
    tokenizer = encoders.load_tokenizer(bert_folder)
    data = training_data(demo_files, workspace, [0, 5])
    before = cached_tokens(data, tokenizer, workspace, SILENT, by_turn=False)
    (path,) = workspace.stages.glob("tokens-*.parquet")
    path.write_bytes(path.read_bytes()[:-50])
    assert cached_tokens(data, tokenizer, workspace, SILENT, by_turn=False).columns[0].values.tolist() == before.columns[0].values.tolist()  # fmt: skip  # noqa: E501


def test_prefetched_results_come_in_order_one_ahead() -> None:
    calls: list[int] = []

    def square(item: int) -> int:
        calls.append(item)
        return item * item

    found = prefetch(square, iter(range(5)))
    assert next(found) == 0
    assert calls in ([0], [0, 1]), "one ahead, not all"
    assert list(found) == [1, 4, 9, 16]
    assert list(prefetch(square, [])) == []
