"""From a name to an encoder and its tokenizer: a folder, the hub's cache, the hub, or the built-in ``tiny``.

Resolution goes from what is near to what is far, and says which it was: an existing folder; a model already in the
hub's local cache; then a five-second check whether the hub answers and knows the name; only then a download. What is
found is always loaded from a folder, in float32, with no network.

A model is somebody else's data: loading it runs none of it. Code in its folder is never imported, weights are
safetensors or tensors that PyTorch's restricted unpickler accepts, files it names lie in its own folder, and settings
that would make transformers fetch or import something are refused or not obeyed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcli.errors import InputError, ModelError, PrefcliError, one_line
from prefcli.storage import hub

if TYPE_CHECKING:
    import torch

TINY = "tiny"
"""Name of the built-in encoder: small, made on the spot, its tokenizer trained on the battles at hand."""

HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "pytorch_model*.bin"]

TINY_CONFIG = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TINY_VOCABULARY = 8192

ADAPTER, TOKENIZER_CONFIG = "adapter_config.json", "tokenizer_config.json"
NOT_TRUSTED = "Do not use this model unless you know why it is so: nothing of it was loaded."


@dataclass(frozen=True)
class ResolvedModel:
    """Where an encoder's files are (``folder`` is None for the built-in), and how that was found."""

    folder: Path | None
    source: str


