"""Trained runs in memory: battles in, probabilities out. :func:`prefcli.load` returns a :class:`Predictor`.

The same models, normalisations and calibration as ``prefcli predict``, without files: one battle, a table of battles,
or JSON lines answered one by one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from prefcli import readers
from prefcli.battles import BATTLE_SCHEMA, TEXT_FIELDS, TURNS, Source, int_column, make_batch, one_batch
from prefcli.candidates import ANSWERS, make_candidates
from prefcli.compute import devices
from prefcli.data.tables import CHOSEN_COLUMN, prediction_schema, probability_of_chosen
from prefcli.errors import InputError, ModelError, one_line
from prefcli.models import has_rewards
from prefcli.options import PredictOptions
from prefcli.outcomes import WINNER_COLUMNS, Probabilities
from prefcli.prediction import blending, inference
from prefcli.prediction.calibration import Calibration
from prefcli.readers.containers import MAX_ROW_BYTES
from prefcli.readers.json_rows import loads
from prefcli.reporting import SILENT
from prefcli.storage import hub, runs
from prefcli.text import normalise_batch
from prefcli.text.normalise import replace_surrogates

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from prefcli.prediction.comparison import Comparison, Record
    from prefcli.prediction.ranking import Ranked, RankRule

Parsed = TypeVar("Parsed")
Text = str | Sequence[str | None]
"""A text, or the turns of a conversation."""
Turns = list[str | None]


@dataclass(frozen=True)
class _Line:
    """A line that is a battle."""

    id: str
    battle: pa.RecordBatch
    has_chosen: bool
    """Whether it says which answer was chosen: its label then says which of A and B that is."""


MAX_TOGETHER = 256
"""Lines that are answered together."""
READ_BYTES = 1 << 20
"""Of lines that are read at a time, if so many are waiting."""
PAIR_OF_CHOSEN = {"chosen", "rejected"}
"""The columns of a table that says which answer was chosen."""
MAX_CACHED_FITS = 256


class Predictor:
    """One run in memory, or several that are blended. :func:`prefcli.load` returns one.

    Parameters
    ----------
    folders:
        The runs' folders.
    options:
        How to predict. Folders of the hub are called what ``models`` says; ``activation``, ``limit`` and ``workers``
        are not used.

    Raises
    ------
    InputError
        If an option does not fit the runs.
    ModelError
        If a run cannot be loaded.
    """

    def __init__(self, folders: Sequence[Path], options: PredictOptions) -> None:
        self.folders = tuple(folders)
        self.names = tuple(hub.run_names(options.models, self.folders))
        self._options = options
        self._swap_average = options.swap_average
        request = devices.DeviceRequest(options.device, options.precision)
        self._members = inference.open_runs(self.folders, options, request)
        self._usual = next(filter(None, map(runs.reading_of, self.folders)), None)
        self._fits: dict[frozenset[int], Calibration] = {}
        self._held_out: frozenset[int] = frozenset()
        if options.calibrated:
            try:
                held_out = (runs.read_validation(folder).keys.tolist() for folder in self.folders)
                self._held_out = frozenset().union(*held_out)
            except ModelError:  # nothing was held out to fit on
                self._options = dataclasses.replace(options, calibrated=False)

    def __repr__(self) -> str:
        folders = ", ".join(repr(str(folder)) for folder in self.folders)
        given = "".join(
            f", {name}={value!r}"
            for name in ("as_source", "temperature")
            if (value := getattr(self._options, name)) is not None
        )
        calibrated = self._options.calibrated
        return f"Predictor({folders}, swap_average={self._swap_average}, calibrated={calibrated}{given})"

    @overload
    def predict(self, prompt: Text, response_a: Text, response_b: Text) -> Probabilities: ...

    @overload
    def predict(
        self,
        prompt: pd.DataFrame | pa.Table | Sequence[Mapping[str, Any]],
        *,
        format: str | None = ...,
        columns: Mapping[str, str] | None = ...,
        outcome: str | None = ...,
        each: str | None = ...,
    ) -> NDArray[np.float64]: ...

    def predict(
        self,
        prompt: Any,
        response_a: Any = None,
        response_b: Any = None,
        *,
        format: str | None = None,
        columns: Mapping[str, str] | None = None,
        outcome: str | None = None,
        each: str | None = None,
    ) -> Any:
        """Probabilities of one battle, or of a table of battles.

        Parameters
        ----------
        prompt:
            The prompt: text, or its turns as a list. Or, as the only argument, a table of battles: a DataFrame (pandas
            or polars), a pyarrow Table, a dataset, a dictionary of columns, or a list of dictionaries, in any layout
            that prefcli reads from files. The temperature is fitted without these prompts, as on the command line.
        response_a, response_b:
            The two answers: text, or turns as a list.
        format, columns, outcome, each:
            How a table is read, as :class:`prefcli.battles.Source` says it; by default as the training battles were if
            the table's columns allow it, else by its columns.

        Returns
        -------
        For one battle :class:`Probabilities`; for a table an array ``[n, 3]``: A, B, tie.

        Raises
        ------
        InputError
            If a battle is not valid.
        """
        if response_a is None and response_b is None and not isinstance(prompt, str):
            return self._predict_table(prompt, Source((), format, columns, outcome, each))[1]
        batch = _battle(prompt, response_a, response_b)
        probabilities = self._calibrate(self._predict(batch), self._held_out_keys(batch))
        return Probabilities(*probabilities[0].tolist())

    def compare(
        self,
        prompt: Text | Mapping[str, Any],
        response_a: Text | None = None,
        response_b: Text | None = None,
        *,
        reading: Source | None = None,
    ) -> Comparison:
        """Judge one battle, with all that is known of the judgement.

        Parameters
        ----------
        prompt, response_a, response_b:
            As for :meth:`predict`. Or, as the only argument, a battle as a dictionary, in any layout of files.
        reading:
            How a dictionary is read, as a source of no files; by default as the training battles were if its keys allow
            it, else by its keys.

        Returns
        -------
        :class:`~prefcli.prediction.comparison.Comparison`: the probabilities of :meth:`predict`, those of both orders
        of the answers, what was cut, and of the architecture ``features`` what moved them.

        Raises
        ------
        InputError
            If the battle is not valid.
        """
        if isinstance(prompt, Mapping):
            return self.comparisons(self.read(prompt, reading).battles)[0]
        return self.comparisons(_battle(prompt, response_a, response_b))[0]

    def read(self, row: Mapping[str, Any], reading: Source | None = None) -> readers.BattleTable:
        """The battle in a dictionary, read as :meth:`compare` says it.

        Raises
        ------
        InputError
            If there is not one valid battle in it.
        """
        return _one_battle(row, "the battle", reading or Source(()), self._usual)

    def comparisons(self, battles: pa.RecordBatch) -> list[Comparison]:
        """What :meth:`compare` returns for each battle of a canonical batch (see :mod:`prefcli.battles`)."""
        from prefcli.prediction import comparison

        normalised = {text: normalise_batch(battles, text)[0] for text in {member.text for member in self._members}}
        members = [(name, each, normalised[each.text]) for name, each in zip(self.names, self._members, strict=True)]
        calibrations = [
            self._calibration(self._held_out_keys(battles.slice(row, 1))) for row in range(battles.num_rows)
        ]
        compared = comparison.compare_batch(members, calibrations, self._record, swap_average=self._swap_average)
        if not self.can_score:
            return compared
        rewards = [np.asarray(ranked.rewards).tolist() for ranked in self._rank(_answers_of(battles), None)]
        return [dataclasses.replace(each, rewards=(a, b)) for each, (a, b) in zip(compared, rewards, strict=True)]

    @functools.cached_property
    def _record(self) -> Record | None:
        """The predictions of the battles that all runs held out; None where they are not predicted as others are."""
        from prefcli.prediction.comparison import Record

        read = functools.partial(
            blending.held_out_run, reporter=SILENT, swap_average=self._swap_average, as_source=self._options.as_source
        )
        try:
            of_runs = [read(folder, np.empty(0, dtype=np.int64)) for folder in self.folders]
        except ModelError:  # nothing was held out
            return None
        if any(run.no_scale for run in of_runs):
            return None
        held_out = [run.held_out for run in of_runs]
        rows = blending.common_rows(held_out)
        probabilities = [np.exp(run.logs[own]) for run, own in zip(of_runs, rows, strict=True)]
        labels, keys = held_out[0].labels[rows[0]], held_out[0].keys[rows[0]]
        return Record(self._calibration(frozenset()).apply(probabilities), labels, keys)

    def predict_frame(
        self,
        table: pd.DataFrame | pa.Table | Sequence[Mapping[str, Any]],
        *,
        format: str | None = None,
        columns: Mapping[str, str] | None = None,
        outcome: str | None = None,
        each: str | None = None,
    ) -> pd.DataFrame:
        """Probabilities of a table of battles as a DataFrame with the columns of a file of predictions.

        Parameters
        ----------
        table, format, columns, outcome, each:
            As for :meth:`predict`.

        Returns
        -------
        ``id, winner_model_a, winner_model_b, winner_tie``, in the table's order, and with its index if it is a
        DataFrame of pandas. Battles without ids are numbered from 1.

        Raises
        ------
        InputError
            If a battle is not valid.
        """
        import pandas as pd

        batch, probabilities = self._predict_table(table, Source((), format, columns, outcome, each))
        index = table.index if isinstance(table, pd.DataFrame) and len(table) == len(probabilities) else None
        frame = pd.DataFrame(probabilities, columns=list(WINNER_COLUMNS), index=index)
        frame.insert(0, "id", batch.column("id").to_pylist())
        return frame

    def predict_table(
        self,
        table: pa.Table | pa.RecordBatch | pd.DataFrame | Sequence[Mapping[str, Any]],
        *,
        format: str | None = None,
        columns: Mapping[str, str] | None = None,
        outcome: str | None = None,
        each: str | None = None,
    ) -> pa.Table:
        """Probabilities of a table of battles as an Arrow table: for engines that map batches, as Ray and Spark do.

        Parameters
        ----------
        table, format, columns, outcome, each:
            As for :meth:`predict`; a pyarrow RecordBatch, too. What they leave open is found in each batch anew: where
            texts may look like lists, say ``format``.

        Returns
        -------
        What ``prefcli predict`` writes, in the table's order: ``id: string``, then ``winner_model_a, winner_model_b,
        winner_tie: double``, and ``p_chosen`` where ``chosen`` and ``rejected`` are the answers. An empty Arrow table
        gives an empty one. The fitted temperature leaves out the prompts of this batch; ``temperature`` of
        :func:`prefcli.load` makes it the same for all.

        Raises
        ------
        InputError
            If a battle is not valid, or there is no column of ids: numbers that each batch counts anew are none.
        """
        import pyarrow as pa

        if isinstance(table, (pa.Table, pa.RecordBatch)) and not table.num_rows:
            labels = np.empty(0, np.int8) if {*table.schema.names, *(columns or {})} >= PAIR_OF_CHOSEN else None
            return _predictions(pa.array([], pa.string()), np.empty((0, len(WINNER_COLUMNS))), labels)
        reading = Source((), format, columns, outcome, each)
        read = readers.read_table(table, reading, outcomes=False, usual=self._usual)
        readers.check_has_ids(read)
        batch = read.battles
        chosen = int_column(batch.column("label")) if has_chosen(read) else None
        return _predictions(batch.column("id"), self._predict_battles(batch), chosen)

    def _predict_table(self, table: Any, reading: Source) -> tuple[pa.RecordBatch, NDArray[np.float64]]:
        batch = readers.battles_from(table, reading, outcomes=False, usual=self._usual)
        return batch, self._predict_battles(batch)

    def _predict_battles(self, batch: pa.RecordBatch) -> NDArray[np.float64]:
        return self._calibrate(self._predict(batch), self._held_out_keys(batch))

    def answers(self, lines: IO[bytes], reading: Source | None = None) -> Iterator[list[Answer]]:
        """Answer JSON lines: each as soon as it arrives, those that are waiting together.

        Parameters
        ----------
        lines:
            One battle per line, a JSON object in any layout that prefcli reads.
        reading:
            How the lines are read, as a source of no files; by default as the training battles were if a line's keys
            allow it, else by its keys.

        Yields
        ------
        Answers in the order of the lines; a line that is not a valid battle gets an error in its place, with its id or
        null. ``p_chosen`` is there where the line says which answer was chosen.
        """
        reading = reading or Source(())
        columns = reading.columns or (self._usual or {}).get("columns") or {}
        read = functools.partial(_read_battle, reading=reading, usual=self._usual)
        yield from _answer_lines(lines, columns.get("id", "id"), read, self._answer)

    def rankings(
        self, lines: IO[bytes], reading: Source | None = None, rule: RankRule | None = None
    ) -> Iterator[list[Answer]]:
        """Rank the answers of questions in JSON lines: each line as soon as it arrives.

        Parameters
        ----------
        lines:
            One question per line, a JSON object with a prompt and a list of answers in any form that files may have.
        reading:
            How the lines are read, as a source of no files.
        rule:
            How answers are ranked; its ``swap_average`` is that of this object.

        Yields
        ------
        Rankings in the order of the lines; a line that is not a valid question gets an error in its place.
        """
        reading = reading or Source(())
        read = functools.partial(_read_question, reading=reading)
        answer = functools.partial(self._answer_questions, rule=rule)
        yield from _answer_lines(lines, (reading.columns or {}).get("id", "id"), read, answer)

    def _answer_questions(self, questions: Sequence[pa.RecordBatch], rule: RankRule | None) -> list[Answer]:
        return [
            Answer({"id": question.column("id")[0].as_py(), "error": ranked.what}, failed=True)
            if isinstance(ranked, inference.NonFiniteError)
            else Answer(ranked.to_json(), failed=False)
            for question, ranked in zip(questions, self._rank_each(questions, rule), strict=True)
        ]

    def _rank_each(
        self, questions: Sequence[pa.RecordBatch], rule: RankRule | None
    ) -> list[Ranked | inference.NonFiniteError]:
        """Rankings of batches with one question each; one that the model cannot compute fails alone."""
        import pyarrow as pa

        if not questions:
            return []
        try:
            return list(self._rank(one_batch(pa.Table.from_batches(questions)), rule))
        except inference.NonFiniteError as error:
            if len(questions) == 1:
                return [error]
            return [ranked for question in questions for ranked in self._rank_each([question], rule)]

    def _rank(self, questions: pa.RecordBatch, rule: RankRule | None) -> list[Ranked]:
        from prefcli.prediction import ranking

        rule = dataclasses.replace(rule or ranking.RankRule(), swap_average=self._swap_average)
        return ranking.rank_batch(
            self._members, questions, rule, lambda key: self._calibration(self._held_out.intersection([key]))
        )

    @overload
    def rank(self, prompt: Text, answers: Sequence[Text], *, rule: RankRule | None = ...) -> Ranked: ...

    @overload
    def rank(
        self,
        prompt: pd.DataFrame | pa.Table | Sequence[Mapping[str, Any]],
        *,
        rule: RankRule | None = ...,
        format: str | None = ...,
        columns: Mapping[str, str] | None = ...,
        each: str | None = ...,
    ) -> list[Ranked]: ...

    def rank(
        self,
        prompt: Any,
        answers: Any = None,
        *,
        rule: RankRule | None = None,
        format: str | None = None,
        columns: Mapping[str, str] | None = None,
        each: str | None = None,
    ) -> Any:
        """Rank several answers to one prompt, or those of each question of a table.

        Parameters
        ----------
        prompt:
            The prompt: text, or its turns as a list. Or, as the only argument, a table of questions with their
            answers, in any form that ``prefcli rank`` reads from files.
        answers:
            The answers, each text, or turns as a list if the prompt is one.
        rule:
            How they are ranked; its ``swap_average`` is that of this object.
        format, columns, each:
            How a table is read, as :class:`prefcli.battles.Source` says it.

        Returns
        -------
        :class:`~prefcli.prediction.ranking.Ranked`: ``ranking``, ``scores``, ``p_best``; for a table one per question.

        Raises
        ------
        InputError
            If a question is not valid.
        """
        if answers is not None:
            return self._rank(_candidates(*as_question(prompt, answers)), rule)[0]
        if isinstance(prompt, str):
            raise InputError("there are no answers", hint="Call rank(prompt, [answer, ...]).")
        table = readers.read_candidates(prompt, Source((), format=format, columns=columns, each=each))
        return self._rank(table.questions, rule)

    @overload
    def score(self, prompt: str, answer: str) -> float: ...

    @overload
    def score(self, prompt: Text, answer: Sequence[Any]) -> Any: ...

    def score(self, prompt: Text, answer: Any) -> Any:
        """The reward of an answer, or of several; of several runs the sum of their rewards, each times its weight.

        Parameters
        ----------
        prompt:
            Text, or the turns of a conversation as a list.
        answer:
            Written like the prompt: text, or a list of as many turns. Or a list of such answers.

        Returns
        -------
        A number, as large as the answer is good, for one answer; an array ``[k]`` for a list of them.

        Raises
        ------
        InputError
            If a run is not a reward model, or an answer is not valid.
        """
        self.check_rewards()
        is_single = not isinstance(answer, (list, tuple)) or (
            not isinstance(prompt, str) and not any(isinstance(turn, (list, tuple)) for turn in answer)
        )
        rewards = self._rank(_candidates(*as_question(prompt, [answer] if is_single else answer)), None)[0].rewards
        assert rewards is not None
        return float(rewards[0]) if is_single else rewards

    @property
    def can_score(self) -> bool:
        """Whether all runs are reward models, as :meth:`score` needs it."""
        return all(has_rewards(model) for member in self._members for model in member.models)

    def check_rewards(self) -> None:
        """Raise an InputError if a run is not a reward model."""
        for name, folder, member in zip(self.names, self.folders, self._members, strict=True):
            if not all(map(has_rewards, member.models)):
                architecture = runs.read_config(folder)["options"]["architecture"]
                raise InputError(
                    f"{name} has the architecture {architecture}, which compares answers and gives no scores",
                    hint="Call rank(prompt, answers), or use a run of --architecture reward.",
                )

    def _answer(self, lines: Sequence[_Line]) -> list[Answer]:
        import pyarrow as pa

        if not lines:
            return []
        batch = one_batch(pa.Table.from_batches([line.battle for line in lines]))
        answers = []
        for line, probabilities in zip(lines, self._predict_each(batch), strict=True):
            if isinstance(probabilities, inference.NonFiniteError):
                answers.append(Answer({"id": line.id, "error": probabilities.what}, failed=True))
                continue
            value = {"id": line.id, **dict(zip(WINNER_COLUMNS, probabilities, strict=True))}
            if line.has_chosen:
                chosen = int_column(line.battle.column("label"))
                value[CHOSEN_COLUMN] = float(probability_of_chosen(np.array([probabilities]), chosen)[0])
            answers.append(Answer(value, failed=False))
        return answers

    def predict_each(self, battles: Sequence[Sequence[Turns]]) -> list[Probabilities | inference.NonFiniteError]:
        """Probabilities of battles that have nothing to do with each other: each as if it were the only one.

        They are computed together, but nothing else connects them: the temperature of each is fitted without its own
        prompt, as :meth:`predict` does for one battle, and one that the model cannot compute fails alone.

        Parameters
        ----------
        battles:
            Of each prompt, first and second answer as turns, see :func:`as_turns`.
        """
        return self._predict_each(_battles(battles)) if battles else []

    def compare_each(self, battles: Sequence[Sequence[Turns]]) -> list[Comparison | inference.NonFiniteError]:
        """Battles judged as :meth:`compare` does, each as if it were the only one; see :meth:`predict_each`."""
        try:
            return list(self.comparisons(_battles(battles))) if battles else []
        except inference.NonFiniteError as error:
            if len(battles) == 1:
                return [error]
            return [compared for battle in battles for compared in self.compare_each([battle])]

    def rank_each(self, questions: Sequence[tuple[Turns, Sequence[Turns]]]) -> list[Ranked | inference.NonFiniteError]:
        """Rankings of questions that have nothing to do with each other: each as if it were the only one.

        Parameters
        ----------
        questions:
            Of each the prompt and its answers as turns, see :func:`as_turns`.
        """
        return self._rank_each([_candidates(*question) for question in questions], None)

    def _predict_each(self, batch: pa.RecordBatch) -> list[Probabilities | inference.NonFiniteError]:
        try:
            predictions = self._predict(batch)
        except inference.NonFiniteError as error:
            if len(batch) == 1:
                return [error]
            return [result for row in range(len(batch)) for result in self._predict_each(batch.slice(row, 1))]
        left_out = [self._held_out.intersection([key]) for key in batch.column("prompt_key").to_pylist()]
        probabilities = np.empty_like(predictions[0])
        for without in set(left_out):  # mostly none: the prompt was not held out
            rows = [row for row, keys in enumerate(left_out) if keys == without]
            probabilities[rows] = self._calibrate([prediction[rows] for prediction in predictions], without)
        return [Probabilities(*row) for row in probabilities.tolist()]

    def _predict(self, batch: pa.RecordBatch) -> list[NDArray[np.float64]]:
        normalised = {text: normalise_batch(batch, text)[0] for text in {member.text for member in self._members}}
        return [
            inference.predict_batch(member, normalised[member.text], swap_average=self._swap_average)
            for member in self._members
        ]

    def _held_out_keys(self, batch: pa.RecordBatch) -> frozenset[int]:
        """The prompts of a batch that the runs held out: nothing may be fitted on those."""
        return self._held_out.intersection(batch.column("prompt_key").to_pylist())

    def _calibrate(self, predictions: list[NDArray[np.float64]], without: frozenset[int]) -> NDArray[np.float64]:
        return self._calibration(without).apply(predictions)

    def _calibration(self, without: frozenset[int]) -> Calibration:
        """The calibration that is fitted without some prompts."""
        if without not in self._fits:
            if len(self._fits) > MAX_CACHED_FITS:
                self._fits.clear()
            keys = np.array(sorted(without), dtype=np.int64)
            self._fits[without] = blending.from_options(self.folders, keys, SILENT, self._options)
        return self._fits[without]


@dataclass(frozen=True)
class Answer:
    """The answer to a line, an object for JSON, and whether it is an error."""

    value: dict[str, Any]
    failed: bool


def _parse(number: int, line: bytes, id_column: str, read: Callable[[dict[str, Any], str], Parsed]) -> Parsed | Answer:
    """What ``read`` makes of a line's object and its name in messages; of a line that is not valid, the answer."""
    known_id = None
    try:
        try:
            value = loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"broken JSON: {one_line(error, 160)}") from None
        if not isinstance(value, dict):
            raise InputError("expected a JSON object")
        cell = value.get(id_column)
        if isinstance(cell, (str, int, float)):
            known_id = str(cell)
        return read(value, str(number))
    except InputError as error:
        return Answer({"id": known_id, "line": number, "error": error.what}, failed=True)


