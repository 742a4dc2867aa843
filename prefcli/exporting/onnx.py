"""A run exported to ONNX: a folder that predicts the same without torch or transformers.

The graph is made by torch's own exporter from transformers' own attention, with the number of battles and their length
left open. It is then loaded as any prediction would load it and compared with torch, battle by battle, in both orders
and alone; a folder that does not match is not left. With ``int8`` the matrices are quantised (ONNX Runtime's dynamic
quantisation), and what that costs is measured and written into the card.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefcli import metrics
from prefcli.battles import TEXT_FIELDS, texts_of
from prefcli.compute import devices
from prefcli.errors import InputError, ModelError, PrefcliError, one_line
from prefcli.models import exported, neural
from prefcli.models.exported import GRAPH, OUTPUT, TOKENIZER
from prefcli.storage import card, files, runs

LARGEST_DIFFERENCE = 1e-4
"""A probability of ONNX Runtime may differ from torch's by this much."""
COMPARED = 32
"""Battles that are compared with torch, of all lengths there are."""
ALONE = 3
"""Battles that are also computed by themselves, as one that is asked for alone."""
ONE_FILE_BYTES = 1_900_000_000
"""Larger weights lie in a file of their own: the format of the graph ends at 2 GB."""
TRACED_BATTLES, TRACED_LENGTH = 3, 11
NEEDED = ("onnx", "onnxruntime", "onnxscript")
COPIED = (runs.VALIDATION, runs.CARD, runs.CURVES)


@dataclass(frozen=True)
class Sample:
    """Battles to compare on, their text normalised as the run needs it.

    Attributes
    ----------
    battles:
        A few hundred at most.
    labels:
        Shape ``[n]``; None where the battles are not the run's, so that a loss would say nothing.
    """

    battles: pa.RecordBatch
    labels: NDArray[np.int64] | None

    @property
    def name(self) -> str:
        return "made-up battles" if self.labels is None else "held-out battles"


@dataclass(frozen=True)
class Quantised:
    """What int8 costs, on the same battles.

    Attributes
    ----------
    battles, sample:
        How many, and which.
    largest_change:
        Of any probability against float32.
    log_loss_fp32, log_loss_int8:
        None where the battles have no outcomes of the run's kind.
    """

    battles: int
    sample: str
    largest_change: float
    log_loss_fp32: float | None
    log_loss_int8: float | None

    def __str__(self) -> str:
        loss = "log loss not measured: the run's held-out battles are not to be found"
        if self.log_loss_fp32 is not None and self.log_loss_int8 is not None:
            change = self.log_loss_int8 - self.log_loss_fp32
            loss = f"log loss {self.log_loss_fp32:.4f} in fp32, {self.log_loss_int8:.4f} in int8 ({change:+.4f})"
        return f"{loss}; largest change of a probability {self.largest_change:.4f} ({self.battles:,} {self.sample})"


@dataclass(frozen=True)
class ExportResult:
    """What :func:`export` made.

    Attributes
    ----------
    folder, precision:
        Where, and in ``fp32`` or ``int8``.
    models:
        One, or one for each fold.
    compared, sample, largest_difference:
        How many battles of which kind were compared with torch (before any quantisation), and by how much a
        probability differed at most.
    bytes:
        Of all graphs.
    int8:
        What quantisation costs.
    """

    folder: Path
    precision: str
    models: int
    compared: int
    sample: str
    largest_difference: float
    bytes: int
    int8: Quantised | None


