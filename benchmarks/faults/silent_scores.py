"""Situations around splits, scores, intervals and joins in which the right answer is known.

:func:`situations` gives each a name and a function that ends in ``right`` (the answer equals an independent
calculation), ``refused`` (a warning says what is wrong), ``silent: ...`` or an error of prefcli's. By themselves:
``python benchmarks/faults/silent.py --only silent_scores``.
"""

from __future__ import annotations

import csv
import functools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from sklearn.model_selection import StratifiedGroupKFold

import prefcli
from prefcli import metrics, pipeline
from prefcli.data import selection, splits
from prefcli.options import TrainOptions
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.pipeline.ablate import evaluate
from prefcli.pipeline.train import find_data
from prefcli.reporting import SILENT, Silent
from prefcli.storage import files, runs
from prefcli.storage.workspace import Workspace

Situation = tuple[str, Callable[[], str]]

RIGHT, REFUSED = "right", "refused"


class Warnings(Silent):
    """Keeps what the user would be warned of, and notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.texts.append(text)


def situations(folder: Path, seed: int) -> Iterator[Situation]:
    """Every situation, in files below ``folder``; the numbers in them depend on the seed."""
    parts = (_splits, _intervals, _two_outcomes, _equal_probabilities, _label_files, _broken_files, _joins, _ablations)
    for number, part in enumerate(parts):
        below = folder / part.__name__.strip("_")
        below.mkdir(parents=True, exist_ok=True)
        for name, run in part(below, np.random.default_rng([seed, number])):
            yield f"{part.__name__.strip('_')}: {name}", run


def _compare(value: Any, expected: Any, tolerance: float = 1e-9) -> str:
    equal = np.allclose(np.asarray(value, dtype=float), np.asarray(expected, dtype=float), rtol=0, atol=tolerance)
    return RIGHT if equal else f"silent: {value} instead of {expected}"


# group shapes


def _splits(folder: Path, random: np.random.Generator) -> Iterator[Situation]:
    shapes = {
        "single battles": [1] * 400,
        "two, of 500 and 300 battles, and 200 singles": [500, 300] + [1] * 200,
        "500, 300 and 200 battles": [500, 300, 200],
        "two prompts": [7, 30],
        "twenty of 50 battles": [50] * 20,
        "one of 900 battles and 100 singles": [900] + [1] * 100,
        "geometric": random.geometric(0.3, 150).tolist(),
        "heavy-tailed": np.minimum(random.pareto(1.1, 150) + 1, 400).astype(int).tolist(),
        "uniform": random.integers(1, 30, 80).tolist(),
        "three prompts of one battle": [1, 1, 1],
    }
    for name, sizes in shapes.items():
        groups = np.repeat(random.integers(-(2**62), 2**62, len(sizes)), sizes)
        labels = random.integers(0, 3, len(groups))
        some = np.where(random.random(len(labels)) < 0.2, -1, labels)
        for what, known in (("", labels), (", some without outcome", some), (", no ties", labels % 2)):
            yield f"{name}{what}", functools.partial(_split, groups, known, sizes, int(random.integers(1000)))


def _split(groups: np.ndarray, labels: np.ndarray, sizes: Sequence[int], seed: int) -> str:
    n = len(groups)
    reachable = {0}  # every size that a hold-out of whole prompts can have
    for size in sizes:
        reachable |= {total + size for total in reachable}
    for share in (0.1, 0.3):
        train, held_out = splits.split_validation(groups, labels, share, seed)
        if sorted([*train, *held_out]) != list(range(n)) or set(groups[train]) & set(groups[held_out]):
            return "silent: a prompt on both sides, or a battle on none"
        best = min(abs(total - share * n) for total in reachable - {0, n})
        if abs(len(held_out) - share * n) > best + max(1, 0.02 * n, min(sizes)):
            return f"silent: {len(held_out)} of {n} held out for {share}, {best} from it is possible"
    folds = min(5, len(sizes))
    ours = [part for _, part in splits.split_folds(groups, labels, folds, seed)]
    if not all(map(len, ours)) or sorted(np.concatenate(ours)) != list(range(n)):
        return "silent: a fold is empty, or a battle is not in exactly one"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
            theirs = [part for _, part in splitter.split(labels, labels, groups)]
        except ValueError:  # it needs as many battles of each outcome as folds
            return RIGHT
    ours_worst, theirs_worst = (max(abs(len(part) - n / folds) for part in parts) for parts in (ours, theirs))
    if ours_worst > theirs_worst + max(1, 0.02 * n):
        return f"silent: a fold is {ours_worst} battles from its size, scikit-learn's are {theirs_worst}"
    return RIGHT


# tiny hold-outs


def _intervals(folder: Path, random: np.random.Generator) -> Iterator[Situation]:
    for prompts in (1, 2, 5, 12, 19, 20, 40, 200):
        for of_each in (1, 15):
            yield (
                f"{prompts} prompts of {of_each} battles",
                functools.partial(_interval, prompts, of_each, int(random.integers(1000))),
            )


def _interval(prompts: int, of_each: int, seed: int) -> str:
    """The interval of the log loss beside the normal one of the prompts' means; none for fewer than 20 prompts."""
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(prompts), of_each)
    probabilities = random.dirichlet([4, 3, 2], size=prompts)[groups]
    labels = random.integers(0, 3, prompts)[groups]
    score = prefcli.score(probabilities, labels, groups=groups, outcomes=3)
    if prompts < 20:
        told = score.log_loss_ci is None and str(prompts) in score.log_loss_ci_reason
        return RIGHT if told else f"silent: {score.log_loss_ci} of {prompts} prompts"
    by_prompt = -np.log(probabilities[np.arange(len(labels)), labels])[::of_each]
    if score.log_loss_ci is None:
        return f"silent: no interval of {prompts} prompts"
    low, high = score.log_loss_ci
    expected = 1.96 * by_prompt.std(ddof=1) / np.sqrt(prompts)
    if not low < by_prompt.mean() < high or abs((high - low) / 2 / expected - 1) > 0.3:
        return f"silent: {low} to {high}, where the prompts' standard error says +-{expected}"
    return RIGHT