def _one_battle(
    row: Mapping[str, Any], name: str, reading: Source, usual: Mapping[str, Any] | None
) -> readers.BattleTable:
    table = readers.read_table([dict(row)], reading, name=name, outcomes=False, usual=usual)
    if table.battles.num_rows != 1:
        what = f"the line holds {table.battles.num_rows} battles, expected one"
        raise InputError(what, hint="Lists of answers are read from files.")
    # Optional columns differ from row to row.
    return dataclasses.replace(table, battles=table.battles.select(BATTLE_SCHEMA.names))


def _predictions(
    ids: pa.Array, probabilities: NDArray[np.float64], chosen: NDArray[np.integer] | None = None
) -> pa.Table:
    """A table as ``prefcli predict`` writes it; ``chosen`` are the labels of the chosen answers."""
    import pyarrow as pa

    if chosen is None:
        return pa.Table.from_arrays([ids, *probabilities.T], schema=prediction_schema())
    of_chosen = probability_of_chosen(probabilities, chosen)
    schema = prediction_schema((*WINNER_COLUMNS, CHOSEN_COLUMN))
    return pa.Table.from_arrays([ids, *probabilities.T, of_chosen], schema=schema)


def _read_battle(value: dict[str, Any], number: str, reading: Source, usual: Mapping[str, Any] | None) -> _Line:
    table = _one_battle(value, f"line {number}", reading, usual)
    name = table.battles.column("id")[0].as_py() if "id" in table.columns else number
    return _Line(name, table.battles, has_chosen(table))


