"""What requests and responses look like, for their validation and for ``/openapi.json``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainValidator,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from prefcli.errors import InputError
from prefcli.prediction.predictor import Turns, as_question, as_turns

MAX_BATTLES = 1024
"""In one request."""
MAX_ANSWERS = 128
"""Of one question: the pairs that are compared grow with them."""

TURNS_SCHEMA = {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "minItems": 1}
TEXT_SCHEMA = {"anyOf": [{"type": "string"}, TURNS_SCHEMA], "description": "Text, or the turns of a conversation."}


def _text(value: Any, info: ValidationInfo) -> Turns:
    try:
        return as_turns(value, info.field_name or "the text")
    except InputError as error:
        raise ValueError(error.what) from None


Text = Annotated[Any, PlainValidator(_text), WithJsonSchema(TEXT_SCHEMA)]
Answers = Annotated[
    list[Any],
    Field(min_length=1, max_length=MAX_ANSWERS),
    WithJsonSchema({"type": "array", "items": TEXT_SCHEMA, "minItems": 1, "maxItems": MAX_ANSWERS}),
]
Id = Annotated[
    StrictStr | StrictInt | FiniteFloat | None, Field(default=None, description="Returned with the result, if given.")
]


PROMPT, SHORT, LONG = "Name a fruit.", "A cherry.", "Bananas are yellow."
BATTLE = {"prompt": PROMPT, "response_a": SHORT, "response_b": LONG}
WINNERS = {"winner_model_a": 0.5, "winner_model_b": 0.25, "winner_tie": 0.25}
"""Of the examples, as the rest of what stands in them."""


def _example(*values: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": list(values)})


class Request(BaseModel):
    """The body of a request: keys that are not known are refused, they may be misspelt."""

    model_config = ConfigDict(extra="forbid")


class Battle(Request):
    """A prompt and two answers."""

    model_config = _example({**BATTLE, "id": "1"}, {**BATTLE, "details": True})

    prompt: Text
    response_a: Text
    response_b: Text
    details: StrictBool = Field(
        default=False, description="Also both orders, the verdict, what was cut, and what moved the probabilities."
    )
    id: Id

    @model_validator(mode="after")
    def _not_empty(self) -> Battle:
        if not any(turn for text in self.turns for turn in text):
            raise ValueError("neither a prompt nor answers")
        return self

    @property
    def turns(self) -> tuple[Turns, Turns, Turns]:
        """Prompt, first and second answer."""
        return self.prompt, self.response_a, self.response_b


class Battles(Request):
    """Several battles, which are answered in their order."""

    model_config = _example({"battles": [{**BATTLE, "id": "1"}, {**BATTLE, "id": "2"}]})

    battles: Annotated[
        list[Any],
        Field(min_length=1, max_length=MAX_BATTLES),
        WithJsonSchema(
            {
                "type": "array",
                "items": {"$ref": "#/components/schemas/Battle"},
                "minItems": 1,
                "maxItems": MAX_BATTLES,
                "description": "A battle that is not valid gets an error in its place.",
            }
        ),
    ]


class Question(Request):
    """A prompt and several answers."""

    model_config = _example({"prompt": PROMPT, "responses": [SHORT, LONG]})

    prompt: Text
    responses: Answers
    id: Id

    @model_validator(mode="after")
    def _checked(self) -> Question:
        try:
            self.prompt, self.responses = as_question(self.prompt, self.responses)
        except InputError as error:
            raise ValueError(error.what) from None
        return self


class OneAnswer(Request):
    """A prompt and one answer."""

    model_config = _example({"prompt": PROMPT, "response": SHORT})

    prompt: Text
    response: Text
    id: Id


class Probabilities(BaseModel):
    """That people prefer A, prefer B, or call it a tie; they sum to 1."""

    model_config = _example({**WINNERS, "id": "1"})

    winner_model_a: float
    winner_model_b: float
    winner_tie: float
    id: Id


class Cut(BaseModel):
    """A text that the model did not read whole."""

    run: str
    field: str
    tokens: int
    kept: int


class Contribution(BaseModel):
    """A statistic, and by how much it moves the log-odds of A over B."""

    name: str
    description: str = Field(description="The statistic in words for users.")
    unit: str = Field(description="Of the values: count, share (1 is all), yes/no (1 and 0) or number.")
    a: float = Field(description="The value for A, or the one of the prompt or of both answers together.")
    b: float | None
    log_odds: float


class Record(BaseModel):
    """What such a lead of the most probable outcome was worth, by held-out battles."""

    right: float = Field(description="The share whose most probable outcome was right.")
    ci: list[float] = Field(description="Its 95 % interval.", min_length=2, max_length=2)
    battles: int


class Comparison(Probabilities):
    """One battle in detail."""

    model_config = _example(
        {
            **WINNERS,
            "verdict": "A",
            "orders": [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]],
            "orders_agree": True,
            "cuts": [{"run": "my-run", "field": "response_b", "tokens": 900, "kept": 700}],
            "contributions": [
                {
                    "name": "characters",
                    "description": "characters",
                    "unit": "count",
                    "a": 9.0,
                    "b": 19.0,
                    "log_odds": -0.3,
                }
            ],
            "record": {"right": 0.6, "ci": [0.5, 0.7], "battles": 120},
        }
    )

    verdict: str = Field(description="A, B, tie or too close to call.")
    orders: list[list[float]] = Field(
        description="A, B, tie as given; and of the swapped answers, swapped back.", min_length=2, max_length=2
    )
    orders_agree: bool
    cuts: list[Cut]
    contributions: list[Contribution] = Field(description="Of features runs, the largest first.")
    record: Record | None = Field(default=None, description="Absent if too few held-out battles have such a lead.")
    rewards: list[float] | None = Field(default=None, description="Of A and of B, if all runs are reward models.")


class BattleError(BaseModel):
    """In place of a battle that is not valid."""

    model_config = _example({"id": "2", "error": "prompt: is missing"})

    error: str
    id: Id


class Results(BaseModel):
    """Of each battle, in their order."""

    model_config = _example({"results": [{"id": "1", **WINNERS}, {"id": "2", "error": "prompt: is missing"}]})

    results: list[Probabilities | Comparison | BattleError]


class Ranking(BaseModel):
    """Answers in order."""

    model_config = _example({"ranking": [1, 0], "scores": [-0.4, 0.4], "p_best": [0.31, 0.69]})

    ranking: list[int] = Field(description="Positions of the answers, best first.")
    scores: list[float] = Field(description="In the order of the answers.")
    p_best: list[float] = Field(description="Probability that the answer is the best, in the order of the answers.")
    id: Id


class Score(BaseModel):
    """The reward of an answer."""

    model_config = _example({"score": 1.25})

    score: float
    id: Id


class Scores(BaseModel):
    """The rewards of several answers, in their order."""

    model_config = _example({"scores": [1.25, -0.5]})

    scores: list[float]
    id: Id


class Model(BaseModel):
    """What is served."""

    model_config = _example(
        {
            "runs": ["my-run"],
            "architecture": "features",
            "can_score": False,
            "version": "0.1.0",
            "limits": {"body_bytes": 4194304, "battles": 1024, "responses": 128, "seconds": 60.0},
        }
    )

    runs: list[str]
    architecture: str
    max_tokens: dict[str, int | None] = Field(description="Of each run, the tokens that it reads at a time; null: all.")
    can_score: bool
    version: str
    limits: dict[str, float]


class Health(BaseModel):
    """The service answers."""

    model_config = _example({"status": "ok"})

    status: str = "ok"


class Error(BaseModel):
    """What was wrong, and what to do."""

    model_config = _example({"error": "prompt: is missing", "hint": "See /docs."})

    error: str
    hint: str = ""
