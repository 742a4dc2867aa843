"""``rank``: from several answers to each prompt, in files or lines as they arrive, to their order and the best one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.battles import PathLike, Source, SourceLike, user_path
from prefcli.compute import devices
from prefcli.compute.distributed import from_environment, process_group
from prefcli.data import rows
from prefcli.errors import InputError
from prefcli.options import RankOptions
from prefcli.pipeline.predict import count_trained_on, describe_unseen, find_runs, placement, write_answers
from prefcli.pipeline.stages import candidate_stage, source_of
from prefcli.prediction import blending, inference, ranking
from prefcli.prediction import pairs as preference_pairs
from prefcli.prediction.pairs import PairCounts, PairFile
from prefcli.prediction.ranking import Ranked
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files, hub, runs
from prefcli.storage.paths import check_inputs, check_output
from prefcli.storage.workspace import Stage, Workspace

RANKING_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("ranking", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float64())),
        ("p_best", pa.list_(pa.float64())),
    ]
)
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass(frozen=True)
class RankResult:
    """What ``rank`` wrote."""

    output: Path
    questions: int
    answers: int
    pairs: int
    """Pairs of answers that were compared; 0 for reward runs, which read each answer once."""
    single: int
    """Questions with one answer only."""
    best: Path | None
    """The file of the best answers."""
    pairs_file: Path | None
    """The file of preference pairs."""
    pair_counts: PairCounts | None
    """How many rows it has, and what was left out and why."""
    models: tuple[str, ...]
    weights: tuple[float, ...]
    """Of each model's log probabilities; for one model the inverse of its temperature."""
    calibration: str
    """What was fitted on which battles, in words."""
    trained_on: tuple[int | None, ...]
    """For each model, how many of the questions have a prompt that it was trained on; None if the run does not say."""
    seconds: float
    answers_per_second: float


