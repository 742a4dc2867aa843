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
from prefcli.models.batches import CPU_TOKENS, BatchedModel, Pass
from prefcli.models.packing import INPUT_FORMATS, InputFormat, Packing, SequenceTemplate, Template
from prefcli.models.tokens import TokenisedBattles
from prefcli.outcomes import OUTCOMES

FORMAT = 1
GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
"""The graph, and its weights where both would be too large for one file."""
TOKENIZER = "tokenizer.json"
OUTPUT = "logits"
INPUTS = ("input_ids", "attention_mask", "spans", "token_type_ids")
"""What a graph may ask for, each with the shape ``[sequences, battles, ...]``."""

SPIN_MICROSECONDS = "2000"
INSTALL = 'Install it: pip install "prefcli[onnx]".'
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
        try:
            (output,) = self.session.run([OUTPUT], prepared.inputs)
        except Exception as error:
            if is_out_of_memory(error) or "alloc" in str(error).lower():
                raise MemoryError(str(error)) from None
            raise ModelError(f"ONNX Runtime cannot compute the model: {one_line(error)}", hint=DAMAGED) from None
        orders = len(prepared.orders)
        if output.ndim != 3 or len(output) < orders or output.shape[1:] != (len(prepared.rows), len(OUTCOMES)):
            raise ModelError(
                f"the exported model returns numbers of shape {list(output.shape)}, not logits", hint=DAMAGED
            )
        logits: NDArray[np.float64] = output[:orders].reshape(-1, len(OUTCOMES)).astype(np.float64)
        return logits


def export_settings(packing: Packing, pad_token_id: int) -> dict[str, Any]:
    """What a folder must hold beside the graph to make the same sequences, as JSON."""
    template = packing.template

    def as_json(sequence: SequenceTemplate) -> dict[str, Any]:
        return {"leads": sequence.prefixes, "suffix": sequence.suffix}

    return {
        "format": FORMAT,
        "padding": pad_token_id,
        "packing": {
            "max_length": packing.max_length,
            "truncation": packing.truncation,
            "mark": packing.mark.tolist(),
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

    last_type = None if settings["last_type"] is None else int(settings["last_type"])
    mark = np.array(settings["mark"], dtype=np.int32)
    template = Template(sequence("pair"), sequence("both"), last_type)
    return Packing(template, int(settings["max_length"]), str(settings["truncation"]), mark)


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
        packing = _load_packing(settings["packing"])
        return ExportedModel(session, input_format, tokenizer, packing, int(settings["padding"]))
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
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise ModelError("an exported model needs onnx and onnxruntime", where=str(folder), hint=INSTALL) from None
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