# labels without ties


def _two_outcomes(folder: Path, random: np.random.Generator) -> Iterator[Situation]:
    for n in (10, 29, 30, 31, 300):
        for outcomes in (None, 2, 3):
            probabilities, labels = random.dirichlet([3, 2, 1], size=n), random.permutation(np.arange(n) % 2)
            name = f"{n} labels without ties, outcomes {outcomes or 'found'}"
            yield name, functools.partial(_without_ties, probabilities, labels, outcomes)
    for n in (30, 300):
        probabilities, labels = random.dirichlet([3, 2, 1], size=n), np.append(random.integers(0, 2, n - 1), 2)
        yield f"{n} labels with one tie", functools.partial(_with_a_tie, probabilities, labels)
        yield (
            f"{n} labels with one tie as two outcomes",
            functools.partial(prefcli.score, probabilities, labels, outcomes=2),
        )


def _without_ties(probabilities: np.ndarray, labels: np.ndarray, outcomes: int | None) -> str:
    score = prefcli.score(probabilities, labels, outcomes=outcomes)
    expected = outcomes or (2 if len(labels) >= 30 else 3)
    if score.outcomes != expected:
        return f"silent: {score.outcomes} outcomes"
    if expected == 3:
        return _compare(
            [score.log_loss, score.uniform_log_loss],
            [log_loss(labels, probabilities, labels=[0, 1, 2]), np.log(3)],
        )
    p_b = probabilities[:, 1] / (probabilities[:, 0] + probabilities[:, 1])
    return _compare(
        [score.log_loss, score.accuracy, score.brier, score.uniform_log_loss, score.prior_log_loss],
        [log_loss(labels, p_b), accuracy_score(labels, p_b > 0.5), 2 * brier_score_loss(labels, p_b), np.log(2),
         log_loss(labels, np.full(len(labels), labels.mean()))],
    )  # fmt: skip


