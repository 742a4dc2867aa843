"""``predict``: from files of battles, or from lines as they come, to probabilities."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from prefcli.battles import Source, check_unique_ids
from prefcli.compute.distributed import from_environment, process_group
from prefcli.data import tables
from prefcli.errors import InputError
from prefcli.options import ACTIVATIONS, TrainOptions
from prefcli.pipeline.stages import preprocess_stage, read
from prefcli.prediction import blending
from prefcli.prediction.calibration import Calibration
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files, hub, runs
from prefcli.storage.workspace import Stage, Workspace

if TYPE_CHECKING:
    from prefcli.compute.devices import DeviceRequest


@dataclass(frozen=True)
class Predicted:
    """What ``predict`` wrote."""

    output: Path
    battles: int
    models: tuple[str, ...]
    weights: tuple[float, ...]
    """Of each model's log probabilities; for one model the inverse of its temperature."""
    tie_shift: float
    calibration: str
    """What was fitted on which battles, in words."""
    seconds: float
    battles_per_second: float
    is_main_process: bool
    """Whether this process is the one that reports (of several under ``torchrun``)."""


def predict(
    source: Path | Source,
    workspace: Workspace,
    output: Path,
    *,
    models: Sequence[str] = (),
    swap_average: bool = False,
    activation: str = "softmax",
    calibrated: bool = True,
    calibrate: Path | Source | None = None,
    precision: str = "auto",
    device: str = "auto",
    fast_attention: bool = True,
    encoder: str | None = None,
    workers: int | None = None,
    limit: int | None = None,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> Predicted:
    """Probabilities for every battle of a file, in its order, ids as they were spelled.

    Streams: memory does not grow with the file. A run's folds are averaged with equal weights. Several runs are blended
    with weights, one run is given a temperature, both fitted on their (common) validation battles and kept only if that
    helps; battles whose prompt stands in ``source`` are left out of the fit.

    Parameters
    ----------
    source:
        Files of battles, with or without models and winners.
    workspace:
        Where caches and runs live.
    output:
        CSV, Parquet or JSON lines, by its name.
    models:
        Runs, by folder or name; by default the latest one.
    swap_average:
        Average over both orders of the answers.
    activation:
        ``softmax``, or ``none`` for raw scores.
    calibrated:
        Whether weights and temperature are fitted; otherwise weights are equal.
    calibrate:
        Labelled battles like those to be predicted: temperature and share of ties are refitted on them. Those that
        share a prompt with ``source`` are left out.
    precision, device, fast_attention:
        As for training.
    encoder:
        Where the encoder lies to which a run's adapters belong, if it is no longer where it was.
    workers:
        Processes for text normalisation; by default one per core.
    limit:
        Predict the first N battles only.
    force:
        Overwrite ``output``.
    """
    if activation not in ACTIVATIONS:
        raise InputError(f"--activation is {activation!r}, not one of {', '.join(ACTIVATIONS)}")
    writer_of = tables.writer_for(output)
    files.refuse_to_overwrite(output, force)
    if activation == "none" and calibrate is not None:
        raise InputError("--calibrate makes probabilities, --activation none does not", hint="Leave one of them out.")
    started = time.monotonic()
    world = from_environment()
    speaker: Reporter = reporter if world.is_main_process else SILENT
    folders = [workspace.find_run(name) for name in models] or [latest_run(workspace, speaker)]
    texts = tuple(text_of(folder) for folder in folders)
    with process_group(world):
        with world.main_process_first():
            battles = read(source, workspace, speaker)
            check_unique_ids(ids_of(battles), str(Source.of(source)))
            stages = preprocess_stages(battles, texts, workspace, workers, speaker)
            sample = read(calibrate, workspace, speaker) if calibrate is not None else None
            sample_stages = preprocess_stages(sample, texts, workspace, workers, speaker) if sample is not None else []

        from prefcli.compute import devices
        from prefcli.prediction import inference

        request = devices.DeviceRequest(device, precision, world.local_rank)
        members = inference.open_runs(folders, request, fast_attention=fast_attention, encoder=encoder)
        speaker.note(f"predicting with {', '.join(_called(models, folders))}{_on(folders, request)}")
        keys = battles.table(["prompt_key"])["prompt_key"].to_numpy()
        mixing = blending.from_validation(folders, keys, speaker) if calibrated else Calibration.equal(len(folders))
        mixings = [mixing]
        if sample is not None:
            with speaker.track("calibrating", sample.rows * len(members)) as progress:
                guesses = (
                    mixing.apply(predictions)
                    for _, predictions in inference.stream(
                        members, sample_stages, sample.rows, swap_average=swap_average, world=world,
                        done=progress.advance,
                    )
                )  # fmt: skip
                name = str(Source.of(calibrate or source))
                mixings.append(blending.from_sample(sample, guesses, keys, name, speaker))

        total = min(battles.rows, limit or battles.rows)
        with contextlib.ExitStack() as stack:
            writer = None
            if world.is_main_process:
                writer = stack.enter_context(
                    writer_of(stack.enter_context(files.atomic(output, needs=tables.BYTES_PER_ROW * total)))
                )
            progress = stack.enter_context(speaker.track("predicting", total * len(members)))
            begun = time.monotonic()
            for ids, predictions in inference.stream(
                members,
                stages,
                total,
                swap_average=swap_average,
                activation=activation,
                world=world,
                done=progress.advance,
            ):
                if writer is not None:
                    if activation == "none":
                        writer.write(ids, np.mean(predictions, axis=0))
                        continue
                    for mixing in mixings:
                        predictions = [mixing.apply(predictions)]
                    writer.write(ids, predictions[0])
            rate = total / max(time.monotonic() - begun, 1e-9)
    if activation == "none":
        speaker.warn("raw scores, not probabilities, were written: score them with --renormalize")
    scale = mixings[1].weights[0] if len(mixings) > 1 else 1.0
    return Predicted(
        output=output,
        battles=total,
        models=tuple(_called(models, folders)),
        weights=tuple(weight * scale for weight in mixings[0].weights),
        tie_shift=mixings[-1].tie_shift,
        calibration="; ".join(str(mixing) for mixing in mixings) if activation == "softmax" else "none",
        seconds=time.monotonic() - started,
        battles_per_second=rate,
        is_main_process=world.is_main_process,
    )


@dataclass(frozen=True)
class Answered:
    """How many JSON lines :func:`predict_lines` answered, and how many of them with an error."""

    lines: int
    failed: int


def predict_lines(
    lines: IO[bytes],
    answers: IO[bytes],
    workspace: Workspace,
    *,
    models: Sequence[str] = (),
    swap_average: bool = False,
    calibrated: bool = True,
    precision: str = "auto",
    device: str = "auto",
    fast_attention: bool = True,
    encoder: str | None = None,
    reporter: Reporter = SILENT,
) -> Answered:
    """Answer battles written as JSON lines, each as soon as it has come; nothing is cached.

    Parameters
    ----------
    lines:
        One battle a line, a JSON object in any layout that prefcli reads.
    answers:
        Gets a line for each: ``id`` and the three probabilities, or ``id``, ``line`` and ``error``; flushed at once.
    models, swap_average, calibrated, precision, device, fast_attention, encoder:
        As for :func:`predict`. The temperature is fitted without the prompt of the battle at hand.
    """
    from prefcli.prediction.predictor import Predictor

    folders = [workspace.find_run(name) for name in models] or [latest_run(workspace, reporter)]
    predictor = Predictor(
        folders,
        device=device,
        precision=precision,
        fast_attention=fast_attention,
        encoder=encoder,
        swap_average=swap_average,
        calibrated=calibrated,
    )
    reporter.note(f"answering with {', '.join(_called(models, folders))}")
    count = failed = 0
    for some in predictor.answers(lines):
        answers.write(b"".join(json.dumps(answer.value).encode() + b"\n" for answer in some))
        answers.flush()
        count += len(some)
        failed += sum(answer.failed for answer in some)
    return Answered(count, failed)


def _called(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """What runs are called: by their folder, those of the hub by their name there."""
    given = names or [""] * len(folders)
    return [name if name.startswith(hub.PREFIX) else folder.name for name, folder in zip(given, folders, strict=True)]


def text_of(folder: Path) -> str:
    """The text normalisation of a run."""
    return TrainOptions(**runs.read_config(folder)["options"]).normalisation


def preprocess_stages(
    battles: Stage, texts: Sequence[str], workspace: Workspace, workers: int | None, reporter: Reporter
) -> list[Stage]:
    """The battles preprocessed by each of the normalisations; each distinct one is computed once."""
    stages = {
        text: preprocess_stage(battles, workspace, text, workers=workers, reporter=reporter)
        for text in dict.fromkeys(texts)
    }
    return [stages[text] for text in texts]


def _on(folders: Sequence[Path], request: DeviceRequest) -> str:
    """Where neural runs compute; nothing to say of others."""
    runtimes = {runs.runtime_of(runs.read_config(folder)) for folder in folders}
    places = ["ONNX Runtime"] if "onnx" in runtimes else []
    places += [str(request.placement)] if "torch" in runtimes else []
    return f" on {' and '.join(places)}" if places else ""


def ids_of(stage: Stage) -> Iterator[str]:
    """The ids of all battles of a stage, in their order."""
    for batch in stage.batches(["id"]):
        yield from batch.column("id").to_pylist()


def latest_run(workspace: Workspace, reporter: Reporter = SILENT) -> Path:
    """The run that ``train`` made last in this workspace.

    Raises
    ------
    InputError
        If there is none.
    """
    latest = workspace.latest("train")
    if latest is None:
        raise InputError(
            f"no run in {workspace.root} yet",
            hint="Train one first (prefcli train FILE), or name one with --model.",
        )
    reporter.note(f"using the latest run: {latest['run']}")
    return workspace.find_run(latest["run"])
