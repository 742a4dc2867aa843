"""The table of layouts: in which columns the published formats keep prompt, answers and outcome.

Every entry says so in the terms of ``--columns``, ``--outcome`` and ``--each``. Sources are the dataset cards on the
Hugging Face Hub and the documentation of the tools that are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prefcli.battles import TEXT_FIELDS
from prefcli.outcomes import SOFT_LABEL_COLUMNS, WINNER_COLUMNS

OUTCOME_COLUMNS = ("winner", *WINNER_COLUMNS, "label", *SOFT_LABEL_COLUMNS, "both_bad")
CANONICAL_COLUMNS = (
    *("id", *TEXT_FIELDS, "system", "history", "chosen", "rejected", "conversation_a", "conversation_b"),
    *("model_a", "model_b", "chosen_model", "rejected_model", "turn", *OUTCOME_COLUMNS),
)
"""The names that ``--columns`` takes."""
CANDIDATE_COLUMNS = ("id", "prompt", "system", "history", "responses", "response", "model")
"""Those that it takes for files of answers that are to be ranked."""

OPTIONAL_COLUMNS = frozenset(
    ("id", "system", "history", "model_a", "model_b", "chosen_model", "rejected_model", "turn")
)
"""A file of a layout need not have them."""

ID_COLUMNS = ("id", "question_id", "prompt_id", "conversation_id", "pair_id")
"""Names of columns that identify a battle or its prompt, the first that exists is read."""

PROMPT_COLUMNS = (
    *("prompt", "question", "instruction", "input", "query", "request", "context", "conversations", "conversation"),
    *("messages", "history", "trajectory", "user_prompt", "user_input"),
)
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
PROMPT_OF_PARTS = ("instruction", "input")
"""Columns that make a prompt together."""

PAIRS_OF_NAMES = (
    *(("chosen", "rejected"), ("chosen_response", "rejected_response"), ("preferred", "dispreferred")),
    *(("chosen_answer", "rejected_answer"), ("preferred_output", "non_preferred_output")),
    *(("preferred_response", "rejected_response"), ("preferred_response", "dispreferred_response")),
)
ANSWER_STEMS = ("response", "answer", "output", "completion", "generation", "reply", "candidate", "summary", "text")
MODEL_STEMS = ("model", "generator", "model_name", "policy")
SUFFIXES = (
    *(("_a", "_b", "_c"), ("a", "b", "c")),
    *(("_1", "_2", "_3"), ("1", "2", "3")),
    *(("_0", "_1", "_2"), ("0", "1", "2")),
)
"""How the names of two answers, or of their models, differ; the last one would be a third."""


@dataclass(frozen=True, eq=False)
class Layout:
    """One arrangement of battles in a file."""

    name: str
    """As ``--format`` takes it."""
    summary: str
    """One line for users."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Canonical name -> path in the file, as ``--columns`` takes it. Parts of a sum after the first may be missing."""
    outcome: str = ""
    """As ``--outcome`` takes it."""
    each: str = ""
    """As ``--each`` takes it."""
    also: tuple[str, ...] = ()
    """More columns by which it is recognised."""
    without: tuple[str, ...] = ()
    """Columns that show that the file has another layout."""
    outcome_columns: tuple[str, ...] = ()
    """Canonical outcomes that are read under their own names, if present."""
    has_ties: bool = True
    """Whether a file of this layout can hold ties at all; with an outcome, it says so itself."""
    has_both_bad: bool = True
    """Whether words for a winner tell bad ties from good ones."""
    lists: tuple[str, ...] = ()
    """Columns that have to hold lists of texts, by which it differs from layouts with the same names."""
    keeps_ids: bool = False
    """Whether ids are used unchanged; if not, repeated ones get a numbered suffix."""


def _two_answers(name: str, summary: str, columns: str, outcome: str, **more: str) -> Layout:
    """A layout with two answers in a row, ``columns`` being those of the prompt and the answers."""
    names = dict(zip(TEXT_FIELDS, columns.split(), strict=True))
    return Layout(name, summary, {**names, **more}, outcome)