def _with_a_tie(probabilities: np.ndarray, labels: np.ndarray) -> str:
    return _compare(prefcli.score(probabilities, labels).log_loss, log_loss(labels, probabilities, labels=[0, 1, 2]))


# equal probabilities


def _equal_probabilities(folder: Path, random: np.random.Generator) -> Iterator[Situation]:
    rows = {
        "A and B": [0.4, 0.4, 0.2], "A and tie": [0.4, 0.2, 0.4], "B and tie": [0.2, 0.4, 0.4],
        "all three": [1 / 3] * 3, "certain of either": [0.5, 0.5, 0.0],
    }  # fmt: skip
    for name, row in rows.items():
        for label in range(3):
            yield f"{name}, truth {label}", functools.partial(_equal, row, label)


def _equal(row: list[float], label: int) -> str:
    largest = [outcome for outcome in range(3) if row[outcome] == max(row)]
    expected = float(Fraction(int(label in largest), len(largest)))
    score = prefcli.score(np.tile(row, (25, 1)), np.full(25, label), outcomes=3)
    return _compare([score.accuracy, score.ece], [expected, abs(expected - max(row))])


# files of labels


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def _predictions(path: Path, ids: Sequence[object], probabilities: np.ndarray) -> Path:
    rows = [
        {"id": battle_id, **dict(zip(WINNER_COLUMNS, map(repr, row), strict=True))}
        for battle_id, row in zip(ids, probabilities.tolist(), strict=True)
    ]
    return _write(path, rows)


def _kaggle(ids: Sequence[object], labels: Sequence[int | None], prompts: int = 10**9) -> list[dict[str, Any]]:
    return [
        {
            "id": battle_id,
            "prompt": json.dumps([f"Question {row % prompts}?"]),
            "response_a": json.dumps([f"Yes {row}."]),
            "response_b": json.dumps([f"No {row}."]),
            **{name: "" if label is None else int(label == i) for i, name in enumerate(WINNER_COLUMNS)},
        }
        for row, (battle_id, label) in enumerate(zip(ids, labels, strict=True))
    ]


def _generic(label: int, row: int, **columns: Any) -> dict[str, Any]:
    winner = ("model_a", "model_b", "tie")[label]
    return {**columns, "prompt": f"Q{row}?", "response_a": f"a{row}", "response_b": f"b{row}", "winner": winner}


def _label_files(folder: Path, random: np.random.Generator) -> Iterator[Situation]:
    n = 90
    probabilities, labels = random.dirichlet([2, 2, 1], size=n), random.permutation(np.arange(n) % 3)
    expected = log_loss(labels, probabilities, labels=[0, 1, 2])
    predictions = _predictions(folder / "p.csv", range(n), probabilities)
    order = random.permutation(n)
    kaggle = _kaggle(range(n), labels.tolist(), prompts=30)
    plain = [{name: row[name] for name in ("id", *WINNER_COLUMNS)} for row in kaggle]
    generic = [_generic(int(label), row, id=row) for row, label in enumerate(labels)]
    sources = {
        "Kaggle's": kaggle, "only ids and outcomes": plain, "winners in words": generic,
        "Kaggle's in another order": [kaggle[i] for i in order],
        "only ids and outcomes in another order": [plain[i] for i in order],
    }  # fmt: skip
    for name, rows in sources.items():
        path = _write(folder / f"{len(name)}-{name.replace(' ', '-')}.csv", rows)
        yield name, lambda path=path: _compare(pipeline.score(predictions, path).log_loss, expected)
    path = _write(folder / "prompts.csv", kaggle)
    yield "the interval resamples prompts", lambda: _resamples(predictions, path, labels, probabilities)
    unknown = [None if row < 20 else int(label) for row, label in enumerate(labels)]
    some = _write(folder / "some.csv", _kaggle(range(n), unknown))
    yield "battles without outcome", lambda: _unlabelled(predictions, some, probabilities[20:], labels[20:])
    none = _write(folder / "none.csv", _kaggle(range(n), [None] * n))
    yield "no battle has an outcome", lambda: _value(pipeline.score(predictions, none).log_loss)
    raw = np.clip(random.normal(0.4, 0.5, (n, 3)), -1, 2)
    scores = _predictions(folder / "raw.csv", range(n), raw)
    clipped = np.clip(raw, 1e-15, 1)
    renormalized = log_loss(labels, clipped / clipped.sum(axis=1, keepdims=True), labels=[0, 1, 2])
    yield "raw scores", lambda: _value(pipeline.score(scores, path).log_loss)
    yield (
        "raw scores, renormalised",
        lambda: _compare(pipeline.score(scores, path, renormalize=True).log_loss, renormalized),
    )


