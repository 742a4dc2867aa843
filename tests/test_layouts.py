"""Published layouts with their real columns: each file's battles, recognised without options.

The rows follow the layouts' public documentation; no published row is copied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from prefcli.battles import Source
from prefcli.errors import InputError
from prefcli.readers import open_battles, parse_columns, with_layout_file

Battle = tuple[list[str | None], list[str | None], list[str | None], object]
"""Prompt, two answers, and who wins: 1, 2, "tie" or None."""

USER = [{"role": "user", "content": "Q?"}]
TWO_TURNS = [*USER, {"role": "assistant", "content": "R"}, {"role": "user", "content": "S?"}]


def reply(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def whole(text: str) -> list[dict[str, Any]]:
    return [*USER, *reply(text)]


def sharegpt(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def parts(text: str) -> list[dict[str, Any]]:
    return [
        {"role": role, "content": [{"type": "text", "text": said, "image": None, "mimeType": None}]}
        for role, said in (("user", "Q?"), ("assistant", text))
    ]


FIRST: Battle = (["Q?"], ["x"], ["y"], 1)
SECOND: Battle = (["Q?"], ["x"], ["y"], 2)
TIE: Battle = (["Q?"], ["x"], ["y"], "tie")
UNKNOWN: Battle = (["Q?"], ["x"], ["y"], None)

HH = "\n\nHuman: Q?\n\nAssistant:"

LAYOUTS: dict[str, tuple[str, list[dict[str, Any]], list[Battle]]] = {
    "wsdm": (
        "generic",
        [
            {
                "id": i,
                "prompt": "Q?",
                "response_a": "x",
                "response_b": "y",
                "winner": w,
                "model_a": "m",
                "model_b": "n",
                "language": "English",
            }
            for i, w in enumerate(("model_a", "model_b"))
        ],
        [FIRST, SECOND],
    ),
    "arena 140k": (
        "arena",
        [
            {
                "id": f"e{w}",
                "model_a": "m",
                "model_b": "n",
                "winner": w,
                "evaluation_session_id": "s",
                "evaluation_order": 1,
                "conversation_a": parts("x"),
                "conversation_b": parts("y"),
                "full_conversation": [],
                "conv_metadata": {},
                "category_tag": {},
                "language": "en",
                "is_code": False,
            }
            for w in ("model_a", "both_bad")
        ],
        [FIRST, TIE],
    ),
    "search arena": (
        "search-arena",
        [
            {
                "model_a": "m",
                "model_b": "n",
                "winner": "model_b",
                "judge": "j",
                "turn": 1,
                "messages_a": whole("x"),
                "messages_b": whole("y"),
                "system_a_metadata": {},
                "languages": ["English"],
            }
        ],
        [SECOND],
    ),
    "vote log": (
        "vote-log",
        [
            {
                "tstamp": 1.0,
                "type": kind,
                "models": ["", ""],
                "ip": "",
                "states": [
                    {
                        "template_name": "t",
                        "system_message": "s",
                        "roles": ["USER", "ASSISTANT"],
                        "offset": 2,
                        "messages": [["USER", "shot"], ["ASSISTANT", "shot"], ["USER", "Q?"], ["ASSISTANT", text]],
                        "model_name": name,
                    }
                    for text, name in (("x", "m"), ("y", "n"))
                ],
            }
            for kind in ("rightvote", "tievote")
        ]
        + [{"tstamp": 1.0, "type": "upvote", "model": "m", "state": {}, "ip": ""}],
        [SECOND, TIE],
    ),
    "mt-bench pairs": (
        "mt-bench-pairs",
        [
            {
                "question_id": 1,
                "model_1": "m",
                "model_2": "n",
                "g1_winner": one,
                "g2_winner": two,
                "judge": ["gpt-4", "pair"],
                "question": "Q?",
                "answer_1": "x",
                "answer_2": "y",
                "turn": 1,
            }
            for one, two in (("model_2", "model_2"), ("model_1", "tie"), ("error", "tie"))
        ],
        [SECOND, TIE, UNKNOWN],
    ),
    "hh-rlhf": ("preferences", [{"chosen": f"{HH} x", "rejected": f"{HH} y"}], [FIRST]),
    "full hh": (
        "preferences",
        [{"prompt": HH, "response": " x", "chosen": " x", "rejected": " y"}],
        [(["Q?"], [" x"], [" y"], 1)],
    ),
    "prompt under question, with system": (
        "preferences",
        [{"system": "S", "question": "Q?", "chosen": "x", "rejected": "y"}],
        [(["S\n\nQ?"], ["x"], ["y"], 1)],
    ),
    "orca with distilabel's columns": (
        "preferences",
        [
            {
                "system": "",
                "input": "Q?",
                "chosen": "x",
                "rejected": "y",
                "generations": ["x", "y"],
                "rating": [9.0, 1.0],
                "order": ["chosen", "rejected"],
                "status": "unchanged",
                "chosen_score": 9.0,
            }
        ],
        [FIRST],
    ),
    "alpaca with an empty input": (
        "preferences",
        [{"instruction": "Q?", "input": text, "chosen": "x", "rejected": "y"} for text in ("", "d")],
        [FIRST, (["Q?\nd"], ["x"], ["y"], 1)],
    ),
    "alpaca with history": (
        "preferences",
        [{"history": [["Q?", "R"]], "instruction": "S?", "input": "", "chosen": "x", "rejected": "y"}],
        [(["Q?", "S?"], ["R", "x"], ["R", "y"], 1)],
    ),
    "sharegpt with a system text": (
        "preferences",
        [
            {
                "conversations": sharegpt("Q?"),
                "system": "S",
                "tools": "[]",
                "chosen": sharegpt("", "x")[1],
                "rejected": sharegpt("", "y")[1],
            }
        ],
        [(["S\n\nQ?"], ["x"], ["y"], 1)],
    ),
    "llama-factory's openai form": (
        "preferences",
        [{"messages": TWO_TURNS, "chosen": reply("x")[0], "rejected": reply("y")[0]}],
        [(["Q?", "S?"], ["R", "x"], ["R", "y"], 1)],
    ),
    "ms-swift": (
        "ms-swift",
        [{"messages": whole("x"), "rejected_response": "y"}],
        [FIRST],
    ),
    "ms-swift, two conversations": (
        "ms-swift-messages",
        [{"messages": whole("x"), "rejected_messages": whole("y")}],
        [FIRST],
    ),
    "ms-swift, query": (
        "ms-swift-query",
        [{"system": "S", "query": "S?", "response": "x", "rejected_response": "y", "history": [["Q?", "R"]]}],
        [(["S\n\nQ?", "S?"], ["R", "x"], ["R", "y"], 1)],
    ),
    "axolotl": ("preferences", [{"instruction": "Q?", "chosen_response": "x", "rejected_response": "y"}], [FIRST]),
    "openai": (
        "openai-preference",
        [
            {
                "input": {"messages": USER, "tools": []},
                "preferred_output": reply("x"),
                "non_preferred_output": reply("y"),
            }
        ],
        [FIRST],
    ),
    "nemo-rl": (
        "nemo-rl",
        [
            {
                "context": USER,
                "completions": [{"rank": 1, "completion": reply("x")}, {"rank": 0, "completion": reply("y")}],
            }
        ],
        [SECOND],
    ),
    "distilabel": (
        "distilabel",
        [
            {
                "instruction": "Q?",
                "generations": ["x", "y", "z"],
                "ratings": [4, 5, 4],
                "model_names": ["m", "n", "o"],
                "rationales": ["", "", ""],
            }
        ],
        [SECOND, (["Q?"], ["x"], ["z"], "tie"), (["Q?"], ["y"], ["z"], 1)],
    ),
    "distilabel's dpo columns": (
        "preferences",
        [
            {
                "instruction": "Q?",
                "generations": ["x", "y"],
                "ratings": [5, 1],
                "prompt": "Q?",
                "prompt_id": "p",
                "chosen": whole("x"),
                "chosen_rating": 5,
                "rejected": whole("y"),
                "rejected_rating": 1,
            }
        ],
        [FIRST],
    ),
    "ultrafeedback binarized": (
        "preferences",
        [
            {
                "prompt": "Q?",
                "prompt_id": "p",
                "chosen": whole("x"),
                "rejected": whole("y"),
                "messages": whole("x"),
                "score_chosen": 8.0,
                "score_rejected": 2.0,
            }
        ],
        [FIRST],
    ),
    "messages beside whole conversations": (
        "preferences",
        [{"messages": whole("x"), "chosen": whole("x"), "rejected": whole("y")}],
        [FIRST],
    ),
    "ultrafeedback": (
        "ultrafeedback",
        [
            {
                "source": "s",
                "instruction": "Q?",
                "models": ["m", "n"],
                "correct_answers": [],
                "incorrect_answers": [],
                "completions": [
                    {
                        "model": "m",
                        "principle": "p",
                        "custom_system_prompt": "c",
                        "response": "x",
                        "overall_score": 3.0,
                        "fine-grained_score": 4.0,
                        "annotations": {},
                        "critique": "",
                    },
                    {"model": "n", "response": "y", "overall_score": 8.5},
                ],
            }
        ],
        [SECOND],
    ),
    "nectar": (
        "nectar",
        [
            {
                "prompt": HH + " ",
                "answers": [{"answer": "x", "model": "m", "rank": 1.0}, {"answer": "y", "model": "n", "rank": 2.0}],
                "turns": 1,
                "num_responses": 2,
                "source": ["s"],
                "good_natured": True,
            }
        ],
        [FIRST],
    ),
    "oasst": (
        "oasst",
        [
            {
                "message_tree_id": "t",
                "tree_state": "ready_for_export",
                "prompt": {
                    "message_id": "t",
                    "text": "Q?",
                    "role": "prompter",
                    "lang": "en",
                    "replies": [
                        {
                            "text": "x",
                            "role": "assistant",
                            "rank": 0,
                            "replies": [
                                {
                                    "text": "S?",
                                    "role": "prompter",
                                    "replies": [
                                        {"text": "u", "role": "assistant", "rank": 1, "replies": []},
                                        {"text": "v", "role": "assistant", "rank": 0, "replies": []},
                                        {"text": "w", "role": "assistant", "rank": None, "replies": []},
                                    ],
                                }
                            ],
                        },
                        {"text": "y", "role": "assistant", "rank": 1, "replies": []},
                    ],
                },
            }
        ],
        [FIRST, (["Q?", "S?"], ["x", "u"], ["x", "v"], 2)],
    ),
    "reward-bench 2": (
        "reward-bench-2",
        [
            {
                "id": "1",
                "prompt": "Q?",
                "chosen": ["x"],
                "rejected": ["y", "z"],
                "num_correct": 1,
                "num_incorrect": 2,
                "total_completions": 3,
                "models": ["m"],
                "subset": "Math",
                "additional_metadata": None,
            }
        ],
        [FIRST, (["Q?"], ["x"], ["z"], 1)],
    ),
    "helpsteer3": (
        "helpsteer3",
        [
            {
                "domain": "code",
                "language": "python",
                "context": TWO_TURNS,
                "response1": "x",
                "response2": "y",
                "overall_preference": p,
                "individual_preference": [],
            }
            for p in (-3, 1, 0)
        ],
        [(["Q?", "S?"], ["R", "x"], ["R", "y"], w) for w in (1, 2, "tie")],
    ),
    "helpsteer2": (
        "helpsteer2",
        [
            {
                "split": "train",
                "prompt": "Q?",
                "response_1": "x",
                "response_2": "y",
                "preference_strength": p,
                "preference_statement": "s",
                "preference_elaboration": "e",
            }
            for p in (-1, 2)
        ],
        [FIRST, SECOND],
    ),
    "safe-rlhf": (
        "safe-rlhf",
        [
            {
                "prompt": "Q?",
                "response_0": "x",
                "response_1": "y",
                "is_response_0_safe": True,
                "is_response_1_safe": False,
                "better_response_id": i,
                "safer_response_id": 0,
            }
            for i in (0, 1)
        ],
        [FIRST, SECOND],
    ),
    "shp": (
        "shp",
        [
            {
                "post_id": "p",
                "domain": "askculinary_train",
                "upvote_ratio": 0.9,
                "history": "Q?",
                "c_root_id_A": "a",
                "c_root_id_B": "b",
                "score_A": 1,
                "score_B": 2,
                "human_ref_A": "x",
                "human_ref_B": "y",
                "labels": 0,
            }
        ],
        [SECOND],
    ),
    "alpaca-eval": (
        "alpaca-eval",
        [
            {
                "instruction": "Q?",
                "output_1": "x",
                "generator_1": "m",
                "dataset": "d",
                "output_2": "y",
                "generator_2": "n",
                "annotator": "weighted",
                "preference": p,
                "raw_completion": None,
            }
            for p in (1.0001, 1.9, 1.5, 0, float("nan"), None)
        ],
        [FIRST, SECOND, TIE, TIE, UNKNOWN, UNKNOWN],
    ),
    "llmbar": (
        "llmbar",
        [{"input": "Q?", "output_1": "x", "output_2": "y", "label": i} for i in (1, 2)],
        [FIRST, SECOND],
    ),
    "judgebench": (
        "judgebench",
        [
            {
                "pair_id": "p",
                "original_id": "o",
                "source": "s",
                "question": "Q?",
                "response_model": "m",
                "response_A": "x",
                "response_B": "y",
                "label": "B>A",
            }
        ],
        [SECOND],
    ),
    "webgpt": (
        "webgpt",
        [
            {
                "question": {"dataset": "eli5", "id": "q", "full_text": "Q?"},
                "quotes_0": {},
                "answer_0": "x",
                "tokens_0": {},
                "score_0": a,
                "quotes_1": {},
                "answer_1": "y",
                "tokens_1": {},
                "score_1": b,
            }
            for a, b in ((-0.5, 0.5), (0, 0))
        ],
        [SECOND, TIE],
    ),
    "pandalm": (
        "pandalm",
        [
            {
                "idx": i,
                "motivation_app": "a",
                "cmp_key": "m_n",
                "instruction": "Q?",
                "input": float("nan"),
                "response1": "x",
                "response2": "y",
                "annotator1": one,
                "annotator2": two,
                "annotator3": three,
            }
            for i, (one, two, three) in enumerate(((2, 2, 1), (0, 1, 2), (0, 0, 1)))
        ],
        [SECOND, TIE, TIE],
    ),
    "summarize": (
        "summarize",
        [
            {
                "info": {"id": "i", "post": "Q?", "title": "T", "subreddit": "s", "site": None, "article": None},
                "split": "train",
                "summaries": [{"text": "x", "policy": "m", "note": ""}, {"text": "y", "policy": "n", "note": ""}],
                "choice": choice,
                "worker": "w",
                "batch": "b",
                "extra": {},
            }
            for choice in (1, 0)
        ],
        [(["T\nQ?"], ["x"], ["y"], 2), (["T\nQ?"], ["x"], ["y"], 1)],
    ),
    "two numbered answers, a winner in words": (
        "generic",
        [{"Question": "Q?", "Answer 1": "x", "Answer 2": "y", "Winner": w} for w in ("Answer 2", "tie")],
        [SECOND, TIE],
    ),
}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def battles(source: Path | Source) -> tuple[str, list[Battle]]:
    """The layout and the battles of a file."""
    file = open_battles(source)
    rows = [row for batch, _ in file.batches() for row in batch.to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows)
    outcomes = {0: 1, 1: 2, 2: "tie", None: None}
    return file.layout.name, [
        (row["prompt"], row["response_a"], row["response_b"], outcomes[row["label"]]) for row in rows
    ]


def with_answers_sorted(battle: Battle) -> Battle:
    """The same battle, whatever the sides: in chosen/rejected files and in lists they are decided by a hash."""
    prompt, a, b, outcome = battle
    if a <= b:  # type: ignore[operator]
        return battle
    return prompt, b, a, {1: 2, 2: 1}.get(outcome, outcome)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_are_read(tmp_path: Path, name: str) -> None:
    layout, rows, expected = LAYOUTS[name]
    found, read = battles(write(tmp_path / "rows.jsonl", rows))
    assert found == layout
    assert list(map(with_answers_sorted, read)) == list(map(with_answers_sorted, expected))


def read_with(tmp_path: Path, rows: Sequence[Mapping[str, Any]], **options: Any) -> list[Battle]:
    if isinstance(options.get("columns"), str):
        options["columns"] = parse_columns(options["columns"])
    return battles(Source((write(tmp_path / "rows.jsonl", rows),), **options))[1]


def refused(tmp_path: Path, rows: Sequence[Mapping[str, Any]], **options: Any) -> InputError:
    with pytest.raises(InputError) as error:
        read_with(tmp_path, rows, **options)
    assert len(error.value.lines()) <= 3
    return error.value


PLAIN = {"prompt": "Q?", "response_a": "x", "response_b": "y"}
CHOSEN = {"chosen": "The sky is blue.", "rejected": "The sky is black."}


# What the user says


@pytest.mark.parametrize(
    ("rule", "values", "outcomes"),
    [
        ("vote: left=a, right=b, same=tie, none=both_bad", ["LEFT", "right", "Same", "none", "", None],
         [1, 2, "tie", "tie", None, None]),
        ("vote: 1=a, -1=b, 0=tie", [1, 1.0, "1", "-1", 0.0, "0"], [1, 1, 1, 2, "tie", "tie"]),
        ("vote: <1.5=a, >1.5=b, 1.5=tie", [1, "1.49", 1.51, 2, 1.5], [1, 1, 2, 2, "tie"]),
        ("vote: <=2=a, >=4=b, 2..4=tie", [2, 4, 3, 2.5], [1, 2, "tie", "tie"]),
        ("vote: true=a, false=b", [True, False, "True"], [1, 2, 1]),
        ('vote: "left, clearly"=a, A=B=tie, other=unknown', ["left, clearly", "A=B", "other"], [1, "tie", None]),
    ],
)  # fmt: skip
def test_outcome_says_what_values_mean(tmp_path: Path, rule: str, values: list[Any], outcomes: list[object]) -> None:
    read = read_with(tmp_path, [{**PLAIN, "vote": value} for value in values], outcome=rule)
    assert [outcome for *_, outcome in read] == outcomes


def test_several_columns_agree_or_tie_or_vote_by_majority(tmp_path: Path) -> None:
    votes = [("l", "l", "l"), ("l", "l", "r"), ("r", "r", "l"), ("l", "r", "t"), ("l", "t", "t"), ("l", "", "")]
    rows = [{**PLAIN, "one": one, "two": two, "three": three} for one, two, three in votes]
    unanimous = read_with(tmp_path, rows, outcome="one,two,three: l=a, r=b, t=tie")
    assert [outcome for *_, outcome in unanimous] == [1, "tie", "tie", "tie", "tie", None]
    majority = read_with(tmp_path, rows, outcome="one,two,three (majority): l=a, r=b, t=tie")
    assert [outcome for *_, outcome in majority] == [1, 1, 2, "tie", "tie", 1]


def test_two_scores_are_compared(tmp_path: Path) -> None:
    rows = [{**PLAIN, "s": {"a": a, "b": b}} for a, b in ((1, 2), (2.5, "1"), (3, 3.0), (None, 1))]
    assert [o for *_, o in read_with(tmp_path, rows, outcome="s.a,s.b: higher")] == [2, 1, "tie", None]
    assert [o for *_, o in read_with(tmp_path, rows, outcome="s.a,s.b: lower")] == [1, 2, "tie", None]


def test_rows_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    rows = [{**PLAIN, "vote": vote} for vote in ("l", "chat", "l")]
    source = Source((write(tmp_path / "rows.jsonl", rows),), outcome="vote: l=a, chat=skip")
    ((batch, counts),) = open_battles(source).batches()
    assert batch.column("id").to_pylist() == ["1", "3"]
    assert counts.skipped == 1


def test_paths_and_sums_name_where_texts_are(tmp_path: Path) -> None:
    row = {"d": {"s": "", "q": ["no", "Q?"]}, "a.b": "x", "o": [{"t": "y"}], "i+j": "w"}
    read = read_with(tmp_path, [row, row], columns="prompt=d.s+d.q.1+d.q.0,response_a=a.b,response_b=o.-1.t")
    assert read == [(["Q?\nno"], ["x"], ["y"], None)] * 2
    read = read_with(tmp_path, [row, row], columns="prompt=i+j,response_a=a.b,response_b=o.0.t")
    assert read == [(["w"], ["x"], ["y"], None)] * 2


def test_lists_of_answers_become_pairs(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "texts": ["x", "y", "z"], "points": [2, 1, 2]}
    read = read_with(tmp_path, [row], each="texts: text=., score=/points")
    pairs = [(["x"], ["y"], 1), (["x"], ["z"], "tie"), (["y"], ["z"], 2)]
    assert list(map(with_answers_sorted, read)) == [(["Q?"], *pair) for pair in pairs]
    long = {"prompt": "Q?", "texts": [f"{i:03}" for i in range(20)], "points": list(range(20))}
    source = Source((write(tmp_path / "long.jsonl", [long]),), each="texts: text=., score=/points")
    ((batch, counts),) = open_battles(source).batches()
    assert batch.num_rows == 100
    assert counts.left_out_pairs == 20 * 19 // 2 - 100
    assert batch.column("id").to_pylist()[:2] == ["1-1", "1-2"]


def test_a_layout_file_says_the_same(tmp_path: Path) -> None:
    toml = tmp_path / "layout.toml"
    toml.write_text('outcome = "vote: l=a, r=b"\n[columns]\nprompt = "d.q"\nresponse_a = "o1"\nresponse_b = "o2"\n')
    path = write(tmp_path / "rows.jsonl", [{"d": {"q": "Q?"}, "o1": "x", "o2": "y", "vote": "r"}])
    assert battles(with_layout_file(Source((path,)), toml))[1] == [SECOND]
    own = with_layout_file(Source((path,), outcome="vote: r=a", columns={"response_a": "o2", "response_b": "o1"}), toml)
    assert battles(own)[1] == [(["Q?"], ["y"], ["x"], 1)]
    toml.write_text('outcom = "vote: l=a"\n')
    with pytest.raises(InputError, match="unknown key outcom") as error:
        with_layout_file(Source((path,)), toml)
    assert "Did you mean outcome" in error.value.hint


# What is never guessed


def test_numbers_for_the_outcome_are_refused_with_both_readings(tmp_path: Path) -> None:
    error = refused(tmp_path, [{**PLAIN, "label": label} for label in (1, -1, 0)])
    assert "asked 'Q?', A says 'x', B says 'y'" in error.what
    for rule, words in (("label: 1=a, -1=b, 0=tie", "A wins"), ("label: -1=a, 1=b, 0=tie", "B wins")):
        assert f"--outcome '{rule}'" in error.hint
        assert f"by {rule!r} {words}" in error.what
        (first, *_) = read_with(tmp_path, [{**PLAIN, "label": label} for label in (1, -1, 0)], outcome=rule)
        assert first[-1] == {"A wins": 1, "B wins": 2}[words]
    unread = read_with(tmp_path, [{**PLAIN, "label": 1}], columns="label=")
    assert unread == [UNKNOWN]
    file = open_battles(write(tmp_path / "rows.jsonl", [{**PLAIN, "label": 1}]), outcomes=False)
    assert file.not_read == ("label",)
    assert "label" in file.questions[0]


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        ({"winner": "A", "model_a": "B", "model_b": "A"}, 2),
        ({"winner": "A", "model_a": "A", "model_b": "gpt"}, 1),
        ({"winner": "gpt", "model_a": "A", "model_b": "gpt"}, 2),
        ({"winner": "tie", "model_a": "m", "model_b": "n"}, "tie"),
        ({"winner": "A", "model_a": "gpt", "model_b": "A"}, None),
        ({"winner": "tie", "model_a": "tie", "model_b": "gpt"}, None),
    ],
)
def test_models_that_are_called_like_sides(tmp_path: Path, row: Mapping[str, Any], outcome: object) -> None:
    if outcome is not None:
        assert read_with(tmp_path, [{**PLAIN, **row}])[0][-1] == outcome
    else:
        assert "also the name of a model" in refused(tmp_path, [{**PLAIN, **row}]).what


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"winner": "a", "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}, "winner says A"),
        ({"winner": "a", "vote": "right"}, "vote says B"),
        ({"winner": "a", "p_a": 0, "p_b": 1, "p_tie": 0}, "p_a is 0"),
    ],
)
def test_contradictions_between_outcomes_are_refused(tmp_path: Path, row: Mapping[str, Any], what: str) -> None:
    error = refused(tmp_path, [{**PLAIN, **row}])
    assert what in error.what
    assert "row 1" in error.where


@pytest.mark.parametrize(
    ("rows", "what", "hint"),
    [
        ([{**CHOSEN, "source": "web crawl"}], "not read: source", "--columns prompt="),
        ([{"chosen": reply("x"), "rejected": reply("y")}], "holds no message of the user", "prompt=NAME"),
        ([{"conversation_a": reply("x"), "conversation_b": reply("y")}], "no message of the user", ""),
        ([{"prompt": "P?", "chosen": whole("x"), "rejected": whole("y")}], "does not begin with prompt", "prompt="),
        ([{"prompt": "Q?", "context": "C", **CHOSEN}], "several columns: prompt, context", "prompt=prompt+context"),
        ([{"instruction": "Q?", "inp": "d", **CHOSEN}], "several columns: instruction, inp", "prompt=instruction+inp"),
        ([{"prompt": None, **CHOSEN}, {"prompt": "Q?", **CHOSEN}], "no prompt", ""),
        ([{"promt": "Q?", "response_a": "x", "response_b": "y"}], "missing column prompt", "mean promt"),
        ([{"prompt": "Q?", "choosen": "x", "rejected": "y"}], "missing column chosen", "mean choosen"),
        ([{"prompt": "Q?", "answers": [{"text": "x", "rank": 1}]}], "they have text, rank", "text=text, rank=rank"),
        ([{**PLAIN, "score_a": 1, "score_b": 2}], "what score_a and score_b mean", "'score_a,score_b: higher'"),
        ([{"question_id": 1, "model_1": "m", "model_2": "n", "g1_winner": "tie", "g2_winner": "tie"}],
         "without questions and answers", "Join them"),
    ],
)  # fmt: skip
def test_what_would_have_to_be_guessed_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], what: str, hint: str
) -> None:
    error = refused(tmp_path, rows)
    assert what in error.what
    assert hint in error.hint


def test_the_common_beginning_is_the_prompt_only_if_nothing_else_can_be(tmp_path: Path) -> None:
    split = [(["The sky is"], ["black."], ["blue."], 2)]
    assert list(map(with_answers_sorted, read_with(tmp_path, [{**CHOSEN, "score": 1.5}]))) == split
    asked = read_with(tmp_path, [{**CHOSEN, "source": "web crawl"}], columns="prompt=")
    assert list(map(with_answers_sorted, asked)) == split
    same_beginning = read_with(tmp_path, [{"request": "Story?", **CHOSEN}])
    assert list(map(with_answers_sorted, same_beginning)) == [
        (["Story?"], ["The sky is black."], ["The sky is blue."], 2)
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": USER, "chosen": whole("x"), "rejected": whole("y")},
        {"prompt": "Q?", "chosen": whole("x"), "rejected": whole("y")},
        {"prompt": "Q?", "chosen": "Q? x", "rejected": "Q?\ny"},
        {"prompt": "Q?", "chosen": f"{HH} x", "rejected": f"{HH} y"},
    ],
    ids=["messages", "text and messages", "text", "transcript"],
)
def test_a_prompt_that_the_answers_repeat_is_taken_once(tmp_path: Path, row: Mapping[str, Any]) -> None:
    assert list(map(with_answers_sorted, read_with(tmp_path, [row]))) == [FIRST]


def test_answers_that_begin_like_a_short_prompt_are_left_alone(tmp_path: Path) -> None:
    read = read_with(tmp_path, [{"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi you"}])
    assert with_answers_sorted(read[0]) == (["Hi"], ["Hi there"], ["Hi you"], 1)


TOOL_CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "w"}}]}


def test_what_a_tool_returns_is_never_an_answer(tmp_path: Path) -> None:
    conversations = {
        f"conversation_{side}": [*USER, TOOL_CALL, {"role": "tool", "content": said}, *reply(text)]
        for side, said, text in (("a", "1", "x"), ("b", "2", "y"))
    }
    assert read_with(tmp_path, [{**conversations, "winner": "a"}]) == [FIRST]
    prompt = [*USER, TOOL_CALL, {"role": "observation", "content": "rain"}]
    (battle,) = read_with(tmp_path, [{"prompt": prompt, "chosen": reply("x"), "rejected": reply("y")}])
    assert with_answers_sorted(battle) == (["Q?", "rain"], ["", "x"], ["", "y"], 1)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("\"['Hi', None]\",\"['a', 'b']\",\"['c', 'd']\"", ""),
        ("\"['Hi' 'you']\",\"['a' 'b']\",\"['c' 'd']\"", "look like lists of turns"),
    ],
    ids=["Python", "NumPy"],
)
def test_lists_of_turns_as_pandas_writes_them(tmp_path: Path, text: str, refusal: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt,response_a,response_b,winner\n{text},a\n")
    if refusal:
        with pytest.raises(InputError, match=refusal):
            battles(path)
    else:
        assert battles(path)[1] == [(["Hi", None], ["a", "b"], ["c", "d"], 1)]


def test_conversations_in_cells_of_text_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    cells = [json.dumps(whole("x")), str(whole("y"))]  # as JSON, and as pandas writes lists
    path.write_text("source,chosen,rejected\nweb," + ",".join('"' + c.replace('"', '""') + '"' for c in cells) + "\n")
    assert list(map(with_answers_sorted, battles(path)[1])) == [FIRST]


def test_answers_that_are_json_stay_text(tmp_path: Path) -> None:
    row = {"prompt": "JSON, please", "response_a": '["x"]', "response_b": '{"a": 1}', "winner": "a"}
    assert read_with(tmp_path, [row]) == [(["JSON, please"], ['["x"]'], ['{"a": 1}'], 1)]


def test_a_third_answer_is_not_overlooked(tmp_path: Path) -> None:
    row = {"question": "Q?", "answer_1": "x", "answer_2": "y", "answer_3": "z", "winner": "answer_1"}
    assert "more than two of a kind: answer_1, answer_2, answer_3" in refused(tmp_path, [row]).what
    assert read_with(tmp_path, [row], columns="response_a=answer_3,response_b=answer_1") == [(["Q?"], ["z"], ["x"], 2)]


def test_a_layouts_outcome_is_not_applied_to_answers_that_the_user_maps(tmp_path: Path) -> None:
    row = {"input": "Q?", "output_1": "x", "output_2": "y", "label": 1}
    assert read_with(tmp_path, [row]) == [FIRST]
    assert "what label means" in refused(tmp_path, [row], columns="response_a=output_2,response_b=output_1").what


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{**PLAIN, "winner": "a", "language": "en", "label": 1}])
    file = open_battles(path)
    assert file.not_read == ("language", "label")
    assert file.questions == ("label is not read: another column holds the outcome",)


def test_files_of_two_layouts_are_refused(tmp_path: Path) -> None:
    llmbar = {"input": "Q?", "output_1": "x", "output_2": "y", "label": 1}
    alpaca = {"instruction": "Q?", "output_1": "x", "output_2": "y", "preference": 2, "generator_1": "m"}
    assert "two columns: preference, label" in refused(tmp_path, [llmbar, alpaca]).what
    assert "several formats" in refused(tmp_path, [llmbar, {"prompt": "Q?", **CHOSEN}]).what
    rows = [{**PLAIN, "winner": "a"}, {"text": "x"}]
    assert "row 2" in refused(tmp_path, rows).where


def test_a_sum_takes_a_text_that_repeats_once(tmp_path: Path) -> None:
    row = {"instruction": "Q?", "input": "Q?", "chosen": "x", "rejected": "y"}
    assert list(map(with_answers_sorted, read_with(tmp_path, [row]))) == [FIRST]


def test_an_outcome_column_that_later_rows_fill_has_to_say_the_same(tmp_path: Path) -> None:
    rows = [*[{**PLAIN, "winner": "a", "label": None}] * 101, {**PLAIN, "winner": None, "label": "b"}]
    assert [battle[3] for battle in read_with(tmp_path, rows)] == [1] * 101 + [2]
    error = refused(tmp_path, [*rows, {**PLAIN, "winner": "a", "label": "b"}])
    assert "winner says A, label says B" in error.what
    assert "row 103" in error.where


@pytest.mark.parametrize(
    "name", ["preference.responses", "preferredResponse", "prefer_a", "result", "humanLabel", "vote-count"]
)
def test_names_of_outcomes_are_noticed_however_they_are_spelled(tmp_path: Path, name: str) -> None:
    assert f"what {name} means is not clear" in refused(tmp_path, [{**PLAIN, name: "x"}]).what


def test_ties_beside_chosen_and_rejected_are_asked_about(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "chosen": "x", "rejected": "y", "label": "tie", "chosen_model": "m", "rejected_score": 3}
    file = open_battles(write(tmp_path / "rows.jsonl", [row]))
    assert file.questions == ("label is not read: the answers' columns say who won",)


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        ({"selected": "left"}, "--outcome 'selected: left=a'"),
        ({"preference": "Mostly A"}, "--outcome 'preference: Mostly A=...'"),
        ({"preference": [{"user": "u", "value": "A"}]}, "--outcome 'preference.0.value: A=a'"),
        ({"a_better": False}, "--outcome 'a_better: true=a, false=b' or --outcome 'a_better: false=a, true=b'"),
        ({"votes_a": 1, "votes_b": 2}, "--outcome 'votes_a,votes_b: higher'"),
        ({"winner": "first"}, "--outcome 'winner: first=a|b|tie'"),
    ],
)
def test_the_hint_names_the_values(tmp_path: Path, more: dict[str, Any], hint: str) -> None:
    assert hint in refused(tmp_path, [{**PLAIN, **more}]).hint


def test_winners_of_spreadsheets_and_of_judges_are_read(tmp_path: Path) -> None:
    flags = {"winner_model_a": "TRUE", "winner_model_b": "FALSE", "winner_tie": "FALSE"}
    assert read_with(tmp_path, [{**PLAIN, **flags}])[0][3] == 1
    words = {"[[A>>B]]": 1, "[[B>A]]": 2, "[[A=B]]": "tie"}
    rows = [{**PLAIN, "verdict": word} for word in words]
    assert [battle[3] for battle in read_with(tmp_path, rows)] == list(words.values())


@pytest.mark.parametrize("names", [("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")])
def test_a_rejected_answer_with_the_higher_score_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    def rows(*scores: tuple[object, object]) -> list[dict[str, Any]]:
        return [{"prompt": "Q?", "chosen": "x", "rejected": "y", names[0]: c, names[1]: r} for c, r in scores]

    fitting: list[tuple[object, object]] = [(5, 3), (4.5, "4.5"), (None, 3), (1, None), ("n/a", 2)]
    assert len(read_with(tmp_path, rows(*fitting))) == 5
    error = refused(tmp_path, rows(*[(2, 1)] * 101, (9, 10)))
    assert "row 102" in error.where
    assert f"{names[0]} is 9, {names[1]} is 10" in error.what
    assert len(read_with(tmp_path, rows((9, 10)), columns=error.hint.split("--columns ")[1])) == 1


def test_a_third_answer_in_a_list_of_two_is_refused(tmp_path: Path) -> None:
    rows = [{"instruction": "Q?", "input": "", "output": ["x", "y"]}, {"instruction": "Q?", "output": ["x", "y", "z"]}]
    error = refused(tmp_path, rows)
    assert "more than two answers" in error.what
    assert "row 2" in error.where
    options = error.hint.split("--columns ")[1]
    read = read_with(tmp_path, rows, columns=options.split(" ")[0], format="preferences")
    assert list(map(with_answers_sorted, read)) == [with_answers_sorted(FIRST)] * 2


@pytest.mark.parametrize("text", ["Human: rights are?", "Assistant: what is one?", "\nHuman: Assistant: who?"])
def test_texts_that_begin_like_a_transcript_are_plain(tmp_path: Path, text: str) -> None:
    row = {"prompt": text, "chosen": f"{text} x", "rejected": "Human: y"}
    assert with_answers_sorted(read_with(tmp_path, [row])[0]) == with_answers_sorted(
        ([text], [f"{text} x"], ["Human: y"], 1)
    )


@pytest.mark.parametrize(
    ("more", "option"),
    [
        ({"article": "Long."}, "--columns prompt=article"),
        ({"title": "T", "body": "B"}, "--columns prompt=title+body"),
        ({"prompt_id": "p1"}, "--columns prompt=NAME"),
    ],
)
def test_a_missing_prompt_is_sought_in_texts_alone(tmp_path: Path, more: dict[str, str], option: str) -> None:
    row = {**more, "response_a": "x", "response_b": "y", "winner": "model_a"}
    assert option in refused(tmp_path, [row]).hint


def test_battles_inside_of_objects_are_refused_with_the_paths_to_them(tmp_path: Path) -> None:
    row = {"row_idx": 0, "row": {"prompt": "Q?", "chosen": "x", "rejected": "y"}}
    error = refused(tmp_path, [row])
    read = read_with(tmp_path, [row], columns=error.hint.split("--columns ")[1])
    assert with_answers_sorted(read[0]) == with_answers_sorted(FIRST)
    assert "jq -c '.[]'" in refused(tmp_path, [{"q1": row["row"], "q2": row["row"]}]).hint


def test_one_column_is_not_proposed_for_two_answers(tmp_path: Path) -> None:
    hint = refused(tmp_path, [{"prompt": "Q?", "response": "x", "helpfulness": 4}]).hint
    assert hint == "Name them with --columns response_a=NAME,response_b=NAME"


def test_answers_without_score_are_refused_with_the_names_they_have(tmp_path: Path) -> None:
    answers = [{"model": "m", "response": text, "fine-grained_score": score} for text, score in (("x", 2), ("y", 1))]
    row = {"instruction": "Q?", "models": ["m", "m"], "completions": answers}
    assert "fine-grained_score" in refused(tmp_path, [row]).hint
    each = "completions: text=response, score=fine-grained_score"
    assert len(read_with(tmp_path, [row], each=each, columns={"prompt": "instruction"})) == 1


@pytest.mark.parametrize(
    ("kind", "before"), [({"response_a": "x", "response_b": "y", "winner": "a"}, 1), (PLAIN, 101), (CHOSEN, 101)]
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_messages_below_plain_texts_are_refused(tmp_path: Path, kind: dict[str, str], suffix: str, before: int) -> None:
    row = {"prompt": "Q?", **kind}
    answers = [name for name in kind if name not in ("winner", "prompt")]
    odd = {**row, **{name: json.dumps(whole(kind[name])) for name in answers}}
    one_answer = {**row, answers[0]: odd[answers[0]]}  # a model was asked for JSON
    for rows, is_read in (([row] * before + [one_answer], True), ([row] * before + [odd], False)):
        path = tmp_path / f"rows.{suffix}"
        if suffix == "csv":
            pd.DataFrame(rows).to_csv(path, index=False)
        else:
            write(path, rows)
        if is_read:
            assert len(battles(path)[1]) == before + 1
            continue
        with pytest.raises(InputError) as error:
            battles(path)
        assert f"row {before + 1}" in str(error.value)
        name = "preferences" if "chosen" in kind else "generic"
        assert len(battles(Source((path,), format=name))[1]) == before + 1


def test_a_prompt_of_json_is_text(tmp_path: Path) -> None:
    text = '{"content": "x", "lang": "y"}'
    assert read_with(tmp_path, [{"prompt": text, **CHOSEN}])[0][0] == [text]


def test_an_empty_answer_in_a_history_is_empty(tmp_path: Path) -> None:
    prompt, *answers, _ = read_with(tmp_path, [{"history": [["h", None]], "prompt": "Q?", **CHOSEN}])[0]
    assert prompt == ["h", "Q?"]
    assert [turns[0] for turns in answers] == [None, None]  # type: ignore[index]


@pytest.mark.parametrize("flag", [True, 1, "True", "1"])
def test_both_bad_is_read_from_every_container(tmp_path: Path, flag: object) -> None:
    file = open_battles(write(tmp_path / "rows.jsonl", [{**PLAIN, "winner": "tie", "both_bad": flag}]))
    assert next(file.batches())[0].column("both_bad").to_pylist() == [True]


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        (("instruction", "output_1", "output_2", "preference"), (0, 1)),
        (("context", "response1", "response2", "overall_preference"), (1, 2, 3)),
    ],
)
def test_a_known_layout_with_another_scale_is_refused(
    tmp_path: Path, columns: tuple[str, ...], values: tuple[int, ...]
) -> None:
    rows = [dict(zip(columns, ("Q?", "x", "y", value), strict=True)) for value in values * 10]
    error = refused(tmp_path, rows)
    assert f"what {columns[-1]} means is not clear" in error.what
    rule = error.hint.split("--outcome '")[1].split("'")[0]
    assert len({battle[3] for battle in read_with(tmp_path, rows, outcome=rule)}) == len(values)
    assert open_battles(tmp_path / "rows.jsonl", outcomes=False).layout.outcome
    fitting = [*rows[:-1], {**rows[-1], columns[-1]: {1: 2, 3: -1}[values[-1]]}]
    assert len(read_with(tmp_path, fitting)) == len(rows)


def test_a_part_of_the_prompt_that_only_later_rows_have_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "Q?", "input": "", **CHOSEN}] * 101
    assert len(read_with(tmp_path, rows)) == 101
    error = refused(tmp_path, [*rows, {"prompt": "Q?", "input": "More.", **CHOSEN}])
    assert "the prompt may be in several columns: prompt, input" in error.what
    assert "row 102" in error.where
    joined = read_with(tmp_path, [{"prompt": "Q?", "input": "More.", **CHOSEN}], columns="prompt=prompt+input")
    assert joined[0][0] == ["Q?\nMore."]