def has_chosen(table: readers.BattleTable) -> bool:
    """Whether a table says which answer was chosen; its labels then say which of A and B that is."""
    return table.columns.keys() >= PAIR_OF_CHOSEN


def _read_question(value: dict[str, Any], number: str, reading: Source) -> pa.RecordBatch:
    """The question of a line, a batch of candidates with one row."""
    import pyarrow as pa

    table = readers.read_candidates([value], reading, name=f"line {number}")
    if table.grouped:
        raise InputError("the line holds one answer, expected a list of answers")
    question = table.questions
    return question if table.has_ids else question.set_column(0, question.schema.field(0), pa.array([number]))


def as_turns(text: Any, name: str) -> Turns:
    """A text, or the turns of a conversation, as turns; lone surrogates become U+FFFD.

    Raises
    ------
    InputError
        If it is neither.
    """
    turns = [text] if isinstance(text, str) else text
    if not isinstance(turns, (list, tuple)) or not all(turn is None or isinstance(turn, str) for turn in turns):
        raise InputError(f"{name} is {type(text).__name__}, neither text nor a list of turns")
    if not turns:
        raise InputError(f"{name} has no turns")
    return [None if turn is None else replace_surrogates(turn) for turn in turns]


def as_question(prompt: Any, answers: Any) -> tuple[Turns, list[Turns]]:
    """A prompt and its answers as turns.

    Raises
    ------
    InputError
        If there are no answers, one is not text or turns, or it has not as many turns as the prompt.
    """
    if isinstance(answers, str) or not isinstance(answers, Sequence):
        raise InputError(f"answers is {type(answers).__name__}, expected a list of answers")
    if not answers:
        raise InputError("there are no answers")
    turns = as_turns(prompt, "the prompt")
    responses = [as_turns(answer, f"answer {number}") for number, answer in enumerate(answers, start=1)]
    if differing := [number for number, answer in enumerate(responses, start=1) if len(answer) != len(turns)]:
        raise InputError(
            f"answer {differing[0]} has {len(responses[differing[0] - 1])} turns, the prompt has {len(turns)}",
            hint="A conversation is a list of turns, for the prompt and for every answer.",
        )
    return turns, responses