def refuse(run: Path, folder: Path, force: bool) -> None:
    """Say what cannot be exported, or not to there, before any work is done.

    Raises
    ------
    InputError
        If the run is no neural one, or something else stands in the way.
    PrefcliError
        If a package is missing.
    """
    runtime = runs.runtime_of(runs.read_config(run))
    if runtime != "torch":
        what = "is an exported run already" if runtime == "onnx" else "has the architecture features"
        needs = "" if runtime == "onnx" else ", which needs neither torch nor ONNX"
        raise InputError(f"{run} {what}{needs}", hint="Predict with it as it is.")
    if runs.read_config(run)["options"].get("lora_rank"):
        raise InputError(
            "the run holds adapters beside an encoder's weights",
            where=str(run),
            hint=f"Make one model of both first: prefcli export {run} --merged DIR, then export that.",
        )
    if folder.exists() or folder.is_symlink():
        files.refuse_to_overwrite(folder, force)
        if not _is_export(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise InputError(f"{folder} is not an exported run, so --force does not remove it", hint="Choose another.")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise PrefcliError(f"exporting needs {', '.join(missing)}", hint=exported.INSTALL)


def _is_export(folder: Path) -> bool:
    try:
        return runs.runtime_of(runs.read_config(folder)) == "onnx"
    except ModelError:  # no run at all
        return False


def export(run: Path, folder: Path, samples: Sequence[Sample], *, int8: bool = False) -> ExportResult:
    """Write the folder, or leave nothing.

    Parameters
    ----------
    run:
        A neural run, with folds or without.
    folder:
        Of the export; what stands there is replaced.
    samples:
        For each of the run's models the battles to compare on.
    int8:
        Whether matrices are quantised.

    Raises
    ------
    ModelError
        If the run is damaged, its encoder cannot be exported, or the export predicts something else.
    """
    runs.verify(run)
    config = runs.read_config(run)
    with files.atomic(folder) as temporary:
        found = [
            _export_one(member, temporary / member.relative_to(run), sample, int8=int8)
            for member, sample in zip(runs.members(run), samples, strict=True)
        ]
        made = _together(folder, found, samples, int8=int8)
        if made.models > 1 or config["options"]["folds"]:
            _copy_artifacts(run, temporary)
            _write_config(temporary, config, {"format": exported.FORMAT, "precision": made.precision})
        for member in runs.all_folders(temporary):
            card.add_export(member, _described(made), folder.name)
            runs.seal(member, trained=True)
    return made


@dataclass(frozen=True)
class _Found:
    """Of one model: how far it is from torch, and both its predictions of the sample where it was quantised."""

    difference: float
    size: int
    fp32: NDArray[np.float64] | None = None
    int8: NDArray[np.float64] | None = None


def _export_one(member: Path, target: Path, sample: Sample, *, int8: bool) -> _Found:
    """One model into a folder that is complete by itself."""
    config = runs.read_config(member)
    model = neural.load(member, devices.place("cpu", "fp32"), fast_attention=False)
    definition = getattr(model.tokenizer, "backend_tokenizer", None)
    if definition is None:
        raise InputError(
            "the run's tokenizer is written in Python and has no tokenizer.json, which an export needs",
            where=str(member),
            hint="Train with an encoder that has a fast tokenizer.",
        )
    target.mkdir(parents=True, exist_ok=True)
    _copy_artifacts(member, target)
    files.write_text(target / TOKENIZER, definition.to_str())
    told = {**exported.export_settings(model.packing, model.pad_token_id), "precision": "fp32", "versions": _versions()}
    _write_config(target, config, told)
    weights = sum(p.numel() * p.element_size() for p in model.module.parameters())
    _write_graph(model, target / GRAPH, apart=weights > ONE_FILE_BYTES)
    twin = exported.load(target)
    difference = _compared(model, twin, sample, member)
    if not int8:
        return _Found(difference, _size(target))
    before = metrics.softmax(twin.logits(sample.battles)[0])
    del model, twin
    _quantise(target, apart=weights > ONE_FILE_BYTES)
    _write_config(target, config, {**told, "precision": "int8"})
    after = metrics.softmax(exported.load(target).logits(sample.battles)[0])
    return _Found(difference, _size(target), before, after)


class _Graph(nn.Module):
    """A model as the graph has it: inputs ``[sequences, n, ...]``, logits ``[orders, n, 3]``.

    An architecture that reads the answers apart gives both orders, which cost it nothing.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        spans: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "spans": spans,
            "token_type_ids": token_type_ids,
        }
        inputs: dict[str, Any] = {name: one.flatten(0, 1) for name, one in given.items() if one is not None}
        orders = 1 + self.module.input_format.encodes_answers_separately
        if orders == 2:
            inputs["both_orders"] = True
        logits: Tensor = self.module(**inputs).unflatten(0, (orders, -1))
        return logits


def _write_graph(model: neural.NeuralModel, path: Path, *, apart: bool) -> None:
    """Have torch export the model; ``apart`` puts the weights into a file of their own."""
    shape = (len(model.input_format.sequences), TRACED_BATTLES, TRACED_LENGTH)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.long)
    mask[:, 0, TRACED_LENGTH // 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if not model.input_format.encodes_answers_separately:
        inputs["spans"] = torch.tensor([[1, 3], [4, 6], [7, 9]]).expand(shape[0], shape[1], 3, 2).contiguous()
    if model.packing.template.last_type is not None:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    open_size = torch.export.Dim.DYNAMIC
    shapes = {name: {1: open_size} if name == "spans" else {1: open_size, 2: open_size} for name in inputs}
    try:
        with _quiet():
            from onnx_ir.passes.common import ClearMetadataAndDocStringPass

            program = torch.onnx.export(
                _Graph(model.module).eval(),
                (),
                kwargs=inputs,
                dynamo=True,
                dynamic_shapes=shapes,
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None
            ClearMetadataAndDocStringPass()(program.model)  # where on this machine each operation's code lies
            program.save(path, external_data=apart)
    except (MemoryError, OSError):
        raise
    except Exception as error:
        raise ModelError(
            f"the encoder cannot be exported to ONNX: {one_line(error.__cause__ or error)}",
            hint="Predict with the run itself.",
        ) from error


def _compared(model: neural.NeuralModel, twin: exported.ExportedModel, sample: Sample, member: Path) -> float:
    """By how much a probability of the graph differs from torch's at most.

    Raises
    ------
    ModelError
        If that is too much.
    """
    battles = _of_all_lengths(sample.battles, COMPARED)
    wanted, found = (_probabilities(one, battles) for one in (model, twin))
    alone = _of_all_lengths(battles, ALONE)
    singly = np.concatenate([_probabilities(twin, alone.slice(row, 1)) for row in range(alone.num_rows)], axis=1)
    together, apart = np.abs(found - wanted).max(), np.abs(singly - _probabilities(model, alone)).max()
    largest = float(np.maximum(together, apart))  # which is no number where one of them is none
    if not largest <= LARGEST_DIFFERENCE:
        raise ModelError(
            f"the export does not predict what the run predicts: a probability differs by {largest:.2g} "
            f"(at most {LARGEST_DIFFERENCE:g} is rounding); nothing was kept",
            where=str(member),
            hint="Predict with the run itself.",
        )
    return largest


def _probabilities(model: Any, battles: pa.RecordBatch) -> NDArray[np.float64]:
    """In both orders, shape ``[2, n, 3]``."""
    return np.stack([metrics.softmax(logits) for logits in model.logits(battles, swap_average=True)])


def _of_all_lengths(battles: pa.RecordBatch, count: int) -> pa.RecordBatch:
    """At most ``count`` battles, from the shortest to the longest."""
    lengths = np.sum([[len(text) for text in texts_of(battles.column(name))] for name in TEXT_FIELDS], axis=0)
    chosen = np.linspace(0, len(lengths) - 1, min(count, len(lengths))).round().astype(np.int64)
    return battles.take(pa.array(np.argsort(lengths, kind="stable")[chosen]))


def _quantise(target: Path, *, apart: bool) -> None:
    """Replace a folder's graph by the same with int8 matrices.

    Raises
    ------
    ModelError
        If the quantiser cannot.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        with _quiet():
            model = onnx.load(target / GRAPH)  # weights beside it included
            del model.graph.value_info[:]  # quantisers before 1.24 turn matrices around and then trip over their shapes
            for name in (GRAPH, exported.WEIGHTS):
                (target / name).unlink(missing_ok=True)
            # A scale for every column costs nothing and was measured to halve the change. Seven bits, because a
            # processor without VNNI saturates when it sums products of eight.
            quantize_dynamic(
                model,
                target / GRAPH,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                use_external_data_format=apart,
            )
    except (MemoryError, OSError):
        raise
    except Exception as error:
        raise ModelError(
            f"ONNX Runtime cannot quantise the model: {one_line(error)}",
            hint="Export it without --int8.",
        ) from error


def _together(folder: Path, found: Sequence[_Found], samples: Sequence[Sample], *, int8: bool) -> ExportResult:
    loss = None
    if int8:
        before = np.concatenate([one.fp32 for one in found if one.fp32 is not None])
        after = np.concatenate([one.int8 for one in found if one.int8 is not None])
        labels = [sample.labels for sample in samples if sample.labels is not None]
        known = np.concatenate(labels) if len(labels) == len(samples) else None
        loss = Quantised(
            battles=len(before),
            sample=samples[0].name,
            largest_change=float(np.abs(after - before).max()),
            log_loss_fp32=None if known is None else metrics.log_loss(before, known),
            log_loss_int8=None if known is None else metrics.log_loss(after, known),
        )
    return ExportResult(
        folder=folder,
        precision="int8" if int8 else "fp32",
        models=len(found),
        compared=sum(min(COMPARED, sample.battles.num_rows) for sample in samples),
        sample=samples[0].name,
        largest_difference=max(one.difference for one in found),
        bytes=sum(one.size for one in found),
        int8=loss,
    )


def _described(made: ExportResult) -> str:
    """For the card."""
    models = "" if made.models == 1 else f" ({made.models} models, one for each fold)"
    told = (
        f"ONNX Runtime computes this model{models}, without torch. Before anything was quantised, its probabilities "
        f"differed from torch's by at most {made.largest_difference:.1e} on {made.compared:,} {made.sample} in both "
        "orders of the answers."
    )
    if made.int8 is None:
        return told
    return f"{told}\n\nIts matrices are quantised to int8, dynamically. What that costs: {made.int8}."


def _copy_artifacts(source: Path, target: Path) -> None:
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _write_config(target: Path, config: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    files.write_text(target / runs.CONFIG, json.dumps({**config, "export": dict(told)}, indent=2) + "\n")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "tokenizers", *NEEDED)}


def _size(target: Path) -> int:
    return sum((target / name).stat().st_size for name in (GRAPH, exported.WEIGHTS) if (target / name).is_file())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's and the quantiser's advice off the user's terminal, and out of the results."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
