"""What to try next, from the figures of a run: a few suggestions, each with its reason and a command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefcli import metrics
from prefcli.battles import Source
from prefcli.options import TrainOptions
from prefcli.rendering.curves import Course
from prefcli.rendering.evaluation import Evaluation, Predictions

MAX_ADVICE = 5
TEST_FILES = ("test.csv", "test.jsonl", "test.json", "test.parquet")
RISE = 0.005
"""Validation log loss this far above its best has risen; below the one before by as much, it is still falling."""
LOW_PROBABILITY = 0.1
"""An outcome with less was not expected; a calibrated model says how often it comes all the same."""
MIN_CUT = 0.1
"""Share of battles that the length limit cuts, from which it is worth asking for more."""
WIDE_INTERVAL = 0.5
"""An interval is wide if half of it is more than this part of the gain over the prior."""


@dataclass(frozen=True)
class Advice:
    """A suggestion: what the figures say, and a command to try."""

    reason: str
    command: str


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run besides its held-out predictions."""

    folder: str
    data: str
    """The training files, and how they are read, as words of a command."""
    options: TrainOptions
    courses: Sequence[Course]
    cut: float
    """Share of the battles that the length limit cut."""
    both_orders: metrics.Difference | None
    """Log loss of the mean over both orders of the answers minus that of one; None where they are the same."""
    test: str = "test.csv"
    """A file to predict, as a word of a command."""
    reached_last_round: bool = False
    """Whether boosting was still improving at the largest number of rounds."""

    def train(self, flags: str) -> str:
        """The command that trains the run again, with some flags changed."""
        return f"prefcli train {self.data} --config {quote(f'{self.folder}/config.json')} {flags}"

    def predict(self, flags: str) -> str:
        return f"prefcli predict {self.test} --model {quote(self.folder)} {flags}"


def quote(text: str) -> str:
    """A word of a shell command; a name cannot become a flag."""
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def command_words(source: Source) -> str:
    """The files of a source, and how they are read, as words of a command."""
    here = Path.cwd()
    paths = [path.relative_to(here) if path.is_relative_to(here) else path for path in source.paths]
    words = [quote(str(path)) for path in paths]
    for name, value in source.reading.items():
        text = ",".join(f"{known}={path}" for known, path in value.items()) if name == "columns" else value
        words.append(f"--{name} {shlex.quote(str(text))}")
    return " ".join(words)


def find_test(*near: Path) -> Path | None:
    """A file of battles to predict: ``test.csv`` or the like, here or beside other files."""
    folders = dict.fromkeys([Path(), *(path.parent for path in near)])
    candidates = (folder / name for folder in folders for name in TEST_FILES)
    taken = {path.resolve() for path in near}
    return next((path for path in candidates if path.is_file() and path.resolve() not in taken), None)


def of_run(facts: RunFacts, evaluation: Evaluation, predictions: Predictions) -> list[Advice]:
    """The most important suggestions for a run, the first one first."""
    found = [*_about_prior(facts, evaluation), *_about_orders(facts), *_about_course(facts), *_about_length(facts)]
    found += [*_about_interval(facts, evaluation), *of_predictions(facts.data, evaluation, predictions)]
    return found[:MAX_ADVICE]


def of_predictions(data: str, evaluation: Evaluation, predictions: Predictions) -> list[Advice]:
    """Suggestions that only need predictions of the battles of a file."""
    return [*_about_groups(data, evaluation), *_about_labels(data, predictions)][:MAX_ADVICE]


def _about_prior(facts: RunFacts, evaluation: Evaluation) -> Iterator[Advice]:
    """Not better than always predicting the class shares."""
    against = evaluation.against_prior
    if against.ci is None or against.ci[1] < 0:
        return
    reason = (
        f"The log loss is not surely below that of the class shares: {metrics.signed(against.difference)} "
        f"(95 % interval {metrics.signed_interval(against.ci)})."
    )
    if facts.options.architecture != "features":
        reason += " Boosted text statistics learn from few battles, in minutes."
        yield Advice(reason, f"prefcli train {facts.data} --recipe fast")
    elif facts.options.normalisation != "raw":
        yield Advice(f"{reason} Statistics of the raw text see length and markup.", facts.train("--text raw"))
    else:
        yield Advice(f"{reason} Look at the votes: do they follow anything?", f"prefcli eda {facts.data}")


