"""The application: what each path does."""

from __future__ import annotations

import contextlib
import mimetypes
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Discriminator, Tag, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from prefcli._version import __version__
from prefcli.errors import InputError, one_line
from prefcli.options import ServeOptions
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.prediction.inference import NonFiniteError
from prefcli.prediction.predictor import Predictor, Turns
from prefcli.rendering import templating
from prefcli.reporting import SILENT, Reporter
from prefcli.serving import schemas
from prefcli.serving.guard import LOOPBACK_NAMES, STATIC, Guard, Refused, busy, error_response
from prefcli.serving.monitoring import Monitor
from prefcli.serving.worker import Item, QueueFullError, Worker
from prefcli.storage import runs
from prefcli.storage.files import to_json

PAGE = "index.html"
SAID = {
    400: ("the body is not JSON", ""),
    404: ("there is no such path", "See /docs."),
    405: ("there is no such method for this path", "See /docs."),
}
"""Errors that FastAPI raises itself: what is said of them."""
WRONG = {
    "missing": "is missing",
    "extra_forbidden": "there is no such key",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "string_unicode": "a key is not valid text",
    "too_short": "expected at least {min_length}, got {actual_length}",
    "too_long": "expected at most {max_length}, got {actual_length}",
}
"""What is said of a value, by pydantic's type of error."""


def create_app(
    predictor: Predictor,
    options: ServeOptions | None = None,
    *,
    token: str | None = None,
    host_names: Sequence[str] = LOOPBACK_NAMES,
    reporter: Reporter = SILENT,
) -> FastAPI:
    """The application that answers for runs in memory; any ASGI server runs it.

    Parameters
    ----------
    predictor:
        What :func:`prefcli.load` returns.
    options:
        Limits; by default those of ``prefcli serve``.
    token:
        What requests must send as ``Authorization: Bearer TOKEN``, except for the pages and ``/health``.
    host_names:
        What requests may call this host, see :class:`~prefcli.serving.guard.Guard`; none: anything.
    reporter:
        Gets a warning when a request fails for a reason that is not in the request.
    """
    options = options or ServeOptions()
    monitor = Monitor()
    service = Service(predictor, options, monitor)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.close()

    app = FastAPI(
        title="prefcli", version=__version__, summary="Which of two answers people prefer.",
        docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan, responses=ERRORS,
    )  # fmt: skip
    _add_paths(app, service)
    _add_page(app, needs_token=token is not None)
    paths = [route.path for route in app.routes if "{" not in route.path]  # type: ignore[attr-defined]
    app.add_middleware(
        Guard, options=options, token=token, host_names=host_names, monitor=monitor, reporter=reporter, paths=paths
    )
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_not_valid)
    return app


class Service:
    """What the paths share: the runs, and the thread that computes with them."""

    def __init__(self, predictor: Predictor, options: ServeOptions, monitor: Monitor) -> None:
        self.predictor, self.monitor = predictor, monitor
        self.worker = Worker(
            max_queue=options.max_queue, batch_battles=options.batch_battles,
            batch_characters=options.batch_characters, observe=monitor.observe_batch,
        )  # fmt: skip
        monitor.watch_queue(lambda: len(self.worker))
        self.can_score = predictor.can_score
        self.description = describe(predictor, options)

    async def compute(self, compute: Any, items: Sequence[Item]) -> list[Any]:
        """What the thread computes; 429 if too many wait."""
        try:
            return await self.worker.submit(compute, items)
        except QueueFullError:
            raise busy(429, "too many requests wait", self.worker.seconds_of_queue) from None

    async def compare(self, battles: Sequence[schemas.Battle]) -> list[dict[str, Any]]:
        """The result of each battle, an error where the model cannot compute it."""
        plain = [battle for battle in battles if not battle.details]
        detailed = [battle for battle in battles if battle.details]
        results: dict[int, dict[str, Any]] = {}
        if plain:
            computed = await self.compute(self.predictor.predict_each, [_item(b.turns) for b in plain])
            results |= {id(b): _winners(c) for b, c in zip(plain, computed, strict=True)}
        if detailed:
            computed = await self.compute(self.predictor.compare_each, [_item(b.turns, battles=2) for b in detailed])
            results |= {id(b): _details(c) for b, c in zip(detailed, computed, strict=True)}
        return [_with_id(results[id(battle)], battle) for battle in battles]

    async def rank(self, question: schemas.Question) -> Any:
        """The ranking of a question."""
        from prefcli.prediction.ranking import RankRule, pairs_to_compare

        answers = len(question.responses)
        battles = answers if self.can_score else max(1, len(pairs_to_compare(answers, RankRule().all_pairs)[0]))
        # Each battle has its own copy of the prompt and of one answer, or of two.
        of_answers = _characters(question.responses) * battles * (1 if self.can_score else 2) // answers
        characters = _characters([question.prompt]) * battles + of_answers
        item = Item((question.prompt, question.responses), battles, characters)
        (ranked,) = await self.compute(self.predictor.rank_each, [item])
        if isinstance(ranked, NonFiniteError):
            raise Refused(422, ranked.what, ranked.hint)
        return ranked


