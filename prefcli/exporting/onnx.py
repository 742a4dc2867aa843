"""A run exported to ONNX: a folder that predicts the same without torch or transformers.

torch's exporter makes the graph from transformers' own attention, for any number of battles of any length. The graph is
then loaded as for a prediction and compared with torch, battle by battle, in both orders and one at a time; a folder
that does not match is removed. With ``int8`` the matrices are quantised (ONNX Runtime's dynamic quantisation), and how
the predictions change is measured and written into the card.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefcli import metrics
from prefcli.battles import SOURCE, TEXT_FIELDS, texts_of
from prefcli.compute import devices
from prefcli.errors import InputError, ModelError, is_out_of_memory, one_line
from prefcli.models import exported, neural
from prefcli.models.exported import GRAPH, OUTPUT, TOKENIZER
from prefcli.storage import card, files, runs

MAX_DIFFERENCE = 1e-4
"""Allowed difference between a probability of ONNX Runtime and torch's; of rewards as a share of the largest."""
COMPARED_BATTLES = 32
"""Battles that are compared with torch, from the shortest to the longest."""
SINGLE_BATTLES = 3
"""Battles that are also computed one at a time."""
MAX_GRAPH_BYTES = 1_900_000_000
"""Larger weights are saved in a separate file: the graph's format is limited to 2 GB."""
TRACED_BATTLES, TRACED_LENGTH, TRACED_ID = 3, 11, 0
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Sample:
    """Battles to compare predictions on: a few hundred at most, their text normalised as for the run."""

    battles: pa.RecordBatch
    labels: NDArray[np.int64] | None
    """Shape ``[n]``; None if the battles are made up, so that a loss would mean nothing."""

    @property
    def name(self) -> str:
        return "made-up battles" if self.labels is None else "held-out battles"


@dataclass(frozen=True)
class QuantisationError:
    """How int8 changes the predictions of the same battles. The log losses are None if the battles are made up."""

    battles: int
    sample: str
    largest_change: float
    """Of any probability, compared with float32."""
    log_loss_fp32: float | None
    log_loss_int8: float | None

    def __str__(self) -> str:
        loss = "log loss not measured: the run's held-out battles were not found"
        if self.log_loss_fp32 is not None and self.log_loss_int8 is not None:
            change = self.log_loss_int8 - self.log_loss_fp32
            losses = f"{self.log_loss_fp32:.4f} in fp32, {self.log_loss_int8:.4f} in int8"
            loss = f"log loss {losses} ({metrics.signed(change)})"
        return f"{loss}; largest change of a probability {self.largest_change:.4f} ({self.battles:,} {self.sample})"


@dataclass(frozen=True)
class ExportResult:
    """What :func:`export` made."""

    folder: Path
    precision: str
    """``fp32`` or ``int8``."""
    models: int
    """One, or one per fold."""
    compared: int
    """How many battles were compared with torch, before any quantisation."""
    sample: str
    """Which battles."""
    largest_difference: float
    """Of a probability from torch's."""
    bytes: int
    """Of all graphs."""
    int8: QuantisationError | None


def export(run: Path, folder: Path, samples: Sequence[Sample], *, int8: bool = False) -> ExportResult:
    """Export a verified neural run to ``folder``, replacing an existing one, or leave nothing.

    There is one of the ``samples`` for each of the run's models. With ``int8`` their matrices are quantised.

    Raises
    ------
    ModelError
        If the run's encoder cannot be exported, or the export's predictions differ.
    """
    with files.atomic(folder) as temporary:
        models = [
            _export_model(member, temporary / member.relative_to(run), sample, int8=int8)
            for member, sample in zip(runs.members(run), samples, strict=True)
        ]
        result = ExportResult(
            folder=folder,
            precision="int8" if int8 else "fp32",
            models=len(models),
            compared=sum(min(COMPARED_BATTLES, sample.battles.num_rows) for sample in samples),
            sample=samples[0].name,
            largest_difference=max(model.difference for model in models),
            bytes=sum(model.size for model in models),
            int8=_quantisation_error(models, samples) if int8 else None,
        )
        if run not in runs.members(run):
            _copy_run(run, temporary, {"format": exported.FORMAT, "precision": result.precision})
        is_reward = runs.read_config(run)["options"]["architecture"] == "reward"
        for member in runs.all_folders(temporary):
            description = _description(result, is_reward=is_reward)
            card.add_export(member, f"{description}\n\n{models[0].graph}", folder.name)
            runs.seal(member, trained=True)
    return result


