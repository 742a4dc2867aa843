"""A model exported to ONNX, computed by ONNX Runtime: neither torch nor transformers is imported.

A folder holds ``model.onnx``, ``tokenizer.json`` and a run's ``config.json``, whose entry ``export`` has what the graph
has not: the special tokens and the budget that sequences are made with. :mod:`prefcli.exporting.onnx` writes it.

The graph is an untrusted file: operators are ONNX Runtime's own (no library of custom ones is ever registered), and
weights outside the graph must be in one file of a fixed name beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcli.errors import InputError, ModelError, PrefcliError, is_out_of_memory, one_line
from prefcli.models.batches import CPU_TOKENS, AnswerScores, BatchedModel, Pass
from prefcli.models.conversation import ConversationTemplate
from prefcli.models.packing import (
    INPUT_FORMATS,
    ConversationPacking,
    InputFormat,
    Packing,
    SequenceTemplate,
    Template,
)  # fmt: skip
from prefcli.models.tokens import TokenisedBattles
from prefcli.outcomes import OUTCOMES, SWAPPED

FORMAT = 1
GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
"""The graph, and its weights where both would be too large for one file."""
TOKENIZER = "tokenizer.json"
OUTPUT = "logits"
INPUTS = ("input_ids", "attention_mask", "spans", "token_type_ids")
"""What a graph may ask for, with the shape ``[sequences, battles, ...]``; of a reward model ``[sequences, ...]``."""

SPIN_MICROSECONDS = "2000"
DAMAGED = "Export the run again."


class FastTokenizer:
    """``tokenizer.json`` by the `tokenizers` library alone, called as :func:`.tokens.token_ids` does."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        """Token ids of each text, without special tokens."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return {"input_ids": [encoding.ids for encoding in encoded]}


class ExportedModel(BatchedModel):
    """Battles in, logits out, computed by a session of ONNX Runtime."""

    def __init__(
        self, session: Any, input_format: InputFormat, tokenizer: Any, packing: Packing, pad_token_id: int
    ) -> None:
        super().__init__(input_format, tokenizer, packing, pad_token_id, CPU_TOKENS)
        self.session = session
        self._input_names = [node.name for node in session.get_inputs()]
        if not set(self._input_names) <= set(INPUTS) or [node.name for node in session.get_outputs()] != [OUTPUT]:
            raise ValueError("the graph's inputs and outputs are not those of an exported run")

    def inputs(self, battles: TokenisedBattles, rows: NDArray[np.integer], swapped: bool = False) -> dict[str, Any]:
        arrays, sequences = self.arrays(battles, rows, swapped), len(self.input_format.sequences)
        # Rows [sequences * n, ...] as [sequences, n, ...], so that the number of battles is one dynamic axis.
        return {name: arrays[name].reshape(sequences, -1, *arrays[name].shape[1:]) for name in self._input_names}

    def compute(self, prepared: Pass) -> NDArray[np.float64]:
        output = self.run({name: prepared.inputs[name] for name in self._input_names})
        orders = len(prepared.orders)
        if output.ndim != 3 or len(output) < orders or output.shape[1:] != (len(prepared.rows), len(OUTCOMES)):
            raise _wrong_shape(output)
        return output[:orders].reshape(-1, len(OUTCOMES))

    def run(self, inputs: dict[str, Any]) -> NDArray[np.float64]:
        """The graph's output."""
        try:
            (output,) = self.session.run([OUTPUT], inputs)
        except Exception as error:
            if is_out_of_memory(error) or "alloc" in str(error).lower():
                raise MemoryError(str(error)) from None
            raise ModelError(f"ONNX Runtime cannot compute the model: {one_line(error)}", hint=DAMAGED) from None
        return np.asarray(output, dtype=np.float64)


class ExportedReward(AnswerScores, ExportedModel):
    """A reward model whose graph gives each sequence its reward and the logarithm of ``nu``, ``[sequences, 2]``.

    ``tie_log_nu`` is that logarithm where it is a constant, else None.
    """

    def __init__(self, *arguments: Any, tie_log_nu: float | None) -> None:
        super().__init__(*arguments)
        self.tie_log_nu = tie_log_nu

    def inputs(self, battles: TokenisedBattles, rows: NDArray[np.integer], swapped: bool = False) -> dict[str, Any]:
        return self.arrays(battles, rows, swapped)

    def compute(self, prepared: Pass) -> NDArray[np.float64]:
        scores = self.run({name: prepared.inputs[name] for name in self._input_names})
        if scores.shape != (len(prepared.inputs["input_ids"]), 2):
            raise _wrong_shape(scores)
        (a, b), ties = scores[prepared.inputs["pairs"]].transpose(2, 1, 0)
        logits = np.stack([a, b, (a + b) / 2 + ties.mean(axis=0)], axis=-1)
        return np.concatenate([logits, logits[:, list(SWAPPED)]]) if len(prepared.orders) == 2 else logits


def _wrong_shape(output: NDArray[np.float64]) -> ModelError:
    return ModelError(f"the exported model returns numbers of shape {list(output.shape)}, not logits", hint=DAMAGED)


