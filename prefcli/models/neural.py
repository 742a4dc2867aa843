"""What every neural architecture shares in torch: inputs on a device, forward passes, building, saving and loading.

An architecture (:mod:`.architectures`) is a torch module with ``forward(spans, **inputs) -> logits [n, 3]``;
:class:`NeuralModel` adds a tokenizer, a device and a budget. Batches are made by :mod:`.batches`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefcli import encoders
from prefcli.compute import devices
from prefcli.compute.devices import Placement
from prefcli.encoders import adapters
from prefcli.errors import InputError, ModelError, PrefcliError, is_out_of_memory, one_line
from prefcli.models import reward, trial, weights
from prefcli.models.architectures import ARCHITECTURES, is_causal
from prefcli.models.batches import CPU_TOKENS, GPU_TOKENS, AnswerScores, BatchedModel, Pass
from prefcli.models.conversation import ConversationTemplate
from prefcli.models.packing import MIN_TEXT_TOKENS, ConversationPacking, Packing, Template
from prefcli.models.reward import RewardSetup
from prefcli.models.tokens import TokenisedBattles
from prefcli.models.trial import EncoderTraits
from prefcli.options import TrainOptions
from prefcli.storage import files, runs

WEIGHTS = "model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"


class NeuralModel(BatchedModel):
    """A trained or trainable neural model: battles in, logits out.

    Parameters
    ----------
    module:
        The architecture's module, on the placement's device.
    tokenizer:
        The encoder's.
    packing:
        How a battle's fields become sequences.
    placement:
        Device and precision.
    traits:
        What the encoder reads and gives.
    attention:
        How the encoder is computed, in words.
    template:
        What stands between the fields: ``tokens``, ``words`` or ``chat``.
    """

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        packing: Packing,
        placement: Placement,
        traits: EncoderTraits,
        attention: str = "",
        template: str = "tokens",
    ) -> None:
        max_tokens = CPU_TOKENS if placement.device.type == "cpu" else GPU_TOKENS
        super().__init__(module.input_format, tokenizer, packing, int(tokenizer.pad_token_id or 0), max_tokens)
        self.attention = attention
        self.template = template
        self.traits = traits
        self.vocabulary_size = trial.vocabulary_size(module.encoder)
        self.module = module
        self.placement = placement

    def inputs(self, battles: TokenisedBattles, rows: NDArray[np.integer], swapped: bool = False) -> dict[str, Tensor]:
        """The module's input for some battles: tensors on the host."""
        arrays = self.arrays(battles, rows, swapped)
        trial.check_ids(self.vocabulary_size, arrays["input_ids"], self.tokenizer)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.placement.device.type == "cuda":  # pinned memory is copied to the GPU while it computes
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return tensors

    def forward(self, module: torch.nn.Module, prepared: Pass) -> Tensor:
        """:meth:`compute` with gradients; ``module`` is this model's, or what wraps it (DistributedDataParallel)."""
        device = self.placement.device
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in prepared.inputs.items()}
        both = {"both_orders": True} if len(prepared.orders) == 2 else {}
        logits: Tensor = module(**inputs, **both)
        return logits

    def compute(self, prepared: Pass) -> NDArray[np.float64]:
        # In float64 only on the host: Apple's GPUs (mps) do not have it.
        logits: NDArray[np.float64] = self.forward(self.module, prepared).cpu().double().numpy()
        return logits

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Without gradients and dropout, in the placement's precision."""
        self.module.eval()
        place = self.placement
        with torch.inference_mode(), torch.autocast(place.device.type, place.dtype, enabled=place.precision != "fp32"):
            yield

    def save_tokenizer(self, folder: Path) -> None:
        """Save the tokenizer, its ``tokenizer_config.json`` last: where that file exists, the tokenizer is complete."""
        for loading_argument in ("is_local", "local_files_only"):  # not meant for the next one who loads it
            self.tokenizer.init_kwargs.pop(loading_argument, None)
        with files.temporary_directory(folder) as temporary:
            self.tokenizer.save_pretrained(temporary)
            if self.packing.conversation is not None:
                _name_tokenizer_class(temporary / TOKENIZER_CONFIG)
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == TOKENIZER_CONFIG):
                path.replace(folder / path.name)

    def encoder_config(self) -> dict[str, Any]:
        """The encoder's configuration, without prefcli's keys if it was loaded from a run."""
        config = encoders.config_dict(self.module.encoder)
        return {name: value for name, value in config.items() if name not in runs.OWN_KEYS}


