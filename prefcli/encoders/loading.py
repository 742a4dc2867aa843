"""From a name to an encoder and its tokenizer: a folder, the hub's cache, the hub, or the built-in ``tiny``.

Names are resolved from near to far: an existing folder; a model in the hub's local cache; an installed package that
holds the hub's files (:mod:`.installed`); then a five-second check whether the hub answers and knows the name; only
then a download. Models are always loaded from a folder, in float32, without the network, and as untrusted files
(:mod:`.safety`).
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcli.encoders import installed, pretrained
from prefcli.encoders.safety import loading, safe_config
from prefcli.encoders.tiny import TINY, TINY_CONFIG, train_tokenizer
from prefcli.errors import InputError, ModelError, NetworkError, require
from prefcli.options import ENCODER_ALIASES
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import hub

if TYPE_CHECKING:
    import torch

ADAPTER = "adapter_config.json"
FINGERPRINT_SAMPLES, SAMPLE_BYTES = 16, 1 << 20


@dataclass(frozen=True)
class ResolvedModel:
    """The folder with an encoder's files (None for ``tiny``), and in words where it was found."""

    folder: Path | None
    source: str


@dataclass(frozen=True)
class FrozenWeights:
    """How weights that are not trained are stored: they need no float32."""

    dtype: torch.dtype
    """Of the weights, and of products with quantized weights."""
    quantization: str
    """``none``, ``8bit`` or ``4bit``."""
    device: torch.device
    """Where quantized weights are loaded to: at full size they might not fit."""

    def quantization_arguments(self) -> dict[str, Any]:
        """Arguments for ``from_pretrained``; empty without quantization.

        Raises
        ------
        InputError
            If there is no CUDA GPU.
        MissingPackage
            If bitsandbytes is not installed.
        """
        if self.quantization == "none":
            return {}
        if self.device.type != "cuda":
            raise InputError(
                f"--quantize {self.quantization} needs a CUDA GPU, and this is a {self.device.type.upper()}",
                hint="Leave it out: the frozen weights then take 2 bytes each on a GPU, 4 on a CPU.",
            )
        require(f"--quantize {self.quantization}", "bitsandbytes")
        from transformers import BitsAndBytesConfig

        settings: dict[str, Any] = {"load_in_8bit": True}
        if self.quantization == "4bit":
            settings = {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True,
                "bnb_4bit_compute_dtype": self.dtype,
            }
        return {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": self.device}}


def locate(name: str, *, network: bool = True) -> ResolvedModel:
    """Find the files of an encoder: of a folder, ``owner/name``, a short name of one, or ``tiny``.

    Without ``network`` the hub is not asked and nothing is downloaded: only what is on this machine is found.

    Raises
    ------
    InputError
        If the name is a folder without a model, or not a name at all.
    ModelError
        If the hub does not know the model or does not give access to it.
    NetworkError
        If the hub cannot be reached.
    """
    if name == TINY:
        return ResolvedModel(None, "built in, made on the spot from random weights")
    folder = Path(os.path.expanduser(name))  # Path.expanduser raises where there is no such user
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(
                "the encoder's folder has no config.json",
                where=str(folder),
                hint="Name a folder saved by transformers' save_pretrained, or a model of the hub as owner/name.",
            )
        _check_weights(folder)
        return ResolvedModel(folder, f"the folder {folder}")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip() or "\\" in name:
        raise InputError(f"no encoder folder at {name!r}", hint="Check the path.")
    return from_hub(full_name(name), network=network)


def full_name(name: str) -> str:
    """A short name, unless there is a folder of that name, as that of the hub; any other name as it is."""
    return name if Path(os.path.expanduser(name)).is_dir() else ENCODER_ALIASES.get(name, name)


def from_hub(name: str, *, network: bool = True) -> ResolvedModel:
    """:func:`locate` for what can only be a name of the hub."""

    def is_complete(folder: Path) -> bool:
        try:
            return (folder / "config.json").is_file() and bool(pretrained.weight_files(folder))
        except ModelError:
            return False

    def search(*, network: bool) -> ResolvedModel:
        folder, source = hub.find(
            name,
            "encoder",
            is_complete=is_complete,
            needed=hub.NeededFiles(pretrained.SMALL_FILES, ("*/*",), pretrained.needed_files),
            hint=installed.hint(name),
            network=network,
        )
        _check_weights(folder)
        return ResolvedModel(folder, source)

    if name not in installed.OFFICIAL_FILES:
        return search(network=network)
    try:
        return search(network=False)
    except (ModelError, NetworkError):
        if package := installed.find(name):
            return ResolvedModel(package[0], f"{hub.INSTALLED} {package[1]}")
        if not network:
            raise
    return search(network=True)


def _check_weights(folder: Path) -> None:
    """Raise ModelError unless a folder holds all files of the weights, before anything else is done with it."""
    if not pretrained.weight_files(folder):
        raise ModelError(
            f"the encoder has no weights: neither {' nor '.join(pretrained.WEIGHT_FILES)}, nor an index of one",
            where=str(folder),
            hint="Name a folder saved by transformers' save_pretrained, or a model of the hub as owner/name.",
        )


def make_tokenizer(
    located: ResolvedModel, texts: Iterable[str], *, keep_chat_template: bool = False, mask: bool = False
) -> Any:
    """The encoder's tokenizer: from its folder (:func:`load_tokenizer`), or for ``tiny`` trained on ``texts``.

    ``mask`` says whether that of ``tiny`` has a mask token.
    """
    if located.folder is None:
        return train_tokenizer(texts, mask=mask)
    return load_tokenizer(located.folder, keep_chat_template=keep_chat_template)


def load_tokenizer(folder: Path, *, keep_chat_template: bool = False) -> Any:
    """The tokenizer saved in a folder, without its chat templates or with the default one, as text.

    A chat template is a program of whoever made the model: :mod:`.chat_templates` renders it.

    Raises
    ------
    ModelError
        If there is none that can be loaded.
    """
    with loading(str(folder), folder):
        from transformers import AutoTokenizer, PreTrainedTokenizerBase

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):  # the folder may name any class of transformers
            raise ValueError(f"what its files name as the tokenizer is a {type(tokenizer).__name__}")
    template = tokenizer.chat_template
    if isinstance(template, dict):  # they would be saved under their own names
        template = template.get("default")
    tokenizer.chat_template = template if keep_chat_template and isinstance(template, str) else None
    return tokenizer


