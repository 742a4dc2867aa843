"""An encoder's layers, found in its structure: learning rates by depth, new top layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from prefcli.encoders.loading import config_dict, from_config
from prefcli.errors import InputError


def find(encoder: nn.Module, flag: str) -> list[list[nn.Module]]:
    """The modules of each layer, the lowest layer first; XLM has several lists of modules, others have one.

    Parameters
    ----------
    encoder:
        An encoder, or a sequence classifier.
    flag:
        The option that asks for them, for the message.

    Raises
    ------
    InputError
        If there are not as many modules in a row as the configuration has layers: ALBERT's layers share their weights.
    """
    config: Any = encoder.config
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists: dict[str, nn.ModuleList] = {}
    for name, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists[name] = module
    stacks = {name: stack for name, stack in lists.items() if len(stack) == count}
    if len({name.rpartition(".")[0] for name in stacks}) != 1:
        raise InputError(
            f"{flag}: the layers of this encoder ({config.model_type}) cannot be distinguished",
            hint="Leave it out, or choose another encoder.",
        )
    return [list(parts) for parts in zip(*stacks.values(), strict=True)]


def depths(encoder: nn.Module) -> dict[nn.Parameter, int]:
    """How far below the head each parameter is: 1 in the top layer, the embeddings one below the lowest layer.

    Embeddings are all tables, and what comes before the first layer. What comes after the last layer is 0, as the head.

    Raises
    ------
    InputError
        If the layers cannot be distinguished.
    """
    layers = find(encoder, "--layer-decay")
    depth = {
        parameter: len(layers) - number
        for number, parts in enumerate(layers)
        for part in parts
        for parameter in part.parameters()
    }
    tables = {
        parameter
        for module in encoder.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    in_layers, before = frozenset(depth), True
    for parameter in encoder.parameters():
        before = before and parameter not in in_layers
        if parameter not in in_layers:
            depth[parameter] = len(layers) + 1 if before or parameter in tables else 0
    return depth


def reinitialise(encoder: nn.Module, count: int, *, seed: int, reward: bool) -> None:
    """Draw the weights of the top ``count`` layers again, as the encoder's family initialises them, in place.

    Zhang et al., "Revisiting few-sample BERT fine-tuning", ICLR 2021.

    Raises
    ------
    InputError
        If the encoder has fewer layers, or they cannot be distinguished.
    """
    layers = find(encoder, "--reinit-layers")
    if count > len(layers):
        raise InputError(
            f"--reinit-layers is {count}, and the encoder has {len(layers)} layers",
            hint=f"Use {len(layers) - 1} or fewer: without pretrained layers only the embeddings are left.",
        )
    # A whole new encoder, because some families scale a layer's weights by how many layers there are.
    new = find(from_config(config_dict(encoder), seed=seed, reward=reward), "--reinit-layers")
    for parts, replacements in zip(layers[-count:], new[-count:], strict=True):
        for part, replacement in zip(parts, replacements, strict=True):
            part.load_state_dict(replacement.state_dict())