@dataclass(frozen=True)
class _ExportedModel:
    """One model: its largest difference from torch, its size, and its predictions in fp32 and int8 if quantised."""

    difference: float
    size: int
    graph: str
    """Its inputs and output, as a table in Markdown."""
    predictions: list[NDArray[np.float64]]


def _export_model(member: Path, target: Path, sample: Sample, *, int8: bool) -> _ExportedModel:
    """Export one model into a folder of its own."""
    model = neural.load(member, devices.place("cpu", "fp32"), fast_attention=False)
    if not model.traits.ignores_padding:
        raise InputError(
            "padding changes the results of the run's encoder, and an exported model computes padded batches",
            where=str(member),
            hint="Predict with the run itself.",
        )
    definition = getattr(model.tokenizer, "backend_tokenizer", None)
    if definition is None:
        raise InputError(
            "the run's tokenizer is written in Python and has no tokenizer.json, which an export needs",
            where=str(member),
            hint="Train with an encoder that has a fast tokenizer.",
        )
    target.mkdir(parents=True, exist_ok=True)
    settings = {
        **exported.export_settings(model.packing, model.pad_token_id),
        **({"tie_log_nu": model.tie_log_nu} if isinstance(model, neural.RewardModel) else {}),
        "precision": "int8" if int8 else "fp32",
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", *PACKAGES)},
    }
    _copy_run(member, target, settings)
    files.write_text(target / TOKENIZER, definition.to_str())
    external = sum(p.numel() * p.element_size() for p in model.module.parameters()) > MAX_GRAPH_BYTES
    _write_graph(model, target / GRAPH, external=external)
    onnx_model = exported.load(target)
    difference, graph = _compare(model, onnx_model, sample, member), _describe_graph(onnx_model)
    predictions = []

    config = runs.read_config(member)
    sources, unseen = runs.sources_of(config), runs.unseen_outcomes(config)

    def predict(exported_model: exported.ExportedModel) -> NDArray[np.float64]:
        logits = exported_model.logits(sample.battles)[0]
        if sources is not None and sample.labels is not None:  # each as its source votes, as the run is validated
            has_names = SOURCE in sample.battles.schema.names
            names = sample.battles.column(SOURCE).to_pylist() if has_names else [None] * len(logits)
            logits = logits + sources.held_out_bases(names, sample.labels)
        logits = metrics.with_unseen(logits, unseen)
        if sample.labels is None:
            return metrics.softmax(logits)
        return metrics.held_out_probabilities(logits, sample.labels, unseen)

    if int8:
        predictions = [predict(onnx_model)]
        del model, onnx_model  # their memory may be needed
        _quantise(target, external=external)
        predictions += [predict(exported.load(target))]
    size = sum((target / name).stat().st_size for name in (GRAPH, exported.WEIGHTS) if (target / name).is_file())
    return _ExportedModel(difference, size, graph, predictions)


def _copy_run(source: Path, target: Path, settings: Mapping[str, Any]) -> None:
    """Copy what an export shares with its run, with ``settings`` added to the configuration."""
    for name in (runs.VALIDATION, runs.TRAINING_PROMPTS, runs.CARD, runs.CURVES):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    config = {**runs.read_config(source), "export": dict(settings)}
    runs.save_config(target, config)


