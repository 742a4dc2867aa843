"""Random battles, and the files that hold them in every layout that prefcli knows.

A :class:`Known` writes battles as the rows of one public layout and says which battles a reader must return for them.
It is written from the layouts' public documentation and shares no code with :mod:`prefcli.readers`. No published row is
copied.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

A, B, TIE = 0, 1, 2

Row = dict[str, Any]


@dataclass(frozen=True)
class Battle:
    """The truth of one battle."""

    prompts: tuple[str, ...]
    a: tuple[str | None, ...]
    """The first answer, one text per turn; None where a model said nothing."""
    b: tuple[str | None, ...]
    outcome: int | None
    system: str = ""
    both_bad: bool = False
    """Of a tie, whether the voter found both answers bad."""
    models: tuple[str, str] = ("koala", "vole")

    @property
    def chosen(self) -> tuple[str | None, ...]:
        return self.a if self.outcome == A else self.b

    @property
    def rejected(self) -> tuple[str | None, ...]:
        return self.b if self.outcome == A else self.a


@dataclass(frozen=True)
class Holds:
    """What a layout can hold."""

    ties: bool = True
    both_bad: bool = False
    unknown: bool = False
    turns: str = "one"
    """``one``; ``history``: earlier turns are the same for both answers; ``own``: each answer has its own."""
    system: bool = False
    nulls: bool = False
    """Whether an answer may be null."""
    empty: bool = True
    """Whether an answer may be empty text."""


WORDS = (
    "plum river seven cat why the of Tuesday blue 42 3.5 -1 0 yes no left right A B tie model_a chosen prompt 你好 мир "
    'naïve עולם 🦊 e\u0301 "quoted" it\'s a,b c;d x\ty back\\slash [note] {brace} <b>bold</b> 100% #tag | café null '
    "None true NaN \u2028 \u00a0 \u200b a=b a>b"
).split(" ")
SEPARATORS = (" ", " ", " ", " ", "\n", "\n\n", ", ")


def text(rng: random.Random, most: int = 9) -> str:
    """Some words. Never starts or ends with white space, and starts with a word of its own, so that texts differ."""
    words = [rng.choice(WORDS) + rng.choice(SEPARATORS) for _ in range(rng.randrange(most))]
    return re.sub(r"[\s\u200b]+$", "", f"{rng.choice('QWERTZ')}{rng.randrange(10**6)} " + "".join(words))


def battle(rng: random.Random, holds: Holds) -> Battle:
    """A random battle that a layout can hold."""
    turns = 1 if holds.turns == "one" else rng.choice([1, 1, 2, 3])
    prompts = tuple(text(rng) for _ in range(turns))
    history = [text(rng) for _ in range(turns - 1)]
    last_a, last_b = text(rng), text(rng)
    if rng.random() < 0.2:  # answers that begin alike
        beginning = text(rng, 3)
        last_a, last_b = f"{beginning} {last_a}", f"{beginning} {last_b}"
    if holds.empty and rng.random() < 0.06:
        last_a, last_b = rng.sample([last_a, ""], 2)
    a, b = (*history, last_a), (*history, last_b)
    if holds.turns == "own":
        a, b = tuple(text(rng) for _ in prompts), tuple(text(rng) for _ in prompts)
    if holds.nulls and rng.random() < 0.1:
        a = (*a[:-1], None)
    outcomes: list[int | None] = [A, B] + [TIE] * holds.ties + [None] * holds.unknown
    outcome = rng.choice(outcomes)
    models = tuple(rng.sample(["koala", "vole-7b", "gpt-9", "ibis:latest", "org/emu"], 2))
    return Battle(
        prompts,
        a,
        b,
        outcome,
        system=text(rng) if holds.system and rng.random() < 0.4 else "",
        both_bad=outcome == TIE and holds.both_bad and rng.random() < 0.5,
        models=(models[0], models[1]),
    )


def battles(rng: random.Random, holds: Holds, count: int) -> list[Battle]:
    """Random battles with every outcome that the layout can hold."""
    drawn = [battle(rng, holds) for _ in range(count)]
    for index, outcome in enumerate([A, B] + [TIE] * holds.ties):
        drawn[index] = replace(drawn[index], outcome=outcome, both_bad=False)
    return drawn


# Messages


def message(role: str, content: Any, keys: tuple[str, str] = ("role", "content")) -> Row:
    return {keys[0]: role, keys[1]: content}


SHAREGPT = {"keys": ("from", "value"), "roles": ("system", "human", "gpt")}


def conversation(
    battle: Battle,
    answers: Sequence[str | None],
    keys: tuple[str, str] = ("role", "content"),
    roles: tuple[str, str, str] = ("system", "user", "assistant"),
    system: bool = True,
) -> list[Row]:
    """Messages of the prompts with as many answers as are given."""
    messages = [message(roles[0], battle.system, keys)] if battle.system and system else []
    for index, prompt in enumerate(battle.prompts):
        messages.append(message(roles[1], prompt, keys))
        if index < len(answers):
            messages.append(message(roles[2], answers[index], keys))
    return messages


def question(battle: Battle, **how: Any) -> list[Row]:
    """The messages before the two answers."""
    return conversation(battle, battle.a[:-1], **how)


def transcript(battle: Battle, answers: Sequence[str | None]) -> str:
    """HH-RLHF's form."""
    pairs = zip(battle.prompts, answers, strict=True)
    return "".join(f"\n\nHuman: {prompt}\n\nAssistant: {answer or ''}" for prompt, answer in pairs)


