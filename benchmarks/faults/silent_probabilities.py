"""Situations in which the right probability is known: absent outcomes, calibrations, numbers that are none, blends.

``situations(folder, seed)`` yields names and functions. A function answers ``right`` (equal to an independent
calculation), ``refused`` (an error of prefcli) or ``silent: ...`` with what was wrong and not said. Alone:
``python benchmarks/faults/silent_probabilities.py``.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.optimize import minimize

import prefcli
from prefcli.data.tables import read_probabilities
from prefcli.errors import PrefcliError
from prefcli.options import TrainOptions
from prefcli.outcomes import SWAPPED, WINNER_COLUMNS
from prefcli.prediction import blending, calibration, inference
from prefcli.storage import runs

Array = NDArray[np.float64]
Situation = tuple[str, Callable[[], str]]
RIGHT, REFUSED = "right", "refused"
NOBODY = np.empty(0, dtype=np.int64)
TINY = {
    "architecture": "siamese", "encoder": "tiny", "text": "raw", "max_length": 32, "max_steps": 3, "device": "cpu",
    "precision": "fp32",
}  # fmt: skip


class Recorder:
    """A reporter that remembers what it is given."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.note = self.warn = self.messages.append
        from prefcli.reporting import SILENT

        self.track = SILENT.track

    def says(self, *words: str) -> bool:
        return any(all(word in message for word in words) for message in self.messages)


def situations(folder: Path, seed: int) -> Iterator[Situation]:
    """At least 60 situations; ``folder`` is empty and theirs, ``seed`` changes battles and numbers."""
    for part in (absent_outcomes, calibrations, no_numbers, blends, trained_on):
        for name, check in part(folder / part.__name__, seed):
            yield f"{part.__name__}: {name}", functools.partial(_answer, check)


def _answer(check: Callable[[], str]) -> str:
    try:
        return check()
    except PrefcliError as error:  # where a refusal is right, the check catches it
        return f"silent: no answer, though one is known: {error.what}"


def _verdict(problems: Sequence[str]) -> str:
    return f"silent: {'; '.join(problems)}" if problems else RIGHT


def softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def votes(logits: Array, random: np.random.Generator) -> NDArray[np.int64]:
    """Outcomes drawn from the probabilities that these logits stand for."""
    return np.asarray((random.random((len(logits), 1)) > softmax(logits).cumsum(axis=1)).sum(axis=1).clip(max=2))


def loss(probabilities: Array, labels: NDArray[np.int64]) -> float:
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