def _battles(battles: Sequence[Sequence[Turns]]) -> pa.RecordBatch:
    """Battles of which prompt, first and second answer are known as turns."""
    import pyarrow as pa

    columns = dict(zip(TEXT_FIELDS, zip(*battles, strict=True), strict=True))
    texts = {name: pa.array(turns, TURNS) for name, turns in columns.items()}
    return make_batch({"id": pa.array(map(str, range(1, len(battles) + 1))), **texts})


def _candidates(turns: Turns, responses: Sequence[Turns]) -> pa.RecordBatch:
    """A batch of candidates with one row."""
    import pyarrow as pa

    return make_candidates(
        {
            "id": pa.array(["1"]),
            "prompt": pa.array([turns], TURNS),
            "responses": pa.array([responses], ANSWERS),
        }
    )


def _battle(prompt: Any, response_a: Any, response_b: Any) -> pa.RecordBatch:
    row = {"prompt": prompt, "response_a": response_a, "response_b": response_b}
    if missing := [name for name, text in row.items() if text is None]:
        raise InputError(f"no {missing[0]}")
    if wrong := [name for name, text in row.items() if not isinstance(text, (str, list, tuple))]:
        raise InputError(f"{wrong[0]} is {type(row[wrong[0]]).__name__}, not text")
    row = {name: list(text) if isinstance(text, tuple) else text for name, text in row.items()}
    return readers.battles_from([row], format="generic", name="the battle")