# Rows of each layout


@dataclass(frozen=True)
class Known:
    """One public layout."""

    name: str
    row: Callable[[Battle, int], Row]
    """A battle and its number -> a row of the file."""
    holds: Holds = Holds()
    sided: bool = True
    """Whether the file says which answer is A; chosen and rejected, and lists of answers, do not."""
    containers: tuple[str, ...] = ("jsonl", "json", "parquet")
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``Source`` that it takes to read the file."""
    truth: Callable[[Battle], list[Battle]] = lambda battle: [battle]
    """The battles that a row holds."""
    may_refuse: bool = False
    """Whether refusing the file is right as well."""
    extra_rows: tuple[Row, ...] = ()
    """Rows that hold no battle."""


def by_outcome(battle: Battle, a: Any, b: Any, tie: Any = None, unknown: Any = None) -> Any:
    return unknown if battle.outcome is None else (a, b, tie)[battle.outcome]


def winner(battle: Battle, bad: str = "tie (bothbad)") -> str | None:
    return bad if battle.both_bad else by_outcome(battle, "model_a", "model_b", "tie")


def one_hot(battle: Battle) -> Row:
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    return {name: None if battle.outcome is None else int(battle.outcome == i) for i, name in enumerate(names)}


def model_names(battle: Battle, a: str = "model_a", b: str = "model_b") -> Row:
    return {a: battle.models[0], b: battle.models[1]}


def kaggle(battle: Battle, number: int) -> Row:
    texts = {"prompt": battle.prompts, "response_a": battle.a, "response_b": battle.b}
    return {
        "id": 30192 + number,
        **model_names(battle),
        **{name: json.dumps(turns, ensure_ascii=number % 2 == 0) for name, turns in texts.items()},
        **one_hot(battle),
    }


def wsdm(battle: Battle, number: int) -> Row:
    return {
        "id": f"{number:064x}",
        "prompt": battle.prompts[0],
        "response_a": battle.a[0],
        "response_b": battle.b[0],
        "winner": winner(battle),
        **model_names(battle),
        "language": "English",
    }


def arena(battle: Battle, number: int) -> Row:
    return {
        "question_id": f"{number:032x}",
        **model_names(battle),
        "winner": winner(battle),
        "conversation_a": conversation(battle, battle.a),
        "conversation_b": conversation(battle, battle.b),
        "turn": len(battle.prompts),
        "anony": True,
        "language": "English",
        "tstamp": 1682351591.13 + number,
    }


def arena_33k(battle: Battle, number: int) -> Row:
    moderation = {"flagged": False, "categories": {"hate": False}, "category_scores": {"hate": 0.01}}
    tags = {"roberta-large": {"flagged": False, "probability": 0.01}}
    return {
        **arena(battle, number),
        "judge": "arena_user_973",
        "openai_moderation": moderation,
        "toxic_chat_tag": tags,
    }


def arena_100k(battle: Battle, number: int) -> Row:
    counts = {name: {"h1": 0, "h2": 1} for name in ("header_count_a", "header_count_b")}
    return {
        **arena(battle, number),
        "conv_metadata": {"sum_assistant_a_tokens": 100, **counts},
        "is_code": False,
        "is_refusal": False,
        "dedup_tag": {"high_freq": False, "sampled": True},
        "category_tag": {"math_v0.1": {"math": False}, "criteria_v0.1": {"complexity": True}},
        "judge_hash": f"{number:064x}",
    }


def arena_140k(battle: Battle, number: int) -> Row:
    def parts(answers: Sequence[str | None]) -> list[Row]:
        messages = conversation(battle, answers)
        typed = {"type": "text", "image": None, "mimeType": None}
        return [message(row["role"], [{**typed, "text": row["content"]}]) for row in messages]

    sides = {"conversation_a": parts(battle.a), "conversation_b": parts(battle.b)}
    rounds = [{"user": user, "model_side_a": a, "model_side_b": b} for user, a, b in turns_of(battle)]
    return {
        "id": f"{number:036x}",
        **model_names(battle),
        "winner": winner(battle, "both_bad"),
        "evaluation_session_id": "s",
        "evaluation_order": 1,
        **sides,
        "full_conversation": rounds,
        "conv_metadata": {"turns": len(battle.prompts)},
        "category_tag": {"math_v0.1": {"math": False}},
        "language": "en",
        "is_code": False,
        "timestamp": "2025-07-01 00:00:00",
    }


def turns_of(battle: Battle) -> list[tuple[Row, Row, Row]]:
    """Each turn's message of the user and of both models."""
    turns = zip(battle.prompts, battle.a, battle.b, strict=True)
    return [(message("user", user), message("assistant", a), message("assistant", b)) for user, a, b in turns]


def search_arena(battle: Battle, number: int) -> Row:
    return {
        **model_names(battle),
        "winner": winner(battle),
        "judge": f"{number:064x}",
        "turn": len(battle.prompts),
        "timestamp": "2025-03-18 16:39:00.550000",
        "messages_a": conversation(battle, battle.a),
        "messages_b": conversation(battle, battle.b),
        "system_a_metadata": {"client_country": None, "formatted_messages": conversation(battle, battle.a)},
        "system_b_metadata": {"client_country": None, "formatted_messages": conversation(battle, battle.b)},
        "primary_intent": "Other",
        "languages": ["English"],
    }


