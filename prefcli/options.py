"""Every choice of a training run in one place: names, defaults, limits, and where each value came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from prefcli.errors import InputError, one_line

ARCHITECTURES = ("siamese", "cross-encoder", "features")
COMBINATIONS = ("concat", "interaction")
TRUNCATIONS = ("head", "head-tail")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
LOSS_INPUTS = ("logits", "softmax", "log-softmax")
ACTIVATIONS = ("softmax", "none")
POOLINGS = ("auto", "mean", "last")
TEMPLATES = ("auto", "tokens", "words")
QUANTIZATIONS = ("none", "8bit", "4bit")
TRACKERS = ("tensorboard", "wandb")

RECIPE_WORDS = {
    "seed": "the classical method, siamese on NLTK-normalised text",
    "fast": "boosted text statistics, minutes on a laptop",
    "strong": "siamese with interaction on longer raw text in both orders, for a GPU",
}
RECIPES: dict[str, dict[str, Any]] = {
    "seed": {},
    "fast": {"architecture": "features"},
    "strong": {
        "text": "raw",
        "combine": "interaction",
        "max_length": 1024,
        "swap": True,
        "warmup": 0.1,
    },
}
"""What each recipe sets in place of the defaults. Flags and a configuration file win over it."""

PRETRAINED_LR = 2e-5
SCRATCH_LR = 1e-3
LORA_LR = 2e-4


def option(default: Any, help_text: str, **limits: Any) -> Any:
    """A field of :class:`TrainOptions` with its one line of help, its limits and what it applies to.

    Limits are ``at_least``, ``above``, ``at_most``, ``choices`` and ``each_of`` (of a comma-separated list). With
    ``neural_only`` the flag is refused for ``--architecture features``, with ``lora_only`` without ``--lora-rank``.
    """
    return field(default=default, metadata={"help": help_text, **limits})


@dataclass(frozen=True)
class TrainOptions:
    """How to train. The defaults are the seed document's; every field is also a flag and a key of ``--config``."""

    recipe: str = option(
        "seed",
        "Defaults for all other options: "
        + "; ".join(f"{name}: {about}" for name, about in RECIPE_WORDS.items())
        + ".",
        choices=tuple(RECIPE_WORDS),
    )
    text: str | None = option(None, "Text normalisation: nltk, raw or light; by default nltk, for features raw.")
    encoder: str = option(
        "microsoft/deberta-v3-small", "A folder, a model of the hub (owner/name), or tiny.", neural_only=True
    )
    architecture: str = option(
        "siamese",
        "How the two answers meet: each read with the prompt by one encoder, all read together, or no encoder at all: "
        "boosted text statistics.",
        choices=ARCHITECTURES,
    )
    combine: str = option(
        "concat",
        "How the vectors of A and B are joined; interaction adds a - b and a * b.",
        choices=COMBINATIONS,
        neural_only=True,
    )
    pooling: str = option(
        "auto",
        "Which vector stands for a text: its tokens' mean, or the last one's; auto: the last of a language model.",
        choices=POOLINGS,
        neural_only=True,
    )
    template: str = option(
        "auto",
        "What stands between prompt and answers: the tokenizer's special tokens, or words; auto: words for a language "
        "model.",
        choices=TEMPLATES,
        neural_only=True,
    )
    max_length: int = option(512, "Tokens in one sequence, special tokens included.", at_least=8, neural_only=True)
    truncation: str = option(
        "head",
        "What a field that is too long keeps: its head; or head and tail, and the last turns first, with a mark.",
        choices=TRUNCATIONS,
        neural_only=True,
    )
    epochs: int = option(1, "Passes over the training battles.", at_least=1, neural_only=True)
    batch_size: int = option(16, "Battles in one optimizer step.", at_least=1, neural_only=True)
    micro_batch: int = option(
        0, "Battles in one forward pass at most; 0: as many as fit a token budget.", at_least=0, neural_only=True
    )
    lr: float | None = option(
        None,
        "Peak learning rate; by default 2e-5, for tiny 1e-3, for LoRA 2e-4.",
        above=0.0,
        at_most=1.0,
        neural_only=True,
    )
    warmup: float = option(
        0.0, "Share of the steps in which the rate rises linearly from 0.", at_least=0.0, at_most=1.0, neural_only=True
    )
    weight_decay: float = option(0.01, "AdamW's, not applied to biases and norms.", at_least=0.0, neural_only=True)
    clip: float = option(1.0, "Largest norm of the gradient; 0 does not clip.", at_least=0.0, neural_only=True)
    label_smoothing: float = option(
        0.0, "Share of the label spread over all outcomes.", at_least=0.0, at_most=0.99, neural_only=True
    )
    loss_input: str = option(
        "logits", "What the loss is given; all but logits is an ablation.", choices=LOSS_INPUTS, neural_only=True
    )
    swap: bool = option(
        False,
        "Show each battle in both orders within the same step; only cross-encoder pays for it in time.",
        neural_only=True,
    )
    soft_labels: str | None = option(
        None, "A file of predictions, joined by id, to train on as soft labels; battles without outcome count too."
    )
    soft_weight: float = option(1.0, "Weight of a battle's soft label against its outcome.", at_least=0.0, at_most=1.0)
    soft_temperature: float = option(
        1.0, "Soft labels are taken to the power 1/T: above 1 softens, below 1 sharpens.", above=0.0, at_most=100.0
    )
    lora_rank: int = option(
        0,
        "Learn adapters of this rank beside the encoder's frozen weights; 0 trains all weights.",
        at_least=0,
        neural_only=True,
    )
    lora_alpha: float | None = option(
        None,
        "Adapters count alpha / rank times; by default twice the rank.",
        above=0.0,
        at_most=1e6,
        neural_only=True,
        lora_only=True,
    )
    lora_dropout: float = option(
        0.0, "Share of the adapters' inputs left out.", at_least=0.0, at_most=0.9, neural_only=True, lora_only=True
    )
    lora_targets: str = option(
        "all", "Layers with adapters: all, attention, or names as in q_proj,v_proj.", neural_only=True, lora_only=True
    )
    quantize: str = option(
        "none",
        "Keep the frozen weights in 8 or 4 bits; needs --lora-rank and a CUDA GPU.",
        choices=QUANTIZATIONS,
        neural_only=True,
    )
    shard: bool = option(
        False,
        "Under torchrun: spread weights, gradients and optimizer over the processes (FSDP); costs exchanges.",
        neural_only=True,
    )
    fast_attention: bool = option(
        True,
        "Compute DeBERTa (and on a CPU any encoder's linear layers) faster, with the same results.",
        neural_only=True,
    )
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: less memory, more time.", neural_only=True
    )
    precision: str = option(
        "auto", "auto picks by what the device is good at, and says why.", choices=PRECISIONS, neural_only=True
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.", neural_only=True)
    validation: float = option(0.1, "Share held out, by prompt; 0 trains on every battle.", at_least=0.0, at_most=0.9)
    validation_file: str | None = option(None, "Validate on the battles of this file instead of holding some out.")
    folds: int = option(
        0, "Train this many folds and predict each battle by the model that did not see it.", at_least=0
    )
    max_steps: int = option(0, "Stop after N optimizer steps; 0: no limit.", at_least=0, neural_only=True)
    max_time: float = option(0.0, "Stop after this many minutes; 0: no limit.", at_least=0.0, neural_only=True)
    log_every: int = option(10, "Write metrics every N steps.", at_least=1, neural_only=True)
    eval_every: int = option(0, "Validate every N optimizer steps; 0: after each epoch.", at_least=0, neural_only=True)
    keep: str = option(
        "best", "Which weights stay: the best by validation, or the last.", choices=("best", "last"), neural_only=True
    )
    patience: int = option(0, "Stop after N validations without improvement; 0: never.", at_least=0, neural_only=True)
    checkpoint_every: int = option(0, "Checkpoint every N steps; 0: every 5 minutes.", at_least=0, neural_only=True)
    seed: int = option(0, "Of everything that is random.", at_least=0, at_most=2**63 - 1)
    limit: int | None = option(None, "Train on N battles only, drawn at random by prompt.", at_least=1)
    tracker: str | None = option(
        None,
        "Also send metrics and options there; several with commas, or the flag again. wandb uses the network, "
        "but for WANDB_MODE=offline.",
        each_of=TRACKERS,
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers that were asked for, each once."""
        return () if self.tracker is None else tuple(dict.fromkeys(self.tracker.replace(" ", "").split(",")))

    @property
    def normalisation(self) -> str:
        """The text normalisation: the given one, or what suits the architecture."""
        return self.text or ("raw" if self.architecture == "features" else "nltk")

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: the given one, or what suits the encoder."""
        if self.lr is not None:
            return self.lr
        if self.lora_rank:
            return LORA_LR
        return SCRATCH_LR if self.encoder == "tiny" else PRETRAINED_LR

    def check(self) -> None:
        """Refuse impossible values, all of them at once.

        Raises
        ------
        InputError
            Naming every option that is wrong and what it may be.
        """
        problems = [problem for f in dataclasses.fields(self) if (problem := _problem(f, getattr(self, f.name)))]
        if self.folds == 1:
            problems.append("--folds 1 holds nothing out: use 2 or more")
        if self.folds and self.validation_file:
            problems.append("--folds and --validation-file exclude each other")
        if self.lora_rank and self.encoder == "tiny":
            problems.append("--lora-rank: the encoder tiny is random, there is nothing to adapt")
        if not self.lora_targets.strip(" ,"):
            problems.append("--lora-targets is empty: all, attention, or names of layers")
        if self.quantize != "none" and not self.lora_rank:
            problems.append(
                "--quantize: weights of few bits cannot be trained, only adapters beside them: --lora-rank 16"
            )
        if self.quantize != "none" and self.shard:
            problems.append("--quantize and --shard exclude each other: weights of few bits are not spread")
        if problems:
            raise InputError("; ".join(problems), hint="See prefcli train --help.")


def _problem(f: dataclasses.Field[Any], value: Any) -> str:
    flag, limits = flag_of(f.name), f.metadata
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
    """Options from a TOML file, or from a run's ``config.json``, so that a run's own config reproduces it.

    Keys are the names of :class:`TrainOptions`, with ``-`` or ``_``. What a run's config holds besides is skipped.

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

    try:
        text = path.read_text(encoding="utf-8")
        of_a_run = path.suffix == ".json"
        given: dict[str, Any] = json.loads(text)["options"] if of_a_run else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"cannot read the configuration: {error.strerror}", where=str(path)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"not a configuration: {one_line(error)}", where=str(path)) from None
    types = get_type_hints(TrainOptions)
    options: dict[str, Any] = {}
    problems = []
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in types:
            problems.append(f"unknown option {key!r}")
        elif not _fits(value, types[name]):
            problems.append(f"{key} is {value!r}, expected {_type_name(types[name])}")
        else:
            options[name] = value
    if problems:
        raise InputError(
            "; ".join(problems),
            where=str(path),
            hint="Keys are the flags of prefcli train without the dashes.",
        )
    return options


def _fits(value: Any, kind: Any) -> bool:
    kinds = set(getattr(kind, "__args__", (kind,)))
    if type(value) is int and float in kinds:
        return True
    return type(value) in kinds


def _type_name(kind: Any) -> str:
    names = [k.__name__ for k in getattr(kind, "__args__", (kind,)) if k is not type(None)]
    return {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}[names[0]]


def resolve(flags: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> tuple[TrainOptions, dict[str, str]]:
    """Options from flags over a configuration file over a recipe over defaults, and where each came from.

    Returns
    -------
    The checked options, and for each field ``flag``, ``file``, ``recipe`` or ``default``.

    Raises
    ------
    InputError
        If an option is impossible, or means nothing to the architecture that a flag or file asks for.
    """
    config = config or {}
    given = {**config, **flags}
    recipe = RECIPES.get(given.get("recipe", "seed"), {})
    options = TrainOptions(**{**recipe, **given})
    origins = {
        f.name: "flag" if f.name in flags
        else "file" if f.name in config
        else "recipe" if f.name in recipe
        else "default"
        for f in dataclasses.fields(TrainOptions)
    }  # fmt: skip
    options.check()
    if options.architecture == "features" and (idle := _given(flags, "neural_only")):
        raise InputError(
            f"{', '.join(idle)}: no meaning for --architecture features",
            hint="Leave it out, or choose --architecture siamese or cross-encoder.",
        )
    if not options.lora_rank and (idle := _given(flags, "lora_only")):
        raise InputError(f"{', '.join(idle)}: no meaning without adapters", hint="Add --lora-rank 16.")
    return options, origins


def _given(flags: Mapping[str, Any], mark: str) -> list[str]:
    """The given flags whose option has this mark in its metadata."""
    return [flag_of(f.name) for f in dataclasses.fields(TrainOptions) if f.name in flags and f.metadata.get(mark)]


def describe_recipe(options: TrainOptions, origins: Mapping[str, str]) -> str:
    """What a recipe stands for, option by option, those left out that flags or a file set otherwise."""
    chosen = [
        f"{flag_of(name)} {value}" if not isinstance(value, bool) else flag_of(name)
        for name, value in RECIPES[options.recipe].items()
        if origins.get(name) == "recipe"
    ]
    return f"recipe {options.recipe} ({RECIPE_WORDS[options.recipe]}): {' '.join(chosen)}"
