"""Fitting a neural architecture: tokenizer and encoder, model, header of the run, sharding, then the training loop."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefcli import encoders, metrics
from prefcli.compute import devices, fsdp
from prefcli.data.selection import Fold
from prefcli.encoders import layers
from prefcli.errors import InputError
from prefcli.models import conversation, neural, token_cache, trial
from prefcli.models.architectures import is_causal
from prefcli.models.conversation import ConversationTemplate
from prefcli.models.packing import conversation_template
from prefcli.models.reward import RewardSetup
from prefcli.models.trial import EncoderTraits
from prefcli.outcomes import TIE
from prefcli.reporting import Progress
from prefcli.storage import runs
from prefcli.training import checkpoints, loop, pretraining
from prefcli.training.context import FitResult, TrainContext
from prefcli.training.duration import FirstSteps, TimeWarning, faster_than
from prefcli.training.trackers import Trackers

MAX_EXAMPLES = 500
"""Training conversations whose tokens are compared with those of the rendered text."""


class NeuralFitter:
    """Tokenises the battles once; every fold gets an encoder of its own."""

    def __init__(self, context: TrainContext, folds: Sequence[Fold]) -> None:
        self.context = context
        options = context.options
        most = options.max_steps * options.batch_size or math.inf
        self._warning = TimeWarning(context.reporter)
        self._fits_left = len(folds)
        battles = [
            min(options.epochs * len(fold.train), most)
            + loop.battles_of_steps(options.pretrain, len(fold.train), options.batch_size)
            for fold in folds
        ]
        self.task = ("training", sum(battles), "battles")
        if options.shard and context.world.alone:
            raise InputError(
                "--shard spreads a training over several processes, and this is one",
                hint="Start it with torchrun --nproc-per-node N -m prefcli train ..., or leave --shard out.",
            )
        if options.loss_input == "softmax" and context.training_data.sources is not None:
            raise InputError(
                "--loss-input softmax trains on one source: it leaves no room for how often each source ties",
                hint="Leave it out, or train on one file without --source.",
            )
        self.placement = devices.place(options.device, options.precision, context.world.local_rank)
        if options.lora_rank:
            self.placement = devices.for_language_models(self.placement)
        if context.resume and (context.folder / neural.TOKENIZER_CONFIG).is_file():
            source = _run_as_source(context.folder)
        else:
            source = encoders.locate(options.encoder_name)
        self.traits: EncoderTraits | None = None
        """Of the encoder, which the first fold tries out for all."""
        trained_on = np.unique(np.concatenate([fold.train for fold in folds]))
        texts = context.training_data.texts(trained_on)
        self.tokenizer = encoders.make_tokenizer(
            source, texts, keep_chat_template=options.architecture == "reward", mask=options.pretrain > 0
        )
        if options.pretrain:
            pretraining.check(source, options.encoder_name, self.tokenizer, context.world)
        self.conversation: ConversationTemplate | None = None
        """What a reward model reads around prompts and answers."""
        self.template = options.template
        if options.architecture == "reward":
            self._read_conversations(resumed=source.folder == context.folder)
        with context.world.main_process_first():
            self.battles = token_cache.cached_tokens(
                context.training_data,
                self.tokenizer,
                context.workspace,
                context.reporter,
                by_turn=options.truncation == "head-tail",
                conversation=self.conversation,
            )

    def _read_conversations(self, *, resumed: bool) -> None:
        """Find the conversation template of a reward model, and make its tokenizer one that gives it to other tools."""
        context, name = self.context, self.context.options.encoder_name
        if resumed:
            config = runs.read_config(context.folder)
            self.template = str(config["resolved"]["template"])
            self.conversation = neural.recorded_setup(config).conversation
            return
        self.template, self.conversation = conversation_template(
            self.tokenizer, context.options.template, name, context.reporter
        )
        self.tokenizer = conversation.reward_tokenizer(self.tokenizer, self.conversation)
        examples = [
            [turn or "" for pair in itertools.zip_longest(prompt or [""], answer or [""]) for turn in pair]
            for batch in itertools.islice(context.training_data.batches(), 1)
            for prompt, answer in zip(
                *(batch.column(field).to_pylist()[:MAX_EXAMPLES] for field in ("prompt", "response_a")), strict=True
            )
        ]
        differing = len(conversation.find_differences(self.conversation, self.tokenizer, examples))
        if differing:
            context.reporter.warn(
                f"{differing:,} of {len(examples):,} conversations have other tokens as a whole text than turn by "
                "turn: tools that use the run's chat template compute another reward for these"
            )

    def fit(self, fold: Fold, name: str, trackers: Trackers, progress: Progress) -> FitResult:
        """Fit one fold; one that is under way continues from its own files."""
        spec = self.spec(fold, name)
        spec.trackers, spec.progress, spec.name = trackers, progress, name
        spec.on_step_end = self._first_steps(spec)
        if self.context.options.pretrain:
            self._pretrain(spec)
        self._fits_left -= 1
        result = loop.fit(spec)
        pooled = None
        if result.logits is not None and (sources := self.context.fold_sources(fold)) is not None:
            unseen = runs.unseen_outcomes(runs.read_config(fold.folder))
            pooled = metrics.with_unseen(result.logits - sources.held_out_bases + sources.pooled, unseen)
        if self.context.options.lora_rank and self.context.world.is_main_process:
            neural.save_adapters(fold.folder, self.context.options)
        return FitResult(result.logits, result.battles_per_second, swapped=result.swapped, pooled=pooled)

    def _pretrain(self, spec: loop.FitSpec) -> None:
        """Pre-train the encoder, unless the fit is under way, whose checkpoint holds the weights."""
        if spec.resume and checkpoints.existing(spec.folder / runs.CHECKPOINTS):
            spec.progress.skip(spec.battles_until(spec.options.pretrain))
            return
        pretraining.pretrain(spec, encoders.locate(spec.options.encoder_name), self._first_steps(spec))
        spec.resume = False  # the fit begins

    def _first_steps(self, spec: loop.FitSpec) -> FirstSteps:
        """Of the first fold that this call trains, the steps show what all of them take."""
        context = self.context
        embeddings = sum(m.weight.numel() for m in spec.model.module.modules() if isinstance(m, torch.nn.Embedding))
        size = sum(p.numel() for p in spec.model.module.parameters()) - embeddings
        self._warning.faster = faster_than(context.options, size, is_ablation=context.trainings != 1)
        return FirstSteps(spec, self._warning, self._fits_left * context.trainings)

    def spec(self, fold: Fold, name: str) -> loop.FitSpec:
        """Build a fold's model and write the header of its folder: everything that :func:`loop.fit` needs."""
        context = self.context
        options = context.options
        under_way = context.resume and bool(checkpoints.existing(fold.folder / runs.CHECKPOINTS))
        source, encoder = self._encoder(fold.folder, under_way=under_way)
        if under_way:
            config = runs.read_config(fold.folder)
            options, self.traits = neural.with_resolved_auto(options, config), neural.recorded_traits(config)
        elif options.reinit_layers:
            reward = options.architecture == "reward"
            layers.reinitialise(encoder, options.reinit_layers, seed=options.seed, reward=reward)
        torch.manual_seed(options.seed)
        setup = None
        if self.conversation is not None:
            outcomes = context.outcomes(fold.train)
            # The bases of several sources hold their shares of ties: the term begins where it adds nothing.
            share = float(outcomes[TIE] / outcomes.sum()) if context.training_data.sources is None else 1 / 3
            setup = RewardSetup(self.conversation, share)
            options = dataclasses.replace(options, template=self.template)
        model = neural.build(
            options,
            encoder,
            self.tokenizer,
            options.max_length,
            self.placement,
            stays_on_host=options.shard,
            traits=self.traits,
            setup=setup,
        )
        self.traits = model.traits
        for column in self.battles.columns:
            trial.check_ids(model.vocabulary_size, column.values, self.tokenizer)
        train = self.battles.take(fold.train)
        if not under_way:
            cut = str(model.truncation_report(train))
            self._report(model, source, cut, name)
            if context.world.is_main_process:
                self._write_header(fold, model, source, cut)
            context.world.barrier()
        if options.shard:
            fsdp.shard(model.module, self.placement.device, context.world)
        sources = context.fold_sources(fold)
        return loop.FitSpec(
            model=model,
            train=train,
            targets=context.training_data.targets[fold.train],
            validation=self.battles.take(fold.held_out) if len(fold.held_out) else None,
            validation_ids=[context.training_data.ids[row] for row in fold.held_out],
            unseen=runs.unseen_outcomes(runs.read_config(fold.folder)),
            bases=sources.train_bases if sources else None,
            validation_bases=sources.held_out_bases if sources else None,
            options=options,
            folder=fold.folder,
            run=context.folder,
            reporter=context.reporter,
            world=context.world,
            resume=context.resume,
        )

    def _encoder(self, folder: Path, *, under_way: bool) -> tuple[encoders.ResolvedModel, Any]:
        """The encoder to train; of a fit under way only what its checkpoint does not hold is loaded."""
        options = self.context.options
        if under_way and not options.lora_rank:
            config = runs.encoder_config(runs.read_config(folder))
            return _run_as_source(folder), encoders.from_config(config, reward=options.architecture == "reward")
        if under_way:
            source = neural.resolve_base(runs.read_config(folder)["base"], None, folder, network=True)
        else:
            source = encoders.locate(options.encoder_name)
        frozen = neural.frozen_weights(options, self.placement)
        return source, encoders.make_encoder(
            source,
            len(self.tokenizer),
            seed=options.seed,
            frozen=frozen,
            reporter=self.context.reporter,
            reward=options.architecture == "reward",
            dropout=options.dropout,
        )

    def _report(self, model: neural.NeuralModel, source: encoders.ResolvedModel, cut: str, name: str) -> None:
        """Report what is trained; with folds once, as the others are like the first."""
        if name and not name.startswith("fold 1 "):
            return
        wanted, max_length = self.context.options.max_length, model.traits.max_length
        if max_length < wanted:
            self.context.reporter.note(f"max length {wanted} -> {max_length}: the encoder's limit")
        parameters = list(model.module.parameters())
        size = sum(p.numel() for p in parameters) / 1e6
        trainable = sum(p.numel() for p in parameters if p.requires_grad) / 1e6
        part = "" if trainable == size else f", {trainable:.1f} M of them trained"
        pooling = {"auto": "the classifier's own"}.get(model.module.pooling, model.module.pooling)
        for line in (
            f"encoder {self.context.options.encoder_name}: {source.source}; {size:.1f} M parameters{part}",
            f"{self.placement}; {model.attention}; {pooling} pooling",
            f"{max_length} tokens a sequence: {cut}",
            *self._changes(model),
        ):
            self.context.reporter.note(line)
        is_language_model = self.context.options.reads_raw_text or is_causal(model.module.encoder)
        if is_language_model and self.context.data.text == "nltk":
            self.context.reporter.warn(
                "the text is nltk-normalised, without stop words, punctuation and inflections, and this model "
                "was pretrained on texts as they are: --text raw (its default) keeps them"
            )

    def _changes(self, model: neural.NeuralModel) -> list[str]:
        """What the options change in the encoder and its training, if anything, as a line."""
        options, encoder = self.context.options, model.module.encoder
        changes = []
        if options.reinit_layers:
            count = len(layers.find(encoder, "--reinit-layers"))
            changes.append(f"top {options.reinit_layers} of {count} layers drawn at random")
        if options.dropout is not None:
            changes.append(f"dropout {options.dropout:g}")
        if options.layer_decay < 1:
            lowest = options.learning_rate * options.layer_decay ** max(layers.depths(encoder).values())
            changes.append(f"learning rate {options.learning_rate:.2g} of the head to {lowest:.2g} of the embeddings")
        return ["; ".join(changes)] if changes else []

    def _write_header(self, fold: Fold, model: neural.NeuralModel, source: encoders.ResolvedModel, cut: str) -> None:
        """Write what a run's folder holds before its training begins: config and tokenizer."""
        context = self.context
        resolved: dict[str, Any] = {
            "placement": str(self.placement),
            **dataclasses.asdict(model.traits),
            "lr": context.options.learning_rate,
            **({"pretrain_lr": context.options.pretrain_learning_rate} if context.options.pretrain else {}),
            "encoder_source": source.source,
            "cut": cut,
            "attention": model.attention,
            "pooling": model.module.pooling,
            "template": model.template,
            "ranks": context.world.size,
        }
        if self.conversation is not None:
            resolved["conversation"] = self.conversation.to_json()
        encoder_config: Any = model.encoder_config()
        if context.options.lora_rank:
            # The encoder's weights are elsewhere, so transformers must not take the run for an encoder.
            encoder_config = {"base": neural.describe_base(context.options.encoder_name, source)}
        context.write_config(fold, resolved, encoder_config)
        for folder in dict.fromkeys((fold.folder, context.folder)):
            model.save_tokenizer(folder)
            runs.seal(folder, trained=False)


def _run_as_source(folder: Path) -> encoders.ResolvedModel:
    return encoders.ResolvedModel(folder, f"the run {folder.name}")
