"""``--estimate``: what ``train`` and ``predict`` will cost, from a sample of their work; nothing but caches is left."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from prefcli import estimating
from prefcli.battles import Source
from prefcli.compute.distributed import from_environment, process_group
from prefcli.data.selection import Fold
from prefcli.errors import Interrupted
from prefcli.estimating import Estimate, Part
from prefcli.options import PredictOptions, TrainOptions
from prefcli.pipeline.predict import find_runs, read_data
from prefcli.pipeline.train import find_data, with_absolute_paths
from prefcli.prediction import blending
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files, hub
from prefcli.storage.workspace import Workspace
from prefcli.training.context import TrainContext


def estimate_training(
    source: Path | Source | None, workspace: Workspace, options: TrainOptions, *, reporter: Reporter = SILENT
) -> Estimate:
    """How long :func:`~prefcli.pipeline.train` would take with the same arguments, and how much memory.

    Reads, preprocesses and tokenises for real, into caches that stay; trains a few steps in a folder that does not.

    Raises
    ------
    InputError, ModelError, NetworkError
        Where training would.
    Interrupted
        On SIGINT or SIGTERM.
    """
    from prefcli import encoders
    from prefcli.training import experiment

    started = time.monotonic()
    world = from_environment()
    speaker: Reporter = reporter if world.is_main_process else SILENT
    watched = estimating.Watched(workspace.root)
    options.check()
    options = with_absolute_paths(options)
    samplers: list[estimating.Sampler] = []

    def sampler(work: TrainContext, folds: Sequence[Fold]) -> estimating.Sampler:
        samplers.append(estimating.Sampler(dataclasses.replace(work, reporter=speaker), folds))
        return samplers[0]

    with process_group(world):
        with world.main_process_first():
            if options.architecture != "features":
                began = time.monotonic()
                if encoders.locate(options.encoder).source == hub.DOWNLOADED:
                    watched.kept_seconds += time.monotonic() - began
            data = find_data(source, watched, options, speaker)
        options = dataclasses.replace(options, text=data.text, tracker=None)
        with contextlib.ExitStack() as stack:
            made = stack.enter_context(files.temporary_directory(workspace.root)) if world.is_main_process else None
            folder: Path = world.gather(made)[0]
            try:
                experiment.run_experiment(
                    folder,
                    watched,
                    data,
                    options,
                    origins={},
                    command="",
                    resume=False,
                    world=world,
                    reporter=SILENT,
                    fitters=sampler,
                )
            except Interrupted as stopped:
                raise Interrupted(
                    stopped.exit_code - 128, "interrupted while timing: nothing but caches is left"
                ) from None
            world.barrier()
        found = samplers[0]
        # What is neither the sample nor a stage that is kept: imports, tokenizer, the papers of the run.
        around = time.monotonic() - started - found.sampling - watched.kept_seconds
        parts = {"around": Part(max(around, 0.0)), **found.parts}
        if "starting" in parts:
            parts["around"] = Part(parts["around"].seconds + parts.pop("starting").seconds)
        return estimating.together(
            parts,
            kept_seconds=watched.kept_seconds,
            pieces=found.pieces,
            timed=found.timed,
            world=world,
            growth_mb=found.growth_mb,
        )


def estimate_prediction(
    source: Path | Source,
    workspace: Workspace,
    options: PredictOptions,
    *,
    calibrate: Path | Source | None = None,
    reporter: Reporter = SILENT,
) -> Estimate:
    """How long :func:`~prefcli.pipeline.predict` would take with the same arguments, and how much memory.

    Reads and preprocesses for real, into caches that stay; predicts a sample and keeps nothing of it.

    Raises
    ------
    InputError, ModelError
        Where prediction would.
    """
    options.check()
    world = from_environment()
    speaker: Reporter = reporter if world.is_main_process else SILENT
    watched = estimating.Watched(workspace.root)
    folders = find_runs(workspace, options.models, speaker)
    started = time.monotonic()  # what was downloaded above is kept
    with process_group(world):
        with world.main_process_first():
            data = read_data(source, calibrate, folders, watched, options, speaker)

        from prefcli.compute import devices
        from prefcli.prediction import inference

        request = devices.DeviceRequest(options.device, options.precision, world.local_rank)
        members = inference.open_runs(folders, request, fast_attention=options.fast_attention, encoder=options.encoder)
        battles = data.battles
        if options.calibrated:
            blending.from_validation(folders, battles.table(["prompt_key"])["prompt_key"].to_numpy(), SILENT)
        around = time.monotonic() - started - watched.kept_seconds
        total = min(battles.rows, options.limit or battles.rows)
        found = estimating.predicting(
            members, data.stages, total, swap_average=options.swap_average, world=world, reporter=speaker
        )
        parts = {"around": Part(max(around, 0.0)), **found.parts}
        if data.sample is not None and total:
            parts["calibrating"] = parts["predicting"].times(data.sample.rows / total)
        return estimating.together(
            parts,
            kept_seconds=watched.kept_seconds,
            pieces=total,
            timed=found.timed,
            world=world,
            growth_mb=found.growth_mb,
        )
