"""Loading models from untrusted files: nothing in them is run, fetched or imported.

Code in a model's folder is never imported, weights are safetensors or tensors that PyTorch's restricted unpickler
accepts, files that a model names lie in its own folder, and settings that would make transformers fetch or import
something are refused or ignored. A library's failure becomes one :class:`~prefcli.errors.ModelError`.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefcli.errors import ModelError, PrefcliError, is_out_of_memory, one_line
from prefcli.storage import hub

TOKENIZER_CONFIG = "tokenizer_config.json"
UNTRUSTED = "Do not use this model unless you know why it does this: nothing in it was loaded."


@contextmanager
def loading(where: str, folder: Path | None = None) -> Iterator[None]:
    """Load something quietly and without the network; a library's error is raised as a ModelError that names ``where``.

    ``folder`` is the model's; None where only a configuration is loaded.

    Raises
    ------
    ModelError
        If anything fails but memory, or if files that the folder names lie elsewhere.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True  # a configuration may name other models, which its class would ask the hub for
    try:
        if folder is not None:
            _check_file_references(folder)
        with quiet_libraries():
            yield
    except (MemoryError, PrefcliError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(one_line(error)) from error
        what, hint = _explain(error, folder)
        raise ModelError(what, where=where, hint=hint) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep transformers' and the hub's progress bars and advice off the user's terminal, for the block alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Not in hub.quiet(): what it finds when it is imported becomes its own default.
        from transformers.utils import logging as transformers_logging

        with hub.quiet():
            level, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
            transformers_logging.set_verbosity_error()
            transformers_logging.disable_progress_bar()
            try:
                yield
            finally:
                transformers_logging.set_verbosity(level)
                if has_bars:
                    transformers_logging.enable_progress_bar()


def safe_config(config: Any) -> Any:
    """A model's configuration without settings that would make transformers fetch or import something.

    Raises
    ------
    ModelError
        If the weights cannot be read without them.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            "the encoder's weights are quantised (quantization_config), which prefcli does not read",
            hint="Choose the same model with float16 or float32 weights.",
        )
    config._attn_implementation = None  # a name with a slash is a kernel to be downloaded
    config.get_text_config().use_cache = False  # nothing is generated
    if getattr(config, "attention_type", None) == "block_sparse":
        # BigBird's sparse attention ends for good at the first short batch: results would depend on the batches before.
        config.attention_type = "original_full"
    return config


def _check_file_references(folder: Path) -> None:
    """Raise ModelError if a file that the model's own files name lies outside its folder."""
    references: dict[str, list[Any]] = {
        path.name: list(_read_object(path).get("weight_map", {}).values()) for path in folder.glob("*.index.json")
    }
    tokenizer = _read_object(folder / TOKENIZER_CONFIG)
    pieces = tokenizer.get("sp_model_kwargs")
    references[TOKENIZER_CONFIG] = [
        *tokenizer.get("fast_tokenizer_files", []),
        tokenizer.get("gguf_file") or "",
        (pieces.get("model_file") if isinstance(pieces, dict) else pieces) or "",
    ]
    for source, names in references.items():
        check_inside(folder, source, map(str, names))


def check_inside(folder: Path, source: str, names: Iterable[str]) -> None:
    """Raise ModelError if one of the files that ``source`` names lies outside of the model's folder."""
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(
                f"{source} names a file outside of the model's folder: {name!r}", where=str(folder), hint=UNTRUSTED
            )


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return content


def _explain(error: Exception, folder: Path | None) -> tuple[str, str]:
    """What is wrong with a model that could not be loaded, and what to do."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from safetensors import SafetensorError

    message = str(error)
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in message:
        names = ", ".join(sorted(path.name for path in folder.glob("pytorch_model*.bin"))) if folder else ""
        return (
            f"the weights ({names}) hold more than tensors and were not run",
            "Ask for the model's safetensors weights; load such a file elsewhere only if you trust who made it.",
        )
    if isinstance(error, SafetensorError):
        return (
            f"the weights cannot be loaded (damaged, or not safetensors) and were not run: {one_line(error)}",
            "Download the model again, or ask for its safetensors weights.",
        )
    if "trust_remote_code" in message or "custom code" in message:
        return (
            "the model needs code of its own, which prefcli never runs",
            "Choose a model of an architecture that transformers itself has.",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return (
            "the model's configuration asks the hub for another model, which prefcli never loads",
            "Choose a model that is complete by itself.",
        )
    return (
        f"the model cannot be loaded: {one_line(error)}",
        "The folder must hold config.json, a tokenizer and safetensors weights, as save_pretrained writes it.",
    )