class _Graph(nn.Module):
    """A model with the graph's shapes: inputs ``[sequences, n, ...]``, logits ``[orders, n, 3]``.

    An architecture that reads the answers separately gives both orders, at no cost.
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
        arrays = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "spans": spans,
            "token_type_ids": token_type_ids,
        }
        inputs: dict[str, Any] = {name: array.flatten(0, 1) for name, array in arrays.items() if array is not None}
        orders = 1 + self.module.input_format.encodes_answers_separately
        if orders == 2:
            inputs["both_orders"] = True
        logits: Tensor = self.module(**inputs).unflatten(0, (orders, -1))
        return logits


class _RewardGraph(nn.Module):
    """A reward model with the graph's shapes: inputs ``[sequences, ...]``, output ``[sequences, 2]``.

    The columns are the rewards and the logarithms of ``nu``.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: Tensor, attention_mask: Tensor, spans: Tensor | None = None) -> Tensor:
        rewards, prompts = self.module.rewards({"input_ids": input_ids, "attention_mask": attention_mask}, spans)
        return torch.stack([rewards, self.module.tie(prompts).expand_as(rewards)], dim=-1)


def _write_graph(model: neural.NeuralModel, path: Path, *, external: bool) -> None:
    """Export the model by torch, its weights in a separate file if ``external``."""
    is_reward = isinstance(model, neural.RewardModel)
    shape = (TRACED_BATTLES,) if is_reward else (len(model.input_format.sequences), TRACED_BATTLES)
    ids = torch.full((*shape, TRACED_LENGTH), TRACED_ID + (model.pad_token_id == TRACED_ID))
    mask = torch.ones_like(ids)
    mask[..., 0, TRACED_LENGTH // 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    needs_prompt = isinstance(model, neural.RewardModel) and model.tie_log_nu is None
    if needs_prompt or not model.input_format.encodes_answers_separately:
        fields = torch.tensor([[1, 3], [4, 6], [7, 9]])[: 2 if is_reward else 3]
        inputs["spans"] = fields.expand(*shape, *fields.shape).contiguous()
    if model.packing.last_type is not None:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    dynamic, axis = torch.export.Dim.DYNAMIC, len(shape) - 1
    shapes = {name: {axis: dynamic} if name == "spans" else {axis: dynamic, axis + 1: dynamic} for name in inputs}
    with _quietly("the encoder cannot be exported to ONNX", "Predict with the run itself."):
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass

        program = torch.onnx.export(
            (_RewardGraph if is_reward else _Graph)(model.module).eval(),
            (),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=shapes,
            output_names=[OUTPUT],
            verbose=False,
        )
        assert program is not None
        ClearMetadataAndDocStringPass()(program.model)  # paths of this machine
        program.save(path, external_data=external)


def _compare(model: neural.NeuralModel, onnx_model: exported.ExportedModel, sample: Sample, member: Path) -> float:
    """The largest difference of a probability (or reward) of the graph from torch's, at most :data:`MAX_DIFFERENCE`."""
    battles = _spread_over_lengths(sample.battles, COMPARED_BATTLES)
    batched = _probabilities(onnx_model, battles) - _probabilities(model, battles)
    few = _spread_over_lengths(battles, SINGLE_BATTLES)
    one_by_one = [_probabilities(onnx_model, few.slice(row, 1)) for row in range(few.num_rows)]
    single = np.concatenate(one_by_one, axis=1) - _probabilities(model, few)
    largest, what = float(np.abs(np.concatenate([batched, single], axis=1)).max()), "a probability"
    if isinstance(model, neural.RewardModel):  # probabilities do not show what all rewards have in common
        ours, theirs = (each.logits(battles)[0][:, :2] for each in (model, onnx_model))
        difference = float(np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max()))
        if not difference <= largest:
            largest, what = difference, "a reward"
    if not largest <= MAX_DIFFERENCE:  # also if it is NaN
        raise ModelError(
            f"the export does not predict what the run predicts: {what} differs by {largest:.2g} "
            f"(at most {MAX_DIFFERENCE:g} is rounding); nothing was kept",
            where=str(member),
            hint="Predict with the run itself.",
        )
    return largest