@dataclass(frozen=True)
class Frozen:
    """How weights are kept that are not trained: nothing is added to them, so they need no float32.

    Attributes
    ----------
    dtype:
        Of the weights, and of products with weights of few bits.
    quantization:
        ``none``, ``8bit`` or ``4bit``.
    device:
        Where weights of few bits are put at once: in full they might not fit.
    """

    dtype: torch.dtype
    quantization: str
    device: torch.device

    def quantized(self) -> dict[str, Any]:
        """What ``from_pretrained`` is told; nothing where the weights stay whole.

        Raises
        ------
        InputError
            If there is no CUDA GPU.
        PrefcliError
            If the library is not installed.
        """
        if self.quantization == "none":
            return {}
        if self.device.type != "cuda":
            raise InputError(
                f"--quantize {self.quantization} needs a CUDA GPU, and this is a {self.device.type.upper()}",
                hint="Leave it out: the frozen weights then take 2 bytes each on a GPU, 4 on a CPU.",
            )
        from importlib.util import find_spec

        if find_spec("bitsandbytes") is None:
            raise PrefcliError("weights of few bits need bitsandbytes", hint="Install it: pip install bitsandbytes")
        from transformers import BitsAndBytesConfig

        few = {"load_in_8bit": True} if self.quantization == "8bit" else {"load_in_4bit": True}
        more = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": self.dtype}
        settings = few if self.quantization == "8bit" else few | more
        return {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": self.device}}


def locate(name: str, *, network: bool = True) -> ResolvedModel:
    """Find the files of an encoder; downloads them when the hub has them and nothing nearer does.

    Parameters
    ----------
    name:
        A folder, ``owner/name``, or ``tiny``.
    network:
        Whether the hub may be asked; otherwise only its local cache.

    Raises
    ------
    InputError
        If the name is a folder without a model, or not a name at all.
    ModelError
        If the hub does not know the model or does not let us have it.
    NetworkError
        If the hub cannot be reached.
    """
    if name == TINY:
        return ResolvedModel(None, "built in, made on the spot from random weights")
    folder = Path(os.path.expanduser(name))  # Path's own raises where there is no such user
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(
                "the encoder's folder has no config.json",
                where=str(folder),
                hint="Name a folder saved by transformers' save_pretrained, or a model of the hub as owner/name.",
            )
        return ResolvedModel(folder, f"the folder {folder}")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip() or "\\" in name:
        raise InputError(f"no encoder folder at {name!r}", hint="Check the path.")
    return from_hub(name, network=network)


def from_hub(name: str, *, network: bool = True) -> ResolvedModel:
    """:func:`locate` for what can only be a name of the hub."""
    folder, source = hub.find(
        name,
        "encoder",
        is_complete=lambda folder: (folder / "config.json").is_file() and bool(_weight_files(folder)),
        patterns=HUB_PATTERNS,
        hint="Use a folder (--encoder DIR), or --encoder tiny, which needs nothing.",
        network=network,
    )
    return ResolvedModel(folder, source)


def make_tokenizer(located: ResolvedModel, texts: Iterable[str]) -> Any:
    """The encoder's tokenizer: loaded from its folder, or for ``tiny`` trained on ``texts``."""
    return train_tokenizer(texts) if located.folder is None else load_tokenizer(located.folder)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer saved in a folder.

    Raises
    ------
    ModelError
        If there is none that can be loaded.
    """
    with _loading(str(folder), folder):
        from transformers import AutoTokenizer

        _refuse_files_elsewhere(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer.chat_template = None  # nothing here chats, and a run would save the templates under their own names
    return tokenizer


def make_encoder(
    located: ResolvedModel, vocabulary: int, *, seed: int, frozen: Frozen | None = None
) -> torch.nn.Module:
    """The encoder in float32 on the CPU: its weights loaded, or for ``tiny`` drawn at random.

    Parameters
    ----------
    located:
        From :func:`locate`.
    vocabulary:
        Of the tokenizer; only ``tiny`` looks at it.
    seed:
        Of ``tiny``'s random weights.
    frozen:
        How weights are kept that are not trained; None where they are.

    Raises
    ------
    InputError
        If they cannot be kept in so few bits here.
    ModelError
        If the files cannot be loaded.
    """
    if located.folder is None:
        return from_config({**TINY_CONFIG, "vocab_size": vocabulary}, seed=seed)
    with _loading(str(located.folder), located.folder):
        import torch
        from transformers import AutoConfig, AutoModel

        _refuse_files_elsewhere(located.folder)
        if (located.folder / ADAPTER).exists():  # whether it is obeyed would depend on what else is installed
            raise ModelError(
                f"the encoder holds an adapter ({ADAPTER}), which prefcli does not load",
                where=str(located.folder),
                hint="Merge it into the encoder's weights first (merge_and_unload, then save_pretrained).",
            )
        parsed = AutoConfig.from_pretrained(located.folder, local_files_only=True, trust_remote_code=False)
        # The hub's checkpoints are often float16: master weights must be float32, or no scaler can unscale them.
        dtype = torch.float32 if frozen is None else frozen.dtype
        module: torch.nn.Module = AutoModel.from_pretrained(
            located.folder,
            config=_plain(parsed),
            local_files_only=True,
            trust_remote_code=False,
            dtype=dtype,
            **({} if frozen is None else frozen.quantized()),
        )
    return module.float() if frozen is None else module


def from_config(config: dict[str, Any], *, seed: int = 0) -> torch.nn.Module:
    """An encoder of the given architecture with random weights, float32.

    Raises
    ------
    ModelError
        If there is no such architecture, or not as an encoder.
    """
    import torch

    with _loading("encoder_config"):
        from transformers import AutoConfig, AutoModel

        settings = dict(config)
        parsed = AutoConfig.for_model(settings.pop("model_type"), **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module: torch.nn.Module = AutoModel.from_config(
                _plain(parsed), trust_remote_code=False, dtype=torch.float32
            )
    return module


def _plain(config: Any) -> Any:
    """A model's configuration without what would make transformers fetch or import something.

    Raises
    ------
    ModelError
        If the weights cannot be read without that.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            "the encoder's weights are quantised (quantization_config), which prefcli does not read",
            hint="Choose the same model with float16 or float32 weights.",
        )
    config._attn_implementation = None  # a name with a slash is a kernel to be downloaded
    config.get_text_config().use_cache = False  # nothing is generated
    return config


def train_tokenizer(texts: Iterable[str], vocabulary: int = TINY_VOCABULARY) -> Any:
    """A byte-level BPE tokenizer trained on the given texts, lower-casing, with BERT's special tokens.

    Byte-level because it knows every character and because its training is deterministic: WordPiece's numbers its
    initial alphabet in random order and then breaks ties by those numbers.
    """
    with _quiet_libraries():
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
        from transformers import PreTrainedTokenizerFast

        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        tokenizer = Tokenizer(models.BPE(unk_token=special["unk_token"]))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=2,
            special_tokens=list(special.values()),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            model_max_length=TINY_CONFIG["max_position_embeddings"],
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
            **special,
        )


def accelerate(encoder: torch.nn.Module) -> str:
    """Compute an encoder faster with the same results, in place; its state dict stays what it was.

    Returns
    -------
    What was done, or why it was not, in words.
    """
    from prefcli.encoders import deberta, dense

    if encoder.config.model_type == "deberta-v2":  # type: ignore[union-attr]
        reason = deberta.accelerate(encoder)
        return "fast attention" if reason is None else f"transformers' own attention: {reason}"
    dense.accelerate(encoder)
    return "transformers' own attention: only DeBERTa's is slow"


