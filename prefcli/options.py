"""Options of training and of prediction: names, defaults, limits and help, shared by flags, config files and runs."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from prefcli.errors import InputError, closest_name, one_line, require

ARCHITECTURES = ("siamese", "cross-encoder", "reward", "features")
COMBINATIONS = ("concat", "interaction")
TRUNCATIONS = ("head", "head-tail")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
LOSS_INPUTS = ("logits", "softmax", "log-softmax")
ACTIVATIONS = ("softmax", "none")
RANK_METHODS = ("fit", "mean-win")
POOLINGS = ("auto", "mean", "last", "cls", "attention")
HEADS = ("linear", "mlp")
TIES = ("constant", "prompt")
TEMPLATES = ("auto", "tokens", "words", "chat")
QUANTIZATIONS = ("none", "8bit", "4bit")
TRACKERS = ("tensorboard", "wandb")
PAIR_SELECTIONS = ("best-worst", "best-rest", "all")
PAIR_TIES = ("drop", "kto")
PAIR_LAYOUTS = ("trl", "trl-text", "llama-factory")

TEXTS = ("nltk", "light", "raw")
DEVICES = ("auto", "cpu", "cuda", "mps")

RECIPES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "fast": {"architecture": "features"},
    "strong": {"text": "raw", "combine": "interaction", "max_length": 1024, "swap": True, "warmup": 0.1},
}
"""What each recipe sets in place of the defaults. Flags and a configuration file win over it."""
RECIPE_SUMMARIES = {
    "baseline": "the original notebook's method, siamese on NLTK-normalised text",
    "fast": "boosted text statistics, minutes on a laptop",
    "strong": "siamese with interaction on longer raw text in both orders, for a GPU",
}
RENAMED_RECIPES = {"seed": "baseline"}
"""Former names; flags, configuration files and existing runs may still use them."""

PRECISION_NAMES = {"float32": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16"}
"""PyTorch's names of the precisions."""

DEFAULT_ENCODER = "microsoft/deberta-v3-small"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
ENCODER_ALIASES = {"minilm": MINILM}
"""Short names of encoders of the hub."""

PRETRAINED_LR = 2e-5
SCRATCH_LR = 1e-3
PRETRAIN_LR = 1e-4
"""Of RoBERTa's in Gururangan et al., "Don't stop pretraining", ACL 2020, table 14."""
LORA_LR = 2e-4

PRECISION_HELP = "auto picks what the device is good at (bf16 on a CPU with AMX), and says why."
RUNS = tuple[str, ...]
"""The type of the option that names runs."""
DEVICE_HELP = "auto takes a GPU if there is one; cuda:1 is the second."


def option(default: Any, help_text: str, **metadata: Any) -> Any:
    """A dataclass field with its one line of help, its limits and what it applies to.

    Limits are ``at_least``, ``above``, ``at_most``, ``choices`` and ``each_of`` (of a comma-separated list). With
    ``neural_only`` the flag is refused for ``--architecture features``, with ``reward_only`` for all architectures but
    ``reward``, with ``pair_only`` for ``reward``, with ``lora_only`` without ``--lora-rank``, with ``features_only``
    for all but ``features``. In the help ``metavar`` stands for the value where there are no ``choices``; the shell
    also completes ``suggestions``, which are not all.
    """
    return field(default=default, metadata={"help": help_text, **metadata})


neural_option = functools.partial(option, neural_only=True)
pair_option = functools.partial(neural_option, pair_only=True)
reward_option = functools.partial(neural_option, reward_only=True)
lora_option = functools.partial(neural_option, lora_only=True)
features_option = functools.partial(option, None, features_only=True)