def rank(
    source: SourceLike,
    workspace: Workspace,
    output: PathLike,
    options: RankOptions,
    *,
    best: PathLike | None = None,
    pairs: PairFile | None = None,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> RankResult:
    """Rank the answers to each prompt of a file; a line for each, in the file's order, with unchanged ids.

    Parameters
    ----------
    source:
        Files of prompts with several answers each.
    workspace, options, force:
        Where caches and runs are; how to rank; whether to overwrite outputs.
    output:
        JSON lines, JSON or Parquet, by its name: ``id``, ``ranking``, ``scores``, ``p_best``.
    best:
        Where the best answer to each prompt is written, by its name in the same formats.
    pairs:
        Where preference pairs are written, and which.

    Raises
    ------
    InputError, ModelError
        If options, answers or outputs do not allow it; if a run cannot be loaded.
    """
    source, output = source_of(source, workspace), user_path(output)
    best = None if best is None else user_path(best)
    outputs = [path for path in (output, best, pairs.path if pairs else None) if path is not None]
    _check(options, source, outputs, force)
    if pairs is not None:
        pairs.options.check()
    started = time.monotonic()
    world = from_environment()
    if not world.is_main_process:
        reporter = SILENT
    folders = find_runs(workspace, options.models, reporter)
    for path in outputs:
        parts = [part for folder in folders for part in runs.all_folders(folder)]
        files.refuse_to_replace(path, [part / name for part in parts for name in runs.TABLES])
    names = hub.run_names(options.models, folders)
    with process_group(world):
        with world.main_process_first():
            stage = candidate_stage(source, workspace, reporter)
        request = devices.DeviceRequest(options.device, options.precision, world.local_rank)
        with reporter.track("loading models", None):
            members = inference.open_runs(folders, options, request)
        reporter.note(f"ranking with {', '.join(names)}{placement(folders, request)}")
        describe_unseen(folders, names, reporter, as_source=options.as_source)
        keys = stage.table(["prompt_key"])["prompt_key"].to_numpy()
        calibration = blending.from_options(folders, keys, reporter, options)
        total = min(len(keys), options.limit or len(keys))
        trained_on = count_trained_on(
            folders, names, keys[:total], reporter, what="questions", so="their order is surer than it should be"
        )
        sizes, turns = _shape(stage, total)
        if pairs is not None and pairs.options.select == "all":
            largest = int(sizes.argmax())
            preference_pairs.refuse_too_many(int(sizes[largest]), f"question {largest + 1:,}")
        rule = rule_of(options)
        work = _describe_work(members, sizes, rule, reporter)
        begun = time.monotonic()
        unit = "answers" if ranking.reads_answers_once(members) else "pairs"
        with reporter.track("ranking", work * inference.models_in(members), unit) as progress:
            done = inference.advancing(progress, world)
            ranked = ranking.stream(members, stage, total, world=world, rule=rule, calibration=calibration, done=done)
            counts = PairCounts()
            writers: list[Writer] = [_ranking_writer(output)]
            if best is not None:
                writers.append(_best_writer(best, as_messages=turns > 1))
            if pairs is not None:
                writers.append(preference_pairs.writing(pairs, counts))
            compared = _write(ranked, writers if world.is_main_process else [])
        seconds = time.monotonic() - begun
    for sentence in counts.sentences():
        reporter.note(sentence)
    if pairs is not None and world.is_main_process and not counts.rows:
        advice = ": --pairs-min-probability 0 takes less certain pairs" if counts.left_out else ""
        reporter.warn(f"{pairs.path} is empty{advice}")
    return RankResult(
        output=output,
        questions=total,
        answers=int(sizes.sum()),
        pairs=compared,
        single=int((sizes == 1).sum()),
        best=best,
        pairs_file=pairs.path if pairs else None,
        pair_counts=counts if pairs else None,
        models=tuple(names),
        weights=calibration.weights,
        calibration=str(calibration),
        trained_on=trained_on,
        seconds=time.monotonic() - started,
        answers_per_second=float(sizes.sum()) / max(seconds, 1e-9),
    )


def _check(options: RankOptions, source: Source, outputs: Sequence[Path], force: bool) -> None:
    """Refuse what cannot work before anything is read."""
    options.check()
    for path in outputs:
        rows.check_name(path)
        check_output(path, source.paths, force=force)
    for number, path in enumerate(outputs):
        if path.resolve() in (other.resolve() for other in outputs[:number]):
            raise InputError(f"{path} is named as two outputs", hint="Give each its own name.")
    check_inputs(source.paths)


def rule_of(options: RankOptions) -> ranking.RankRule:
    """How answers are ranked, from the options."""
    return ranking.RankRule(options.method, options.all_pairs, options.swap_average, options.length_penalty)


def _describe_work(
    members: Sequence[inference.Member], sizes: NDArray[np.int64], rule: ranking.RankRule, reporter: Reporter
) -> int:
    """How many answers a model reads, or pairs it compares at most, and a message about them."""
    mean_win = "mean probabilities to win" if rule.method == "mean-win" else None
    if ranking.reads_answers_once(members):
        reporter.note(f"each answer is read once: scores are {mean_win or 'rewards'}")
        for flag, is_given in (
            ("--swap-average", rule.swap_average),
            ("--all-pairs", rule.all_pairs != ranking.RankRule().all_pairs),
        ):
            if is_given:
                reporter.note(f"{flag} changes nothing: no pairs are compared")
        return int(sizes.sum())
    pairs = ranking.pairs_compared(sizes, rule.all_pairs)
    what = mean_win or "strengths fitted to their probabilities"
    reporter.note(f"{metrics.plural(pairs, 'pair')} of answers are compared: scores are {what}")
    if many := int((sizes > rule.all_pairs).sum()):
        reporter.note(
            f"{metrics.plural(many, 'question')} with more than {rule.all_pairs} answers: each answer is compared with "
            f"at most {2 * ranking.CYCLES} others, not with all (--all-pairs)"
        )
    return pairs


Writer = contextlib.AbstractContextManager[Callable[[Ranked], None]]
"""An output; entered, it gives a function to add a question's ranking."""


def _shape(stage: Stage, total: int) -> tuple[NDArray[np.int64], int]:
    """How many answers each of the first questions has, ``[n]``, and how many turns the longest prompt."""
    sizes, turns = [], 1
    for batch in stage.batches(["prompt", "responses"]):
        sizes.append(pc.list_value_length(batch.column("responses")).to_numpy())
        turns = max(turns, pc.max(pc.list_value_length(batch.column("prompt"))).as_py() or 1)
    return np.concatenate(sizes)[:total].astype(np.int64), turns


@contextlib.contextmanager
def _ranking_writer(path: Path) -> Iterator[Callable[[Ranked], None]]:
    with rows.row_writer(path, RANKING_SCHEMA) as append:
        yield lambda ranked: append(ranked.to_json())


@contextlib.contextmanager
def _best_writer(path: Path, *, as_messages: bool) -> Iterator[Callable[[Ranked], None]]:
    """Writes the best answer to each prompt: ``id, prompt, response, score, p_best``.

    Parameters
    ----------
    path:
        JSON lines or Parquet, by its name.
    as_messages:
        Whether prompts are written as lists of messages, as those of several turns have to be; else as text.
    """
    prompt = MESSAGES if as_messages else pa.string()
    schema = pa.schema(
        [("id", pa.string()), ("prompt", prompt), ("response", pa.string()), ("score", pa.float64()),
         ("p_best", pa.float64())]
    )  # fmt: skip

    def row_of(ranked: Ranked) -> dict[str, Any]:
        response = ranked.responses[ranked.best]
        return {
            "id": ranked.id,
            "prompt": _messages(ranked.prompt, response) if as_messages else ranked.prompt[0] or "",
            "response": response[-1] or "",
            "score": float(ranked.scores[ranked.best]),
            "p_best": float(ranked.p_best[ranked.best]),
        }

    with rows.row_writer(path, schema) as append:
        yield lambda ranked: append(row_of(ranked))


def _messages(prompt: Sequence[str | None], response: Sequence[str | None]) -> list[dict[str, str]]:
    """The conversation before the last answer."""
    messages = [("user", prompt[0])]
    for reply, question in zip(response[:-1], prompt[1:], strict=True):
        messages += [("assistant", reply), ("user", question)]
    return [{"role": role, "content": text or ""} for role, text in messages]


def _write(ranked: Iterator[Ranked], writers: Sequence[Writer]) -> int:
    """Rank everything, on every rank, and give it to the writers; how many pairs were compared."""
    pairs = 0
    with contextlib.ExitStack() as stack:
        adds = [stack.enter_context(writer) for writer in writers]
        for question in ranked:
            pairs += 0 if question.comparison.first is None else len(question.comparison.first)
            for add in adds:
                add(question)
    return pairs


def rank_lines(
    lines: IO[bytes],
    answers: IO[bytes],
    workspace: Workspace,
    options: RankOptions,
    *,
    reading: Source | None = None,
    reporter: Reporter = SILENT,
) -> tuple[int, int]:
    """Rank questions written as JSON lines, each as soon as it arrives; nothing is cached.

    Parameters
    ----------
    lines:
        One question per line, a JSON object with a prompt and a list of answers.
    answers:
        Gets a line for each: ``id``, ``ranking``, ``scores`` and ``p_best``, or ``id`` (null if the line has none),
        ``line`` and ``error``; flushed at once.
    options:
        How to rank; ``limit`` is not used. Calibration is fitted without the prompt of the current question.
    reading:
        How the lines are read, as a source of no files.

    Returns
    -------
    How many lines were answered, and how many of them with an error.
    """
    from prefcli.prediction.predictor import Predictor

    options.check()
    folders = find_runs(workspace, options.models, reporter)
    names = hub.run_names(options.models, folders)
    predictor = Predictor(folders, options)
    reporter.note(f"ranking with {', '.join(names)}")
    describe_unseen(folders, names, reporter)
    return write_answers(predictor.rankings(lines, reading, rule_of(options)), answers)