def longest_input(module: Any) -> int | None:
    """Tokens an encoder can take at most, or None where positions are relative or unlimited."""
    config = module.config
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    if config.model_type in ("deberta", "deberta-v2") and not getattr(config, "position_biased_input", True):
        return None
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        return limit - (config.pad_token_id or 0) - 1  # their positions start behind the padding id
    return limit


def _weight_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]


def _refuse_files_elsewhere(folder: Path) -> None:
    """Files that a model's own files name lie in its folder, or nothing of it is opened.

    Raises
    ------
    ModelError
        If one lies elsewhere.
    """
    named: dict[str, list[Any]] = {
        path.name: list(_json_object(path).get("weight_map", {}).values()) for path in folder.glob("*.index.json")
    }
    told = _json_object(folder / TOKENIZER_CONFIG)
    pieces = told.get("sp_model_kwargs")
    named[TOKENIZER_CONFIG] = [
        *told.get("fast_tokenizer_files", []),
        told.get("gguf_file") or "",
        (pieces.get("model_file") if isinstance(pieces, dict) else pieces) or "",
    ]
    for by, names in named.items():
        for name in map(str, names):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ModelError(
                    f"{by} names a file outside of the model's folder: {name!r}", where=str(folder), hint=NOT_TRUSTED
                )


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return found


@contextmanager
def _loading(where: str, folder: Path | None = None) -> Iterator[None]:
    """Load something quietly, without the network, and turn a library's failure into one sentence."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True  # a configuration may name other models, which its class would ask the hub for
    try:
        with _quiet_libraries():
            yield
    except (MemoryError, PrefcliError):
        raise
    except Exception as error:
        what, hint = _explanation(error, folder)
        raise ModelError(what, where=where, hint=hint) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _explanation(error: Exception, folder: Path | None) -> tuple[str, str]:
    """What is wrong with a model that could not be loaded, and what to do."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from safetensors import SafetensorError

    said = str(error)
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in said:
        names = ", ".join(sorted(path.name for path in folder.glob("pytorch_model*.bin"))) if folder else ""
        return (
            f"the weights ({names}) hold more than tensors and were not run",
            "Ask for the model's safetensors weights; load such a file elsewhere only if you trust who made it.",
        )
    if isinstance(error, SafetensorError):
        return (
            f"the weights cannot be loaded (damaged, or no safetensors) and were not run: {one_line(error)}",
            "Download the model again, or ask for its safetensors weights.",
        )
    if "trust_remote_code" in said or "custom code" in said:
        return (
            "the model needs code of its own, which prefcli never runs",
            "Choose a model of an architecture that transformers knows by itself.",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return (
            "the model's configuration asks the hub for something else, which loading never does",
            "Choose a model that is whole by itself.",
        )
    return (
        f"the model cannot be loaded: {one_line(error)}",
        "The folder must hold config.json, a tokenizer and safetensors weights, as save_pretrained writes it.",
    )


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep transformers' and the hub's progress bars and advice off the user's terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def config_of(module: Any) -> dict[str, Any]:
    """An encoder's architecture as JSON, enough for :func:`from_config`."""
    settings: dict[str, Any] = json.loads(module.config.to_json_string(use_diff=True))
    for name in ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "quantization_config"):
        settings.pop(name, None)
    return {**settings, "architectures": [type(module).__name__]}


IDENTITY_BLOCKS, IDENTITY_BYTES = 16, 1 << 20


def identity(folder: Path) -> str:
    """What tells an encoder's folder from others: a digest of its configuration and of samples of its weights.

    Of every weight file that is loaded its size and 16 pieces of 1 MiB spread over it are read, not all of what may be
    many gigabytes: it tells models apart and does not notice every changed byte.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    kinds = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
    loaded = next((found for kind in kinds if (found := sorted(folder.glob(kind)))), [])
    for path in loaded:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            for number in range(IDENTITY_BLOCKS):
                stream.seek(max(size - IDENTITY_BYTES, 0) * number // (IDENTITY_BLOCKS - 1))
                digest.update(stream.read(IDENTITY_BYTES))
    return digest.hexdigest()