@dataclass(frozen=True)
class TrainOptions:
    """How to train. The defaults are the original notebook's; every field is also a flag and a key of ``--config``."""

    recipe: str = option(
        "baseline",
        f"Defaults for all other options: {'; '.join(f'{name}: {what}' for name, what in RECIPE_SUMMARIES.items())}.",
        choices=tuple(RECIPES),
    )
    text: str | None = option(
        None,
        "Text normalisation. [default: nltk; of features, reward, LoRA, decoders and --recipe strong: raw]",
        choices=TEXTS,
    )
    encoder: str | None = neural_option(
        None,
        "A folder, a model on the hub (owner/name), minilm (22 M parameters, from the hub or an installed package), or "
        f"tiny, the built-in one. [default: {DEFAULT_ENCODER}, or the best one on this machine where it cannot be had]",
        metavar="NAME|DIR",
    )
    architecture: str = option(
        "siamese",
        "siamese: one encoder reads the prompt with each answer; cross-encoder: it reads both answers at once; "
        "reward: it gives each answer one number, as transformers' sequence classifiers do; features: boosted text "
        "statistics, no encoder.",
        choices=ARCHITECTURES,
    )
    combine: str = pair_option(
        "concat", "How the vectors of A and B are joined; interaction adds a - b and a * b.", choices=COMBINATIONS
    )
    pooling: str = pair_option(
        "auto",
        "The vector of a text: its tokens' mean, its last token, its first (cls), or their mean with learned weights "
        "(attention); auto: last for a language model, else mean.",
        choices=POOLINGS,
    )
    head: str = pair_option(
        "linear", "What gives the outcomes' logits: one linear layer, or two with GELU between them.", choices=HEADS
    )
    reinit_layers: int = neural_option(
        0, "Draw the encoder's top N layers at random, as before its pretraining.", at_least=0
    )
    dropout: float | None = neural_option(
        None, "The encoder's dropout probabilities. [default: those in its configuration]", at_least=0.0, at_most=0.9
    )
    template: str = neural_option(
        "auto",
        "What separates prompt and answers: special tokens, words, or (reward only) the tokenizer's chat template; "
        "auto: words for a language model; for reward chat, if the tokenizer has a chat template.",
        choices=TEMPLATES,
    )
    max_length: int = neural_option(512, "Tokens per sequence, special tokens included.", at_least=8)
    truncation: str = neural_option(
        "head",
        "What is kept of a field that is too long: its head; or head and tail, last turns first, with a mark at the "
        "cut.",
        choices=TRUNCATIONS,
    )
    epochs: int = neural_option(1, "Passes over the training battles.", at_least=1)
    batch_size: int = neural_option(16, "Battles per optimizer step.", at_least=1)
    micro_batch: int = neural_option(
        0, "Maximum battles per forward pass; 0: as many as fit a token budget.", at_least=0
    )
    lr: float | None = neural_option(
        None, "Peak learning rate. [default: 2e-5; for tiny 1e-3; for LoRA 2e-4]", above=0.0, at_most=1.0
    )
    warmup: float = neural_option(
        0.0, "Share of the steps in which the learning rate rises linearly from 0.", at_least=0.0, at_most=1.0
    )
    layer_decay: float = neural_option(
        1.0,
        "Each layer's learning rate is X times that of the layer above: X for the top layer, least for the embeddings.",
        above=0.0,
        at_most=1.0,
    )
    weight_decay: float = neural_option(0.01, "AdamW's weight decay, not applied to biases and norms.", at_least=0.0)
    clip: float = neural_option(1.0, "Maximum norm of the gradient; 0: no clipping.", at_least=0.0)
    label_smoothing: float = neural_option(
        0.0, "Share of each label that is spread over the outcomes that occur.", at_least=0.0, at_most=0.99
    )
    loss_input: str = neural_option(
        "logits", "What the loss is computed on; anything but logits is an ablation.", choices=LOSS_INPUTS
    )
    swap: bool = pair_option(
        False, "Train on both orders of each battle within the same step; only cross-encoder takes longer."
    )
    center_rewards: float = reward_option(
        0.0, "Weight of the mean of (r_A + r_B)^2 in the loss, which keeps rewards around 0.", at_least=0.0
    )
    margin: float = reward_option(
        0.0, "By how much the better answer's reward must exceed the other's in the loss.", at_least=0.0
    )
    tie: str = reward_option("constant", "How likely ties are: learnt as a constant, or from the prompt.", choices=TIES)
    soft_labels: str | None = option(
        None,
        "A file of predictions to train on as soft labels, joined by id; battles without outcome count too.",
        metavar="FILE",
    )
    soft_weight: float = option(1.0, "Weight of a battle's soft label against its outcome.", at_least=0.0, at_most=1.0)
    soft_temperature: float = option(
        1.0, "Soft labels are raised to the power 1/T: above 1 softens, below 1 sharpens.", above=0.0, at_most=100.0
    )
    pretrain: int = neural_option(
        0,
        "Before the fit train the encoder for N steps on the training battles' text, by masked language modelling; "
        "--max-steps and --max-time do not count these.",
        at_least=0,
    )
    pretrain_lr: float | None = neural_option(
        None, "Peak learning rate of --pretrain. [default: 1e-4; for tiny 1e-3]", above=0.0, at_most=1.0
    )
    lora_rank: int = neural_option(
        0, "Train LoRA adapters of this rank and freeze the encoder; 0: train all weights.", at_least=0
    )
    lora_alpha: float | None = lora_option(
        None, "Adapters are scaled by alpha / rank. [default: twice the rank]", above=0.0, at_most=1e6
    )
    lora_dropout: float = lora_option(0.0, "Dropout on the adapters' inputs.", at_least=0.0, at_most=0.9)
    lora_targets: str = lora_option(
        "all", "Layers with adapters; names are such as q_proj,v_proj.", metavar="all|attention|NAMES"
    )
    quantize: str = neural_option(
        "none", "Load the frozen weights in 8 or 4 bits; needs --lora-rank and a CUDA GPU.", choices=QUANTIZATIONS
    )
    shard: bool = neural_option(
        False, "Under torchrun: shard weights, gradients and optimizer state (FSDP); less memory, more communication."
    )
    fast_attention: bool = neural_option(
        True, "Compute DeBERTa (and on a CPU any encoder's linear layers) faster, with the same results."
    )
    gradient_checkpointing: bool = neural_option(
        False, "Recompute activations in the backward pass: less memory, more time."
    )
    precision: str = neural_option("auto", PRECISION_HELP, choices=PRECISIONS)
    device: str = neural_option("auto", DEVICE_HELP, metavar="|".join(DEVICES), suggestions=DEVICES)
    validation: float = option(
        0.1, "Share of the battles held out, by prompt; 0: train on all.", at_least=0.0, at_most=0.9
    )
    validation_file: str | None = option(
        None, "Validate on the battles of this file instead of holding some out.", metavar="FILE"
    )
    folds: int = option(0, "Train N folds and predict each battle by the model that did not see it.", at_least=0)
    num_leaves: int | None = features_option(
        "Leaves of a tree. [default: 31; with under 5,000 battles 8]", at_least=2, at_most=4096
    )
    shrinkage_rate: float | None = features_option(
        "By how much each tree counts, LightGBM's learning_rate. [default: 0.06; with under 5,000 battles 0.04]",
        above=0.0,
        at_most=1.0,
    )
    min_data_in_leaf: int | None = features_option(
        "Battles in a leaf at least, in both orders. [default: 100; with under 5,000 battles 20]", at_least=1
    )
    feature_fraction: float | None = features_option(
        "Share of the statistics that a tree may use. [default: 0.3; with under 5,000 battles 0.2]",
        above=0.0,
        at_most=1.0,
    )
    lambda_l2: float | None = features_option("L2 regularisation of the leaves. [default: 5]", at_least=0.0)
    seeds: int | None = features_option(
        "Boosters with different seeds, whose scores are averaged. [default: 1]", at_least=1, at_most=100
    )
    max_steps: int = neural_option(0, "Stop a fit after N steps; 0: no limit.", at_least=0)
    max_time: float = neural_option(
        0.0, "Stop a fit after so long, validation included; 0: no limit.", at_least=0.0, metavar="MINUTES"
    )
    log_every: int = neural_option(10, "Write metrics every N steps.", at_least=1)
    eval_every: int = neural_option(0, "Validate every N optimizer steps; 0: after each epoch.", at_least=0)
    keep: str = neural_option(
        "best", "Which weights to keep: the best by validation, or the last.", choices=("best", "last")
    )
    patience: int = neural_option(0, "Stop after N validations without improvement; 0: never.", at_least=0)
    checkpoint_every: int = neural_option(0, "Checkpoint every N steps; 0: every 5 minutes.", at_least=0)
    keep_checkpoints: bool = neural_option(False, "Keep a finished run's checkpoints; without it they are removed.")
    seed: int = option(0, "Seed of everything that is random.", at_least=0, at_most=2**63 - 1)
    limit: int | None = option(None, "Train on N battles only, drawn at random by prompt.", at_least=1)
    tracker: str | None = option(
        None,
        "Also send metrics and options there: comma-separated, or repeat the flag; wandb needs a network unless "
        "WANDB_MODE=offline.",
        each_of=TRACKERS,
    )

    def __post_init__(self) -> None:
        for name in ("encoder", "validation_file", "soft_labels"):
            object.__setattr__(self, name, _expanded(getattr(self, name)))
        object.__setattr__(self, "recipe", RENAMED_RECIPES.get(self.recipe, self.recipe))
        object.__setattr__(self, "precision", PRECISION_NAMES.get(self.precision, self.precision))

    @property
    def trackers(self) -> tuple[str, ...]:
        """The requested trackers, each once."""
        return () if self.tracker is None else tuple(dict.fromkeys(self.tracker.replace(" ", "").split(",")))

    @property
    def normalisation(self) -> str:
        """The text normalisation: as given, or the default, which is that of the baseline for encoders only.

        Whether an encoder is a decoder its files say: ``train`` gives these raw text.
        """
        return self.text or ("raw" if self.reads_raw_text else "nltk")

    @property
    def reads_raw_text(self) -> bool:
        """Whether raw text is the default whatever the encoder is."""
        return self.architecture in ("features", "reward") or self.lora_rank > 0

    @property
    def encoder_name(self) -> str:
        """The encoder: as given, or the default one."""
        return self.encoder or DEFAULT_ENCODER

    @property
    def shows_both_orders(self) -> bool:
        """Whether every battle is trained on in both orders of the answers."""
        return self.swap or self.architecture in ("features", "reward")

    @property
    def computes_both_orders(self) -> bool:
        """Whether a training step computes both orders; for ``reward`` the second one has the first one's loss."""
        return self.swap and self.architecture != "reward"

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: as given, or the encoder's default."""
        if self.lr is not None:
            return self.lr
        if self.lora_rank:
            return LORA_LR
        return SCRATCH_LR if self.encoder == "tiny" else PRETRAINED_LR

    @property
    def pretrain_learning_rate(self) -> float:
        """The peak learning rate of ``pretrain``: as given, or the encoder's default."""
        return self.pretrain_lr or (SCRATCH_LR if self.encoder == "tiny" else PRETRAIN_LR)

    @property
    def fine_tuning(self) -> list[str]:
        """The settings of fine-tuning that are not the defaults, in words."""
        settings = {
            f"{self.pooling} pooling": self.pooling != "auto",
            "two-layer head": self.head == "mlp",
            f"top layers drawn at random: {self.reinit_layers}": self.reinit_layers > 0,
            f"dropout {self.dropout}": self.dropout is not None,
            f"layer decay {self.layer_decay:g}": self.layer_decay < 1,
            f"label smoothing {self.label_smoothing:g}": self.label_smoothing > 0,
        }
        return [text for text, is_set in settings.items() if is_set]

    @property
    def booster_settings(self) -> dict[str, Any]:
        """The settings of the booster that were given, in LightGBM's own names."""
        names = ("num_leaves", "min_data_in_leaf", "feature_fraction", "lambda_l2", "seeds")
        given = {"learning_rate": self.shrinkage_rate, **{name: getattr(self, name) for name in names}}
        return {name: value for name, value in given.items() if value is not None}

    def require_packages(self, verb: str = "train") -> None:
        """Check that the packages are installed that ``prefcli VERB`` needs to train with these options.

        Raises
        ------
        MissingPackage
            With the one line that installs those which are missing.
        """
        from importlib.util import find_spec

        modules = [] if self.architecture == "features" else ["torch", "transformers"]
        otherwise = "--recipe fast needs neither." if modules and verb == "train" and not find_spec("torch") else ""
        modules += ["peft"] * bool(self.lora_rank)
        for tracker in self.trackers:
            modules += ["torch", tracker] if tracker == "tensorboard" else [tracker]
        require("this training" if verb == "train" else f"prefcli {verb}", *dict.fromkeys(modules), otherwise=otherwise)

    def check(self) -> None:
        """Refuse impossible values and combinations, with one :class:`InputError` that names all of them."""
        problems = _problems(self)
        if self.folds == 1:
            problems.append("--folds 1 holds nothing out: use 2 or more")
        if self.folds and self.validation_file:
            problems.append("--folds and --validation-file exclude each other")
        if self.lora_rank and self.encoder == "tiny":
            problems.append("--lora-rank: the encoder tiny has random weights, there is nothing to adapt")
        if self.lora_rank and self.layer_decay < 1:
            problems.append("--layer-decay and --lora-rank exclude each other: the encoder's layers are frozen")
        if self.lora_rank and self.reinit_layers:
            problems.append("--reinit-layers and --lora-rank exclude each other: new layers would stay untrained")
        if self.reinit_layers and self.pretrain:
            problems.append("--reinit-layers and --pretrain exclude each other: new layers are for the fit alone")
        if self.reinit_layers and self.encoder == "tiny":
            problems.append("--reinit-layers: the encoder tiny has random weights anyway")
        if self.pretrain and self.lora_rank:
            problems.append("--pretrain trains all weights of the encoder, --lora-rank none of them: leave one out")
        if self.pretrain and self.architecture == "reward":
            problems.append("--pretrain is for --architecture siamese and cross-encoder")
        if self.pretrain and self.shard:
            problems.append("--pretrain runs in one process, --shard in several: leave one out")
        if self.pretrain_lr is not None and not self.pretrain:
            problems.append("--pretrain-lr is not used without --pretrain N")
        if not self.lora_targets.strip(" ,"):
            problems.append("--lora-targets is empty: all, attention, or names of layers")
        if self.template == "chat" and self.architecture != "reward":
            problems.append("--template chat is for --architecture reward: a conversation has one answer")
        if self.quantize != "none" and not self.lora_rank:
            problems.append("--quantize: quantized weights cannot be trained: add --lora-rank 16")
        if self.quantize != "none" and self.shard:
            problems.append("--quantize and --shard exclude each other: quantized weights cannot be sharded")
        if problems:
            raise InputError("; ".join(problems), hint=_similar(self) or "See prefcli train --help.")