def _item(texts: Sequence[Turns], battles: int = 1) -> Item:
    return Item(texts, battles, _characters(texts))


def _characters(texts: Sequence[Turns]) -> int:
    return sum(len(turn) for turns in texts for turn in turns if turn)


def _winners(probabilities: Any) -> dict[str, Any]:
    if isinstance(probabilities, NonFiniteError):
        return {"error": probabilities.what}
    return dict(zip(WINNER_COLUMNS, probabilities, strict=True))


def _details(comparison: Any) -> dict[str, Any]:
    return {"error": comparison.what} if isinstance(comparison, NonFiniteError) else comparison.to_json()


def _with_id(value: dict[str, Any], request: Any) -> dict[str, Any]:
    return value if request.id is None else {"id": request.id, **value}


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")


def _kind(many: str) -> Discriminator:
    """Which of two bodies a request has: the one with this key, or the other."""
    return Discriminator(lambda value: "many" if isinstance(value, dict) and many in value else "one")


CompareBody = Annotated[
    Annotated[schemas.Battle, Tag("one")] | Annotated[schemas.Battles, Tag("many")], _kind("battles")
]
ScoreBody = Annotated[
    Annotated[schemas.OneAnswer, Tag("one")] | Annotated[schemas.Question, Tag("many")], _kind("responses")
]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Error, "description": description}
    for status, description in {
        400: "Not JSON, not HTTP, or another host", 401: "No token, or another one", 408: "The body comes too slowly",
        413: "The body is too large", 415: "The body is not said to be JSON", 422: "Not what is described here",
        429: "Too many requests wait; Retry-After says for how long", 503: "No answer in time, or too many connections",
    }.items()
}  # fmt: skip
NOT_REWARD: dict[int | str, dict[str, Any]] = {
    409: {"model": schemas.Error, "description": "The run is no reward model"}
}


