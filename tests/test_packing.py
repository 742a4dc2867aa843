"""Token ids under a budget: what is kept, what is cut, and that no side disappears."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefcli import encoders
from prefcli.battles import make_batch
from prefcli.errors import ModelError
from prefcli.models import packing, tokens
from prefcli.models.packing import JOINT_INPUT, PAIR_INPUT, InputFormat

lengths = st.lists(st.integers(0, 900), min_size=2, max_size=3)


@settings(max_examples=300, deadline=None)
@given(lengths, st.integers(0, 1200))
def test_the_budget_is_used_up_and_no_field_is_cut_below_an_equal_share(fields: list[int], budget: int) -> None:
    kept = packing.allocate_budget(np.array(fields), budget).tolist()
    assert sum(kept) == min(sum(fields), budget)
    assert all(0 <= k <= n for k, n in zip(kept, fields, strict=True))
    assert all(k >= min(n, budget // len(fields)) for k, n in zip(kept, fields, strict=True))


@settings(max_examples=100, deadline=None)
@given(st.lists(lengths.filter(lambda row: len(row) == 2), min_size=1, max_size=8), st.integers(0, 1200))
def test_many_rows_together_are_cut_as_each_alone(rows: list[list[int]], budget: int) -> None:
    together = packing.allocate_budget(np.array(rows), budget)
    assert together.tolist() == [packing.allocate_budget(np.array(row), budget).tolist() for row in rows]


@pytest.mark.parametrize("first", [3, 15, 29, 30, 31, 60])
@pytest.mark.parametrize("second", [2, 28, 29, 30, 61])
def test_a_pair_is_cut_as_hugging_faces_longest_first(bert_folder: Path, first: int, second: int) -> None:
    tokenizer = encoders.load_tokenizer(bert_folder)
    texts = " ".join(["clear"] * first), " ".join(["vague"] * second)
    expected = tokenizer(*texts, truncation="longest_first", max_length=32)["input_ids"]
    ids = [np.array(tokenizer(t, add_special_tokens=False)["input_ids"], np.int32) for t in texts]
    packed = packing.Packing.from_tokenizer(tokenizer, 32).pack([a_field(i) for i in ids])
    assert packed.ids.tolist() == expected


def tokenizer_with(single: str, pair: str, vocabulary: Sequence[str] = ("[UNK]", "[CLS]", "[SEP]")) -> Any:
    """A tokenizer of words with its special tokens where the templates say; text is ``$A`` and ``$B``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = [(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=specials)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", model_input_names=inputs)


WORDS = ("[UNK]", "[CLS]", "[SEP]", "alpha", "omega", "people", "prefer")


@pytest.mark.parametrize("vocabulary", [WORDS, WORDS[:3]])
@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("[CLS] $A:0 [SEP]:0 $B:1 [SEP]:1", (((1,), (2,)), (2,), 1)),
        ("[CLS] $A [SEP] [SEP] $B [SEP]", (((1,), (2, 2)), (2,), 0)),
        ("$A [SEP] $B:2 [SEP]:2 [CLS]:3", (((), (2,)), (2, 1), 2)),
        ("$A $B", (((), ()), (), 0)),
    ],
)
def test_special_tokens_stay_where_the_tokenizer_puts_them(pair: str, expected: Any, vocabulary: Sequence[str]) -> None:
    template = packing.Template.from_tokenizer(tokenizer_with("[CLS] $A [SEP]", pair, vocabulary))
    assert (template.pair.prefixes, template.pair.suffix, template.last_type) == expected
    assert template.both.prefixes == (*template.pair.prefixes, template.pair.prefixes[1])


def test_a_tokenizer_that_swaps_the_texts_of_a_pair_is_refused() -> None:
    tokenizer = tokenizer_with("[CLS] $A [SEP]", "[CLS] $B [SEP] $A [SEP]", WORDS)
    with pytest.raises(ModelError, match="encodes a text alone in another way"):
        packing.Template.from_tokenizer(tokenizer)
    assert packing.Template.from_tokenizer(tokenizer, "words").pair.prefixes[0][0] == 1