def make_encoder(
    located: ResolvedModel,
    vocab_size: int,
    *,
    seed: int,
    frozen: FrozenWeights | None = None,
    reporter: Reporter = SILENT,
    reward: bool = False,
    dropout: float | None = None,
) -> torch.nn.Module:
    """The encoder on the CPU in float32, or with ``frozen`` weights as these are stored.

    Weights are loaded, or for ``tiny`` drawn at random; ``vocab_size`` is for it alone. ``seed`` is that of all random
    numbers: a pooler that the files lack is drawn from it, too. With ``reward`` the encoder is a sequence classifier
    with one label, whose head is read from the files if they hold one. ``dropout`` replaces the probabilities in its
    configuration.

    Raises
    ------
    InputError
        If the weights cannot be quantized on this machine.
    ModelError
        If the files cannot be loaded.
    """
    folder = located.folder
    if folder is None:
        tiny = {**TINY_CONFIG, "vocab_size": vocab_size}
        if dropout is not None:
            tiny |= {name: dropout for name in tiny if "dropout" in name}
        return from_config(tiny, seed=seed, reward=reward)
    with loading(str(folder), folder):
        import torch
        from transformers import AutoConfig

        if (folder / ADAPTER).exists():  # whether transformers loads it depends on what else is installed
            raise ModelError(
                f"the encoder holds an adapter ({ADAPTER}), which prefcli does not load",
                where=str(folder),
                hint="Merge it into the encoder's weights first (merge_and_unload, then save_pretrained).",
            )
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if dropout is not None:
            config = _with_dropout(config, dropout)
        _check_weights(folder)
        module = pretrained.load(
            folder,
            safe_config(_with_one_label(config) if reward else config),
            seed,
            reporter,
            auto_class=_auto_class(config, reward),
            # The hub's checkpoints are often float16: master weights must be float32, or no scaler can unscale them.
            dtype=torch.float32 if frozen is None else frozen.dtype,
            **({} if frozen is None else frozen.quantization_arguments()),
        )
    return module.float() if frozen is None else module


def without_masked_language_model(located: ResolvedModel) -> str:
    """The ``model_type`` of an encoder if transformers has no masked language model of its family; empty if it has."""
    folder = located.folder
    if folder is None:
        return ""
    with loading(str(folder), folder):
        from transformers import AutoConfig
        from transformers.models.auto import modeling_auto

        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        has_one = type(config) in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING
        return "" if has_one else str(config.model_type)


def masked_language_model(
    encoder: Any, located: ResolvedModel, *, seed: int, reporter: Reporter = SILENT
) -> torch.nn.Module:
    """transformers' masked language model around an encoder, whose weights it shares, float32 on the CPU.

    Its head is read from the encoder's files if they hold one; else it is drawn at random from ``seed``, and
    ``reporter`` says so.

    Raises
    ------
    ModelError
        If the files cannot be loaded, or transformers' model is built around another encoder.
    """
    folder = located.folder
    with loading(str(folder), folder):
        import torch
        from transformers import AutoModelForMaskedLM

        config = safe_config(copy.deepcopy(encoder.config))
        if folder is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = AutoModelForMaskedLM.from_config(config, trust_remote_code=False, dtype=torch.float32)
        else:
            model = pretrained.load(
                folder, config, seed, reporter, auto_class=AutoModelForMaskedLM, dtype=torch.float32
            ).float()
        if not set(model.base_model.state_dict()) <= set(encoder.state_dict()):
            raise ModelError(
                f"transformers' masked language model of {config.model_type} is built around another encoder",
                hint="Leave --pretrain out, or choose another encoder.",
            )
        setattr(model, model.base_model_prefix, encoder)
        model.tie_weights()
    return model


