"""A model exported to ONNX, computed by ONNX Runtime: neither torch nor transformers is imported.

A folder holds ``model.onnx``, ``tokenizer.json`` and a run's ``config.json`` whose entry ``export`` says what the graph
cannot: the special tokens and the budget that sequences are made with. :mod:`prefcli.exporting.onnx` writes it.

The graph is somebody else's data like any other: operators are ONNX Runtime's own (no library of custom ones is ever
registered), and weights beside the graph lie in one file of a fixed name in the same folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcli.errors import InputError, ModelError, PrefcliError, one_line
from prefcli.models.batches import CPU_TOKENS, BatchedModel, Pass
from prefcli.models.input_format import INPUT_FORMATS
from prefcli.models.packing import Frame, Packing, Template, TokenisedBattles
from prefcli.outcomes import OUTCOMES

FORMAT = 1
GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
"""The graph; beside it, where it would be too large for one file, its weights."""
TOKENIZER = "tokenizer.json"
OUTPUT = "logits"
INPUTS = ("input_ids", "attention_mask", "spans", "token_type_ids")
"""What a graph may ask for, each with the shape ``[sequences, battles, ...]``."""

SPIN_MICROSECONDS = "2000"
INSTALL = 'Install it: pip install "prefcli[onnx]".'
DAMAGED = "Export the run again."


class FastTokenizer:
    """``tokenizer.json`` by the `tokenizers` library alone, called as :func:`.packing.tokenise` does."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        """Token ids of each text, without special tokens."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return {"input_ids": [one.ids for one in encoded]}


class ExportedModel(BatchedModel):
    """Battles in, logits out; see :class:`~prefcli.models.batches.BatchedModel`.

    Parameters
    ----------
    session:
        ONNX Runtime's.
    reading, tokenizer, packing, padding:
        As the exported model's.
    """

    def __init__(self, session: Any, reading: Any, tokenizer: Any, packing: Packing, padding: int) -> None:
        super().__init__(reading, tokenizer, packing, padding, CPU_TOKENS)
        self.session = session
        self._wanted = [given.name for given in session.get_inputs()]
        if not set(self._wanted) <= set(INPUTS) or [given.name for given in session.get_outputs()] != [OUTPUT]:
            raise ValueError("the graph's inputs and outputs are not those of an exported run")

    def inputs(self, battles: TokenisedBattles, rows: NDArray[np.integer], swapped: bool = False) -> dict[str, Any]:
        arrays = self.arrays(battles, rows, swapped)
        return {name: by_sequence(arrays[name], self.reading.sequences) for name in self._wanted}

    def compute(self, prepared: Pass) -> NDArray[np.float64]:
        try:
            (found,) = self.session.run([OUTPUT], prepared.inputs)
        except Exception as error:
            if isinstance(error, MemoryError) or "alloc" in str(error).lower():
                raise MemoryError(str(error)) from None
            raise ModelError(f"ONNX Runtime cannot compute the model: {one_line(error)}", hint=DAMAGED) from None
        wanted = len(prepared.orders)
        if found.ndim != 3 or len(found) < wanted or found.shape[1:] != (len(prepared.rows), len(OUTCOMES)):
            raise ModelError(f"the exported model gives numbers of shape {list(found.shape)}, no logits", hint=DAMAGED)
        logits: NDArray[np.float64] = found[:wanted].reshape(-1, len(OUTCOMES)).astype(np.float64)
        return logits


def by_sequence(array: NDArray[np.int64], sequences: int) -> NDArray[np.int64]:
    """Rows ``[sequences * n, ...]`` as ``[sequences, n, ...]``: so a graph's number of battles is a size of its own."""
    return array.reshape(sequences, -1, *array.shape[1:])


def settings_of(packing: Packing, padding: int) -> dict[str, Any]:
    """What a folder must say beside the graph to make sequences as the model's own packing does, as JSON."""
    template = packing.template
    return {
        "format": FORMAT,
        "padding": padding,
        "packing": {
            "max_length": packing.max_length,
            "truncation": packing.truncation,
            "mark": packing.mark.tolist(),
            "pair": _told(template.pair),
            "both": _told(template.both),
            "last_type": template.last_type,
        },
    }


def _told(frame: Frame) -> dict[str, Any]:
    return {"leads": [list(lead) for lead in frame.leads], "suffix": list(frame.suffix)}