def vote_log(battle: Battle, number: int) -> Row:
    def state(answers: Sequence[str | None], model: str) -> Row:
        said = [[row["role"].upper(), row["content"]] for row in conversation(battle, answers)]
        examples = [["USER", "An example?"], ["ASSISTANT", "An example."]] if number % 3 == 0 else []
        return {
            "template_name": "one_shot",
            "system_message": "",
            "roles": ["USER", "ASSISTANT"],
            "messages": examples + said,
            "offset": len(examples),
            "conv_id": f"{number:032x}{model}",
            "model_name": model,
        }

    votes = ("leftvote", "rightvote", "tievote")
    return {
        "tstamp": 1682351591.13 + number,
        "type": "bothbad_vote" if battle.both_bad else by_outcome(battle, *votes),
        "models": ["", ""] if number % 2 else list(battle.models),
        "states": [state(battle.a, battle.models[0]), state(battle.b, battle.models[1])],
        "ip": "192.0.2.1",
    }


NOT_VOTES = (
    {"tstamp": 1.0, "type": "chat", "model": "koala", "gen_params": {}, "state": {"messages": [["USER", "Hi"]]}},
    {"tstamp": 2.0, "type": "upvote", "model": "koala", "state": {"messages": []}, "ip": "192.0.2.1"},
)


def judged_turn(battle: Battle) -> int:
    """Which turn an MT-Bench judge saw last: by the battle's text, so that row and truth agree."""
    return 1 + len(battle.prompts[0]) % len(battle.prompts)


def mt_bench(battle: Battle, number: int) -> Row:
    return {
        "question_id": 81 + number,
        **model_names(battle),
        "winner": winner(battle),
        "judge": "expert_7",
        "conversation_a": conversation(battle, battle.a),
        "conversation_b": conversation(battle, battle.b),
        "turn": judged_turn(battle),
    }


def mt_bench_gpt4(battle: Battle, number: int) -> Row:
    tie = "tie (inconsistent)" if number % 2 else "tie"
    return {
        **mt_bench(battle, number),
        "winner": tie if battle.outcome == TIE else winner(battle),
        "judge": "gpt4_pair",
    }


def mt_bench_truth(battle: Battle) -> list[Battle]:
    turn = judged_turn(battle)
    return [replace(battle, prompts=battle.prompts[:turn], a=battle.a[:turn], b=battle.b[:turn])]


def mt_bench_pair(battle: Battle, number: int) -> Row:
    verdicts = by_outcome(battle, ("model_1", "model_1"), ("model_2", "model_2"), ("model_1", "model_2"))
    ties = [("tie", "tie"), ("model_2", "model_1"), ("tie", "model_1")]
    first, second = ties[number % 3] if battle.outcome == TIE else verdicts
    return {
        "question_id": number,
        **model_names(battle, "model_1", "model_2"),
        "question": battle.prompts[0],
        "answer_1": battle.a[0],
        "answer_2": battle.b[0],
        "g1_winner": first,
        "g2_winner": second,
        "judge": ["gpt-4", "pair-v2"],
        "turn": 1,
        "tstamp": 1687222222.5,
    }


def hh_rlhf(battle: Battle, number: int) -> Row:
    return {"chosen": transcript(battle, battle.chosen), "rejected": transcript(battle, battle.rejected)}


def pair(battle: Battle, chosen: str = "chosen", rejected: str = "rejected") -> Row:
    """The last answers as text."""
    return {chosen: battle.chosen[-1], rejected: battle.rejected[-1]}


def answers_as(form: Callable[[str | None], Any]) -> Callable[[Battle], Row]:
    return lambda battle: {name: form(value) for name, value in pair(battle).items()}


one_message = answers_as(lambda answer: message("assistant", answer))
message_list = answers_as(lambda answer: [message("assistant", answer)])
sharegpt_message = answers_as(lambda answer: message("gpt", answer, ("from", "value")))


def text_question(column: str, system: str = "") -> Callable[[Battle, int], Row]:
    """The question as plain text in a column of that name."""

    def row(battle: Battle, number: int) -> Row:
        return {**({system: battle.system} if system else {}), column: battle.prompts[0], **pair(battle)}

    return row


def instruction_input(battle: Battle) -> Row:
    """Instruction and input, where the prompt has two lines."""
    first, _, rest = battle.prompts[-1].partition("\n")
    return {"instruction": first, "input": rest}


def llamafactory_alpaca(battle: Battle, number: int) -> Row:
    history = [[user, answer] for user, answer in zip(battle.prompts[:-1], battle.a[:-1], strict=True)]
    return {**instruction_input(battle), **pair(battle), "system": battle.system, "history": history}


def llamafactory_output(battle: Battle, number: int) -> Row:
    return {**instruction_input(battle), "output": list(pair(battle).values())}


def llamafactory_sharegpt(battle: Battle, number: int) -> Row:
    messages = question(battle, **SHAREGPT, system=False)
    return {"conversations": messages, **sharegpt_message(battle), "system": battle.system, "tools": ""}