def make_skeleton(folder: Path) -> torch.nn.Module:
    """The encoder of a folder without its weights: what it is made of, in no time and no memory.

    Raises
    ------
    ModelError
        If there is no such architecture, or not as an encoder.
    """
    with loading(str(folder), folder):
        import torch
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            skeleton: torch.nn.Module = AutoModel.from_config(safe_config(config), trust_remote_code=False)
        return skeleton


def _auto_class(config: Any, reward: bool) -> Any:
    """The class of transformers that loads an encoder, or with ``reward`` a sequence classifier.

    Raises
    ------
    ModelError
        If transformers has no sequence classifier of this family.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification
    from transformers.models.auto import modeling_auto

    if not reward:
        return AutoModel
    if type(config) not in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"transformers has no sequence classifier for {config.model_type}, which --architecture reward needs",
            hint="Choose another encoder, or another --architecture.",
        )
    return AutoModelForSequenceClassification


def _with_dropout(config: Any, dropout: float) -> Any:
    """An encoder's configuration with all dropout probabilities set to this one.

    What is None (in BERT that of a classifier's head) stands for another one. LayerDrop, which leaves out whole layers,
    is something else.

    Raises
    ------
    ModelError
        If the configuration has none.
    """
    text = config.get_text_config()
    names = [
        name
        for name, value in text.to_dict().items()
        if ("dropout" in name or name.endswith("pdrop")) and type(value) in (int, float)
    ]
    if not names:
        raise ModelError(
            f"--dropout: encoders of the family {config.model_type} have no dropout",
            hint="Leave it out.",
        )
    for name in names:
        setattr(text, name, dropout)
    return config


def _with_one_label(config: Any) -> Any:
    """A configuration as that of a reward model; transformers' pipelines then give its number as it is."""
    config.num_labels = 1
    config.problem_type = "regression"
    return config


def from_config(config: dict[str, Any], *, seed: int = 0, reward: bool = False) -> torch.nn.Module:
    """An encoder of the given architecture with random weights, float32; with ``reward`` a one-label classifier.

    Raises
    ------
    ModelError
        If there is no such architecture, or not as an encoder.
    """
    import torch

    with loading("encoder_config"):
        from transformers import AutoConfig

        settings = _decode_floats(dict(config))
        parsed = AutoConfig.for_model(settings.pop("model_type"), **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module: torch.nn.Module = _auto_class(parsed, reward).from_config(
                safe_config(_with_one_label(parsed) if reward else parsed), trust_remote_code=False, dtype=torch.float32
            )
    return module


def _decode_floats(value: Any) -> Any:
    """JSON with transformers' spelling of infinity and NaN as numbers: Mamba-2's configuration holds one."""
    if isinstance(value, dict):
        special = value.get("__float__")
        return float(special) if isinstance(special, str) else {k: _decode_floats(v) for k, v in value.items()}
    return [_decode_floats(v) for v in value] if isinstance(value, list) else value


def config_dict(module: Any) -> dict[str, Any]:
    """An encoder's architecture as JSON, enough for :func:`from_config`."""
    settings: dict[str, Any] = json.loads(module.config.to_json_string(use_diff=True))
    for name in ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "quantization_config"):
        settings.pop(name, None)
    return {**settings, "architectures": [type(module).__name__]}


def max_input_length(module: Any) -> int | None:
    """The most tokens that an encoder's configuration allows; None where positions are relative or unlimited.

    A trial pass may find fewer (:mod:`prefcli.models.trial`).
    """
    import torch

    config = module.config
    try:
        limit = config.max_position_embeddings
    except (AttributeError, NotImplementedError):  # relative positions have no such entry
        return None
    if not isinstance(limit, int) or limit <= 0:
        return None
    if config.model_type in ("deberta", "deberta-v2") and not getattr(config, "position_biased_input", True):
        return None
    tables = [part for name, part in module.named_modules() if name.endswith("position_embeddings")]
    for table in tables:
        if isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
            # In RoBERTa and its relatives the positions of tokens start after the padding id.
            return int(min(limit, table.num_embeddings - table.padding_idx - 1))
    return limit


def fingerprint(folder: Path) -> str:
    """A digest that tells encoders apart: of the configuration and of samples of the weights.

    Of every weight file that would be loaded, the size and 16 pieces of 1 MiB spread over it count, because files may
    have many gigabytes. So it tells models apart but does not notice every changed byte.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in pretrained.weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            for number in range(FINGERPRINT_SAMPLES):
                stream.seek(max(size - SAMPLE_BYTES, 0) * number // (FINGERPRINT_SAMPLES - 1))
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()
