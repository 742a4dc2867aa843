"""Pretrained weights from a folder: all of the encoder's, or an error that names the tensors.

transformers fills what a file lacks with random numbers and leaves out what the encoder has no place for. Both are
normal for the layers after the encoder (a pooler that the file lacks, a task's head that nothing here uses), and for
nothing else: a missing layer would train and predict, only worse. So everything that transformers reports is checked
here, and what is drawn at random is drawn from a seed.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcli.encoders.safety import check_inside
from prefcli.errors import ModelError
from prefcli.reporting import Reporter

if TYPE_CHECKING:
    import torch

WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "encoder.")
"""What DistributedDataParallel, torch.compile and modules that hold an encoder put before the names of its tensors."""
MAX_PREFIXES = 4
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""In the order in which transformers looks for them; each may be several files that an index lists."""
SMALL_FILES = ("*.json", "*.model", "*.txt", "chat_template.jinja")
"""Configuration and tokenizer."""
HEAD = re.compile(
    r".*(head|classifier|predict|score|outputs|logits|loss).*|vocab_.*|cls|config|decoder|dense|pooler|pred_layer|"
    r"sequence_summary|(value|reward|regression)_.*|gating"
)
"""First parts of the names of a task's layers, in transformers' own models and in common reward models."""
BUFFER = re.compile(
    r".*(\b|_)(masked_bias|causal_mask|inv_freq|position_ids|attn\.bias|attn\.attention\.bias|word_embeddings\._weight)"
)
"""Names of constants that older releases of transformers saved beside the weights, and newer ones compute; and of what
DeBERTa's pretraining (He et al., "DeBERTaV3", 2021, section 3.2) keeps beside the embeddings it has been added to."""
MAX_NAMES = 4
"""Tensors that a message names."""
HINT = "The weights must be those of config.json: as save_pretrained writes both, or as the hub has them."


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, sorted by name; empty if there are none.

    Raises
    ------
    ModelError
        If an index names a file that is not there, as after an interrupted download.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                names = set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ModelError(f"{index.name} is damaged", where=str(folder), hint="Download it again.") from None
            check_inside(folder, index.name, names)
            if missing := sorted(name for name in names if not (folder / name).is_file()):
                raise ModelError(
                    f"the weights are incomplete: {_listed(missing)} of {len(names)} files that {index.name} names "
                    f"{'is' if len(missing) == 1 else 'are'} missing",
                    where=str(folder),
                    hint="Download the model again.",
                )
            return sorted(folder / name for name in names)
    return []


def needed_files(names: Collection[str]) -> list[str]:
    """Which of a repository's files an encoder needs: configuration, tokenizer, and its weights in one format."""
    chosen = [name for name in names if "/" not in name and any(fnmatch(name, pattern) for pattern in SMALL_FILES)]
    for weights in WEIGHT_FILES:
        if weights in names:
            return [*chosen, weights]
        if f"{weights}.index.json" in names:
            stem, _, suffix = weights.rpartition(".")
            return chosen + [name for name in names if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", name)]
    return chosen


def load(
    folder: Path, config: Any, seed: int, reporter: Reporter, *, auto_class: Any, **arguments: Any
) -> torch.nn.Module:
    """An encoder with the weights of a folder, or a sequence classifier, whose head they may lack.

    Parameters
    ----------
    folder, config:
        Its files, and its configuration, which has been made safe.
    seed:
        Of what the files lack, such as a pooler.
    reporter:
        Receives a warning if the names of the tensors had to be changed, and whether a classifier's head was there.
    auto_class:
        transformers' ``AutoModel``, or that of a task.
    arguments:
        For ``from_pretrained``.

    Raises
    ------
    ModelError
        If the weights are not those of the configuration.
    """
    _check_model_type(folder, config)
    load_with = functools.partial(_load, folder, config, seed, auto_class, arguments)
    encoder, report, problems = load_with({})
    if problems:
        for prefix in _prefixes(_tensor_names(folder)):
            renamed, others, left = load_with({f"^{re.escape(prefix)}": ""})
            if not left:
                reporter.warn(f"the names of the encoder's tensors begin with {prefix}, which was left out")
                encoder, report, problems = renamed, others, []
                break
    if problems:
        raise ModelError(
            f"the encoder's weights do not fit its config.json: {'; '.join(problems)}", where=str(folder), hint=HINT
        )
    _check_finite(encoder, folder)
    if head := _head(encoder):
        # A classifier reads its encoder's pooler, too; nothing else may be absent (_problems).
        absent = _absent(report)
        is_classifier = auto_class.__name__ != "AutoModelForMaskedLM"
        whose = "encoder's" if is_classifier else "masked language model's"
        what = "classifier with one label" if is_classifier else "masked language model"
        reporter.note(
            f"the {whose} head is new: {_listed(absent)} drawn at random"
            if absent
            else f"the encoder's folder holds a {what}: its head ({_listed(head)}) is read"
        )
    return encoder


def _load(
    folder: Path, config: Any, seed: int, auto_class: Any, arguments: Mapping[str, Any], mapping: dict[str, str]
) -> tuple[torch.nn.Module, dict[str, Any], list[str]]:
    """The encoder, transformers' report of its loading, and what in it does not fit.

    ``mapping`` changes the names of tensors, as in ``from_pretrained``.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, report = auto_class.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported here with the names
            key_mapping=mapping or None,
            **arguments,
        )
    return encoder, report, list(_problems(encoder, report))


def _head(encoder: Any) -> set[str]:
    """The names of the modules after a classifier's encoder; empty for an encoder."""
    if encoder.base_model is encoder:
        return set()
    parts = {name for name, part in encoder.named_children() if part.state_dict()}
    return parts - {encoder.base_model_prefix}


def _absent(report: Mapping[str, Any]) -> list[str]:
    """Tensors that are drawn at random, because the files lack them or have them in another shape."""
    return [*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])]


