"""``prefcli report``: a run's held-out predictions, its training, and what to try next, as one page."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefcli import metrics
from prefcli.battles import STANDARD_INPUT, PathLike, Source, user_path
from prefcli.errors import InputError, ModelError, PrefcliError, one_line, plural
from prefcli.models import features
from prefcli.options import TrainOptions
from prefcli.pipeline.stages import read_stage
from prefcli.prediction import blending
from prefcli.rendering import advice as suggestions
from prefcli.rendering import run_page
from prefcli.rendering.advice import Advice, RunFacts
from prefcli.rendering.curves import Course, course_of_run
from prefcli.rendering.evaluation import Details, Evaluation, Predictions, evaluate, read_details
from prefcli.rendering.run_page import RunPage
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files, runs
from prefcli.storage.paths import check_page
from prefcli.storage.workspace import Stage, Workspace

Importances = list[tuple[str, float]]
SAME_PROBABILITY = 1e-6
"""Probabilities that differ by less are the same."""


@dataclass(frozen=True, repr=False)
class ReportResult:
    """What ``report`` returns: the page, and what it shows."""

    page: Path
    evaluation: Evaluation
    importances: Importances
    """Statistics and their shares of the gain, the largest first; empty for neural models."""
    advice: tuple[Advice, ...]
    """What to try next."""
    missing: tuple[str, ...]
    """What the page lacks, and why."""

    def __repr__(self) -> str:
        advice = metrics.plural(len(self.advice), "suggestion")
        return f"ReportResult({str(self.page)!r}, {self.evaluation.score!r}, {advice})"


def report(
    run: PathLike,
    workspace: Workspace,
    output: PathLike | None = None,
    *,
    by: str | None = None,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> ReportResult:
    """Write a page about a run: how good it is, where it fails, how it was trained, what to try next.

    Parameters
    ----------
    run, workspace:
        A run's folder or name; where its battles may still be cached.
    output, force:
        The page, by default ``NAME.html`` in the current folder: it holds texts of battles, which runs do not, so it is
        not put beside what may be published. Whether to overwrite it.
    by:
        Also group battles by this column of the training file.

    Raises
    ------
    InputError
        If the run held no battles out, or the page exists.
    ModelError
        If the run is unfinished or damaged.
    """
    folder = workspace.find_run(run)
    config = runs.read_config(folder)
    page_path = Path(f"{folder.resolve().name}.html") if output is None else user_path(output)
    check_page(page_path, Source.from_json(config["data"]["source"]).paths, force=force)
    held_out = _held_out(folder, config)
    unseen = runs.unseen_outcomes(config)
    predictions = Predictions(
        held_out.ids,
        metrics.held_out_probabilities(held_out.logits, held_out.labels, unseen),
        held_out.labels,
        held_out.keys,
        metrics.validation_outcomes(held_out.labels, unseen),
    )
    details, missing = _details(config, workspace, predictions, by, reporter)
    evaluation = evaluate(predictions, details)
    importances, reached_last_round = _importances(folder, config)
    options = TrainOptions(**config["options"])
    courses = _courses(folder)
    if not courses:
        missing.append("The run recorded no learning curve.")
    test = suggestions.find_test(*Source.from_json(config["data"]["source"]).paths)
    facts = RunFacts(
        folder=str(folder),
        data=suggestions.command_words(Source.from_json(config["data"]["source"])),
        options=options,
        courses=[course for _, course in courses],
        cut=_cut_share(config),
        test=suggestions.command_words(Source((test or Path("test.csv"),))),
        both_orders=_both_orders(held_out, options, predictions.outcomes),
        reached_last_round=reached_last_round,
    )
    advice = suggestions.of_run(facts, evaluation, predictions)
    score = evaluation.score
    name = folder.resolve().name
    page = RunPage(
        title=f"Run {name}",
        name="this run",
        battles=metrics.describe_battles(score.n, score.prompts, "held-out battle", outcomes=score.outcomes),
        cautions=missing,
        advice=advice,
        calibration=_calibration(folder, reporter),
        courses=courses,
        importances=importances,
        facts=_facts(config),
    )
    files.write_text(page_path, run_page.render(page, evaluation))
    for sentence in missing:
        reporter.warn(sentence.rstrip("."))
    return ReportResult(page_path, evaluation, importances, tuple(advice), tuple(missing))


def _held_out(folder: Path, config: Mapping[str, Any]) -> runs.HeldOut:
    """The run's held-out battles, of a finished and undamaged run."""
    for member in runs.all_folders(folder):
        if runs.is_unfinished(member):
            raise ModelError(
                "the run's training did not finish, or is still under way",
                where=str(member),
                hint=f"Wait for it, or continue it with prefcli train --resume {folder}.",
            )
    if not config["data"].get("held_out_battles") and not (folder / runs.VALIDATION).is_file():
        raise InputError(
            "the run held no battles out, so there is nothing to report",
            where=str(folder),
            hint="Predict battles with outcomes and report these: prefcli score PREDS LABELS --report PAGE.html.",
        )
    try:
        expected = files.read_checksums(folder).get(runs.VALIDATION)
    except (OSError, ValueError) as error:
        what = f"the run's checksums cannot be read: {one_line(error)}"
        raise ModelError(what, where=str(folder / files.CHECKSUMS)) from None
    path = folder / runs.VALIDATION
    if expected is not None and path.is_file() and files.sha256(path) != expected:
        raise ModelError(f"the run is damaged: {runs.VALIDATION} is changed", where=str(folder), hint="Train it again.")
    return runs.read_validation(folder)


