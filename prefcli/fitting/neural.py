"""Fitting a neural architecture: tokenizer and encoder, then the loop of :mod:`prefcli.training`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prefcli import checkpoints, devices, encoders, runs, tokens, training
from prefcli.fitting.work import Fitted, Work
from prefcli.models import neural
from prefcli.selection import Fold


class NeuralFitter:
    """Tokenises the pool once; every fold gets an encoder of its own."""

    def __init__(self, work: Work, folds: Sequence[Fold]) -> None:
        self.work = work
        options = work.options
        self.placement = devices.place(options.device, options.precision, work.world.local_rank)
        started_before = work.resume and (work.folder / neural.TOKENIZER_CONFIG).is_file()
        run = encoders.Located(work.folder, f"the run {work.folder.name}")
        self.located = encoders.locate(options.encoder) if not started_before else run
        everything = np.unique(np.concatenate([fold.train for fold in folds]))
        self.tokenizer = encoders.make_tokenizer(self.located, work.pool.texts(everything))
        with work.world.first_does():
            self.battles = tokens.tokenised(
                work.pool, self.tokenizer, work.workspace, work.reporter, by_turn=options.truncation == "head-tail"
            )

    def fit(self, fold: Fold, prefix: str) -> Fitted:
        """Fit one fold; a fit under way is continued from its own files."""
        fitted = training.fit(self.task(fold, prefix))
        return Fitted(fitted.logits, fitted.battles_per_second)

    def task(self, fold: Fold, prefix: str) -> training.Task:
        """Everything the fit of a fold needs, in memory and in its folder."""
        work, options, folder = self.work, self.work.options, fold.folder
        under_way = work.resume and bool(checkpoints.existing(folder / "checkpoints"))
        if under_way:
            located = encoders.Located(folder, f"the run {folder.name}")
            encoder = encoders.from_config(runs.read_config(folder)["encoder_config"])
        else:
            located = encoders.locate(options.encoder)
            encoder = encoders.make_encoder(located, len(self.tokenizer), seed=options.seed)
        max_length = self._max_length(encoder)
        model = neural.build(options, encoder, self.tokenizer, max_length, self.placement)
        train = self.battles.take(fold.train)
        cut = model.cut(train)
        if not under_way:
            size = sum(p.numel() for p in model.module.parameters()) / 1e6
            work.reporter.note(f"{prefix}encoder {options.encoder}: {located.source}; {size:.1f} M parameters")
            work.reporter.note(f"{prefix}{self.placement}; {model.attention}")
            work.reporter.note(f"{prefix}{max_length} tokens a sequence: {cut}")
            if work.world.is_first:
                resolved = {
                    "placement": str(self.placement),
                    "max_length": max_length,
                    "lr": options.learning_rate,
                    "encoder_source": located.source,
                    "cut": str(cut),
                    "attention": model.attention,
                    "ranks": work.world.size,
                }
                work.write_config(fold, resolved, encoder_config=model.encoder_config())
                for owner in dict.fromkeys((folder, work.folder)):
                    model.save_beside_weights(owner)
                    runs.seal(owner, trained=False)
            work.world.barrier()
        return training.Task(
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

    def _max_length(self, encoder: Any) -> int:
        wanted, longest = self.work.options.max_length, encoders.longest_input(encoder)
        if longest is None or longest >= wanted:
            return wanted
        self.work.reporter.note(f"max length {wanted} -> {longest}: the encoder takes no more")
        return longest
