"""Published layouts with their real columns: each file's battles, recognised without options.

The rows follow the layouts' public documentation; no published row is copied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from prefcli.battles import Source
from prefcli.readers import open_battles

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
        "preferences",
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