def _add_paths(app: FastAPI, service: Service) -> None:
    @app.post("/v1/compare", response_model=schemas.Probabilities | schemas.Comparison | schemas.Results)
    async def compare(body: CompareBody) -> Response:
        """Probabilities that people prefer A, prefer B, or call it a tie."""
        if isinstance(body, schemas.Battle):
            (result,) = await service.compare([body])
            if "error" in result:
                raise Refused(422, result["error"])
            return _json(result)
        checked = [_checked_battle(battle) for battle in body.battles]
        results = iter(await service.compare([battle for battle in checked if isinstance(battle, schemas.Battle)]))
        return _json({"results": [next(results) if isinstance(b, schemas.Battle) else b for b in checked]})

    @app.post("/v1/rank", response_model=schemas.Ranking)
    async def rank(body: schemas.Question) -> Response:
        """Several answers to a prompt, ranked."""
        ranked = await service.rank(body)
        value = ranked.to_json()
        return _json(_with_id({name: value[name] for name in ("ranking", "scores", "p_best")}, body))

    @app.post("/v1/score", response_model=schemas.Score | schemas.Scores, responses=NOT_REWARD)
    async def score(body: ScoreBody) -> Response:
        """The reward of an answer, or of several."""
        try:
            service.predictor.check_rewards()
        except InputError as error:
            raise Refused(409, error.what, "Ask /v1/rank, or serve a run of --architecture reward.") from None
        if isinstance(body, schemas.Question):
            ranked = await service.rank(body)
            return _json(_with_id({"scores": ranked.rewards.tolist()}, body))
        question = _validate(schemas.Question, {"prompt": body.prompt, "responses": [body.response]}, "the body")
        ranked = await service.rank(question)
        return _json(_with_id({"score": float(ranked.rewards[0])}, body))

    @app.get("/v1/model", response_model=schemas.Model)
    async def model() -> Response:
        """What is served, what it can do, and the limits."""
        return _json(service.description)

    @app.get("/health", response_model=schemas.Health)
    async def health() -> Response:
        """The service answers."""
        return _json({"status": "ok"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.monitor.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def describe(predictor: Predictor, options: ServeOptions) -> dict[str, Any]:
    """What ``/v1/model`` says: of the runs in memory, whatever becomes of their folders."""
    configs = list(zip(predictor.names, map(runs.read_config, predictor.folders), strict=True))
    return {
        "runs": [name for name, _ in configs],
        "architecture": ", ".join(dict.fromkeys(config["options"]["architecture"] for _, config in configs)),
        "max_tokens": {name: config.get("resolved", {}).get("max_length") for name, config in configs},
        "can_score": predictor.can_score,
        "version": __version__,
        "limits": {
            "body_bytes": round(options.max_body_mb * 2**20), "battles": schemas.MAX_BATTLES,
            "responses": schemas.MAX_ANSWERS, "seconds": options.timeout,
        },
    }  # fmt: skip


def _add_page(app: FastAPI, *, needs_token: bool) -> None:
    """The page and its files, which are read once, and the description of the paths."""
    folder = resources.files("prefcli.serving") / "static"
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}

    def send(name: str) -> Response:
        if name not in files:
            raise Refused(404, "there is no such page")
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(files[name], media_type=kind)

    def describe_api() -> dict[str, Any]:
        api = app.openapi()
        if needs_token:
            api["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            api["security"] = [{"token": []}]
        return api

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return _json(describe_api())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(templating.render("api.html", api=describe_api(), to_json=to_json), media_type="text/html")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return send(PAGE)

    @app.get(STATIC + "{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return send(name)


def _checked_battle(value: Any) -> schemas.Battle | dict[str, Any]:
    try:
        return _validate(schemas.Battle, value, "a battle")
    except Refused as error:
        known = value.get("id") if isinstance(value, dict) else None
        return {"id": known if isinstance(known, (str, int, float)) else None, "error": error.detail}


def _validate(kind: Any, value: Any, what: str) -> Any:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise Refused(422, _describe(error.errors(include_url=False, include_input=False), what)) from None


def _describe(errors: Sequence[Any], what: str = "the body") -> str:
    """The first thing that is wrong with ``what`` was sent."""
    first = errors[0]
    if first["type"].startswith("model_"):
        return f"{what} is a JSON object"
    if first["type"] == "missing" and first["loc"] == ("body",):
        return "there is no body"
    place = [str(part) for part in first["loc"] if part not in ("body", "one", "many")]
    if place[:1] == ["id"]:
        return "id: neither text nor a number"
    message = str(first["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    is_named = bool(place) and place[0] in message
    if first["type"] in WRONG:
        message, is_named = WRONG[first["type"]].format(**first.get("ctx", {})), False
    return message if is_named or not place else f"{one_line('.'.join(place), 80)}: {message}"


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, Refused):
        return error_response(error)
    what, hint = SAID.get(error.status_code, (str(error.detail).lower(), ""))
    return error_response(Refused(error.status_code, what, hint, headers=error.headers))


async def _not_valid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    if errors[0]["type"] == "json_invalid":
        what = f"broken JSON: {errors[0]['ctx']['error']} at character {errors[0]['loc'][1]}"
        return error_response(Refused(400, what))
    return error_response(Refused(422, _describe(errors), "See /docs."))
