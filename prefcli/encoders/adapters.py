"""LoRA: small matrices trained beside an encoder's frozen weights, by the library ``peft``.

Hu et al., "LoRA: Low-rank adaptation of large language models", ICLR 2022. Adapters are put into the encoder in place.
Their names, computation and files are peft's own, so that its users can load them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcli.errors import InputError, did_you_mean, one_line

if TYPE_CHECKING:
    import torch

    from prefcli.options import TrainOptions

PREFIX = "base_model.model."
"""What peft puts before the names of an encoder's modules in its files."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAMBA, FUSED_LAYERS = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"), ("dt_proj", "out_proj", "x_proj")
"""Families whose GPU kernels read the weights of these layers themselves: adapters there would have no effect."""
MAX_NAMES = 12
"""Kinds of layers that the description of the adapters names."""


def add(encoder: torch.nn.Module, options: TrainOptions) -> str:
    """Put adapters beside an encoder's linear layers, in place, and freeze everything else.

    The encoder's weights stay what they are; their names get ``base_layer`` in them.

    Returns
    -------
    What was adapted, in words.

    Raises
    ------
    InputError
        If the targets are not in the encoder.
    """
    import peft

    names = targets(encoder, options.lora_targets)
    config = _config(peft, options, names)
    try:
        peft.inject_adapter_in_model(config, encoder)
    except ValueError as error:
        raise InputError(
            f"peft cannot adapt this encoder: {one_line(error)}",
            hint="Name other layers with --lora-targets, or train it without --lora-rank.",
        ) from error
    for parameter in encoder.parameters():
        if parameter.requires_grad:  # trained weights need float32, however narrow the frozen ones are
            parameter.data = parameter.data.float()
    kinds = sorted({_last_part(name) for name in names})
    listed = ", ".join(kinds[:MAX_NAMES]) + (", ..." if len(kinds) > MAX_NAMES else "")
    return f"LoRA of rank {options.lora_rank}, alpha {config.lora_alpha:g}, in {len(names)} layers ({listed})"


def targets(encoder: torch.nn.Module, wanted: str) -> list[str]:
    """Full names of the layers to adapt in an encoder without adapters.

    ``wanted`` are ``all`` linear layers of its blocks (needed to match full fine-tuning, as Dettmers et al., "QLoRA",
    NeurIPS 2023, found), those of ``attention`` only, or comma-separated names: ``q_proj,v_proj``.

    Raises
    ------
    InputError
        If the encoder has no such layers.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    # 8-bit and 4-bit layers derive from Linear; Conv1D is GPT-2's transposed one. Names of layers in blocks contain a
    # number; poolers and the like, whose output is not used, have none.
    linear = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and any(part.isdigit() for part in name.split("."))
    ]
    if getattr(encoder.config, "model_type", "") in MAMBA:
        linear = [name for name in linear if _last_part(name) not in FUSED_LAYERS]
    if wanted == "all":
        chosen = linear
    elif wanted == "attention":
        chosen = [name for name in linear if "att" in name.lower()]
    else:
        names = [name.strip() for name in wanted.split(",") if name.strip()]
        available = sorted({_last_part(name) for name in linear})
        if unknown := [name for name in names if name not in available]:
            raise InputError(
                f"the encoder has no linear layer {unknown[0]!r} in its blocks",
                hint=did_you_mean(unknown[0], available)
                or f"--lora-targets takes all, attention, or some of: {', '.join(available)}.",
            )
        chosen = [name for name in linear if _last_part(name) in names]
    if not chosen:
        raise InputError("the encoder has no linear layers that could be adapted", hint="Train it without --lora-rank.")
    return chosen


def _last_part(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _config(
    peft: Any, options: TrainOptions, names: Sequence[str], base: str | None = None, heads: Sequence[str] = ()
) -> Any:
    return peft.LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha if options.lora_alpha is not None else 2 * options.lora_rank,
        lora_dropout=options.lora_dropout,
        target_modules=list(names),
        base_model_name_or_path=base,
        # peft finds the head of a sequence classifier by its name, beside those that are listed.
        task_type="SEQ_CLS" if heads else "FEATURE_EXTRACTION",
        modules_to_save=list(heads) or None,
        inference_mode=base is not None,
    )


def _layers(encoder: torch.nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in encoder.named_modules() if isinstance(module, BaseTunerLayer)}


def add_to_weights(encoder: torch.nn.Module, share: float = 1.0) -> None:
    """Add ``share`` times the adapters' product to the encoder's own weights, in place; the adapters stay."""
    import torch

    with torch.no_grad():
        for layer in _layers(encoder).values():
            weight = layer.get_base_layer().weight
            weight += share * layer.get_delta_weight("default").to(weight.dtype)


def remove(encoder: torch.nn.Module) -> None:
    """Take the adapters out of an encoder, in place, and make its own weights trainable again."""
    for name, layer in _layers(encoder).items():
        parent, _, last = name.rpartition(".")
        setattr(encoder.get_submodule(parent), last, layer.get_base_layer())
    for parameter in encoder.parameters():
        parameter.requires_grad_(True)


def save(trained: Mapping[str, torch.Tensor], options: TrainOptions, base: str, folder: Path) -> None:
    """Write the adapters into a folder in peft's format: ``adapter_config.json`` and its weights.

    ``trained`` are the trained tensors of a run, by the names of its encoder's modules; ``base`` is the name or folder
    of the encoder that the adapters belong to. The head of a reward model is part of its encoder and is written too.
    """
    import peft
    from safetensors.torch import save_file

    from prefcli.storage import files

    tensors = {name: tensor for name, tensor in trained.items() if ".lora_" in name}
    layers = sorted({name.partition(".lora_")[0] for name in tensors})
    head = {} if options.architecture != "reward" else {n: t for n, t in trained.items() if n not in tensors}
    with files.atomic(folder / WEIGHTS) as temporary:
        # peft's files leave out the adapter's own name: whoever loads it chooses another.
        named = {PREFIX + name.replace(".default.", "."): tensor for name, tensor in (tensors | head).items()}
        save_file(named, temporary, {"format": "pt"})
    heads = sorted({_head_module(name) for name in head})
    config = _config(peft, options, layers, base, heads).to_dict()
    files.write_text(
        folder / CONFIG, json.dumps(config, indent=2, sort_keys=True, allow_nan=False, default=_to_json) + "\n"
    )


def _head_module(name: str) -> str:
    """The module of the head that a tensor belongs to: ``score.weight`` to ``score``, ``bert.pooler.dense.bias`` to
    ``bert.pooler``."""
    before, pooler, _ = name.partition("pooler.")
    return before + "pooler" if pooler else name.partition(".")[0]


def _to_json(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else getattr(value, "value", str(value))