def _value(value: float) -> str:
    return f"silent: {value}"


def _resamples(predictions: Path, path: Path, labels: np.ndarray, probabilities: np.ndarray) -> str:
    score = pipeline.score(predictions, path)
    by_prompt = -np.log(probabilities[np.arange(90), labels]).reshape(3, 30).mean(axis=0)  # equal sizes
    if score.log_loss_ci is None or score.prompts != 30:
        return f"silent: {score.prompts} prompts"
    width = (score.log_loss_ci[1] - score.log_loss_ci[0]) / 2
    return _compare(width / (1.96 * by_prompt.std(ddof=1) / np.sqrt(30)), 1, tolerance=0.25)


def _unlabelled(predictions: Path, path: Path, probabilities: np.ndarray, labels: np.ndarray) -> str:
    reporter = Warnings()
    score = pipeline.score(predictions, path, reporter=reporter)
    if score.unlabelled != 20 or not any("20 battles" in text for text in reporter.texts):
        return "silent: 20 battles without an outcome"
    return _compare(score.log_loss, log_loss(labels, probabilities, labels=[0, 1, 2]))


def _in_any_order(first: Path, second: Path, probabilities: np.ndarray, labels: list[int]) -> str:
    reporter = Warnings()
    score = pipeline.score(first, second, reporter=reporter)
    expected = log_loss(labels, probabilities, labels=[0, 1, 2])
    return _compare(score.log_loss, expected) if reporter.notes else "silent: nothing says which file holds the labels"


def _broken_files(folder: Path, random: np.random.Generator) -> Iterator[Situation]:
    n = 40
    probabilities, labels = random.dirichlet([2, 2, 1], size=n), random.permutation(np.arange(n) % 3).tolist()
    predictions = _predictions(folder / "p.csv", range(n), probabilities)
    truth = _write(folder / "y.csv", _kaggle(range(n), labels))
    plain = _write(
        folder / "plain.csv",
        [
            {"id": i, **{name: int(label == k) for k, name in enumerate(WINNER_COLUMNS)}}
            for i, label in enumerate(labels)
        ],
    )
    ids = list(range(n))

    def changed(row: list[float]) -> np.ndarray:
        return np.array([row, *probabilities[1:].tolist()])

    bad = {
        "an id twice": ([*ids[:-1], 0], probabilities), "an id that is in no label": ([*ids[:-1], 99], probabilities),
        "a battle without prediction": (ids[:-1], probabilities[:-1]), "NaN": (ids, changed([np.nan, 0.5, 0.5])),
        "more than 1": (ids, changed([1.2, -0.2, 0.0])), "a sum of 0.9": (ids, changed([0.3, 0.3, 0.3])),
        "infinity": (ids, changed([np.inf, 0.0, 0.0])), "no battles": ([], probabilities[:0]),
    }  # fmt: skip
    for number, (name, (their_ids, values)) in enumerate(bad.items()):
        path = folder / f"bad-{number}.csv"
        if their_ids:
            _predictions(path, their_ids, values)
        else:
            path.write_text(",".join(["id", *WINNER_COLUMNS]) + "\n")
        for what, labels_file in (("", truth), (", labels without prompts", plain)):
            yield (
                f"predictions with {name}{what}",
                lambda path=path, labels_file=labels_file: _value(pipeline.score(path, labels_file).log_loss),
            )
    twice = _write(folder / "twice.csv", _kaggle([*ids[:-1], 0], labels))
    yield "labels with an id twice", lambda: _value(pipeline.score(predictions, twice).log_loss)
    two = _write(folder / "two.csv", [{"id": 0, **dict.fromkeys(WINNER_COLUMNS, 1)}])
    yield "labels with three winners", lambda: _value(pipeline.score(predictions, two).log_loss)
    for what, labels_file in (("", truth), (" without prompts", plain)):
        yield (
            f"labels{what} and predictions swapped",
            lambda labels_file=labels_file: _in_any_order(labels_file, predictions, probabilities, labels),
        )
    no_ids = folder / "no-ids.csv"
    no_ids.write_text(
        ",".join(WINNER_COLUMNS) + "\n" + "".join(",".join(map(repr, row)) + "\n" for row in probabilities.tolist())
    )
    yield "predictions without ids", lambda: _value(pipeline.score(no_ids, truth).log_loss)
    for verb in ("eda", "preprocess"):
        yield f"{verb} of an id twice", lambda verb=verb: _verb(verb, twice, folder)
    yield "train on an id twice", lambda: _value(len(_training_data(twice, TrainOptions(), folder)))