@pytest.mark.parametrize("kind", ["tokens", "words"])
def test_a_tokenizer_that_drops_the_text_is_refused(kind: str) -> None:
    from tokenizers import Regex, normalizers

    tokenizer = tokenizer_with("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", WORDS)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[a-z]"), "")
    with pytest.raises(ModelError, match="encodes a text alone in another way"):
        packing.Template.from_tokenizer(tokenizer, kind)


def a_field(ids: Any, turns: Sequence[int] | None = None) -> tokens.Field:
    return tokens.Field(np.asarray(ids, np.int32), np.array([len(ids)] if turns is None else turns, np.int32))


def tokenised(bert_folder: Path, prompt: int, a: int, b: int) -> tuple[Any, tokens.TokenisedBattles]:
    tokenizer = encoders.load_tokenizer(bert_folder)
    turns = [[" ".join(["river"] * prompt)], [" ".join(["clear"] * a)], [" ".join(["vague"] * b)]]
    columns = {name: pa.array([t], pa.list_(pa.string())) for name, t in zip(packing.TEXT_FIELDS, turns, strict=True)}
    batch = make_batch({"id": pa.array(["1"]), **columns})
    return tokenizer, tokens.tokenise(tokenizer, [batch])


def test_what_was_cut_is_reported_field_by_field(bert_folder: Path) -> None:
    tokenizer, battles = tokenised(bert_folder, prompt=4, a=10, b=40)
    report = PAIR_INPUT.truncation_report(packing.Packing.from_tokenizer(tokenizer, 32), battles)
    assert report.battles_cut == 1
    assert report.tokens == 54
    assert report.tokens_cut == {"prompt": 0, "response_a": 0, "response_b": 40 - (32 - 3 - 4)}
    assert "response_b 15" in str(report)


def test_an_endless_prompt_leaves_room_for_the_answers(bert_folder: Path) -> None:
    tokenizer, battles = tokenised(bert_folder, prompt=500, a=10, b=40)
    for packed, answer in zip(
        PAIR_INPUT.pack(packing.Packing.from_tokenizer(tokenizer, 32), battles.fields(0)), (10, 14), strict=True
    ):
        assert len(packed.ids) == 32
        start, end = packed.spans[1]
        assert end - start >= answer


@pytest.mark.parametrize("input_format", [PAIR_INPUT, JOINT_INPUT])
@pytest.mark.parametrize("truncation", ["head", "head-tail"])
def test_lengths_are_those_of_the_sequences(bert_folder: Path, input_format: InputFormat, truncation: str) -> None:
    for sizes in ((4, 10, 40), (3, 2, 1), (100, 100, 100), (0, 0, 300)):
        tokenizer, battles = tokenised(bert_folder, *sizes)
        rules = packing.Packing.from_tokenizer(tokenizer, 48, truncation)
        longest = max(len(packed.ids) for packed in input_format.pack(rules, battles.fields(0)))
        assert input_format.lengths(rules, battles).tolist() == [longest]


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [((4, 10, 40), (4, 10, 14)), ((100, 4, 5), (19, 4, 5)), ((50, 50, 50), (9, 9, 10)), ((1, 1, 1), (1, 1, 1))],
)
def test_a_cross_encoders_three_fields_share_one_budget(
    bert_folder: Path, sizes: tuple[int, int, int], kept: tuple[int, int, int]
) -> None:
    """32 tokens less four special ones; what one field does not need flows to the others."""
    tokenizer, battles = tokenised(bert_folder, *sizes)
    (packed,) = JOINT_INPUT.pack(packing.Packing.from_tokenizer(tokenizer, 32), battles.fields(0))
    assert tuple(end - start for start, end in packed.spans) == kept
    words = [tokenizer.decode(packed.ids[start:end].tolist()).split() for start, end in packed.spans]
    assert [set(w) for w in words] == [{"river"}, {"clear"}, {"vague"}]
    assert tokenizer.convert_ids_to_tokens(int(packed.ids[packed.spans[1][1]])) == "[SEP]"


M = [-1]  # a mark of one token


