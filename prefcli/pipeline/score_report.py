"""``score --report``: predictions of a file and what came, as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prefcli import metrics
from prefcli.battles import STANDARD_INPUT, PathLike, Source, SourceLike, user_path
from prefcli.console import LOGGING
from prefcli.data import tables
from prefcli.errors import InputError
from prefcli.pipeline.score import (
    ScoreComparison,
    ScoreOptions,
    ScoreResult,
    compare_scores,
    find_files,
    score,
    usual_reading,
)
from prefcli.rendering import advice as suggestions
from prefcli.rendering import run_page
from prefcli.rendering.evaluation import Predictions, evaluate, read_details
from prefcli.rendering.run_page import RunPage
from prefcli.rendering.tables import Table, interval
from prefcli.reporting import Reporter
from prefcli.storage import files
from prefcli.storage.paths import check_page
from prefcli.storage.workspace import Workspace


def report_scores(
    predictions: PathLike | Sequence[PathLike],
    labels: SourceLike,
    page: PathLike,
    options: ScoreOptions | None = None,
    *,
    force: bool = False,
    reporter: Reporter = LOGGING,
) -> ScoreResult | ScoreComparison:
    """Score one file of predictions or several, and write a page about the one with the lowest log loss.

    Parameters
    ----------
    predictions, labels, options:
        As for :func:`prefcli.pipeline.score` and :func:`prefcli.pipeline.compare_scores`. The predictions are held in
        memory.
    page, force:
        The page; whether to overwrite it.
    reporter:
        Receives notes, warnings and progress.

    Raises
    ------
    InputError
        As they do; also if the page exists, or a file is standard input, which cannot be read twice.
    """
    options = options or ScoreOptions()
    paths, source = find_files(predictions, labels, Workspace.of(options.workspace), reporter)
    page_path = user_path(page)
    inputs = [*paths, *source.paths]
    check_page(page_path, inputs, force=force)
    if STANDARD_INPUT in (*paths, *source.paths):
        raise InputError("--report reads the files twice, and standard input can be read once", hint="Name a file.")
    if len(paths) == 1:
        result: ScoreResult | ScoreComparison = score(paths[0], source, **vars(options), reporter=reporter)
        best, best_score, compared = paths[0], result, []
    else:
        result = compare_scores(paths, source, **vars(options), reporter=reporter)
        of_files = list(result.scores)
        lowest = min(of_files, key=lambda name: result.scores[name].log_loss)
        best, best_score, compared = paths[of_files.index(lowest)], result.scores[lowest], _compared(result)
    assert isinstance(best_score, ScoreResult)
    _write_page(page_path, best, [path for path in paths if path != best], source, best_score, options, compared)
    reporter.note(f"wrote {page_path}")
    return result


def _write_page(
    page: Path,
    predicted: Path,
    others: Sequence[Path],
    source: Source,
    scored: ScoreResult,
    options: ScoreOptions,
    compared: list[Table],
) -> None:
    usual = next(
        filter(None, (usual_reading(path, Workspace.of(options.workspace)) for path in (predicted, *others))), {}
    )
    label_file = tables.LabelFile(source, usual)
    predictions = _predictions(predicted, others, label_file, scored.outcomes, options)
    cautions = []
    if scored.trained_on:
        battles = metrics.plural(scored.n, "battle")
        what = "have a prompt that the predicting runs were trained on: this score is too good."
        cautions.append(f"{scored.trained_on:,} of {battles} {what}")
    details = None
    if label_file.battles is None:
        cautions.append(f"Texts and groups are missing: {source} holds only outcomes.")
    else:
        batches = (batch for batch, _ in label_file.battles.batches())
        details = read_details(batches, predictions, source.by, str(source))
    evaluation = evaluate(predictions, details)
    data = suggestions.command_words(source)
    score = evaluation.score
    battles = metrics.describe_battles(score.n, score.prompts, outcomes=score.outcomes)
    shown = RunPage(
        title=f"Predictions in {predicted.name}",
        name=predicted.name,
        battles=f"{battles} of {source.title}",
        cautions=cautions,
        compared=compared,
        advice=suggestions.of_predictions(data, evaluation, predictions),
    )
    files.write_text(page, run_page.render(shown, evaluation))


def _predictions(
    path: Path, others: Sequence[Path], label_file: tables.LabelFile, outcomes: int, options: ScoreOptions
) -> Predictions:
    """The predictions of the battles whose outcome is known and that all other files have, in the file's order."""
    ids, probabilities = tables.read_probabilities(path, renormalize=options.renormalize)
    labels, keys = np.full(len(ids), -1), np.zeros(len(ids), dtype=np.int64)
    for part in label_file.rows():
        rows = ids.get_indexer(part.ids.to_pylist())
        labels[rows[rows >= 0]] = part.values[rows >= 0, 0]
        keys[rows[rows >= 0]] = part.values[rows >= 0, 1]
    is_scored = labels >= 0
    for other in others:
        is_scored &= ids.isin(tables.read_probabilities(other, renormalize=options.renormalize)[0])
    rows = np.flatnonzero(is_scored)
    scored = metrics.two_outcome(probabilities[rows]) if outcomes == 2 else probabilities[rows]
    known_keys = None if label_file.battles is None else keys[rows]
    return Predictions([str(ids[row]) for row in rows], scored, labels[rows], known_keys, outcomes, options.seed)


def _compared(comparison: ScoreComparison) -> list[Table]:
    """Every file's score, and the paired differences, as tables."""
    scores = [
        [name, f"{score.log_loss:.4f}", _interval(score.log_loss_ci), f"{score.accuracy:.1%}",
         f"{score.brier:.4f}", f"{score.ece:.4f}", "best" if name == comparison.best else ""]
        for name, score in comparison.scores.items()
    ]  # fmt: skip
    differences = [
        [f"{each.a} minus {each.b}", metrics.signed(each.difference),
         metrics.signed_interval(each.ci) if each.ci else each.reason, "" if each.p is None else f"{each.p:.4f}"]
        for each in comparison.differences
    ]  # fmt: skip
    return [
        (["file", "log loss", "95 %", "accuracy", "Brier score", "calibration error", ""], scores),
        (["files", "difference", "95 %", "p"], differences),
    ]


def _interval(ends: tuple[float, float] | None) -> str:
    return interval(*ends, ".4f") if ends else ""