def export_settings(packing: Packing, pad_token_id: int) -> dict[str, Any]:
    """What a folder must hold beside the graph to make the same sequences, as JSON."""
    cut = {"max_length": packing.max_length, "truncation": packing.truncation, "mark": packing.mark.tolist()}
    settings = {"format": FORMAT, "padding": pad_token_id}
    if packing.conversation is not None:
        return {**settings, "packing": {**cut, "conversation": packing.conversation.to_json()}}
    template = packing.template

    def as_json(sequence: SequenceTemplate) -> dict[str, Any]:
        return {"leads": sequence.prefixes, "suffix": sequence.suffix}

    return {
        **settings,
        "packing": {
            **cut,
            "pair": as_json(template.pair),
            "both": as_json(template.both),
            "last_type": template.last_type,
        },
    }


def _load_packing(settings: dict[str, Any]) -> Packing:
    """The packing in :func:`export_settings`."""

    def sequence(name: str) -> SequenceTemplate:
        prefixes = tuple(tuple(map(int, prefix)) for prefix in settings[name]["leads"])
        return SequenceTemplate(prefixes, tuple(map(int, settings[name]["suffix"])))

    cut = (int(settings["max_length"]), str(settings["truncation"]), np.array(settings["mark"], dtype=np.int32))
    if "conversation" in settings:
        return ConversationPacking(ConversationTemplate.from_json(settings["conversation"]), *cut)
    last_type = None if settings["last_type"] is None else int(settings["last_type"])
    return Packing(Template(sequence("pair"), sequence("both"), last_type), *cut)


def load(folder: Path, *, device: str = "auto", precision: str = "auto") -> ExportedModel:
    """The model in the folder of an export or of one of its folds.

    It computes on the CPU, in the precision of the export.

    Raises
    ------
    InputError
        If another device or precision is asked for.
    ModelError
        If the folder is incomplete, damaged or leads elsewhere, or ONNX Runtime is not installed.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings = config["export"]
        if settings["format"] > FORMAT:
            raise ModelError(
                "the export was written by a newer prefcli", where=str(folder), hint="Upgrade: pip install -U prefcli."
            )
        _check_request(folder, device, precision, str(settings["precision"]))
        input_format = INPUT_FORMATS[config["options"]["architecture"]]
        session, tokenizer = open_session(folder), FastTokenizer(folder / TOKENIZER)
        packing, padding = _load_packing(settings["packing"]), int(settings["padding"])
        if input_format.scores_sequences:
            log_nu = settings["tie_log_nu"]
            return ExportedReward(
                session, input_format, tokenizer, packing, padding, tie_log_nu=None if log_nu is None else float(log_nu)
            )
        return ExportedModel(session, input_format, tokenizer, packing, padding)
    except (MemoryError, PrefcliError):
        raise
    except Exception as error:  # untrusted folder: any library error
        if is_out_of_memory(error):
            raise MemoryError(one_line(error)) from None
        raise ModelError(f"the export cannot be loaded: {one_line(error)}", where=str(folder), hint=DAMAGED) from None


def open_session(folder: Path) -> Any:
    """ONNX Runtime's session of a folder's graph, on the CPU.

    Raises
    ------
    ModelError
        If there is none that can be opened.
    """
    import onnx
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    graph = folder / GRAPH
    if not graph.is_file():
        raise ModelError(f"the export has no {GRAPH}", where=str(folder), hint=DAMAGED)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are exceptions
    threads = os.environ.get("OMP_NUM_THREADS", "")  # as torch reads it
    options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0  # 0 lets ONNX Runtime decide
    options.enable_mem_pattern = False  # no two batches have the same shape
    # Waiting threads sleep after a moment, as torch's do here: see docs/architecture.md on spinning.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    try:
        _check_weight_files(onnx.load(graph, load_external_data=False), folder)
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except (MemoryError, PrefcliError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(one_line(error)) from None
        what = f"{GRAPH} is damaged, or no model that ONNX Runtime computes: {one_line(error)}"
        raise ModelError(what, where=str(folder), hint=DAMAGED) from None


def _check_request(folder: Path, device: str, precision: str, exported_precision: str) -> None:
    for flag, value, possible, what in (
        ("--device", device, "cpu", "an exported model computes on the CPU"),
        ("--precision", precision, exported_precision, f"this model was exported in {exported_precision}"),
    ):
        if value not in ("auto", possible):
            hint = f"Leave {flag} out, or predict with the run itself."
            raise InputError(f"{flag} {value}: {what}", where=str(folder), hint=hint)


def _check_weight_files(model: Any, folder: Path) -> None:
    """Raise ModelError unless weights outside the graph are in :data:`WEIGHTS` beside it.

    Older releases of ONNX Runtime follow any name.
    """
    names = {entry.value for tensor in _tensors(model) for entry in tensor.external_data if entry.key == "location"}
    if others := sorted(names - {WEIGHTS}):
        raise ModelError(
            f"{GRAPH} names another file for its weights: {others[0]!r}",
            where=str(folder),
            hint="Do not use this model unless you know why it does this: nothing in it was loaded.",
        )
    if names and (folder / WEIGHTS).is_symlink():
        raise ModelError(f"{WEIGHTS} is a link to another file", where=str(folder), hint=DAMAGED)


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor of a model, those in attributes, subgraphs and functions too."""
    parts = [model.graph, *model.functions]
    while parts:
        part = parts.pop()
        sparse: list[Any] = []
        if hasattr(part, "initializer"):
            yield from part.initializer
            sparse = [*part.sparse_initializer]
        for attribute in (attribute for node in part.node for attribute in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            sparse += (attribute.sparse_tensor, *attribute.sparse_tensors)
            parts += (attribute.g, *attribute.graphs)
        for tensor in sparse:
            yield from (tensor.values, tensor.indices)