def _verb(verb: str, path: Path, folder: Path) -> str:
    getattr(pipeline, verb)(path, Workspace(folder / ".prefcli"))
    return "silent: an id twice"


def _training_data(source: Path, options: TrainOptions, folder: Path) -> selection.TrainingData:
    data = find_data(source, Workspace(folder / ".prefcli"), options, SILENT)
    return selection.select(folder / "run", data, options, SILENT)[0]


# ids


def _joins(folder: Path, random: np.random.Generator) -> Iterator[Situation]:
    n = 60
    pairs = [{"prompt": f"Q{i}?", "chosen": f"Yes {i}.", "rejected": f"No {i}."} for i in range(n)]
    in_order = _write(folder / "pairs.jsonl", pairs)
    shuffled = _write(folder / "shuffled.jsonl", [pairs[i] for i in random.permutation(n)])
    probabilities = random.dirichlet([3, 2, 1], size=n)
    predictions = _predictions(folder / "p.csv", range(1, n + 1), probabilities)
    workspace = Workspace(folder / ".prefcli")
    workspace.record_predictions(predictions, [], files.sha256(in_order))
    unknown = _predictions(folder / "unknown.csv", range(1, n + 1), probabilities[::-1])
    soft = TrainOptions(architecture="features", text="raw", validation=0.0)

    def joined(source: Path, teacher: Path) -> str:
        options = TrainOptions(**{**vars(soft), "soft_labels": str(teacher)})
        return _compare(_training_data(source, options, folder).targets, probabilities, tolerance=1e-6)

    def scored(source: Path, scores: Path) -> str:
        reporter = Warnings()
        score = pipeline.score(scores, source, workspace=workspace, reporter=reporter)
        if any("joined by the numbers of its rows" in text for text in reporter.texts):
            return REFUSED
        if source != in_order or scores != predictions:
            return f"silent: {score.log_loss} of other battles"
        labels = _training_data(source, soft, folder).labels
        p_b = probabilities[:, 1] / probabilities[:, :2].sum(axis=1)
        return _compare(score.log_loss, log_loss(labels, p_b))

    for name, source, teacher in (
        ("the same file", in_order, predictions), ("a shuffled file", shuffled, predictions),
        ("a file of unknown origin", in_order, unknown),
    ):  # fmt: skip
        yield f"soft labels without ids from {name}", functools.partial(joined, source, teacher)
        yield f"scores without ids from {name}", functools.partial(scored, source, teacher)
    # prompt_id names the prompt, which two battles share: their ids are numbered
    repeated = _write(folder / "repeated.jsonl", [{"prompt_id": f"p{i // 2}", **row} for i, row in enumerate(pairs)])
    ids = [f"p{i // 2}" + ("-2" if i % 2 else "") for i in range(n)]
    numbered = _predictions(folder / "numbered.csv", ids, probabilities)
    yield "soft labels with numbered ids", functools.partial(joined, repeated, numbered)
    yield "scores with numbered ids", functools.partial(scored, repeated, numbered)
    kaggle = _write(folder / "k.csv", _kaggle(ids, (np.arange(n) % 3).tolist()))
    half = _predictions(folder / "half.csv", ids[: n // 2], probabilities[: n // 2])

    def half_joined() -> str:
        options = TrainOptions(**{**vars(soft), "soft_labels": str(half)})
        targets = _training_data(kaggle, options, folder).targets
        expected = np.concatenate([probabilities[: n // 2], np.eye(3)[np.arange(n // 2, n) % 3]])
        return _compare(targets, expected, tolerance=1e-6)

    yield "soft labels of half of the battles", half_joined
    for seen in (0, 1, 25):
        yield (
            f"{seen} battles of prompts the run was trained on",
            functools.partial(_trained_on, folder, seen, random.integers(10**6)),
        )


def _trained_on(folder: Path, seen: int, number: int) -> str:
    """A run whose training prompts are those of ``seen`` of 40 battles."""
    below = folder / f"seen-{seen}"
    below.mkdir(exist_ok=True)
    labels = _write(below / "y.csv", _kaggle(range(40), (np.arange(40) % 3).tolist()))
    predictions = _predictions(below / "p.csv", range(40), np.random.default_rng(number).dirichlet([1, 1, 1], size=40))
    keys = _training_data(labels, TrainOptions(validation=0.0), below).keys
    runs.write_config(below / "run", TrainOptions(), {})
    runs.write_training_prompts(below / "run", np.append(keys[:seen], 1))
    workspace, reporter = Workspace(below / ".prefcli"), Warnings()
    workspace.record_predictions(predictions, [below / "run"])
    score = pipeline.score(predictions, labels, workspace=workspace, reporter=reporter)
    if bool(seen) != any("trained on" in text for text in reporter.texts):
        return f"silent: {reporter.texts}"
    return _compare(score.trained_on, seen)


# ablations


def _ablations(folder: Path, random: np.random.Generator) -> Iterator[Situation]:
    for prompts in (5, 30, 100):
        for seeds in (1, 3):
            yield (
                f"{seeds} seeds hold out the same {prompts} prompts",
                functools.partial(_ablation, folder / f"{prompts}-{seeds}", prompts, seeds, int(random.integers(1000))),
            )


def _ablation(folder: Path, prompts: int, seeds: int, seed: int) -> str:
    """Seeds that repeat the battles leave the interval as it is; one of few prompts is none."""
    random = np.random.default_rng(seed)
    logits, labels = random.normal(0, 1, (prompts, 3)), random.integers(0, 3, prompts)
    held_out = runs.HeldOut([str(i) for i in range(prompts)], np.arange(prompts), logits, labels)
    names = ("logits-1", "logits-3", "softmax-1", "log-softmax-1", "softmax-3")
    for name in (f"seed-{number}-{name}" for number in range(seeds) for name in names):
        run = folder / name
        run.mkdir(parents=True, exist_ok=True)
        runs.write_config(run, TrainOptions(), {})
        runs.write_validation(run, held_out)
    row = evaluate(folder, "tiny", 0, seeds).rows[0]
    if prompts < 20:
        return RIGHT if row.interval is None else f"silent: {row.interval} of {prompts} prompts"
    losses = metrics.losses(metrics.softmax(logits), labels)
    expected = 1.96 * losses.std(ddof=1) / np.sqrt(prompts)
    width = 0 if row.interval is None else (row.interval[1] - row.interval[0]) / 2
    return _compare(width / expected, 1, tolerance=0.2)