def _details(
    config: Mapping[str, Any], workspace: Workspace, predictions: Predictions, by: str | None, reporter: Reporter
) -> tuple[Details | None, list[str]]:
    """Groups and texts of the held-out battles, and a sentence that says so where they cannot be had.

    A run keeps no texts: the cached battles are looked for, then the files that it was trained on are read again.
    """
    source = _held_out_source(config)
    try:
        stage = _held_out_stage(config, source, workspace, reporter)
        if by is not None:
            grouped = read_stage(dataclasses.replace(source, by=by), workspace, reporter)
            if grouped.metadata["input"] != stage.metadata["input"]:
                raise InputError("the file has changed since the run was trained", where=str(source))
            stage = grouped
        return read_details(stage.batches(), predictions, by, str(source)), []
    except PrefcliError as error:
        if by is not None:
            raise
        where = f" ({error.where})" if error.where else ""
        return None, [f"Texts and groups of the held-out battles are missing: {error.what}{where}."]


def _held_out_source(config: Mapping[str, Any]) -> Source:
    """The files that the held-out battles are from: the validation file, else what the run was trained on."""
    source = Source.from_json(config["data"]["source"])
    validation_file = config["data"].get("validation_file")
    return source.like(validation_file) if validation_file else source


def _held_out_stage(config: Mapping[str, Any], source: Source, workspace: Workspace, reporter: Reporter) -> Stage:
    """The battles as they were read for the training.

    Raises
    ------
    PrefcliError
        If they are neither cached nor to be read again, or have changed.
    """
    data = config["data"]
    from_file = bool(data.get("validation_file"))
    try:
        fingerprint = data["validation_input"] if from_file else workspace.open_stage(data["stage"]).metadata["input"]
        return workspace.open_stage(f"battles-{fingerprint}.parquet")
    except PrefcliError:
        pass  # not cached any more, or in another workspace
    if STANDARD_INPUT in source.paths:
        raise InputError("they came from standard input and are not cached any more")
    stage = read_stage(source, workspace, reporter)
    was = data["validation_input" if from_file else "source_sha256"]
    if was != (stage.fingerprint if from_file else stage.metadata["input"]):
        raise InputError("the file has changed since the run was trained", where=str(source))
    return stage


def _courses(folder: Path) -> list[tuple[str, Course]]:
    """The learning curves that a run recorded; with folds each has its fold's name."""
    courses = []
    for member in runs.members(folder):
        if (member / runs.METRICS).is_file():
            course = course_of_run(member, runs.read_config(member))
            title = "" if member == folder else member.name.replace("-", " ")
            if course.training or course.validations:
                courses.append((title, course))
    return courses


def _importances(folder: Path, config: Mapping[str, Any]) -> tuple[Importances, bool]:
    """The boosted statistics' shares of the gain, the mean over folds; whether a fit took all rounds there are."""
    if config["options"]["architecture"] != "features":
        return [], False
    models = [features.load(member) for member in runs.members(folder)]
    shares: dict[str, float] = {}
    for model in models:
        for name, share in model.importances():
            shares[name] = shares.get(name, 0.0) + share / len(models)
    seeds = config["options"].get("seeds") or 1
    rounds = [model.booster.current_iteration() // seeds for model in models if model.booster is not None]
    return sorted(shares.items(), key=lambda item: -item[1]), features.MAX_ROUNDS in rounds


def _cut_share(config: Mapping[str, Any]) -> float:
    """Share of the battles that the length limit cut: :class:`~prefcli.models.packing.TruncationReport` in words."""
    cut = re.search(r"battles \(([\d.]+)%\) cut", str(config["resolved"].get("cut", "")))
    return float(cut[1]) / 100 if cut else 0.0


def _both_orders(held_out: runs.HeldOut, options: TrainOptions, outcomes: int) -> metrics.Difference | None:
    """What the mean over both orders of the answers changes in the log loss, battle by battle."""
    if held_out.swapped is None or options.architecture == "features":
        return None
    one, both = (held_out.probabilities(swap_average=average) for average in (False, True))
    if np.abs(one - both).max() < SAME_PROBABILITY:
        return None
    if outcomes == 2:
        one, both = metrics.two_outcome(one), metrics.two_outcome(both)
    return metrics.compare(metrics.losses(both, held_out.labels), metrics.losses(one, held_out.labels), held_out.keys)


def _calibration(folder: Path, reporter: Reporter) -> str:
    """What ``predict`` does about calibration, in a sentence."""
    run = blending.held_out_run(folder, np.empty(0, dtype=np.int64), reporter)
    return f"Shown are the run's own probabilities; predict calibrates them: {blending.calibration_of(run)}."


def _facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The run in a few lines."""
    data, options, resolved = config["data"], config["options"], config["resolved"]
    source = _held_out_source(config)
    title = Source.from_json(data["source"]).title
    shares = ", ".join(f"{name} {share:.1%}" for name, share in zip(("A", "B", "tie"), data["shares"], strict=True))
    facts = {
        "architecture": options["architecture"],
        "encoder": "" if options["architecture"] == "features" else options["encoder"],
        "text": data["text"],
        "folds": options.get("folds") or "",
        "trained on": f"{plural(data['train_battles'], 'battle')} of {title}: {shares}",
        "held out of": source.title,
        "longest sequence": f"{resolved['max_length']} tokens: {resolved['cut']}" if "cut" in resolved else "",
        "computed on": resolved.get("placement", ""),
        "command": config.get("command", ""),
        "prefcli": config["versions"].get("prefcli", ""),
    }
    return [(name, str(value)) for name, value in facts.items() if value]