def messages_question(column: str, answers: Callable[[Battle], Row]) -> Callable[[Battle, int], Row]:
    return lambda battle, number: {column: question(battle), **answers(battle)}


def swift_response(battle: Battle, number: int) -> Row:
    return {"messages": conversation(battle, battle.chosen), "rejected_response": battle.rejected[-1]}


def swift_messages(battle: Battle, number: int) -> Row:
    chosen, rejected = conversation(battle, battle.chosen), conversation(battle, battle.rejected)
    return {"messages": chosen, "rejected_messages": rejected}


def swift_query(battle: Battle, number: int) -> Row:
    rejected = battle.rejected[-1]
    return {
        "system": battle.system,
        "query": battle.prompts[0],
        "response": battle.chosen[-1],
        "rejected_response": rejected,
    }


def axolotl_argilla(battle: Battle, number: int) -> Row:
    return {
        "system": battle.system,
        "instruction": battle.prompts[0],
        **pair(battle, "chosen_response", "rejected_response"),
    }


def openai_preference(battle: Battle, number: int) -> Row:
    answers = message_list(battle)
    return {
        "input": {"messages": question(battle), "tools": [], "parallel_tool_calls": True},
        "preferred_output": answers["chosen"],
        "non_preferred_output": answers["rejected"],
    }


def full_conversations(battle: Battle) -> Row:
    return {
        "chosen": conversation(battle, battle.chosen),
        "rejected": conversation(battle, battle.rejected),
    }


def ultrafeedback_binarized(battle: Battle, number: int) -> Row:
    both = full_conversations(battle)
    return {
        "prompt": battle.prompts[0],
        "prompt_id": f"{number:064x}",
        **both,
        "messages": both["chosen"],
        "score_chosen": 8.5,
        "score_rejected": 4.0,
    }


def distilabel(battle: Battle, number: int) -> Row:
    winning = battle.models if battle.outcome == A else battle.models[::-1]
    return {
        "prompt": battle.prompts[0],
        "prompt_id": f"{number:064x}",
        **full_conversations(battle),
        "chosen_model": winning[0],
        "chosen_rating": 4.0,
        "rejected_model": winning[1],
        "rejected_rating": 2.0,
    }


def distilabel_text(battle: Battle, number: int) -> Row:
    return {
        "instruction": battle.prompts[0],
        "chosen_response": battle.chosen[-1],
        "chosen_rating": 5.0,
        "rejected_response": battle.rejected[-1],
        "rejected_rating": 1.0,
    }


def nemo_rl(battle: Battle, number: int) -> Row:
    completions = [
        {"rank": rank, "completion": [message("assistant", answer)]}
        for rank, answer in enumerate(pair(battle).values())
    ]
    return {"context": question(battle), "completions": completions[:: 1 if number % 2 else -1]}


def reward_bench(battle: Battle, number: int) -> Row:
    winning = battle.models if battle.outcome == A else battle.models[::-1]
    return {
        "prompt": battle.prompts[0],
        "chosen": battle.chosen[0],
        "chosen_model": winning[0],
        "rejected": battle.rejected[0],
        "rejected_model": winning[1],
        "subset": "alpacaeval-easy",
        "id": number,
    }


def reward_bench_2(battle: Battle, number: int) -> Row:
    rejected = [battle.rejected[0], f"Worse than {battle.rejected[0]}", f"Worst of {battle.rejected[0]}"]
    return {
        "id": str(number),
        "prompt": battle.prompts[0],
        "chosen": [battle.chosen[0]],
        "rejected": rejected,
        "num_correct": 1,
        "num_incorrect": len(rejected),
        "total_completions": 1 + len(rejected),
        "models": ["koala", "vole", "emu", "ibis"],
        "subset": "Factuality",
        "additional_metadata": {"category": None, "correct": None},
    }


def reward_bench_2_truth(battle: Battle) -> list[Battle]:
    answers = reward_bench_2(battle, 0)["rejected"]
    return [Battle(battle.prompts, (battle.chosen[0],), (answer,), A) for answer in answers]


def helpsteer_3(battle: Battle, number: int) -> Row:
    strength = by_outcome(battle, -1 - number % 3, 1 + number % 3, 0)
    scores = [{"score": strength, "reasoning": "R", "feedback1": "good", "feedback2": "bad"}]
    return {
        "domain": "general",
        "language": "english",
        "context": question(battle),
        "response1": battle.a[-1],
        "response2": battle.b[-1],
        "overall_preference": strength,
        "individual_preference": scores,
    }


def helpsteer_2(battle: Battle, number: int) -> Row:
    return {
        "split": "train",
        "prompt": battle.prompts[0],
        "response_1": battle.a[0],
        "response_2": battle.b[0],
        "preference_strength": by_outcome(battle, -1 - number % 3, 1 + number % 3, 0),
        "preference_statement": "S",
        "preference_elaboration": "E",
    }


def safe_rlhf(battle: Battle, number: int) -> Row:
    better = by_outcome(battle, 0, 1)
    return {
        "prompt": battle.prompts[0],
        "response_0": battle.a[0],
        "response_1": battle.b[0],
        "is_response_0_safe": number % 2 == 0,
        "is_response_1_safe": True,
        "better_response_id": better,
        "safer_response_id": number % 2,
    }