def _about_orders(facts: RunFacts) -> Iterator[Advice]:
    """The mean over both orders of the answers is better than one."""
    both = facts.both_orders
    if both is not None and both.ci is not None and both.ci[1] < 0:
        yield Advice(
            "The mean over both orders of the answers has a lower log loss on the same battles: "
            f"{metrics.signed(both.difference)} (95 % interval {metrics.signed_interval(both.ci)}).",
            facts.predict("--swap-average"),
        )


def _about_course(facts: RunFacts) -> Iterator[Advice]:
    """Validation rose after its best, or was still falling at the end; or boosting was."""
    if facts.reached_last_round:
        yield Advice(
            "Boosting was still improving at the largest number of rounds that is tried: the statistics are not used "
            "up. An encoder reads what they cannot.",
            f"prefcli train {facts.data} --recipe strong",
        )
    course = facts.courses[0] if len(facts.courses) == 1 else None
    if course is None or course.boosting or course.best is None or len(course.validations) < 2:
        return
    (best_step, best), (last_step, last) = course.best, course.validations[-1]
    epochs = facts.options.epochs
    if last > best + RISE:
        keep = max(1, round(epochs * best_step / last_step))
        if keep < epochs:
            yield Advice(
                f"Validation log loss was best at step {best_step:,} ({best:.4f}) and rose to {last:.4f}: the weights "
                "of that step are kept, and a schedule that ends there may be better.",
                facts.train(f"--epochs {keep}"),
            )
    elif last == best and course.validations[-2][1] - last > RISE:
        yield Advice(
            f"Validation log loss was still falling at the end ({course.validations[-2][1]:.4f}, then {last:.4f}).",
            facts.train(f"--epochs {epochs + 1}"),
        )


def _about_length(facts: RunFacts) -> Iterator[Advice]:
    if facts.cut >= MIN_CUT:
        yield Advice(
            f"{facts.cut:.0%} of the battles are longer than {facts.options.max_length} tokens: the rest "
            "was not read. Many encoders take more.",
            facts.train(f"--max-length {2 * facts.options.max_length}"),
        )


def _about_interval(facts: RunFacts, evaluation: Evaluation) -> Iterator[Advice]:
    """The held-out battles say too little."""
    score, options = evaluation.score, facts.options
    if options.folds or options.validation_file:
        return
    difference, ci = evaluation.against_prior.difference, evaluation.against_prior.ci
    if ci is None or (ci[1] - ci[0]) / 2 > WIDE_INTERVAL * abs(difference):
        held_out = metrics.describe_battles(score.n, score.prompts, "held-out battle")
        yield Advice(
            f"{held_out} say little about how far the log loss is from that of the class shares "
            f"({metrics.signed(difference)}). With folds every battle is held out once.",
            facts.train("--folds 5"),
        )


def _about_groups(data: str, evaluation: Evaluation) -> Iterator[Advice]:
    """A group whose interval is above the log loss of all battles."""
    overall = evaluation.score.log_loss
    worst: tuple[float, str, str, metrics.Score] | None = None
    for grouping in evaluation.groupings:
        for name, score in grouping.groups.items():
            low = score.log_loss_ci[0] if score.log_loss_ci else 0.0
            if low > overall and (worst is None or low > worst[0]):
                worst = (low, grouping.by, name, score)
    if worst is None:
        return
    low, by, name, score = worst
    yield Advice(
        f"Battles with {by} {name!r} are the hardest: log loss {score.log_loss:.4f} of {score.n:,} "
        f"battles, at least {low:.4f}, against {overall:.4f} of all (their own class shares give "
        f"{score.prior_log_loss:.4f}). More such battles help most, if their votes agree.",
        f"prefcli eda {data} --by {quote(by)}",
    )


def _about_labels(data: str, predictions: Predictions) -> Iterator[Advice]:
    """More unexpected outcomes than the probabilities themselves expect: label errors, or overconfidence."""
    probabilities = predictions.probabilities[:, : predictions.outcomes]
    is_low = probabilities < LOW_PROBABILITY
    variance = float((probabilities * (1 - probabilities))[is_low].sum())
    expected = float(probabilities[is_low].sum())
    observed = int(is_low[np.arange(len(probabilities)), predictions.labels].sum())
    if observed > expected + 3 * np.sqrt(variance) and observed >= expected + 3:
        yield Advice(
            f"{observed:,} battles ended in an outcome that had a probability below {LOW_PROBABILITY:.0%}; the "
            f"probabilities expect {expected:.0f}. Read the battles below: are their labels right? If they are, the "
            "model is overconfident.",
            f"prefcli eda {data} --export problems.csv --label-errors",
        )