def write_battles(path: Path, labels: Sequence[int], seed: int, first: int = 0, prompts: int = 2) -> Path:
    """Battles of short answers, ``prompts`` to a prompt."""
    random = np.random.default_rng(seed)
    words = ["red", "green", "blue", "long", "short", "wise", "kind"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for number, label in enumerate(labels):
            a, b = (" ".join(random.choice(words, size=int(random.integers(1, 9)))) for _ in range(2))
            row = {"id": f"b{first + number}", "prompt": [f"question {(first + number) // prompts}"]}
            outcome = {name: int(label == i) for i, name in enumerate(WINNER_COLUMNS)}
            stream.write(json.dumps({**row, "response_a": [a], "response_b": [b], **outcome}) + "\n")
    return path


# absent outcomes


def absent_outcomes(folder: Path, seed: int) -> Iterator[Situation]:
    """Trainings on every combination of outcomes, by a booster and by a small encoder."""
    combinations = [c for size in (1, 2, 3) for c in itertools.combinations(range(3), size)]
    for architecture, present in itertools.product(("features", "siamese"), combinations):
        name = f"{architecture} trained on {'+'.join('ABT'[outcome] for outcome in present)}"
        train = functools.lru_cache(
            functools.partial(_train_on, folder / name.replace(" ", "-"), architecture, present, seed)
        )
        yield f"{name}, validation", functools.partial(_check_validation, train)
        yield f"{name}, prediction", functools.partial(_check_prediction, train, seed)


def _train_on(folder: Path, architecture: str, present: tuple[int, ...], seed: int) -> tuple[Path, Any, set[int]]:
    labels = np.random.default_rng(seed).choice(present, size=80).tolist()
    file = write_battles(folder / "train.jsonl", labels, seed)
    options: dict[str, Any] = TINY if architecture == "siamese" else {"architecture": "features"}
    result = prefcli.train(file, output=folder / "run", workspace=folder / "ws", validation=0.25, seed=seed, **options)
    shown = set(present)
    if architecture == "features" and shown & {0, 1}:  # both orders
        shown |= {0, 1}
    return folder, result, {0, 1, 2} - shown


def _check_validation(train: Callable[[], tuple[Path, Any, set[int]]]) -> str:
    folder, result, unseen = train()
    held_out = runs.read_validation(folder / "run")
    probabilities = softmax(held_out.logits)
    problems = []
    if {"A": 0, "B": 1, "tie": 2}.keys() & set(result.unseen) != {"AB"[o] if o < 2 else "tie" for o in unseen}:
        problems.append(f"unseen outcomes are said to be {result.unseen}")
    if any(abs(probabilities[:, outcome] - 0.01).max() > 1e-9 for outcome in unseen):
        problems.append("an unseen outcome has another probability than 0.01")
    uniform = math.log(3)
    if 2 in unseen and not (held_out.labels == 2).any():
        probabilities, uniform = probabilities[:, :2] / probabilities[:, :2].sum(axis=1, keepdims=True), math.log(2)
    if abs(result.validation.log_loss - loss(probabilities, held_out.labels)) > 1e-9:
        problems.append(f"log loss {result.validation.log_loss}, by hand {loss(probabilities, held_out.labels)}")
    if abs(result.validation.uniform_log_loss - uniform) > 1e-9:
        problems.append(f"the uniform guess is {result.validation.uniform_log_loss}")
    return _verdict(problems)


def _check_prediction(train: Callable[[], tuple[Path, Any, set[int]]], seed: int) -> str:
    folder, _, unseen = train()
    file = write_battles(folder / "test.jsonl", [0] * 12, seed + 1, first=10_000)
    recorder, problems = Recorder(), []
    for swap_average in (False, True):
        output = folder / f"preds-{swap_average}.csv"
        prefcli.predict(
            file, output, models=[folder / "run"], workspace=folder / "ws", swap_average=swap_average, reporter=recorder
        )
        probabilities = read_probabilities(output)[1]
        # The mean over both orders gives an unseen win of A the other order's win of B.
        fixed = [o for o in unseen if not swap_average or SWAPPED[o] in unseen]
        if any(abs(probabilities[:, outcome] - 0.01).max() > 1e-9 for outcome in fixed):
            problems.append(f"an unseen outcome has another probability than 0.01 (swap average {swap_average})")
    if bool(unseen) != recorder.says("training battles", "probability 0.01"):
        problems.append("the message about unseen outcomes is missing or wrong")
    return _verdict(problems)


# calibrations


def calibrations(folder: Path, seed: int) -> Iterator[Situation]:
    """Samples drawn with a known temperature and tie shift, and samples that cannot tell one of them."""
    del folder
    for weight, shift in itertools.product((0.4, 1.0, 2.5), (-1.5, 0.0, 2.0)):
        yield f"weight {weight}, tie shift {shift}", functools.partial(_check_fit, seed, weight, shift, None)
    for tie in (0.01, 1e-12):
        for weight, share in itertools.product((0.7, 1.6), (0.1, 0.5)):
            shift = math.log(share / (1 - share)) - weight * math.log(tie)
            yield (
                f"ties of {tie:g}, weight {weight}, share {share}",
                functools.partial(_check_fit, seed, weight, shift, tie),
            )
    for present in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
        name = "+".join("ABT"[outcome] for outcome in present)
        yield f"only {name} in the sample", functools.partial(_check_absent, seed, present)


def _logs(seed: int, n: int, tie: float | None) -> Array:
    """Log probabilities of a model; with ``tie`` that of ties is the same everywhere."""
    logits = np.random.default_rng(seed).normal(size=(n, 3))
    if tie is None:
        return np.log(softmax(logits))
    return np.log(np.concatenate([softmax(logits[:, :2]) * (1 - tie), np.full((n, 1), tie)], axis=1))


def _check_fit(seed: int, weight: float, shift: float, tie: float | None) -> str:
    n = 2500
    logs = _logs(seed, n, tie)
    labels = votes(weight * logs + [0, 0, shift], np.random.default_rng(seed + 1))
    fit = calibration.calibrate([logs], labels, np.arange(n), tie=True)
    centre = logs[:, 2].mean()

    def objective(parameters: Array) -> float:
        combined = parameters[0] * logs
        combined[:, 2] += parameters[1] - parameters[0] * centre
        return float((np.log(np.exp(combined).sum(axis=1)) - combined[np.arange(n), labels]).mean())

    found = minimize(
        objective, [1.0, centre], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-13, "maxiter": 4000}
    )
    expected = np.exp(found.x[0] * logs + [0, 0, found.x[1] - found.x[0] * centre])
    expected /= expected.sum(axis=1, keepdims=True)
    if not fit.fitted:  # right where there is nothing to gain
        return _verdict([] if loss(np.exp(logs), labels) - found.fun < 2e-3 else [f"nothing was fitted: {fit}"])
    difference = abs(fit.apply([np.exp(logs)]) - expected).max()
    return _verdict([] if difference < 1e-3 else [f"a probability differs by {difference:.4f}: {fit}"])