FIRST_PANEL = "Most used"
TRAIN_PANELS = {
    FIRST_PANEL: ("recipe", "encoder", "text", "epochs", "max_length", "batch_size", "lr", "folds"),
    "Data": ("limit", "swap", "soft_labels", "soft_weight", "soft_temperature"),
    "Model": (
        "architecture",
        "combine",
        "pooling",
        "head",
        "template",
        "truncation",
        "tie",
        "dropout",
        "reinit_layers",
    ),
    "Adapters (LoRA)": ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "quantize"),
    "Optimisation": (
        *(
            "pretrain",
            "pretrain_lr",
            "warmup",
            "layer_decay",
            "weight_decay",
            "clip",
            "label_smoothing",
            "loss_input",
            "center_rewards",
            "margin",
            "max_steps",
        ),
        *("max_time", "seed"),
    ),
    "Boosting": ("num_leaves", "shrinkage_rate", "min_data_in_leaf", "feature_fraction", "lambda_l2", "seeds"),
    "Evaluation": ("validation", "validation_file", "eval_every", "keep", "patience"),
    "Hardware": ("device", "precision", "micro_batch", "gradient_checkpointing", "fast_attention", "shard"),
    "Output": ("log_every", "checkpoint_every", "keep_checkpoints", "tracker"),
}
"""Where the help shows each field of :class:`TrainOptions`, in this order."""