def _name_tokenizer_class(path: Path) -> None:
    """Call transformers' general tokenizer by the name that its releases before 5 know, too: other tools use them."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class RewardModel(AnswerScores, NeuralModel):
    """A neural model of the architecture ``reward``."""

    @property
    def tie_log_nu(self) -> float | None:
        """The logarithm of Davidson's ``nu``; None if it depends on the prompt."""
        tie = self.module.tie
        return None if tie.weight is not None else float(tie.bias.detach())


def build(
    options: TrainOptions,
    encoder: torch.nn.Module,
    tokenizer: Any,
    max_length: int,
    placement: Placement,
    *,
    stays_on_host: bool = False,
    traits: EncoderTraits | None = None,
    setup: RewardSetup | None = None,
) -> NeuralModel:
    """A model on an encoder: the architecture's head and adapters, initialised from torch's random generator.

    Parameters
    ----------
    options, encoder, tokenizer, placement:
        The encoder is changed in place: adapted, accelerated.
    max_length:
        Tokens in one sequence, or fewer if the encoder does not read so many.
    stays_on_host:
        Leave the weights on the host, because sharding moves them to the device.
    traits:
        What is known of the encoder; None to try it out.
    setup:
        What a reward model needs beside the options; None for other architectures.

    Raises
    ------
    InputError
        If the options do not fit the encoder.
    """
    if getattr(encoder.config, "is_encoder_decoder", False):
        raise InputError(
            f"{options.encoder} is an encoder-decoder model, which no architecture here reads",
            hint="Choose an encoder (BERT, DeBERTa) or a decoder (Gemma, Llama, Qwen).",
        )
    if setup is not None:
        _set_padding(encoder, tokenizer, options.encoder_name)
    causal = is_causal(encoder)
    pooling = options.pooling if options.pooling != "auto" else "last" if causal else "mean"
    template = options.template if options.template != "auto" else "words" if causal else "tokens"
    attention = _adapt(encoder, options)
    if not stays_on_host:
        # Before the trial, which takes a minute on a CPU. transformers' own method refuses quantized weights, even if
        # they are on the device already.
        torch.nn.Module.to(encoder, placement.device)
    token_type = None if setup is not None else Template.from_tokenizer(tokenizer, template).last_type
    traits = traits or _try_out(encoder, tokenizer, max_length, token_type)
    max_length = traits.max_length
    if not traits.ignores_padding:
        attention += "; without padding, because it changes this encoder's results (slower)"
    if options.shard and not traits.ignores_padding:
        raise InputError(
            f"--shard cannot train {options.encoder}: its results depend on padding, so it computes sequences of one "
            "length at a time, and the processes would make different numbers of passes",
            hint="Leave --shard out, or choose another encoder.",
        )
    packing: Packing
    if setup is not None:
        packing = ConversationPacking.of(setup.conversation, tokenizer, max_length, options.truncation)
    else:
        packing = Packing.from_tokenizer(tokenizer, max_length, options.truncation, template)
        if pooling == "cls":
            _check_first_token(packing.template, tokenizer, causal=causal)
    overhead = packing.overhead(3 if options.architecture == "cross-encoder" else 2)
    if max_length < overhead + MIN_TEXT_TOKENS:
        raise InputError(
            f"--max-length {max_length} leaves no room for prompt and answers: the template alone takes "
            f"{overhead} tokens",
            hint=f"Use --max-length {overhead + MIN_TEXT_TOKENS} or more.",
        )
    module: torch.nn.Module
    if setup is not None:
        tie = reward.Tie(setup.tie_share, traits.width if options.tie == "prompt" else None)
        module = reward.Reward(encoder, tie, pads=traits.ignores_padding)
    else:
        module = ARCHITECTURES[options.architecture](
            encoder, options.combine, pooling, options.head, width=traits.width, pads=traits.ignores_padding
        )
    if not stays_on_host:
        module.to(placement.device)
    kind = RewardModel if setup is not None else NeuralModel
    return kind(module, tokenizer, packing, placement, traits, attention, template)