@pytest.mark.parametrize(
    ("turns", "size", "kept"),
    [
        # One turn: head, mark, tail; the head gets the odd one.
        ([[1, 2, 3, 4, 5, 6, 7, 8]], 6, [1, 2, 3, *M, 7, 8]),
        ([[1, 2, 3, 4, 5, 6, 7, 8]], 3, [1, *M, 8]),
        # No room for two ends and a mark: the head.
        ([[1, 2, 3, 4, 5, 6, 7, 8]], 2, [1, 2]),
        ([[1, 2, 3, 4, 5, 6, 7, 8]], 0, []),
        # The last turn is whole, the one before it is cut.
        ([[1, 2, 3, 4, 5, 6], [7, 8]], 5, [1, *M, 6, 7, 8]),
        # Too little room for ends of the first turn: only the mark.
        ([[1, 2, 3, 4, 5, 6], [7, 8]], 4, [*M, 7, 8]),
        # A turn is missing at the front, another is cut: two marks.
        ([[1, 2], [3, 4, 5, 6, 7], [8, 9]], 7, [*M, 3, 4, *M, 7, 8, 9]),
        ([[1, 2], [3, 4, 5], [8, 9]], 6, [*M, 3, 4, 5, 8, 9]),
        # Even the last turn does not fit.
        ([[1, 2], [3, 4, 5, 6, 7, 8, 9]], 5, [*M, 3, 4, *M, 9]),
    ],
)
def test_head_and_tail_of_the_last_turns_are_kept_and_marked(
    turns: list[list[int]], size: int, kept: list[int]
) -> None:
    field = a_field([token for turn in turns for token in turn], [len(turn) for turn in turns])
    assert packing.head_and_tail(field, size, np.array(M, np.int32)).tolist() == kept


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 40), st.integers(1, 3))
def test_a_cut_field_never_outgrows_its_share_and_keeps_the_order(turns: list[int], size: int, mark: int) -> None:
    total = sum(turns)
    size = min(size, total - 1)
    kept = packing.head_and_tail(a_field(range(total), turns), size, np.full(mark, -1, np.int32)).tolist()
    text = [token for token in kept if token >= 0]
    assert len(kept) <= size
    assert text == sorted(text)
    assert size < 2 + 2 * mark or text[-1] == total - 1, "the end of the last turn is always there"
    assert size < 2 + 2 * mark or -1 in kept


def test_turns_are_joined_and_null_turns_skipped(bert_folder: Path) -> None:
    tokenizer = encoders.load_tokenizer(bert_folder)
    columns = {name: pa.array([["clear", None, "step"]], pa.list_(pa.string())) for name in packing.TEXT_FIELDS}
    batch = make_batch({"id": pa.array(["1"]), **columns})
    battles = tokens.tokenise(tokenizer, [batch])
    assert battles.columns[0][0].tolist() == tokenizer("clear\nstep", add_special_tokens=False)["input_ids"]
    by_turn = tokens.tokenise(tokenizer, [batch, batch], by_turn=True).take(np.array([1]))
    field = by_turn.fields(0)[2]
    assert field.turns.sum() == len(field.ids)
    assert tokenizer.decode(field.ids[: field.turns[0]].tolist()).split() == ["clear"]
    assert tokenizer.decode(field.ids[field.turns[0] :].tolist()).split() == ["step"]


def test_ragged_rows_round_trip() -> None:
    rows = [[1, 2, 3], [], [4]]
    ragged = tokens.Ragged.from_rows(rows)
    assert [r.tolist() for r in ragged.take(np.array([2, 0, 1, 0]))] == [[4], [1, 2, 3], [], [1, 2, 3]]
    assert len(ragged.take(np.array([], dtype=int))) == 0
    joined = tokens.Ragged.concatenate([ragged, tokens.Ragged.from_rows([[9]])])
    assert [joined[i].tolist() for i in range(4)] == [*rows, [9]]
    assert [r.tolist() for r in joined.merge_rows(np.array([2, 0, 2]))] == [[1, 2, 3], [], [4, 9]]