def _problems(encoder: Any, report: Mapping[str, Any]) -> Iterator[str]:
    """What in transformers' report of a loading is not normal, in words."""
    head = _head(encoder)
    base: Any = encoder.base_model
    own = {name for name, _ in base.named_children()} | {name for name, _ in base.named_parameters(recurse=False)}
    if head:
        own.add(encoder.base_model_prefix)
    missing = [
        name for name in report["missing_keys"] if "pooler" not in (parts := name.split(".")) and parts[0] not in head
    ]
    mismatched = [entry for entry in report["mismatched_keys"] if entry[0].partition(".")[0] not in head]
    unexpected = [
        name
        for name in report["unexpected_keys"]
        if not BUFFER.fullmatch(name)
        if "pooler" not in name.split(".")
        if (first := name.partition(".")[0]) in own or not HEAD.fullmatch(first)
    ]
    if missing:
        yield f"missing tensors {_listed(missing)}"
    if unexpected:
        yield f"unexpected tensors {_listed(unexpected)}"
    if mismatched:
        name, in_file, expected = min(mismatched)
        count = len(mismatched)
        others = f" (and {count - 1:,} more)" if count > 1 else ""
        yield f"{name} has shape {list(in_file)}, not {list(expected)}{others}"
    yield from map(str, report["error_msgs"])


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    others = f" and {len(ordered) - MAX_NAMES:,} more" if len(ordered) > MAX_NAMES else ""
    return ", ".join(ordered[:MAX_NAMES]) + others


def _prefixes(names: Collection[str]) -> Iterator[str]:
    """Combinations of :data:`WRAPPER_PREFIXES` that most of the names begin with, shortest first."""
    prefix = ""
    for _ in range(MAX_PREFIXES):
        counts = {prefix + each: sum(name.startswith(prefix + each) for name in names) for each in WRAPPER_PREFIXES}
        prefix = max(counts, key=lambda candidate: counts[candidate])
        if counts[prefix] * 2 <= len(names):
            return
        yield prefix


def _tensor_names(folder: Path) -> list[str]:
    """The names of all tensors in a folder's weights."""
    import torch
    from safetensors import safe_open

    names: list[str] = []
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as stream:
                names += stream.keys()
        else:
            names += torch.load(path, map_location="meta", weights_only=True)
    return names


def _check_model_type(folder: Path, config: Any) -> None:
    """Raise ModelError if the class that the weights were saved by is one of another ``model_type``.

    BERT's and RoBERTa's tensors have the same names and shapes, and mean other things.
    """
    from transformers.models.auto import modeling_auto

    types: dict[str, set[str]] = {}
    for mapping, entries in vars(modeling_auto).items():
        if mapping.endswith("_MAPPING_NAMES"):
            for model_type, classes in entries.items():
                for name in (classes,) if isinstance(classes, str) else classes:
                    types.setdefault(name, set()).add(model_type)
    saved_by = next(iter(getattr(config, "architectures", None) or []), None)
    if saved_by in types and config.model_type not in types[saved_by]:
        raise ModelError(
            f"config.json contradicts itself: its model_type is {config.model_type}, and the weights are those of a "
            f"{saved_by} (architectures)",
            where=str(folder),
            hint="Correct the entry that is wrong.",
        )


def _check_finite(encoder: torch.nn.Module, folder: Path) -> None:
    """Raise ModelError if a weight is not a number."""
    import torch

    for name, weight in encoder.state_dict().items():
        # A sum is finite only if every number is; in float16 it would overflow.
        if weight.is_floating_point() and not bool(torch.isfinite(weight.sum(dtype=torch.float32))):
            raise ModelError(
                f"the encoder's weights hold values that are not numbers, in {name}",
                where=str(folder),
                hint="Download the model again, or ask whoever made it.",
            )