@dataclass(frozen=True)
class PredictOptions:
    """How to predict. Every field but ``models`` and ``calibrated`` is also a flag of ``prefcli predict``."""

    VERB: ClassVar[str] = "predict"

    models: tuple[str, ...] = option((), "Runs, by folder, name or hf://owner/name; none: the latest run.")
    swap_average: bool = option(False, "Average over both orders of the answers: twice the time for cross-encoder.")
    activation: str = option("softmax", "softmax, or none for raw scores (an ablation).", choices=ACTIVATIONS)
    as_source: str | None = option(
        None, "Of a run of several sources: predict as this one votes. [default: those that can tie, pooled]"
    )
    calibrated: bool = option(
        True, "Fit a temperature (of several runs, weights) on held-out battles and keep it if that helps."
    )
    temperature: float | None = option(
        None,
        "Divide log-odds by X instead of a fitted temperature: 2 for voters other than in training, if there are no "
        "votes of theirs to calibrate on.",
        above=0.0,
        at_most=100.0,
    )
    precision: str = option("auto", PRECISION_HELP, choices=PRECISIONS)
    device: str = option("auto", DEVICE_HELP, metavar="|".join(DEVICES), suggestions=DEVICES)
    fast_attention: bool = option(True, "Compute encoders faster, with the same results.")
    encoder: str | None = option(None, "Where the encoder of a LoRA run is now, if it has moved.", metavar="NAME|DIR")
    limit: int | None = option(None, "Only the first N battles.", at_least=1)
    workers: int | None = option(None, "Processes for text normalisation. [default: all cores]", at_least=1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", PRECISION_NAMES.get(self.precision, self.precision))

    def check(self) -> None:
        """Refuse impossible values, with one :class:`InputError` that names all of them."""
        if problems := _problems(self):
            raise InputError("; ".join(problems), hint=_similar(self) or f"See prefcli {self.VERB} --help.")


@dataclass(frozen=True)
class RankOptions(PredictOptions):
    """How to rank. Every field but ``models``, ``calibrated``, ``activation`` and ``workers``, which is not used, is
    also a flag of ``prefcli rank``.
    """

    VERB: ClassVar[str] = "rank"

    limit: int | None = option(None, "Only the first N questions.", at_least=1)
    method: str = option(
        "fit",
        "Scores are rewards, of other runs strengths (log-odds) fitted to the compared pairs; mean-win: they are the "
        "mean probabilities to win, ties half.",
        choices=RANK_METHODS,
    )
    all_pairs: int = option(
        32,
        "Compare all pairs of up to N answers to a prompt; of more, each answer with 16 others. Reward runs read each "
        "answer once.",
        at_least=2,
        at_most=500,
    )
    length_penalty: float = option(
        0.0,
        "What an answer's score loses for each doubling of its length, in log-odds: X * log2(1 + characters).",
        at_least=0.0,
    )


@dataclass(frozen=True)
class ServeOptions(PredictOptions):
    """How to serve. Every field is also a flag of ``prefcli serve``, but ``models``, ``calibrated`` and those that are
    not used: ``activation``, ``limit`` and ``workers``.
    """

    VERB: ClassVar[str] = "serve"

    host: str = option(
        "127.0.0.1", "Address to listen on; any but this machine's own needs a token.", metavar="ADDRESS"
    )
    port: int = option(8000, "Port to listen on; 0 takes a free one and prints it.", at_least=0, at_most=65535)
    token_file: str | None = option(
        None,
        "File that holds the token which requests must send; so does the variable PREFCLI_TOKEN.",
        metavar="FILE",
    )
    max_body_mb: float = option(4.0, "Largest body of a request, in MiB.", above=0.0, at_most=1024.0, metavar="MIB")
    timeout: float = option(
        60.0, "A request is answered within that time, from its first byte on, or refused.", above=0.0,
        metavar="SECONDS",
    )  # fmt: skip
    header_timeout: float = option(
        10.0, "A connection is closed that sends no complete head of a request for that time.", above=0.0,
        metavar="SECONDS",
    )  # fmt: skip
    max_queue: int = option(256, "Requests that wait; further ones are refused with status 429.", at_least=1)
    max_connections: int = option(512, "Open connections; further ones are refused with status 503.", at_least=1)
    batch_battles: int = option(256, "Battles of all clients that are computed together, at most.", at_least=1)
    batch_characters: int = option(1_000_000, "Characters that are computed together, at most.", at_least=1)


@dataclass(frozen=True)
class PairOptions:
    """Which preference pairs are made of a ranking. Every field is also a flag of ``prefcli rank``: ``--pairs-...``."""

    PREFIX: ClassVar[str] = "pairs_"
    """Of the fields' flags."""

    select: str = option(
        "best-worst",
        "Which answers of a prompt are paired: the first with the last, the first with each other one, or all.",
        choices=PAIR_SELECTIONS,
    )
    min_probability: float = option(
        0.5, "Minimum probability that the chosen answer is preferred; a tie is not.", at_least=0.0, at_most=1.0
    )
    min_margin: float = option(0.0, "Minimum difference of the two answers' scores.", at_least=0.0)
    max_per_prompt: int = option(0, "At most N pairs of a prompt, the most probable ones; 0: no limit.", at_least=0)
    ties: str = option(
        "drop",
        "Pairs of which a tie is the most probable outcome: drop them; or kto: write single answers with a label "
        "instead of pairs, and answers that tie with a chosen or a rejected one get its label.",
        choices=PAIR_TIES,
    )
    layout: str = option(
        "trl",
        "TRL's messages, TRL's plain text, or LLaMA-Factory's messages (sharegpt).",
        choices=PAIR_LAYOUTS,
    )

    def check(self) -> None:
        """Refuse impossible values, with one :class:`InputError` that names all of them."""
        if problems := _problems(self):
            raise InputError("; ".join(problems), hint=_similar(self) or "See prefcli rank --help.")


def _expanded(path: str | None) -> str | None:
    """A path that may begin with ``~``: no shell replaces it in a configuration file."""
    return path and os.path.expanduser(path)


def _problems(options: TrainOptions | PredictOptions | PairOptions) -> list[str]:
    """What is wrong with single values."""
    prefix = getattr(options, "PREFIX", "")
    return [
        problem
        for f in dataclasses.fields(options)
        if (problem := _problem(flag_of(prefix + f.name), f.metadata, getattr(options, f.name)))
    ]


def _similar(options: TrainOptions | PredictOptions | PairOptions) -> str:
    """Choices that were meant, as a question."""
    meant = []
    for f in dataclasses.fields(options):
        choices = f.metadata.get("choices") or f.metadata.get("each_of") or ()
        values = (getattr(options, f.name) or "").replace(" ", "").split(",") if choices else ()
        meant += [closest_name(value, choices) for value in values if value and value not in choices]
    return _did_you_mean(meant)


def _did_you_mean(names: Iterable[str]) -> str:
    """A question with the names that are not empty."""
    return f"Did you mean {', '.join(meant)}?" if (meant := [*filter(None, names)]) else ""


def _problem(flag: str, limits: Mapping[str, Any], value: Any) -> str:
    if value is None:
        return ""
    if "choices" in limits and value not in limits["choices"]:
        return f"{flag} is {value!r}, not one of {', '.join(limits['choices'])}"
    if "each_of" in limits and (
        unknown := [v for v in value.replace(" ", "").split(",") if v not in limits["each_of"]]
    ):
        return f"{flag} has {', '.join(map(repr, unknown))}, not one of {', '.join(limits['each_of'])}"
    if isinstance(value, float) and value != value:
        return f"{flag} is not a number"
    if "at_least" in limits and value < limits["at_least"]:
        return f"{flag} is {value}, at least {limits['at_least']} is needed"
    if "above" in limits and value <= limits["above"]:
        return f"{flag} is {value}, it must be above {limits['above']:g}"
    if "at_most" in limits and value > limits["at_most"]:
        return f"{flag} is {value}, at most {limits['at_most']} is allowed"
    return ""


def flag_of(name: str) -> str:
    """``batch_size`` -> ``--batch-size``."""
    return "--" + name.replace("_", "-")


def read_config(path: Path) -> dict[str, Any]:
    """Training options from a TOML file or from a run's ``config.json``, of which only ``options`` are read.

    Keys are the names of :class:`TrainOptions`, with ``-`` or ``_``.

    Raises
    ------
    InputError
        If the file cannot be read, or has an unknown key or a value of the wrong type; all problems at once.
    """
    import json
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    is_json = path.suffix.lower() == ".json"
    kinds = "A configuration is a TOML file, such as epochs = 2, or the config.json in a run's folder."
    try:
        text = path.read_text(encoding="utf-8-sig")
        given: Any = json.loads(text) if is_json else tomllib.loads(text)
    except OSError as error:
        of_run = path / "config.json"
        hint = f"Name the file in it: {of_run}" if of_run.is_file() else "Check the path."
        raise InputError(f"cannot read the configuration: {error.strerror}", where=str(path), hint=hint) from None
    except ValueError as error:
        kind = "JSON" if is_json else "TOML"
        raise InputError(f"not valid {kind}: {one_line(error)}", where=str(path), hint=kinds) from None
    if is_json:
        given = given.get("options") if isinstance(given, dict) else None
        if not isinstance(given, dict):
            raise InputError("not the configuration of a run: it has no options", where=str(path), hint=kinds)
    return typed(TrainOptions, given, where=str(path), hint="Keys are the flags of prefcli train without the dashes.")


def typed(kind: type, given: Mapping[str, Any], *, prefix: str = "", where: str = "", hint: str) -> dict[str, Any]:
    """Values for the fields of an options class, by the fields' names; paths become text, NumPy's numbers Python's.

    Parameters
    ----------
    kind, given:
        The class; names, with ``-`` or ``_``, and values.
    prefix, where, hint:
        Of the names, the place and the hint of an error.

    Raises
    ------
    InputError
        If there is no such field, or a value is of the wrong type; all problems at once.
    """
    hints = get_type_hints(kind)
    types = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    options: dict[str, Any] = {}
    problems, similar = [], []
    for key, value in given.items():
        name = key.replace("-", "_").removeprefix(prefix)
        plain = _plain(value, types.get(name))
        if name not in types:
            problems.append(f"unknown option {key!r}")
            similar.append(closest_name(key, [prefix + field for field in types]))
        elif not _fits(plain, types[name]):
            problems.append(f"{key} is {one_line(repr(value), 60)}, expected {_type_name(types[name])}")
        else:
            options[name] = plain
    if problems:
        raise InputError("; ".join(problems), where=where, hint=_did_you_mean(similar) or hint)
    return options


def _plain(value: Any, kind: Any) -> Any:
    """A value as a configuration file could hold it."""
    if kind == RUNS:
        names = [value] if isinstance(value, (str, os.PathLike)) else value
        try:
            return tuple(map(os.fspath, names))
        except TypeError:
            return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value


def _fits(value: Any, kind: Any) -> bool:
    if kind == RUNS:
        return isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    kinds = getattr(kind, "__args__", (kind,))
    return type(value) in kinds or (type(value) is int and float in kinds)


def _type_name(kind: Any) -> str:
    if kind == RUNS:
        return "names or folders of runs"
    names = [k.__name__ for k in getattr(kind, "__args__", (kind,)) if k is not type(None)]
    return {"str": "a string", "int": "an integer", "float": "a number", "bool": "true or false"}[names[0]]


def resolve(flags: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> tuple[TrainOptions, dict[str, str]]:
    """Merge flags, a configuration file, a recipe and the defaults, in this order of precedence.

    Returns
    -------
    The checked options, and for each field ``flag``, ``file``, ``recipe`` or ``default``.

    Raises
    ------
    InputError
        If a value is impossible, or a flag is given that the chosen architecture does not use.
    """
    config = config or {}
    given = {**config, **flags}
    name = given.get("recipe", "baseline")
    recipe = RECIPES.get(RENAMED_RECIPES.get(name, name), {})
    options = TrainOptions(**{**recipe, **given})
    origins = {
        f.name: "flag" if f.name in flags
        else "file" if f.name in config
        else "recipe" if f.name in recipe
        else "default"
        for f in dataclasses.fields(TrainOptions)
    }  # fmt: skip
    options.check()
    if options.architecture == "features" and (unused := _marked(flags, "neural_only")):
        raise InputError(
            f"{', '.join(unused)}: not used by --architecture features",
            hint="Leave it out, or choose --architecture siamese or cross-encoder.",
        )
    if options.architecture != "features" and (unused := _marked(flags, "features_only")):
        raise InputError(
            f"{', '.join(unused)}: not used by --architecture {options.architecture}",
            hint="Leave it out, or choose --recipe fast.",
        )
    if options.architecture == "reward" and (unused := _marked(flags, "pair_only")):
        raise InputError(
            f"{', '.join(unused)}: changes nothing for --architecture reward: transformers' own classifier reads each "
            "answer by itself",
            hint="Leave it out, or choose --architecture siamese or cross-encoder.",
        )
    if options.architecture != "reward" and (unused := _marked(flags, "reward_only")):
        raise InputError(
            f"{', '.join(unused)}: not used by --architecture {options.architecture}",
            hint="Leave it out, or choose --architecture reward.",
        )
    if not options.lora_rank and (unused := _marked(flags, "lora_only")):
        raise InputError(f"{', '.join(unused)}: not used without LoRA", hint="Add --lora-rank 16.")
    return options, origins


def _marked(flags: Mapping[str, Any], mark: str) -> list[str]:
    """The given flags whose option has this mark in its metadata."""
    return [flag_of(f.name) for f in dataclasses.fields(TrainOptions) if f.name in flags and f.metadata.get(mark)]


def describe_recipe(options: TrainOptions, origins: Mapping[str, str]) -> str:
    """A recipe's options as flags, without those that flags or a file override."""
    chosen = [
        f"{flag_of(name)} {value}" if not isinstance(value, bool) else flag_of(name)
        for name, value in RECIPES[options.recipe].items()
        if origins.get(name) == "recipe"
    ]
    flags = f": {' '.join(chosen)}" if chosen else ""
    return f"recipe {options.recipe} ({RECIPE_SUMMARIES[options.recipe]}){flags}"