def _check_absent(seed: int, present: tuple[int, ...]) -> str:
    n = 900
    logs = _logs(seed, n, None)
    labels = votes(1.8 * logs, np.random.default_rng(seed + 1))
    logs, labels = logs[np.isin(labels, present)], labels[np.isin(labels, present)]
    before = np.exp(logs)
    fit = calibration.calibrate([logs], labels, np.arange(len(labels)), tie=True)
    after, problems = fit.apply([before]), []
    if not fit.remarks:
        problems.append("that an outcome is absent is not said")
    if (0 in present) != (1 in present) and fit.weights != (1.0,):
        problems.append(f"the temperature was fitted on wins of one answer: {fit}")
    if 2 not in present and abs(after[:, 2].mean() - before[:, 2].mean()) > 1e-6:
        problems.append(f"the share of ties went from {before[:, 2].mean():.3f} to {after[:, 2].mean():.3f}")
    if present == (2,) and abs(after - before).max() > 1e-9:
        problems.append("something was fitted on ties alone")
    return _verdict(problems)


# numbers that are none


class _Fake:
    """A model whose logits are not finite for one battle."""

    def __init__(self, row: int, value: float, in_swapped: bool) -> None:
        self.row, self.value, self.in_swapped = row, value, in_swapped

    def logits(
        self, batch: pa.RecordBatch, *, swap_average: bool = False, done: Any = None
    ) -> tuple[Array, Array | None]:
        both = np.zeros((2, batch.num_rows, 3))
        both[int(self.in_swapped), self.row, 1] = self.value
        return both[0], both[1] if swap_average else None


def no_numbers(folder: Path, seed: int) -> Iterator[Situation]:
    """NaN and infinity in a prediction, in held-out logits, and in a validation during training."""
    values = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    for (name, value), row, swapped in itertools.product(values.items(), (0, 2), (False, True)):
        where = f"{'swapped' if swapped else 'original'} order, row {row}"
        yield f"{name} in a prediction, {where}", functools.partial(_check_refused, row, value, swapped)
    for name, value in values.items():
        yield f"{name} in held-out logits", functools.partial(_check_held_out, folder / name, seed, value)
    for step in (2, 4):
        yield (
            f"nan in the validation after step {step}",
            functools.partial(_check_training, folder / str(step), seed, step),
        )


def _check_refused(row: int, value: float, swapped: bool) -> str:
    batch = pa.record_batch({"id": ["x", "y", "z"]})
    member = inference.Member((_Fake(row, value, swapped),), "raw")
    try:
        probabilities = inference.predict_batch(member, batch, swap_average=swapped)
    except PrefcliError as error:
        return REFUSED if f"battle {'xyz'[row]}" in error.what else f"silent: the battle is not named: {error.what}"
    return f"silent: {probabilities[row].tolist()}"