def _check_first_token(template: Template, tokenizer: Any, *, causal: bool) -> None:
    """Refuse ``--pooling cls`` where the first token stands for no text."""
    first = template.pair.prefixes[0][:1]
    if causal:
        reason = "its first token has read no other"
    elif not first or first[0] not in tokenizer.all_special_ids:
        reason = "its tokenizer begins no text with a special token"
    else:
        return
    raise InputError(f"--pooling cls does not suit this encoder: {reason}", hint="Use --pooling last, or mean.")


def _set_padding(encoder: Any, tokenizer: Any, name: str) -> None:
    try:
        reward.set_padding(encoder, tokenizer)
    except ValueError as error:
        raise InputError(f"{name}: {error}", hint="Set its pad_token, or choose another encoder.") from None


def _adapt(encoder: torch.nn.Module, options: TrainOptions) -> str:
    """Add adapters to an encoder or accelerate it, as the options say; returns what was done, in words."""
    adapted = f"{adapters.add(encoder, options)}; " if options.lora_rank else ""
    if options.lora_rank and options.architecture == "reward":
        reward.train_head(encoder)
    if not options.fast_attention:
        return f"{adapted}transformers' own attention, as asked"
    if options.lora_rank and encoder.config.model_type == "deberta-v2":  # type: ignore[union-attr]
        return f"{adapted}transformers' own attention, in which adapters take part"
    return adapted + encoders.accelerate(encoder.base_model)  # type: ignore[arg-type]


def _try_out(classifier: Any, tokenizer: Any, max_length: int, token_type: int | None) -> EncoderTraits:
    """Refuse an encoder that does not fit its tokenizer or cannot be used, and find out what it reads.

    ``classifier`` is the encoder, or a sequence classifier around it.
    """
    encoder = classifier.base_model
    trial.check_vocabulary(encoder, tokenizer)
    limit = encoders.max_input_length(encoder)
    max_length = max_length if limit is None else min(max_length, limit)
    pad_token_id = int(tokenizer.pad_token_id or 0)
    traits = trial.try_out(encoder, max_length, pad_token_id, token_type, find_longest=True)
    if classifier is not encoder and traits.ignores_padding:
        ignores_padding = trial.reward_ignores_padding(classifier, traits.max_length, pad_token_id)
        return replace(traits, ignores_padding=ignores_padding)
    return traits


def recorded_traits(config: Mapping[str, Any]) -> EncoderTraits | None:
    """What a run's configuration says of its encoder; None in older runs."""
    resolved = config["resolved"]
    if "ignores_padding" not in resolved:
        return None
    return EncoderTraits(int(resolved["max_length"]), int(resolved["width"]), bool(resolved["ignores_padding"]))


def recorded_setup(config: Mapping[str, Any]) -> RewardSetup:
    """What the configuration of a reward run says of the conversations that it reads."""
    return RewardSetup(ConversationTemplate.from_json(config["resolved"]["conversation"]))


def with_resolved_auto(options: TrainOptions, config: Mapping[str, Any]) -> TrainOptions:
    """A run's options with what ``auto`` became when it was made: another release might choose otherwise."""
    resolved = {name: config["resolved"][name] for name in ("pooling", "template") if name in config["resolved"]}
    return replace(options, **resolved)


def frozen_weights(options: TrainOptions, placement: Placement) -> encoders.FrozenWeights | None:
    """How the encoder's weights are stored if only adapters are trained: 2 bytes each or less on a GPU."""
    if not options.lora_rank:
        return None
    dtype = placement.dtype if placement.device.type == "cuda" else torch.float32
    return encoders.FrozenWeights(dtype, options.quantize, placement.device)


