"""Trained runs in memory: battles in, probabilities out, as often as wanted. What :func:`prefcli.load` gives.

The same models, normalisations and calibration as ``prefcli predict``, without files: one battle, a table of battles,
or JSON lines answered one by one.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from prefcli import readers
from prefcli.battles import BATTLE_SCHEMA
from prefcli.compute import devices
from prefcli.errors import InputError, ModelError, one_line
from prefcli.options import PredictOptions
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.prediction import blending, inference
from prefcli.prediction.calibration import Calibration
from prefcli.readers.containers import MAX_ROW_BYTES
from prefcli.reporting import SILENT
from prefcli.storage import runs
from prefcli.text import normalise_batch

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Text = str | Sequence[str | None]
"""A text, or the turns of a conversation."""

LINES_AHEAD = 256
"""How many lines are read ahead of the model, and at most answered together."""
REMEMBERED_FITS = 256


class Probabilities(NamedTuple):
    """How probable it is that people prefer A, prefer B, or call it a tie; they sum to 1."""

    a: float
    b: float
    tie: float


class Predictor:
    """One run, or several that are blended. Made by :func:`prefcli.load`.

    Parameters
    ----------
    folders:
        Of the runs.
    options:
        How to predict; ``models``, ``activation``, ``limit`` and ``workers`` are not used.

    Raises
    ------
    InputError
        If an option does not fit the runs.
    ModelError
        If a run cannot be loaded.
    """

    def __init__(self, folders: Sequence[Path], options: PredictOptions) -> None:
        self.folders = tuple(folders)
        self._swap_average = options.swap_average
        self._calibrated = options.calibrated
        request = devices.DeviceRequest(options.device, options.precision)
        self._members = inference.open_runs(
            self.folders, request, fast_attention=options.fast_attention, encoder=options.encoder
        )
        self._fits: dict[frozenset[int], Calibration] = {}
        self._held_out: frozenset[int] = frozenset()
        if self._calibrated:
            try:
                held_out = [runs.read_validation(folder).keys.tolist() for folder in self.folders]
                self._held_out = frozenset(key for keys in held_out for key in keys)
            except ModelError:  # nothing was held out: nothing can be fitted
                self._calibrated = False

    @overload
    def predict(self, prompt: Text, response_a: Text, response_b: Text) -> Probabilities: ...

    @overload
    def predict(self, prompt: pd.DataFrame | pa.Table | Sequence[Mapping[str, Any]]) -> NDArray[np.float64]: ...

    def predict(self, prompt: Any, response_a: Any = None, response_b: Any = None) -> Any:
        """Probabilities of one battle, or of a table of battles.

        Parameters
        ----------
        prompt:
            The prompt: text, or its turns as a list. Or, as the only argument, a table of battles: a pandas DataFrame,
            a pyarrow Table, or a list of dictionaries, in any layout that prefcli reads from files. The temperature is
            then fitted without the table's prompts, as on the command line.
        response_a, response_b:
            The two answers, as the prompt.

        Returns
        -------
        For one battle :class:`Probabilities`; for a table an array ``[n, 3]``: A, B, tie.

        Raises
        ------
        InputError
            If the battles are not battles.
        """
        if response_a is None and response_b is None and not isinstance(prompt, str):
            batch = readers.battles_from(prompt)
            return self._mixed(self._predictions(batch), self._shared(batch))
        batch = _battle(prompt=prompt, response_a=response_a, response_b=response_b)
        return Probabilities(*self._mixed(self._predictions(batch), self._shared(batch))[0].tolist())

    def answers(self, lines: IO[bytes]) -> Iterator[list[Answer]]:
        """Answer JSON lines: each as soon as it is there, those that wait together.

        Parameters
        ----------
        lines:
            One battle a line, a JSON object in any layout that prefcli reads.

        Yields
        ------
        Answers in the order of the lines; a line that is no battle gets its error in its place.
        """
        for waiting in _arriving(lines):
            found = [_Line.of(number, line) for number, line in waiting]
            good = [line for line in found if line.batch is not None]
            if good:
                self._answer(good)
            yield [line.answer for line in found]

    def _answer(self, lines: Sequence[_Line]) -> None:
        import pyarrow as pa

        batch = pa.Table.from_batches([line.battles for line in lines]).combine_chunks().to_batches()[0]
        predictions = self._predictions(batch)
        for row, line in enumerate(lines):
            one = [prediction[row : row + 1] for prediction in predictions]
            (values,) = self._mixed(one, self._shared(line.battles)).tolist()
            line.answer = Answer({"id": line.name, **dict(zip(WINNER_COLUMNS, values, strict=True))}, False)

    def _predictions(self, batch: pa.RecordBatch) -> list[NDArray[np.float64]]:
        normalised = {text: normalise_batch(batch, text)[0] for text in {member.text for member in self._members}}
        return [
            inference.predict_batch(member, normalised[member.text], swap_average=self._swap_average)
            for member in self._members
        ]

    def _shared(self, batch: pa.RecordBatch) -> frozenset[int]:
        """The prompts of a batch on which the runs were validated: nothing may be fitted on those."""
        return self._held_out.intersection(batch.column("prompt_key").to_pylist())

    def _mixed(self, predictions: list[NDArray[np.float64]], without: frozenset[int]) -> NDArray[np.float64]:
        if not self._calibrated:
            return Calibration.equal(len(self._members)).apply(predictions)
        if without not in self._fits:
            if len(self._fits) > REMEMBERED_FITS:
                self._fits.clear()
            keys = np.array(sorted(without), dtype=np.int64)
            self._fits[without] = blending.from_validation(self.folders, keys, SILENT)
        return self._fits[without].apply(predictions)


@dataclass(frozen=True)
class Answer:
    """What is answered to a line: an object for JSON, and whether it is an error."""

    value: dict[str, Any]
    failed: bool


@dataclass
class _Line:
    """A line on its way to its answer."""

    name: str
    batch: pa.RecordBatch | None
    answer: Answer

    @property
    def battles(self) -> pa.RecordBatch:
        assert self.batch is not None
        return self.batch

    @staticmethod
    def of(number: int, line: bytes) -> _Line:
        name: str = str(number)
        try:
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise InputError(f"broken JSON: {one_line(error)}") from None
            if not isinstance(value, dict):
                raise InputError("expected a JSON object")
            told = value.get("id")
            name = str(told) if isinstance(told, (str, int, float)) else name
            batch = readers.battles_from([value], name=f"line {number}")
            plain = batch.select(BATTLE_SCHEMA.names)  # one line may tell more than another
            return _Line(batch.column("id")[0].as_py() if told is not None else name, plain, Answer({}, False))
        except InputError as error:
            return _Line(name, None, Answer({"id": name, "line": number, "error": error.what}, True))


def _battle(**texts: Any) -> pa.RecordBatch:
    if missing := [name for name, text in texts.items() if text is None]:
        raise InputError(f"no {missing[0]}")
    row = {name: list(text) if isinstance(text, tuple) else text for name, text in texts.items()}
    return readers.battles_from([row], format="generic", name="the battle")


def _arriving(lines: IO[bytes]) -> Iterator[list[tuple[int, bytes]]]:
    """Numbered lines that are not empty, as they come: all that wait, at least one."""
    arrived: queue.Queue[tuple[int, bytes] | BaseException | None] = queue.Queue(LINES_AHEAD)

    def read() -> None:
        try:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_ROW_BYTES), b""), start=1):
                if line.strip():
                    arrived.put((number, line))
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=read, name="prefcli-lines", daemon=True).start()
    ended = False
    while not ended:
        waiting = []
        item = arrived.get()
        while True:
            if isinstance(item, BaseException):
                raise item
            if item is None:
                ended = True
                break
            waiting.append(item)
            if len(waiting) == LINES_AHEAD:
                break
            try:
                item = arrived.get_nowait()
            except queue.Empty:
                break
        if waiting:
            yield waiting