def _check_held_out(folder: Path, seed: int, value: float) -> str:
    logs = _logs(seed, 400, None)
    labels = votes(2 * logs, np.random.default_rng(seed + 1))
    expected = calibration.calibrate([logs[1:]], labels[1:], np.arange(1, 400))
    logs[0, 0] = value
    recorder = Recorder()
    fit = blending.from_validation([_write_run(folder, logs, labels)], NOBODY, recorder)
    if value == -math.inf:  # a probability of 0 is one
        return _verdict([] if np.isfinite(fit.weights).all() else [f"weights {fit.weights}"])
    problems = [] if recorder.says("not finite", "the first is 0") else ["the battle is not named"]
    if not np.allclose(fit.weights, expected.weights, atol=1e-4):
        problems.append(f"weights {fit.weights}, without the battle {expected.weights}")
    return _verdict(problems)


def _check_training(folder: Path, seed: int, step: int) -> str:
    """A battle's logits overflow from a step on; validations are after steps 2, 4, 6."""
    from prefcli.models.neural import NeuralModel

    file = write_battles(folder / "train.jsonl", np.random.default_rng(seed).choice(3, size=80).tolist(), seed)
    compute, passes = NeuralModel.compute, {"validations": 0}

    def overflowing(self: NeuralModel, prepared: Any) -> Array:
        logits = compute(self, prepared)
        passes["validations"] += 0 in prepared.rows
        if passes["validations"] * 2 >= step:
            logits[:] = math.nan
        return logits

    recorder = Recorder()
    NeuralModel.compute = overflowing  # type: ignore[method-assign]
    try:
        result = prefcli.train(
            file, output=folder / "run", workspace=folder / "ws", seed=seed, reporter=recorder,
            **TINY | {"max_steps": 6, "eval_every": 2, "batch_size": 8},
        )  # fmt: skip
    except PrefcliError as error:
        named = step == 2 and "battle b" in error.what and "no weights have been kept" in error.what
        return REFUSED if named else f"silent: refused for another reason: {error.what}"
    finally:
        NeuralModel.compute = compute  # type: ignore[method-assign]
    problems = [] if recorder.says("not finite", "kept at step 2") else ["it was not said that the training ended"]
    if not np.isfinite(runs.read_validation(folder / "run").logits).all() or not math.isfinite(
        result.validation.log_loss
    ):
        problems.append("the kept logits are not finite")
    return _verdict(problems)


# blends


def blends(folder: Path, seed: int) -> Iterator[Situation]:
    """Two or three models that see the outcomes through noise of their own, with and without common battles."""
    for noises in ((0.6, 3.0), (0.6, 8.0), (3.0, 0.6), (1.0, 1.0), (0.6, 3.0, 3.0), (1.5, 1.5, 1.5)):
        for common in (True, False):
            where = "common" if common else "own"
            name = f"noise {', '.join(map(str, noises))}, {where} held-out battles"
            yield name, functools.partial(_check_blend, folder / f"{noises}-{where}", seed, noises, common)
    yield "one run without held-out battles", functools.partial(_check_unknown, folder / "unknown", seed)


def _check_blend(folder: Path, seed: int, noises: Sequence[float], common: bool) -> str:
    """The blend is not worse than the best model, and between equally good ones better than each."""
    random = np.random.default_rng(seed)
    n = 2000
    truth = random.normal(size=(n * (len(noises) + 1), 3)) * 1.2
    labels = votes(truth, random)
    # The log likelihood ratios of a Gaussian signal: calibrated but for the spread of the truth, which is 1.2.
    models = [(truth + random.normal(size=truth.shape) * noise) * (1.2**2 / (1.2**2 + noise**2)) for noise in noises]
    folders = []
    for number, model in enumerate(models):
        rows = np.arange(n) + (0 if common else number * n)
        folders.append(_write_run(folder / str(number), model[rows], labels[rows], first=int(rows[0])))
    recorder = Recorder()
    fit = blending.from_validation(folders, NOBODY, recorder)
    parts = [softmax(model[-n:]) for model in models]
    alone = [loss(part, labels[-n:]) for part in parts]
    blended = loss(fit.apply(parts), labels[-n:])
    problems = [] if blended <= min(alone) + 0.004 else [f"blend {blended:.4f}, best alone {min(alone):.4f}"]
    if not recorder.says("log loss"):
        problems.append("the weights are not explained")
    return _verdict(problems)