def shp(battle: Battle, number: int) -> Row:
    better_a = battle.outcome == A
    return {
        "post_id": f"p{number}",
        "domain": "askbaking_train",
        "upvote_ratio": 0.98,
        "history": battle.prompts[0],
        "c_root_id_A": "c1",
        "c_root_id_B": "c2",
        "created_at_utc_A": 1637826862,
        "created_at_utc_B": 1637832399,
        "score_A": 9 if better_a else 2,
        "score_B": 2 if better_a else 9,
        "human_ref_A": battle.a[0],
        "human_ref_B": battle.b[0],
        "labels": int(better_a),
        "seconds_difference": 5537.0,
        "score_ratio": 4.5,
    }


def alpaca_eval(battle: Battle, number: int) -> Row:
    tie = 0 if number % 4 == 0 else 1.5
    return {
        "instruction": battle.prompts[0],
        "output_1": battle.a[0],
        "generator_1": battle.models[0],
        "dataset": "koala",
        "output_2": battle.b[0],
        "generator_2": battle.models[1],
        "annotator": "alpaca_eval_gpt4",
        "preference": by_outcome(battle, 1, 2, tie),
    }


def alpaca_eval_weighted(battle: Battle, number: int) -> Row:
    degree = (number % 7) / 15.0
    return {
        **alpaca_eval(battle, number),
        "annotator": "weighted_alpaca_eval_gpt4_turbo",
        "preference": by_outcome(battle, 1 + degree, 2 - degree, 1.5),
        "time_per_example": 1.25,
    }


def llmbar(battle: Battle, number: int) -> Row:
    return {
        "input": battle.prompts[0],
        "output_1": battle.a[0],
        "output_2": battle.b[0],
        "label": by_outcome(battle, 1, 2),
    }


def judge_bench(battle: Battle, number: int) -> Row:
    return {
        "pair_id": f"{number:08x}",
        "original_id": str(number),
        "source": "mmlu-pro",
        "question": battle.prompts[0],
        "response_model": "koala",
        "response_A": battle.a[0],
        "response_B": battle.b[0],
        "label": by_outcome(battle, "A>B", "B>A"),
    }


def third_answer(battle: Battle) -> str:
    return f"Third after {battle.prompts[0][:6]}"


def scores_of(battle: Battle) -> tuple[float, float, float]:
    """Scores of the two answers and of :func:`third_answer`, which is as good as the worse one."""
    a, b = by_outcome(battle, (8.5, 3.0), (3.0, 8.5), (6.0, 6.0))
    return a, b, min(a, b)


def three_pairs(battle: Battle) -> list[Battle]:
    """Every pair of three answers, in the file's order."""
    answers = [battle.a[0], battle.b[0], third_answer(battle)]
    scores = scores_of(battle)
    pairs = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        outcome = TIE if scores[i] == scores[j] else A if scores[i] > scores[j] else B
        pairs.append(Battle(battle.prompts, (answers[i],), (answers[j],), outcome))
    return pairs


