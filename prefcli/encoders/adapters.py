"""LoRA: small matrices that are learnt beside an encoder's frozen weights, by the library ``peft``.

Hu et al., "LoRA: Low-rank adaptation of large language models", ICLR 2022. Adapters are put into the encoder in place;
what they are called, computed and saved as is peft's own, so that its users can load them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcli.errors import InputError, PrefcliError

if TYPE_CHECKING:
    import torch

    from prefcli.options import TrainOptions

PREFIX = "base_model.model."
"""What peft puts before the names of an encoder's modules."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOLD = 12
"""Names of layers that are told."""


def needed() -> Any:
    """The library, or what to do without it.

    Raises
    ------
    PrefcliError
        If it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise PrefcliError("adapters need peft", hint='Install it: pip install "prefcli[llm]"') from None
    return peft


def add(encoder: torch.nn.Module, options: TrainOptions) -> str:
    """Put adapters beside an encoder's linear layers, in place, and freeze everything else.

    Parameters
    ----------
    encoder:
        Its weights stay what they are; their names get ``base_layer`` in them.
    options:
        Rank, alpha, dropout and targets.

    Returns
    -------
    What was adapted, in words.

    Raises
    ------
    InputError
        If the targets are not in the encoder.
    """
    peft = needed()
    names = targets(encoder, options.lora_targets)
    config = _config(peft, options, names)
    peft.inject_adapter_in_model(config, encoder)
    for parameter in encoder.parameters():
        if parameter.requires_grad:  # what is learnt needs float32, however narrow the weights beside it are
            parameter.data = parameter.data.float()
    kinds = sorted({name.rsplit(".", 1)[-1] for name in names})
    told = ", ".join(kinds[:TOLD]) + (", ..." if len(kinds) > TOLD else "")
    return f"LoRA of rank {options.lora_rank}, alpha {config.lora_alpha:g}, in {len(names)} layers ({told})"


def targets(encoder: torch.nn.Module, wanted: str) -> list[str]:
    """Full names of the layers to adapt.

    Parameters
    ----------
    encoder:
        Before anything is put into it.
    wanted:
        ``all`` linear layers of the encoder's blocks (Dettmers et al., "QLoRA", NeurIPS 2023, found that all are needed
        to match full fine-tuning), those of ``attention`` only, or names with commas between them: ``q_proj,v_proj``.
    """
    linear = {name: part for name, part in encoder.named_modules() if _is_linear(part) and _in_a_block(name)}
    if wanted == "all":
        found = list(linear)
    elif wanted == "attention":
        found = [name for name in linear if "att" in name.lower()]
    else:
        asked = [name.strip() for name in wanted.split(",") if name.strip()]
        known = sorted({name.rsplit(".", 1)[-1] for name in linear})
        if unknown := [name for name in asked if name not in known]:
            raise InputError(
                f"the encoder has no linear layer {unknown[0]!r} in its blocks",
                hint=f"--lora-targets takes all, attention, or some of: {', '.join(known)}.",
            )
        found = [name for name in linear if name.rsplit(".", 1)[-1] in asked]
    if not found:
        raise InputError("the encoder has no linear layers that could be adapted", hint="Train it without --lora-rank.")
    return found


def _is_linear(part: Any) -> bool:
    """Also those of 8 and 4 bits, which derive from it, and GPT-2's transposed ones."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(part, (torch.nn.Linear, Conv1D))


def _in_a_block(name: str) -> bool:
    """Layers of blocks have a number in their name; poolers and the like have none, and are not used."""
    return any(part.isdigit() for part in name.split("."))


def _config(peft: Any, options: TrainOptions, names: Sequence[str], base: str | None = None) -> Any:
    return peft.LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha if options.lora_alpha is not None else 2 * options.lora_rank,
        lora_dropout=options.lora_dropout,
        target_modules=list(names),
        base_model_name_or_path=base,
        task_type="FEATURE_EXTRACTION",
        inference_mode=base is not None,
    )


def _layers(encoder: torch.nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: part for name, part in encoder.named_modules() if isinstance(part, BaseTunerLayer)}


def add_to_weights(encoder: torch.nn.Module, share: float = 1.0) -> None:
    """Add a share of what the adapters do to the encoder's own weights, in place; the adapters stay as they are."""
    import torch

    with torch.no_grad():
        for layer in _layers(encoder).values():
            weight = layer.get_base_layer().weight
            weight += share * layer.get_delta_weight("default").to(weight.dtype)


def remove(encoder: torch.nn.Module) -> None:
    """Take the adapters out of an encoder, in place, and let its own weights be learnt again."""
    for name, layer in _layers(encoder).items():
        parent, _, last = name.rpartition(".")
        setattr(encoder.get_submodule(parent), last, layer.get_base_layer())
    for parameter in encoder.parameters():
        parameter.requires_grad_(True)


def save(learnt: Mapping[str, torch.Tensor], options: TrainOptions, base: str, folder: Path) -> None:
    """Leave the adapters in a folder as peft's users expect them: ``adapter_config.json`` and its weights.

    Parameters
    ----------
    learnt:
        What a run learnt, by the names that its encoder's modules have.
    options:
        As for :func:`add`.
    base:
        Name or folder of the encoder that they were put into.
    folder:
        Gets the two files.
    """
    from safetensors.torch import save_file

    from prefcli.storage import files

    mine = {name: tensor for name, tensor in learnt.items() if ".lora_" in name}
    names = sorted({name.partition(".lora_")[0] for name in mine})
    with files.atomic(folder / WEIGHTS) as temporary:
        # peft leaves the adapter's own name out: whoever loads it chooses another.
        save_file({PREFIX + name.replace(".default.", "."): tensor for name, tensor in mine.items()}, temporary)
    config = _config(needed(), options, names, base).to_dict()
    files.write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else getattr(value, "value", str(value))