def _check_unknown(folder: Path, seed: int) -> str:
    logs = _logs(seed, 300, None)
    labels = votes(logs, np.random.default_rng(seed))
    known, unknown = _write_run(folder / "known", logs, labels), folder / "unknown"
    runs.write_config(unknown, TrainOptions(), {})
    recorder = Recorder()
    fit = blending.from_validation([known, unknown], NOBODY, recorder)
    said = recorder.says("nothing was held out by unknown", f"known {loss(np.exp(logs), labels):.4f}")
    return _verdict([] if said and fit.weights == (0.5, 0.5) else [f"{fit.weights}: {recorder.messages}"])


def _write_run(folder: Path, logits: Array, labels: NDArray[np.int64], first: int = 0) -> Path:
    """What blending reads of a run."""
    runs.write_config(folder, TrainOptions(), {"data": {"outcomes": [1, 1, 1], "train_battles": 3}})
    ids = np.arange(first, first + len(labels))
    runs.write_validation(folder, runs.HeldOut([str(i) for i in ids], ids, logits, labels))
    return folder


# battles of training prompts


def trained_on(folder: Path, seed: int) -> Iterator[Situation]:
    """Predictions of files of which a known number of battles has a prompt that the run was trained on."""
    train = functools.lru_cache(functools.partial(_train_pair, folder, seed))
    for run in ("plain", "folds", "folds/fold-1"):
        for old, new in ((0, 10), (7, 5), (40, 0)):
            name = f"{run}, {old} old and {new} new battles"
            yield name, functools.partial(_check_count, train, run, old, new, seed)
    yield "calibrating on training battles", functools.partial(_check_calibration_sample, train, seed)


def _train_pair(folder: Path, seed: int) -> tuple[Path, dict[str, set[str]]]:
    """A run and a run of folds, and the prompts that each was trained on, by what it held out."""
    file = write_battles(folder / "train.jsonl", np.random.default_rng(seed).choice(3, size=40).tolist(), seed)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    options = {"workspace": folder / "ws", "architecture": "features", "seed": seed}
    prefcli.train(file, output=folder / "plain", validation=0.3, **options)
    prefcli.train(file, output=folder / "folds", folds=3, **options)
    prompts = {"folds": {row["prompt"][0] for row in rows}}
    for run in ("plain", "folds/fold-1"):
        held_out = set(runs.read_validation(folder / run).ids)
        prompts[run] = {row["prompt"][0] for row in rows if row["id"] not in held_out}
    return folder, prompts


def _check_count(train: Callable[[], Any], run: str, old: int, new: int, seed: int) -> str:
    folder, prompts = train()
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()][:old]
    added = write_battles(folder / "new.jsonl", [0] * new, seed + 7, first=50_000).read_text()
    rows += [json.loads(line) for line in added.splitlines()]
    file = folder / f"{run.replace('/', '-')}-{old}-{new}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recorder = Recorder()
    output = file.with_suffix(".csv")
    result = prefcli.predict(file, output, models=[folder / run], workspace=folder / "ws", reporter=recorder)
    expected = sum(row["prompt"][0] in prompts[run] for row in rows)
    problems = [] if result.trained_on == (expected,) else [f"{result.trained_on} counted, {expected} are"]
    if bool(expected) != recorder.says(f"{expected:,} of {len(rows):,} battles have a prompt"):
        problems.append("the message is missing or wrong")
    return _verdict(problems)


def _check_calibration_sample(train: Callable[[], Any], seed: int) -> str:
    folder, _ = train()
    test = write_battles(folder / "other.jsonl", [0] * 5, seed + 8, first=60_000)
    options = {"models": [folder / "folds"], "workspace": folder / "ws", "calibrate": folder / "train.jsonl"}
    try:
        prefcli.predict(test, folder / "c.csv", **options)
    except PrefcliError as error:
        return REFUSED if "trained on" in error.what else f"silent: refused for another reason: {error.what}"
    return "silent: it was calibrated on training battles"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        answers: Counter[str] = Counter()
        started = time.monotonic()
        for name, check in situations(Path(folder), seed=0):
            answer = check()
            answers[answer.partition(":")[0]] += 1
            if answer.startswith("silent"):
                print(f"{name}: {answer}", flush=True)
        print(f"{sum(answers.values())} situations in {time.monotonic() - started:.0f} s: {dict(answers)}")


if __name__ == "__main__":
    main()