def _packing(told: dict[str, Any]) -> Packing:
    """The packing that :func:`settings_of` described."""

    def frame(name: str) -> Frame:
        leads = tuple(tuple(map(int, lead)) for lead in told[name]["leads"])
        return Frame(leads, tuple(map(int, told[name]["suffix"])))

    last_type = None if told["last_type"] is None else int(told["last_type"])
    mark = np.array(told["mark"], dtype=np.int32)
    template = Template(frame("pair"), frame("both"), last_type)
    return Packing(template, int(told["max_length"]), str(told["truncation"]), mark)


def load(folder: Path, *, device: str = "auto", precision: str = "auto") -> ExportedModel:
    """The model in an exported folder, by itself.

    Parameters
    ----------
    folder:
        Of the export, or of one of its folds.
    device, precision:
        As the user asked; an export computes on the CPU in the precision it was made in.

    Raises
    ------
    InputError
        If another device or precision is asked for.
    ModelError
        If the folder is incomplete, damaged or leads elsewhere, or ONNX Runtime is not installed.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        told = config["export"]
        if told["format"] > FORMAT:
            raise ModelError(
                "the export was written by a newer prefcli", where=str(folder), hint="Upgrade: pip install -U prefcli."
            )
        _refuse_other(folder, device, precision, str(told["precision"]))
        reading = INPUT_FORMATS[config["options"]["architecture"]]
        return ExportedModel(
            open_session(folder), reading, FastTokenizer(folder / TOKENIZER), _packing(told["packing"]),
            int(told["padding"]),
        )  # fmt: skip
    except (MemoryError, PrefcliError):
        raise
    except Exception as error:  # whatever a folder that somebody else wrote makes of it
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
    options.log_severity_level = 4  # what goes wrong is told by an exception
    options.intra_op_num_threads = _threads()
    options.enable_mem_pattern = False  # no two batches have the same shape
    # Threads that wait sleep after a moment, as torch's do here: see the architecture's notes on spinning.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    try:
        _refuse_files_elsewhere(onnx.load(graph, load_external_data=False), folder)
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except (MemoryError, PrefcliError):
        raise
    except Exception as error:
        raise ModelError(
            f"{GRAPH} is damaged, or no model that ONNX Runtime computes: {one_line(error)}",
            where=str(folder),
            hint=DAMAGED,
        ) from None


def _refuse_other(folder: Path, device: str, precision: str, made_in: str) -> None:
    if device not in ("auto", "cpu"):
        raise InputError(
            f"--device {device}: an exported model computes on the CPU",
            where=str(folder),
            hint="Leave --device out, or predict with the run itself.",
        )
    if precision not in ("auto", made_in):
        raise InputError(
            f"--precision {precision}: this model was exported in {made_in}",
            where=str(folder),
            hint="Leave --precision out, or predict with the run itself.",
        )


def _refuse_files_elsewhere(model: Any, folder: Path) -> None:
    """Weights outside of the graph lie in :data:`WEIGHTS` beside it, or nothing is opened.

    Older releases of ONNX Runtime follow any name.
    """
    named = {entry.value for one in _tensors(model) for entry in one.external_data if entry.key == "location"}
    if elsewhere := sorted(named - {WEIGHTS}):
        raise ModelError(
            f"{GRAPH} names another file for its weights: {elsewhere[0]!r}",
            where=str(folder),
            hint="Do not use this model unless you know why it is so: nothing of it was loaded.",
        )
    if named and (folder / WEIGHTS).is_symlink():
        raise ModelError(f"{WEIGHTS} is a link to another file", where=str(folder), hint=DAMAGED)


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor of a model, those in attributes, subgraphs and functions too."""
    parts = [model.graph, *model.functions]
    while parts:
        part = parts.pop()
        if hasattr(part, "initializer"):
            yield from part.initializer
            yield from _dense(part.sparse_initializer)
        for attribute in (attribute for node in part.node for attribute in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            yield from _dense((attribute.sparse_tensor, *attribute.sparse_tensors))
            parts += (attribute.g, *attribute.graphs)


def _dense(sparse: Any) -> Iterator[Any]:
    for one in sparse:
        yield from (one.values, one.indices)


def _threads() -> int:
    """As torch has it: what ``OMP_NUM_THREADS`` says; 0, which is left to ONNX Runtime, without it."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() else 0