def load(folder: Path, placement: Placement, *, fast_attention: bool = True, encoder: str | None = None) -> NeuralModel:
    """A trained model from its run's folder: neither the hub nor the original encoder is needed, except by adapters.

    Parameters
    ----------
    folder, placement:
        The run's folder; device and precision.
    fast_attention:
        Whether the encoder is computed by :func:`prefcli.encoders.accelerate`, however it was trained.
    encoder:
        Name or folder of the encoder that a run's adapters belong to, if it has moved.

    Raises
    ------
    ModelError
        If the folder is incomplete or does not fit together.
    """
    from safetensors import SafetensorError

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        options = replace(with_resolved_auto(TrainOptions(**config["options"]), config), fast_attention=fast_attention)
        if placement.device.type != "cuda":  # quantization saves memory in training; full weights serve as well
            options = replace(options, quantize="none")
        is_reward = options.architecture == "reward"
        tokenizer = encoders.load_tokenizer(folder, keep_chat_template=is_reward)
        if options.lora_rank:
            placement = devices.for_language_models(placement)
            # The user did not name the encoder that the run's file names: the hub is not asked for it.
            located = resolve_base(config["base"], encoder, folder, network=encoder is not None)
            frozen = frozen_weights(options, placement)
            backbone = encoders.make_encoder(located, 0, seed=options.seed, frozen=frozen, reward=is_reward)
        else:
            backbone = encoders.from_config(runs.encoder_config(config), reward=is_reward)
        max_length = int(config["resolved"]["max_length"])
        # Of an older run, trained whatever the encoder does with padding, only that is tried out.
        traits = recorded_traits(config) or trial.try_out(backbone, max_length, int(tokenizer.pad_token_id or 0))
        setup = recorded_setup(config) if is_reward else None
        model = build(options, backbone, tokenizer, max_length, placement, traits=traits, setup=setup)
        weights.load_state_dict(model.module, weights.load(folder / WEIGHTS))
        model.module.eval()
        return model
    except (MemoryError, PrefcliError):
        raise
    except Exception as error:  # untrusted folder: any library error
        if is_out_of_memory(error):
            raise MemoryError(one_line(error)) from error
        what, hint = f"the run cannot be loaded: {one_line(error)}", "Train it again."
        if isinstance(error, FileNotFoundError):
            what = f"the run has no {Path(error.filename or WEIGHTS).name}"
            hint = "Its training did not finish: continue it with prefcli train --resume."
        elif isinstance(error, SafetensorError):
            what = f"{WEIGHTS} is damaged, or not safetensors at all, and was not run: {error}"
        raise ModelError(what, where=str(folder), hint=hint) from None


def save_adapters(folder: Path, options: TrainOptions) -> None:
    """Write a run's adapters into its folder in peft's format, beside the run's own weights."""
    tensors = weights.load(folder / WEIGHTS)
    trained = {
        name.removeprefix(weights.ENCODER_PREFIX): tensor
        for name, tensor in tensors.items()
        if not name.startswith(weights.TIE_PREFIX)
    }
    adapters.save(trained, options, runs.read_config(folder)["base"]["encoder"], folder)


def describe_base(name: str, located: encoders.ResolvedModel) -> dict[str, str]:
    """What a run of adapters records of the encoder that they belong to."""
    assert located.folder is not None
    path = Path(name).expanduser()
    return {
        "encoder": str(path.absolute()) if path.is_dir() else name,
        "identity": encoders.fingerprint(located.folder),
    }


def resolve_base(base: Mapping[str, str], moved_to: str | None, run: Path, *, network: bool) -> encoders.ResolvedModel:
    """The encoder that the adapters of the folder ``run`` belong to.

    Parameters
    ----------
    base:
        From :func:`describe_base`.
    moved_to:
        Its folder or name now; None if it has not moved.
    network:
        Whether the hub may be asked for it.

    Raises
    ------
    ModelError
        If it is not there, or is another one.
    """
    if not isinstance(base, Mapping) or not all(isinstance(base.get(key), str) for key in ("encoder", "identity")):
        raise ModelError("the run's config.json does not say which encoder its adapters belong to", where=str(run))
    name = moved_to or base["encoder"]
    try:
        if moved_to or Path(name).is_absolute():
            located = encoders.locate(name, network=network)
        else:  # a name of the hub, even if the current folder holds a folder of that name
            located = encoders.from_hub(name, network=network)
    except PrefcliError as error:
        raise ModelError(
            f"the run holds adapters for the encoder {name}, which cannot be had: {error.what}",
            where=str(run),
            hint="Put it back to continue."
            if network and moved_to is None
            else "Say where it is now: --encoder DIR, or --encoder owner/name to fetch it from the hub.",
        ) from None
    if located.folder is None or encoders.fingerprint(located.folder) != base["identity"]:
        raise ModelError(
            f"the run's adapters belong to another encoder than {name}: {base['encoder']} as it was in training",
            where=str(run),
            hint="Give the folder it was trained on with --encoder DIR.",
        )
    return located
