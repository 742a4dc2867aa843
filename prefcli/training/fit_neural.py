"""Fitting a neural architecture: tokenizer and encoder, then the loop of :mod:`prefcli.training`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefcli import encoders
from prefcli.compute import devices, fsdp
from prefcli.data.selection import Fold
from prefcli.encoders import adapters
from prefcli.errors import InputError
from prefcli.models import neural, token_cache
from prefcli.storage import runs
from prefcli.training import checkpoints, loop
from prefcli.training.context import FitResult, TrainContext
from prefcli.training.trackers import Trackers


class NeuralFitter:
    """Tokenises the pool once; every fold gets an encoder of its own."""

    def __init__(self, work: TrainContext, folds: Sequence[Fold]) -> None:
        self.work = work
        options = work.options
        if options.shard and work.world.alone:
            raise InputError(
                "--shard spreads a training over several processes, and this is one",
                hint="Start it with torchrun --nproc-per-node N -m prefcli train ..., or leave --shard out.",
            )
        self.placement = devices.place(options.device, options.precision, work.world.local_rank)
        if options.lora_rank:
            adapters.require_peft()
            self.placement = devices.for_language_models(self.placement)
        started_before = work.resume and (work.folder / neural.TOKENIZER_CONFIG).is_file()
        run = encoders.ResolvedModel(work.folder, f"the run {work.folder.name}")
        self.located = encoders.locate(options.encoder) if not started_before else run
        everything = np.unique(np.concatenate([fold.train for fold in folds]))
        self.tokenizer = encoders.make_tokenizer(self.located, work.pool.texts(everything))
        with work.world.main_process_first():
            self.battles = token_cache.cached_tokens(
                work.pool, self.tokenizer, work.workspace, work.reporter, by_turn=options.truncation == "head-tail"
            )

    def fit(self, fold: Fold, prefix: str, trackers: Trackers) -> FitResult:
        """Fit one fold; a fit under way is continued from its own files."""
        task = self.task(fold, prefix)
        task.trackers = trackers
        fitted = loop.fit(task)
        if self.work.options.lora_rank and self.work.world.is_main_process:
            neural.save_adapters(fold.folder, self.work.options)
        return FitResult(fitted.logits, fitted.battles_per_second)

    def task(self, fold: Fold, prefix: str) -> loop.FitSpec:
        """Everything the fit of a fold needs, in memory and in its folder."""
        work, options, folder = self.work, self.work.options, fold.folder
        under_way = work.resume and bool(checkpoints.existing(folder / "checkpoints"))
        located, encoder = self._encoder(folder, under_way=under_way)
        if under_way:
            options = neural.with_resolved_auto(options, runs.read_config(folder))
        max_length = self._max_length(encoder)
        torch.manual_seed(options.seed)
        model = neural.build(options, encoder, self.tokenizer, max_length, self.placement, stays_on_host=options.shard)
        train = self.battles.take(fold.train)
        cut = model.truncation_report(train)
        if not under_way:
            learnt, size = (
                sum(p.numel() for p in model.module.parameters() if p.requires_grad or not only_learnt) / 1e6
                for only_learnt in (True, False)
            )
            of_these = "" if learnt == size else f", {learnt:.1f} M of them learnt"
            work.reporter.note(
                f"{prefix}encoder {options.encoder}: {located.source}; {size:.1f} M parameters{of_these}"
            )
            work.reporter.note(f"{prefix}{self.placement}; {model.attention}; {model.module.pooling} pooling")
            work.reporter.note(f"{prefix}{max_length} tokens a sequence: {cut}")
            if work.world.is_main_process:
                resolved = {
                    "placement": str(self.placement),
                    "max_length": max_length,
                    "lr": options.learning_rate,
                    "encoder_source": located.source,
                    "cut": str(cut),
                    "attention": model.attention,
                    "pooling": model.module.pooling,
                    "template": model.template,
                    "ranks": work.world.size,
                }
                # Where the encoder's weights are elsewhere, transformers must not take the run for an encoder.
                kept: Any = model.encoder_config()
                if options.lora_rank:
                    kept = {"base": neural.describe_base(options.encoder, located)}
                work.write_config(fold, resolved, kept)
                for owner in dict.fromkeys((folder, work.folder)):
                    model.save_tokenizer(owner)
                    runs.seal(owner, trained=False)
            work.world.barrier()
        if options.shard:
            fsdp.shard(model.module, self.placement.device, work.world)
        return loop.FitSpec(
            model=model,
            train=train,
            targets=work.pool.targets[fold.train],
            validation=self.battles.take(fold.held_out) if len(fold.held_out) else None,
            options=options,
            folder=folder,
            reporter=work.reporter,
            world=work.world,
            resume=work.resume,
        )

    def _encoder(self, folder: Path, *, under_way: bool) -> tuple[encoders.ResolvedModel, Any]:
        """The encoder to train; of a fit under way only what its checkpoint does not hold is loaded."""
        options = self.work.options
        if under_way and not options.lora_rank:
            encoder = encoders.from_config(runs.encoder_config(runs.read_config(folder)))
            return encoders.ResolvedModel(folder, f"the run {folder.name}"), encoder
        if under_way:
            located = neural.resolve_base(runs.read_config(folder)["base"], None, folder, network=True)
        else:
            located = encoders.locate(options.encoder)
        frozen = neural.frozen_weights(options, self.placement)
        return located, encoders.make_encoder(located, len(self.tokenizer), seed=options.seed, frozen=frozen)

    def _max_length(self, encoder: Any) -> int:
        wanted, longest = self.work.options.max_length, encoders.max_input_length(encoder)
        if longest is None or longest >= wanted:
            return wanted
        self.work.reporter.note(f"max length {wanted} -> {longest}: the encoder takes no more")
        return longest
