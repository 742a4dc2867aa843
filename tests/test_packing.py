"""Token ids under a budget: what is kept, what is cut, and that no side disappears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefcli import encoders, packing
from prefcli.battles import make_batch
from prefcli.models.siamese import Siamese

lengths = st.lists(st.integers(0, 900), min_size=2, max_size=3)


@settings(max_examples=300, deadline=None)
@given(lengths, st.integers(0, 1200))
def test_the_budget_is_used_up_and_no_field_is_cut_below_an_equal_share(fields: list[int], budget: int) -> None:
    kept = packing.allot(np.array(fields), budget).tolist()
    assert sum(kept) == min(sum(fields), budget)
    assert all(0 <= k <= n for k, n in zip(kept, fields, strict=True))
    assert all(k >= min(n, budget // len(fields)) for k, n in zip(kept, fields, strict=True))


@settings(max_examples=100, deadline=None)
@given(st.lists(lengths.filter(lambda row: len(row) == 2), min_size=1, max_size=8), st.integers(0, 1200))
def test_many_rows_at_once_are_cut_as_each_alone(rows: list[list[int]], budget: int) -> None:
    together = packing.allot(np.array(rows), budget)
    assert together.tolist() == [packing.allot(np.array(row), budget).tolist() for row in rows]


@pytest.mark.parametrize("first", [3, 15, 29, 30, 31, 60])
@pytest.mark.parametrize("second", [2, 28, 29, 30, 61])
def test_a_pair_is_cut_as_hugging_faces_longest_first(bert_folder: Path, first: int, second: int) -> None:
    tokenizer = encoders.load_tokenizer(bert_folder)
    texts = " ".join(["clear"] * first), " ".join(["vague"] * second)
    expected = tokenizer(*texts, truncation="longest_first", max_length=32)["input_ids"]
    template = packing.PairTemplate.of(tokenizer)
    ids = [np.array(tokenizer(t, add_special_tokens=False)["input_ids"], np.int32) for t in texts]
    kept = packing.allot(np.array([len(i) for i in ids]), 32 - template.overhead)
    ours, _ = template.join(ids[0][: kept[0]], ids[1][: kept[1]])
    assert ours.tolist() == expected


def tokenised(bert_folder: Path, prompt: int, a: int, b: int) -> tuple[packing.PairTemplate, packing.TokenisedBattles]:
    tokenizer = encoders.load_tokenizer(bert_folder)
    turns = [[" ".join(["river"] * prompt)], [" ".join(["clear"] * a)], [" ".join(["vague"] * b)]]
    columns = {name: pa.array([t], pa.list_(pa.string())) for name, t in zip(packing.TEXT_FIELDS, turns, strict=True)}
    batch = make_batch({"id": pa.array(["1"]), **columns})
    return packing.PairTemplate.of(tokenizer), packing.tokenise(tokenizer, [batch])


def test_what_was_cut_is_reported_field_by_field(bert_folder: Path) -> None:
    template, battles = tokenised(bert_folder, prompt=4, a=10, b=40)
    report = Siamese.cut(template, battles, 32)
    assert report.battles_cut == 1
    assert report.tokens == 54
    assert report.tokens_cut == {"prompt": 0, "response_a": 0, "response_b": 40 - (32 - 3 - 4)}
    assert "response_b 15" in str(report)


def test_an_endless_prompt_leaves_room_for_the_answers(bert_folder: Path) -> None:
    template, battles = tokenised(bert_folder, prompt=500, a=10, b=40)
    for (ids, start), answer in zip(Siamese.compose(template, battles.fields(0), 32), (10, 14), strict=True):
        assert len(ids) == 32
        assert len(ids) - start - len(template.suffix) >= answer


def test_lengths_are_those_of_the_sequences(bert_folder: Path) -> None:
    for sizes in ((4, 10, 40), (3, 2, 1), (100, 100, 100)):
        template, battles = tokenised(bert_folder, *sizes)
        longest = max(len(ids) for ids, _ in Siamese.compose(template, battles.fields(0), 48))
        assert Siamese.lengths(template, battles, 48).tolist() == [longest]


def test_turns_are_joined_and_null_turns_skipped(bert_folder: Path) -> None:
    tokenizer = encoders.load_tokenizer(bert_folder)
    columns = {name: pa.array([["clear", None, "step"]], pa.list_(pa.string())) for name in packing.TEXT_FIELDS}
    battles = packing.tokenise(tokenizer, [make_batch({"id": pa.array(["1"]), **columns})])
    assert battles.prompt[0].tolist() == tokenizer("clear\nstep", add_special_tokens=False)["input_ids"]


def test_soft_labels_win_over_hard_ones_and_no_label_weighs_nothing() -> None:
    empty = packing.Ragged.of([[], [], []])
    battles = packing.TokenisedBattles(
        empty, empty, empty, np.array([0, 2, -1]), np.array([[np.nan] * 3, [0.2, 0.3, 0.5], [np.nan] * 3], np.float32)
    )
    assert battles.targets() == pytest.approx(np.array([[1, 0, 0], [0.2, 0.3, 0.5], [0, 0, 0]]))


def test_ragged_rows_come_back_as_they_went_in() -> None:
    rows = [[1, 2, 3], [], [4]]
    ragged = packing.Ragged.of(rows)
    assert [r.tolist() for r in ragged.take(np.array([2, 0, 1]))] == [[4], [1, 2, 3], []]
    joined = packing.Ragged.concatenate([ragged, packing.Ragged.of([[9]])])
    assert [joined[i].tolist() for i in range(4)] == [*rows, [9]]