def _probabilities(model: Any, battles: pa.RecordBatch) -> NDArray[np.float64]:
    """In both orders, shape ``[2, n, 3]``."""
    return np.stack([metrics.softmax(logits) for logits in model.logits(battles, swap_average=True)])


def _spread_over_lengths(battles: pa.RecordBatch, count: int) -> pa.RecordBatch:
    """At most ``count`` battles, from the shortest to the longest."""
    lengths = np.sum([[len(text) for text in texts_of(battles.column(name))] for name in TEXT_FIELDS], axis=0)
    chosen = np.linspace(0, len(lengths) - 1, min(count, len(lengths))).round().astype(np.int64)
    return battles.take(pa.array(np.argsort(lengths, kind="stable")[chosen]))


def _quantise(target: Path, *, external: bool) -> None:
    """Replace a folder's graph by one with int8 matrices."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quietly("ONNX Runtime cannot quantise the model", "Export it without --int8."):
        model = onnx.load(target / GRAPH)  # with external weights
        del model.graph.value_info[:]  # before 1.24, onnxruntime transposes matrices and fails on their old shapes
        for name in (GRAPH, exported.WEIGHTS):
            (target / name).unlink(missing_ok=True)
        # A scale for every column costs nothing and was measured to halve the change. 7 bits, because sums of
        # 8-bit products saturate on processors without VNNI.
        quantize_dynamic(
            model,
            target / GRAPH,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            use_external_data_format=external,
        )


def _quantisation_error(models: Sequence[_ExportedModel], samples: Sequence[Sample]) -> QuantisationError:
    fp32, int8 = (np.concatenate(parts) for parts in zip(*(model.predictions for model in models), strict=True))
    labels = [sample.labels for sample in samples if sample.labels is not None]
    return QuantisationError(
        battles=len(fp32),
        sample=samples[0].name,
        largest_change=float(np.abs(int8 - fp32).max()),
        log_loss_fp32=metrics.log_loss(fp32, np.concatenate(labels)) if labels else None,
        log_loss_int8=metrics.log_loss(int8, np.concatenate(labels)) if labels else None,
    )


def _description(result: ExportResult, *, is_reward: bool) -> str:
    """For the card, in Markdown."""
    models = "" if result.models == 1 else f" ({result.models} models, one for each fold)"
    text = (
        f"ONNX Runtime computes this model{models}, without torch. Before any quantisation, its probabilities "
        f"differed from torch's by at most {result.largest_difference:.1e} on {result.compared:,} {result.sample} in "
        "both orders of the answers."
    )
    if is_reward:
        text += " transformers, peft and TRL load the run that it was made from, not this folder."
    return text if result.int8 is None else f"{text}\n\nIts matrices are quantised to int8, dynamically: {result.int8}."


def _describe_graph(model: exported.ExportedModel) -> str:
    """The graph's inputs and output as a table in Markdown."""
    dynamic = ("sequences" if model.input_format.scores_sequences else "battles", "tokens")
    lines = ["| | name | type | shape |", "|---|---|---|---|"]
    nodes = [*(("input", node) for node in model.session.get_inputs()), ("output", model.session.get_outputs()[0])]
    for kind, node in nodes:
        names = iter(dynamic)
        shape = ", ".join(str(size) if isinstance(size, int) else next(names) for size in node.shape)
        lines.append(f"| {kind} | `{node.name}` | {node.type} | [{shape}] |")
    return "\n".join(lines)


@contextlib.contextmanager
def _quietly(problem: str, hint: str) -> Iterator[None]:
    """Suppress what the exporter and the quantiser print, log and warn of; their errors become a ModelError."""
    before, sink = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    except (MemoryError, OSError):
        raise
    except Exception as error:
        if is_out_of_memory(error.__cause__ or error):
            raise MemoryError(one_line(error)) from error
        raise ModelError(f"{problem}: {one_line(error.__cause__ or error)}", hint=hint) from error
    finally:
        logging.disable(before)