def _answers_of(battles: pa.RecordBatch) -> pa.RecordBatch:
    """The two answers of each battle as a batch of candidates."""
    import pyarrow as pa

    pairs = zip(*(battles.column(name).to_pylist() for name in ("response_a", "response_b")), strict=True)
    responses = pa.array(list(map(list, pairs)), ANSWERS)
    return make_candidates({"id": battles.column("id"), "prompt": battles.column("prompt"), "responses": responses})


def _answer_lines(
    lines: IO[bytes],
    id_column: str,
    read: Callable[[dict[str, Any], str], Parsed],
    answer: Callable[[Sequence[Parsed]], list[Answer]],
) -> Iterator[list[Answer]]:
    """Answers to lines as they arrive; those that are waiting are answered together."""
    for waiting in _waiting_lines(lines):
        parsed = [_parse(number, line, id_column, read) for number, line in waiting]
        answers = iter(answer([line for line in parsed if not isinstance(line, Answer)]))
        yield [line if isinstance(line, Answer) else next(answers) for line in parsed]


def _waiting_lines(lines: IO[bytes]) -> Iterator[list[tuple[int, bytes]]]:
    """Numbered lines that are not empty, as they arrive: all that are waiting, at most :data:`MAX_TOGETHER`."""
    number = 0
    for arrived in _arriving_lines(lines):
        numbered = list(enumerate(arrived, start=number + 1))
        number += len(arrived)
        waiting = [(row, line) for row, line in numbered if line.strip()]
        for start in range(0, len(waiting), MAX_TOGETHER):
            yield waiting[start : start + MAX_TOGETHER]


def _arriving_lines(lines: IO[bytes]) -> Iterator[list[bytes]]:
    """All lines of a stream, those together that arrive together.

    They are read in the caller's thread: Python aborts when it ends while another thread waits in a buffered stream.
    """
    read = getattr(lines, "read1", lines.readline)  # read1 waits for some bytes, read would wait for all
    unfinished = bytearray()
    while block := read(READ_BYTES):
        unfinished += block
        if len(unfinished) > MAX_ROW_BYTES:
            raise InputError(f"a line is longer than {MAX_ROW_BYTES / 2**20:g} MiB")
        if b"\n" in block:
            *complete, unfinished = unfinished.split(b"\n")
            yield list(map(bytes, complete))
    yield [bytes(unfinished)]