def ultrafeedback(battle: Battle, number: int) -> Row:
    answers = [battle.a[0], battle.b[0], third_answer(battle)]
    models = [*battle.models, "emu"]
    return {
        "source": "evol_instruct",
        "instruction": battle.prompts[0],
        "models": models,
        "completions": [
            {
                "annotations": {"helpfulness": {"Rating": "4", "Rationale": "R"}},
                "custom_system_prompt": "Be kind.",
                "model": model,
                "principle": "helpfulness",
                "response": answer,
                "critique": "C",
                "fine-grained_score": 3.25,
                "overall_score": score,
            }
            for model, answer, score in zip(models, answers, scores_of(battle), strict=True)
        ],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


def nectar(battle: Battle, number: int) -> Row:
    ranks = {A: (1.0, 2.0), B: (2.0, 1.0)}[battle.outcome or 0]
    answers = zip((battle.a[0], battle.b[0], third_answer(battle)), (*ranks, 3.0), strict=True)
    return {
        "prompt": f"\n\nHuman: {battle.prompts[0]}\n\nAssistant: ",
        "answers": [{"answer": answer, "model": "koala", "rank": rank} for answer, rank in answers],
        "turns": 1,
        "num_responses": 3,
        "source": ["lmsys-chat-1m"],
        "good_natured": True,
    }


def nectar_truth(battle: Battle) -> list[Battle]:
    third = (third_answer(battle),)
    others = [Battle(battle.prompts, answer, third, A) for answer in (battle.a, battle.b)]
    return [replace(battle, models=("koala", "koala")), *others]


def oasst(battle: Battle, number: int) -> Row:
    def node(role: str, said: str | None, rank: int | None, replies: Sequence[Row] = ()) -> Row:
        return {
            "message_id": f"{role}{rank}{number}",
            "text": said,
            "role": role,
            "lang": "en",
            "review_result": True,
            "deleted": False,
            "rank": rank,
            "synthetic": False,
            "replies": list(replies),
        }

    ranks = (0, 1) if battle.outcome == A else (1, 0)
    replies = [node("assistant", answer, rank) for answer, rank in zip((battle.a[0], battle.b[0]), ranks, strict=True)]
    return {
        "message_tree_id": f"tree{number}",
        "tree_state": "ready_for_export",
        "prompt": node("prompter", battle.prompts[0], None, replies),
    }


def distilabel_ratings(battle: Battle, number: int) -> Row:
    answers = [battle.a[0], battle.b[0], third_answer(battle)]
    return {
        "instruction": battle.prompts[0],
        "generations": answers,
        "model_names": [*battle.models, "emu"],
        "ratings": list(scores_of(battle)),
        "rationales": ["R"] * len(answers),
    }


def stack_exchange(battle: Battle, number: int) -> Row:
    answers = zip((battle.a[0], battle.b[0], third_answer(battle)), scores_of(battle), strict=True)
    return {
        "qid": 31371 + number,
        "question": battle.prompts[0],
        "answers": [
            {"answer_id": i, "author": "koala", "author_id": i, "pm_score": score, "selected": False, "text": answer}
            for i, (answer, score) in enumerate(answers)
        ],
        "date": "2013/08/17",
        "metadata": ["https://stackexchange.example"],
    }


def summarize(battle: Battle, number: int) -> Row:
    summaries = zip((battle.a[0], battle.b[0]), battle.models, strict=True)
    title, _, post = battle.prompts[0].partition("\n")
    return {
        "info": {"id": f"t3_{number}", "post": post, "title": title, "subreddit": "r", "site": None, "article": None},
        "summaries": [{"text": text, "policy": model, "note": None} for text, model in summaries],
        "choice": by_outcome(battle, 0, 1),
        "worker": "W",
        "batch": "batch3",
        "split": "train",
        "extra": {"confidence": None},
    }


def preference_collection(battle: Battle, number: int) -> Row:
    return {
        "orig_criteria": "C",
        "orig_response_A": battle.a[0],
        "orig_response_B": battle.b[0],
        "orig_preference": by_outcome(battle, "A", "B"),
        "instruction": f"###Task Description: ... {battle.prompts[0]}",
        "output": "Feedback: F [RESULT] A",
        "orig_instruction": battle.prompts[0],
        "orig_feedback": "F",
        "orig_reference_answer": "Reference",
    }


def webgpt(battle: Battle, number: int) -> Row:
    score = by_outcome(battle, 0.5, -0.5, 0.0)
    return {
        "question": {"dataset": "eli5", "id": str(number), "full_text": battle.prompts[0]},
        "quotes_0": {"title": ["T"], "extract": ["X"]},
        "answer_0": battle.a[0],
        "tokens_0": {"prefix": [1], "completion": [2]},
        "score_0": score,
        "quotes_1": {"title": ["T"], "extract": ["X"]},
        "answer_1": battle.b[0],
        "tokens_1": {"prefix": [1], "completion": [2]},
        "score_1": -score,
    }


def plain(battle: Battle, outcome: Row) -> Row:
    return {"prompt": battle.prompts[0], "response_a": battle.a[0], "response_b": battle.b[0], **outcome}


SPELLINGS = {
    "model_a": ("model_a", "model_b", "tie"),
    "letters": ("a", "b", "tie"),
    "capitals": ("A", "B", "Tie"),
    "upper": ("MODEL_A", "MODEL_B", "TIE"),
    "sides": ("left", "right", "tie"),
    "responses": ("response_a", "response_b", "draw"),
    "signs": ("A>B", "B>A", "A=B"),
}


def spelled(spelling: str, column: str = "winner") -> Callable[[Battle, int], Row]:
    """A generic table whose outcome is spelled in one of the common ways."""
    return lambda battle, number: plain(battle, {column: by_outcome(battle, *SPELLINGS[spelling])})


def winner_by_name(battle: Battle, number: int) -> Row:
    names = model_names(battle)
    return plain(battle, {**names, "winner": by_outcome(battle, *battle.models, "tie")})


def soft_labels(battle: Battle, number: int) -> Row:
    shares = by_outcome(battle, (0.7, 0.2, 0.1), (0.2, 0.7, 0.1), (0.25, 0.25, 0.5))
    return plain(battle, dict(zip(("p_a", "p_b", "p_tie"), shares, strict=True)))


def turn_lists(battle: Battle, number: int) -> Row:
    """Lists of turns with a winner in words."""
    lists = {"prompt": battle.prompts, "response_a": battle.a, "response_b": battle.b}
    return {"id": number, **{name: list(turns) for name, turns in lists.items()}, "winner": winner(battle)}


def labelstudio(battle: Battle, number: int) -> Row:
    selected = {"type": "pairwise", "value": {"selected": by_outcome(battle, "left", "right")}, "from_name": "cmp"}
    return {
        "id": number,
        "data": {"prompt": battle.prompts[0], "answer1": battle.a[0], "answer2": battle.b[0]},
        "annotations": [{"id": 11, "result": [selected]}],
    }


def pandalm(battle: Battle, number: int) -> Row:
    """Published with a bare NaN, which is no JSON, where there is no input."""
    asked = instruction_input(battle)
    votes = by_outcome(battle, (1, 1, 2), (2, 0, 2), (0, 0, 1))
    names = ("annotator1", "annotator2", "annotator3")
    answers = {"response1": battle.a[0], "response2": battle.b[0]}
    nothing = {} if asked["input"] else {"input": math.nan}
    return {"idx": number, **asked, **nothing, **answers, **dict(zip(names, votes, strict=True))}


def numeric_label(battle: Battle, number: int) -> Row:
    return plain(battle, {"label": by_outcome(battle, 1, -1, 0)})


TEXT = ("jsonl", "json", "parquet", "csv", "tsv")
LINES = ("jsonl",)
PAIRS = Holds(ties=False)
HISTORY = Holds(ties=False, turns="history")
HISTORY_AND_SYSTEM = replace(HISTORY, system=True)
CONVERSATIONS = Holds(turns="own", both_bad=True, system=True, nulls=True)


def _pairs() -> list[Known]:
    """Chosen and rejected, with the question in every column that public files use."""
    layouts = [
        Known(f"question in {name}", text_question(name), PAIRS, sided=False, containers=TEXT)
        for name in ("prompt", "question", "instruction", "input", "query", "request", "context")
    ]
    layouts += [
        Known(f"system and {name}", text_question(name, "system"), replace(PAIRS, system=True), sided=False)
        for name in ("prompt", "question", "input", "instruction")
    ]
    forms = {"text": pair, "message": one_message, "messages": message_list}
    layouts += [
        Known(f"messages in {name}, answer as {form}", messages_question(name, answer), HISTORY_AND_SYSTEM, sided=False)
        for name in ("prompt", "context", "conversations", "messages")
        for form, answer in forms.items()
    ]
    return layouts


LAYOUTS: tuple[Known, ...] = (
    Known("kaggle", kaggle, Holds(turns="own", nulls=True), containers=("csv", "parquet")),
    Known("wsdm", wsdm, Holds(ties=False), containers=("csv", "parquet", "jsonl")),
    Known("arena 33k", arena_33k, CONVERSATIONS),
    Known("arena 100k", arena_100k, CONVERSATIONS),
    Known("arena 140k", arena_140k, CONVERSATIONS),
    Known("search arena", search_arena, replace(CONVERSATIONS, unknown=True)),
    Known(
        "vote log", vote_log, Holds(turns="own", both_bad=True, nulls=True), containers=("jsonl",), extra_rows=NOT_VOTES
    ),
    Known("mt-bench", mt_bench, Holds(turns="own"), truth=mt_bench_truth),
    Known("mt-bench gpt-4", mt_bench_gpt4, Holds(turns="own"), truth=mt_bench_truth),
    Known("mt-bench pair", mt_bench_pair),
    Known("hh-rlhf", hh_rlhf, HISTORY, sided=False, containers=TEXT),
    *_pairs(),
    Known("llama-factory alpaca", llamafactory_alpaca, HISTORY_AND_SYSTEM, sided=False),
    Known("llama-factory output", llamafactory_output, PAIRS, sided=False),
    Known("llama-factory sharegpt", llamafactory_sharegpt, HISTORY_AND_SYSTEM, sided=False),
    Known("ms-swift response", swift_response, HISTORY_AND_SYSTEM, sided=False),
    Known("ms-swift messages", swift_messages, HISTORY_AND_SYSTEM, sided=False),
    Known("ms-swift query", swift_query, replace(PAIRS, system=True), sided=False),
    Known("axolotl argilla", axolotl_argilla, replace(PAIRS, system=True), sided=False, containers=TEXT),
    Known("openai preference", openai_preference, HISTORY_AND_SYSTEM, sided=False, containers=LINES),
    Known("trl implicit messages", lambda battle, number: full_conversations(battle), HISTORY_AND_SYSTEM, sided=False),
    Known("ultrafeedback binarized", ultrafeedback_binarized, PAIRS, sided=False),
    Known("distilabel", distilabel, PAIRS, sided=False),
    Known("distilabel text", distilabel_text, PAIRS, sided=False, containers=TEXT),
    Known("nemo-rl", nemo_rl, HISTORY_AND_SYSTEM, sided=False),
    Known("reward-bench", reward_bench, PAIRS, sided=False),
    Known("reward-bench 2", reward_bench_2, PAIRS, sided=False, truth=reward_bench_2_truth),
    Known("helpsteer 3", helpsteer_3, Holds(turns="history", system=True)),
    Known("helpsteer 2", helpsteer_2, containers=TEXT),
    Known("safe-rlhf", safe_rlhf, PAIRS, containers=TEXT),
    Known("shp", shp, PAIRS, containers=TEXT),
    Known("alpaca-eval", alpaca_eval, Holds(unknown=True), containers=("json", "jsonl")),
    Known("alpaca-eval weighted", alpaca_eval_weighted, containers=("json", "jsonl")),
    Known("llmbar", llmbar, PAIRS, containers=("json", "jsonl")),
    Known("judge-bench", judge_bench, PAIRS, containers=TEXT),
    Known("ultrafeedback", ultrafeedback, sided=False, truth=three_pairs),
    Known(
        "ultrafeedback with --each",
        ultrafeedback,
        sided=False,
        truth=three_pairs,
        options={"each": "completions: text=response, model=model, score=overall_score"},
    ),
    Known("nectar", nectar, PAIRS, sided=False, truth=nectar_truth),
    Known("oasst", oasst, PAIRS, sided=False, containers=LINES),
    Known("distilabel ratings", distilabel_ratings, sided=False, truth=three_pairs),
    Known("stack exchange", stack_exchange, sided=False, truth=three_pairs),
    Known("summarize", summarize, PAIRS),
    Known("preference collection", preference_collection, PAIRS),
    Known("webgpt", webgpt, containers=("jsonl", "json", "parquet")),
    *(Known(f"winner as {name}", spelled(name), containers=TEXT) for name in SPELLINGS),
    Known("winner by name", winner_by_name, containers=TEXT),
    Known("preferred", spelled("capitals", "preferred"), containers=TEXT),
    Known("one-hot", lambda battle, number: plain(battle, one_hot(battle)), Holds(unknown=True), containers=TEXT),
    Known("soft labels", soft_labels, containers=TEXT),
    Known("turn lists", turn_lists, Holds(turns="own", nulls=True, both_bad=True), containers=(*TEXT, "python csv")),
    Known(
        "label studio",
        labelstudio,
        PAIRS,
        containers=("json", "jsonl"),
        options={
            "columns": {"prompt": "data.prompt", "response_a": "data.answer1", "response_b": "data.answer2"},
            "outcome": "annotations.0.result.0.value.selected: left=a, right=b",
        },
    ),
    Known(
        "pandalm",
        pandalm,
        containers=("json", "jsonl"),
        options={
            "columns": {"prompt": "instruction+input", "response_a": "response1", "response_b": "response2"},
            "outcome": "annotator1,annotator2,annotator3 (majority): 1=a, 2=b, 0=tie",
        },
    ),
    Known("label with --outcome", numeric_label, containers=TEXT, options={"outcome": "label: 1=a, -1=b, 0=tie"}),
)


# Files


def jsonl(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: Sequence[Row], separator: str = ",", dump: Callable[[Any], str] = json.dumps) -> str:
    """Rows as CSV; lists and objects as JSON, nothing for None."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [row.get(name) for name in columns]
        writer.writerow([dump(cell) if isinstance(cell, (list, dict)) else cell for cell in cells])
    return out.getvalue()


def write(path: Path, rows: Sequence[Row], container: str) -> Path:
    """Rows as a file of one of the containers."""
    if container == "parquet":
        pq.write_table(pa.table(by_columns(rows)), path)
        return path
    writers: dict[str, Callable[[], bytes]] = {
        "jsonl": lambda: jsonl(rows),
        "json": lambda: json.dumps(list(rows), ensure_ascii=False).encode(),
        "indented json": lambda: json.dumps(list(rows), indent=2).encode(),
        "wrapped json": lambda: json.dumps({"version": "1", "data": list(rows)}).encode(),
        "json by columns": lambda: json.dumps(by_columns(rows)).encode(),
        "json by columns and row": lambda: json.dumps(
            {name: {str(i): cell for i, cell in enumerate(cells)} for name, cells in by_columns(rows).items()}
        ).encode(),
        "csv": lambda: table(rows).encode(),
        "tsv": lambda: table(rows, "\t").encode(),
        "semicolons": lambda: table(rows, ";").encode(),
        "python csv": lambda: table(rows, dump=repr).encode(),
        "bom": lambda: table(rows).encode("utf-8-sig"),
        "utf-16": lambda: table(rows).encode("utf-16"),
        "latin-1": lambda: table(rows).encode("latin-1"),
        "upper-case headers": lambda: upper_header(table(rows)).encode(),
    }
    path.write_bytes(writers[container]())
    return path


def suffix(container: str) -> str:
    if container in ("jsonl", "parquet", "tsv"):
        return f".{container}"
    return ".json" if "json" in container else ".csv"


def by_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def upper_header(text: str) -> str:
    header, rest = text.split("\n", 1)
    return f"{header.upper()}\n{rest}"


# Comparison


def _joined(system: str, prompts: Sequence[str | None]) -> list[str]:
    """Prompts with the system text before the first; how blank lines separate them is not compared."""
    first = "\n".join([system, *((prompts[0] or "",) if prompts else ())])
    return [re.sub(r"\n+", "\n", prompt or "").strip() for prompt in (first, *prompts[1:])]


def _answers(turns: Sequence[str | None]) -> list[str]:
    """Answers; an empty one and a missing one are the same."""
    return [turn or "" for turn in turns] or [""]


def canonical(battle: Battle, sided: bool) -> tuple[Any, ...]:
    """What is compared of the truth."""
    prompts = _joined(battle.system, battle.prompts)
    return _sides(prompts, _answers(battle.a), _answers(battle.b), battle.outcome, sided)


def _sides(prompts: list[str], a: list[str], b: list[str], outcome: int | None, sided: bool) -> tuple[Any, ...]:
    """Where the file knows no sides, the better answer first; of a tie, in alphabetical order."""
    if sided or outcome == A:
        return prompts, a, b, outcome
    return (prompts, b, a, A) if outcome == B else (prompts, *sorted([a, b]), outcome)


def as_read(row: Mapping[str, Any], sided: bool) -> tuple[Any, ...]:
    """The same of a row that the reader returned."""
    prompts = _joined("", row["prompt"])
    return _sides(prompts, _answers(row["response_a"]), _answers(row["response_b"]), row["label"], sided)


def differences(known: Known, truth: Iterable[Battle], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the rows that were read are not the truth; the first few."""
    expected = [canonical(battle, known.sided) for battle in truth]
    found = [as_read(row, known.sided) for row in rows]
    wrong = [f"{len(found)} battles instead of {len(expected)}"] if len(found) != len(expected) else []
    for number, (right, read) in enumerate(zip(expected, found, strict=False)):
        if right != read:
            wrong.append(f"battle {number}:\n  is   {right}\n  read {read}")
    return wrong[:3]