KAGGLE = Layout(
    "kaggle",
    "Kaggle's train.csv and test.csv: turns as JSON lists, winners one-hot",
    {name: name for name in ("id", *TEXT_FIELDS, "model_a", "model_b")},
    also=("id",),
    without=("winner",),
    outcome_columns=OUTCOME_COLUMNS,
    keeps_ids=True,
)
GENERIC = Layout(
    "generic",
    "a prompt and two answers; outcome as winner in words, one-hot, or p_a, p_b, p_tie",
    outcome_columns=OUTCOME_COLUMNS,
    keeps_ids=True,
)
PREFERENCES = Layout(
    "preferences",
    "chosen and rejected answers (HH-RLHF, UltraFeedback, RewardBench, TRL): no ties, sides by a hash",
    has_ties=False,
)
ARENA = Layout(
    "arena",
    "Chatbot Arena's conversations (33k, 100k, 140k): lists of messages, winner in words",
    {name: name for name in ("conversation_a", "conversation_b", "model_a", "model_b", "turn")},
    outcome_columns=("winner",),
)
LISTS = Layout("lists", "several answers to one prompt, as --each says: every pair is a battle, sides by a hash")

SPECIFIC_LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "prefcli",
        "prefcli's own Parquet",
        {name: name for name in ("id", *TEXT_FIELDS, "model_a", "model_b")},
        outcome="label: 0=a, 1=b, 2=tie",
        also=("prompt_key",),
        outcome_columns=(*SOFT_LABEL_COLUMNS, "both_bad"),
        keeps_ids=True,
    ),
    Layout(
        "mt-bench",
        "MT-bench's judgments: conversations, several judges of one pair, each of one turn",
        ARENA.columns,
        also=("judge", "turn"),
        without=("tstamp", "anony"),
        has_both_bad=False,
        outcome_columns=("winner",),
    ),
    ARENA,
    Layout(
        "search-arena",
        "Search Arena's conversations: messages_a, messages_b, winner in words",
        {**ARENA.columns, "conversation_a": "messages_a", "conversation_b": "messages_b"},
        outcome_columns=("winner",),
    ),
    Layout(
        "vote-log",
        "FastChat's log of votes; its other entries are no battles",
        {
            "conversation_a": "states.0",
            "conversation_b": "states.1",
            "model_a": "states.0.model_name",
            "model_b": "states.1.model_name",
        },
        outcome="type: leftvote=a, rightvote=b, tievote=tie, bothbad_vote=both_bad, chat=skip, upvote=skip, "
        "downvote=skip, flag=skip, share=skip, regenerate=skip, clear_history=skip",
    ),
    _two_answers(
        "mt-bench-pairs",
        "MT-bench's pairwise judgments in both orders, with question and answers",
        "question answer_1 answer_2",
        "g1_winner,g2_winner: model_1=a, model_2=b, tie=tie, error=unknown",
        model_a="model_1",
        model_b="model_2",
        id="question_id",
    ),
    Layout(
        "openai-preference",
        "OpenAI's preference format for fine-tuning",
        {"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"},
        has_ties=False,
    ),
    Layout(
        "nemo-rl",
        "NeMo RL's preference format: ranked completions",
        {"prompt": "context"},
        each="completions: text=completion, rank=rank",
    ),
    Layout(
        "ultrafeedback",
        "UltraFeedback with all completions and their overall scores",
        {"prompt": "instruction"},
        each="completions: text=response, model=model, score=overall_score",
        also=("models",),
    ),
    Layout(
        "nectar",
        "Nectar: ranked answers",
        {"prompt": "prompt"},
        each="answers: text=answer, model=model, rank=rank",
        also=("num_responses",),
    ),
    Layout(
        "stack-exchange",
        "Stack Exchange preferences: answers with scores by votes",
        {"prompt": "question", "id": "qid"},
        each="answers: text=text, score=pm_score",
        also=("qid",),
    ),
    Layout(
        "oasst",
        "OpenAssistant's trees of messages: ranked replies",
        {"prompt": "prompt.text", "id": "message_tree_id"},
        each="prompt.replies: text=text, rank=rank, replies=replies",
        also=("message_tree_id",),
    ),
    Layout(
        "distilabel",
        "distilabel: generations with ratings",
        {"prompt": "instruction"},
        each="generations: text=., model=/model_names, score=/ratings",
        without=("chosen",),
    ),
    Layout(
        "distilabel-input",
        "distilabel: generations with ratings",
        {"prompt": "input"},
        each="generations: text=., model=/model_names, score=/ratings",
        without=("chosen", "instruction"),
    ),
    Layout(
        "ms-swift",
        "ms-swift: messages that end with the chosen answer, and rejected_response",
        {"prompt": "messages.:-1", "chosen": "messages.-1", "rejected": "rejected_response"},
        without=("chosen", "response", "chosen_response"),
        has_ties=False,
    ),
    Layout(
        "ms-swift-messages",
        "ms-swift: two conversations, messages and rejected_messages",
        {"chosen": "messages", "rejected": "rejected_messages"},
        has_ties=False,
    ),
    Layout(
        "ms-swift-query",
        "ms-swift: query, response and rejected_response",
        {
            "prompt": "query",
            "history": "history",
            "system": "system",
            "chosen": "response",
            "rejected": "rejected_response",
        },
        has_ties=False,
    ),
    Layout(
        "llama-factory-output",
        "LLaMA-Factory's older form: output holds the chosen and the rejected answer",
        {
            "prompt": "instruction+input",
            "history": "history",
            "system": "system",
            "chosen": "output.0",
            "rejected": "output.1",
        },
        lists=("output",),
        has_ties=False,
    ),
    Layout(
        "reward-bench-2",
        "RewardBench 2: lists of right and wrong answers",
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        also=("num_correct", "num_incorrect"),
        lists=("chosen", "rejected"),
        has_ties=False,
    ),
    _two_answers(
        "helpsteer3",
        "HelpSteer3: overall_preference from -3 (first answer) to 3 (second answer)",
        "context response1 response2",
        "overall_preference: -3..-0.5=a, 0.5..3=b, 0=tie",
    ),
    _two_answers(
        "helpsteer2",
        "HelpSteer2's preferences: preference_strength from -3 (first answer) to 3 (second answer)",
        "prompt response_1 response_2",
        "preference_strength: -3..-0.5=a, 0.5..3=b, 0=tie",
    ),
    _two_answers(
        "safe-rlhf",
        "PKU-SafeRLHF: better_response_id",
        "prompt response_0 response_1",
        "better_response_id: 0=a, 1=b",
    ),
    _two_answers(
        "shp",
        "Stanford Human Preferences: labels is 1 where the first answer is preferred",
        "history human_ref_A human_ref_B",
        "labels: 1=a, 0=b",
        id="post_id",
    ),
    _two_answers(
        "alpaca-eval",
        "AlpacaEval's annotations: preference from 1 (first answer) to 2 (second answer)",
        "instruction+input output_1 output_2",
        "preference: 0=tie, 1.5=tie, 1..1.5=a, 1.5..2=b",
        model_a="generator_1",
        model_b="generator_2",
    ),
    _two_answers(
        "llmbar",
        "LLMBar: label is the number of the better answer",
        "input output_1 output_2",
        "label: 1=a, 2=b",
    ),
    _two_answers(
        "judgebench",
        "JudgeBench: label in signs",
        "question response_A response_B",
        "label: A>B=a, B>A=b, A=B=tie",
        id="pair_id",
    ),
    _two_answers(
        "webgpt",
        "WebGPT's comparisons: a score for each answer",
        "question.full_text answer_0 answer_1",
        "score_0,score_1: higher",
        id="question.id",
    ),
    _two_answers(
        "pandalm",
        "PandaLM's test set: the majority of three annotators",
        "instruction+input response1 response2",
        "annotator1,annotator2,annotator3 (majority): 0=tie, 1=a, 2=b",
        id="idx",
    ),
    _two_answers(
        "summarize",
        "Summarize from feedback: two summaries and a choice",
        "info.title+info.post+info.article summaries.0.text summaries.1.text",
        "choice: 0=a, 1=b",
        model_a="summaries.0.policy",
        model_b="summaries.1.policy",
    ),
    _two_answers(
        "preference-collection",
        "Prometheus' preference collection",
        "orig_instruction orig_response_A orig_response_B",
        "orig_preference: A=a, B=b",
    ),
    KAGGLE,
)
"""Layouts with columns of their own; the first whose columns a file has is used."""

LAYOUTS: tuple[Layout, ...] = (*SPECIFIC_LAYOUTS, GENERIC, PREFERENCES, LISTS)
"""Every layout that ``--format`` takes."""
