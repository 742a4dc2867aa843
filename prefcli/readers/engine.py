"""Raw batches -> canonical batches, as a layout or the user says: the one way that any file is read."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefcli import groups
from prefcli.battles import SOURCE, TEXT_FIELDS, ReadCounts, make_batch
from prefcli.outcomes import SOFT_LABEL_COLUMNS, WINNER_COLUMNS, A, B
from prefcli.readers import outcomes_in_columns
from prefcli.readers.cells import (
    LIKE_MESSAGES,
    TURNS_HINT,
    Location,
    RawBatch,
    excerpt,
    first_null_row,
    missing_columns,
    parsed,
    string_column,
    turns_array,
    turns_column,
)
from prefcli.readers.conversations import AlignedTurns, Reader, Texts, align, to_turns
from prefcli.readers.each import Each, Pair
from prefcli.readers.layouts import Layout
from prefcli.readers.outcome_rules import SKIP, Outcome, OutcomeRule, comparable
from prefcli.readers.outcomes_in_columns import spelling
from prefcli.readers.paths import Places, as_text, column_cells, is_missing, normalise

CountedBatch = tuple[pa.RecordBatch, ReadCounts]
BatchOfRows = tuple[CountedBatch, Sequence[int]]
"""And from which row of the raw batch each battle comes."""

NO_SOURCE = "(no source)"
"""The source of battles whose cell is empty."""
PAIR = ("chosen", "rejected")
CONVERSATIONS = ("conversation_a", "conversation_b")
RESPONSES = ("response_a", "response_b")
MODELS = ("model_a", "model_b")


@dataclass(frozen=True)
class Mapped:
    """How one file is read: where everything is, and what the outcome's values mean."""

    layout: Layout
    places: Mapping[str, Places]
    """Canonical name -> where it is in the file."""
    rule: OutcomeRule | None = None
    rule_places: tuple[Places, ...] = ()
    each: Each | None = None
    each_places: Mapping[str, Places] = dataclasses.field(default_factory=dict)
    """Under the empty name the list of answers, under a field's name the list parallel to it."""
    turns: bool = False
    """Whether texts of prompt and answers are lists of turns, written as JSON."""
    written_messages: frozenset[str] = frozenset()
    """Columns whose texts are messages, written as JSON."""
    plain: bool = False
    """Whether texts are plain although they look like messages, since the user says so."""
    transcripts: bool = True
    """Whether texts such as HH-RLHF's are split into messages."""
    common_prompt: bool = False
    """Whether the common beginning of chosen and rejected is the prompt."""
    more_winners: tuple[Places, ...] = ()
    """More columns with words for a winner, which have to say the same."""
    scores: tuple[Places, ...] = ()
    """Columns with the scores of the chosen and of the rejected answer: the chosen one's may not be lower."""

    by: str | None = None
    """What battles are grouped by."""
    by_places: Places = ()
    """Where the groups' names are; empty if they are computed from the battles."""
    source: str | None = None
    """The source that the file is, if it is one."""
    source_places: Places = ()
    """Where the battles' sources are, if the file says."""
    empty: tuple[Places, ...] = ()
    """Columns named like a prompt that are empty in the first rows, and have to be in the others."""

    @property
    def columns(self) -> list[str]:
        """The columns of the file that are read."""
        places = [*self.places.values(), *self.rule_places, *self.each_places.values(), *self.more_winners]
        places += [*self.scores, *self.empty, self.by_places, self.source_places]
        return list(dict.fromkeys(place.column for joined in places for place in joined))

    @property
    def keeps_ids(self) -> bool:
        """Whether ids are those of the battles, and used unchanged; those of prompts get a number where they repeat."""
        return self.layout.keeps_ids and ("id" not in self.places or normalise(str(self.places["id"][0])) == "id")

    @property
    def has_known_winner(self) -> bool:
        """Whether the columns of the answers, or scores in lists of them, say which one won."""
        return self.each is not None or "chosen" in self.places

    @property
    def has_outcome(self) -> bool:
        """Whether an outcome is read at all."""
        return bool(
            self.rule
            or self.has_known_winner
            or any(name in self.places for name in ("winner", *WINNER_COLUMNS, *SOFT_LABEL_COLUMNS))
        )

    def names(self) -> dict[str, str]:
        """Where everything is, as ``--columns`` takes it."""
        return {name: "+".join(map(str, places)) for name, places in sorted(self.places.items())}

    def to_json(self) -> dict[str, object]:
        """Everything that determines how rows are read."""
        return {
            "columns": self.names(),
            "outcome": dataclasses.asdict(self.rule) if self.rule else None,
            "each": dataclasses.asdict(self.each) if self.each else None,
            "turns": self.turns,
            "plain": self.plain,
            "transcripts": self.transcripts,
            "written_messages": sorted(self.written_messages),
            "common_prompt": self.common_prompt,
            "more_winners": [str(place) for places in self.more_winners for place in places],
        }

    def convert(self, raw: RawBatch, location: Location) -> CountedBatch:
        """Raw columns under the file's names -> canonical batch, with what was repaired or left out.

        Raises
        ------
        InputError
            On the first row that is not a battle.
        """
        self.check_empty(raw, location)
        if self.each is not None:
            (batch, counts), rows = self._convert_lists(self.each, raw, location)
        elif "chosen" in self.places:
            (batch, counts), rows = self._convert_pairs(raw, location)
        else:
            (batch, counts), rows = self._convert_rows(raw, location)
        if self.source is not None or self.source_places:
            sources = self._names(raw, self.source_places, rows, location) if self.source_places else None
            names = pa.array([self.source] * batch.num_rows, pa.string()) if sources is None else sources
            batch = batch.append_column(SOURCE, names.fill_null(NO_SOURCE))
        if self.by is not None:
            names = self._names(raw, self.by_places, rows, location) if self.by_places else None
            batch = groups.with_groups(batch, self.by, names)
        return batch, counts

    def check_empty(self, raw: RawBatch, location: Location) -> None:
        """Refuse rows with text in a column named like a prompt that was empty in the first rows.

        Raises
        ------
        InputError
            Naming both columns.
        """
        for places in self.empty:
            for row, cell in enumerate(column_cells(raw, places, location)):
                if not is_missing(cell) and cell not in ("", []):
                    names = f"{'+'.join(map(str, self.places['prompt']))}, {places[0]}"
                    hint = f"Join them, --columns prompt={names.replace(', ', '+')}, or leave it out: {places[0]}="
                    raise location.error(f"the prompt may be in several columns: {names}", row=row, hint=hint)

    def _names(self, raw: RawBatch, places: Places, rows: Sequence[int], location: Location) -> pa.Array:
        """What a column says of the battle from each of these rows, as text; null where its cell is empty."""
        cells = column_cells(raw, places, location)
        names = [None if is_missing(cell) else as_text(cell).strip() or None for cell in cells]
        return pa.array([names[row] for row in rows], pa.string())

    # A row is a battle

    def _convert_rows(self, raw: RawBatch, location: Location) -> BatchOfRows:
        models = {name: self._strings(raw, name, location) for name in MODELS if name in self.places}
        outcomes = self._outcomes(raw, models, location)
        columns = {"id": self.ids(raw, location), **models, **outcomes}
        keep = None
        if self.rule is not None and any(clause.target == "skip" for clause in self.rule.clauses):
            keep = np.asarray(columns["label"].fill_null(0).to_numpy(zero_copy_only=False)) != SKIP[0]
            columns = {name: column.filter(pa.array(keep)) for name, column in columns.items()}
        unknown = _null_mask(outcomes["label"]) if "label" in outcomes else np.zeros(raw.num_rows, dtype=bool)
        rows = range(raw.num_rows) if keep is None else np.flatnonzero(keep).tolist()
        if CONVERSATIONS[0] not in self.places and (fields := self._plain_fields(raw, unknown, location)) is not None:
            if keep is not None:
                fields = {name: (column.filter(pa.array(keep)), count) for name, (column, count) in fields.items()}
            return _counted(columns, fields, skipped=raw.num_rows - len(rows)), rows
        reader = Reader(location)
        read = self._conversations if CONVERSATIONS[0] in self.places else self._mixed
        turns = read(raw, rows, reader)
        return _from_turns(columns, turns, reader, skipped=raw.num_rows - len(rows)), rows

    def _conversations(self, raw: RawBatch, rows: Sequence[int], reader: Reader) -> list[AlignedTurns]:
        cells = [self.cells(raw, name, reader.location) for name in CONVERSATIONS]
        max_turns = self._judged_turns(raw, reader.location) if "turn" in self.places else [None] * raw.num_rows
        turns = []
        names = [str(self.places[name][0]) for name in CONVERSATIONS]
        for row in rows:
            reader.row = row
            sides = [reader.conversation(column[row], name) for column, name in zip(cells, names, strict=True)]
            reader.column = " and ".join(names)
            aligned = align(sides[0], sides[1], reader)
            end = max_turns[row]
            if end is not None:  # the judge of turn 1 has not seen turn 2
                cut = {name: getattr(aligned, name)[:end] for name in TEXT_FIELDS}
                aligned = dataclasses.replace(aligned, **cut)
            turns.append(aligned)
        return turns

    def _judged_turns(self, raw: RawBatch, location: Location) -> list[int | None]:
        turns: list[int | None] = []
        for row, cell in enumerate(self._strings(raw, "turn", location).to_pylist()):
            if cell is not None and not (
                cell.isascii() and cell.isdecimal() and 1 <= len(cell) <= 6 and cell[0] != "0"
            ):
                raise location.error(f"expected a turn from 1, found {excerpt(cell)}", row=row, column="turn")
            turns.append(None if cell is None else int(cell))
        return turns

    def _mixed(self, raw: RawBatch, rows: Sequence[int], reader: Reader) -> list[AlignedTurns]:
        """Prompt and answers of which at least one holds messages."""
        given = {name: self.cells(raw, name, reader.location) for name in _TEXTS if name in self.places}
        turns = []
        for row in rows:
            reader.row = row
            cells = {name: column[row] for name, column in given.items()}
            turns.append(self._battle(cells, (cells["response_a"], cells["response_b"]), RESPONSES, reader))
        return turns

    def _battle(
        self, given: Mapping[str, Any], answers: tuple[Any, Any], names: tuple[str, str], reader: Reader
    ) -> AlignedTurns:
        own_names = [str(self.places[name][0]) if name in self.places else name for name in names]
        a, b = map(scalar_as_text, answers)
        if not (self.plain or self.written_messages) and is_written_message(a) and is_written_message(b):
            reader.column = own_names[0]
            raise reader.error(_UNEXPECTED_MESSAGES, _UNEXPECTED_HINT)
        texts = Texts(
            (a, b),
            (own_names[0], own_names[1]),
            prompt=given.get("prompt"),
            prompt_name="+".join(map(str, self.places["prompt"])) if "prompt" in self.places else "",
            system=given.get("system"),
            history=given.get("history"),
            transcripts=self.transcripts,
            common_prompt=self.common_prompt,
        )
        return to_turns(texts, reader)

    def _plain_fields(
        self, raw: RawBatch, unknown: NDArray[np.bool_], location: Location
    ) -> dict[str, tuple[pa.Array, int]] | None:
        """Prompt and answers as turns, if all are texts or lists of texts; None if messages are among them.

        ``unknown`` says of each row whether it has no outcome although the file has outcomes.
        """
        if "system" in self.places or "history" in self.places or self.written_messages:
            return None
        cells = {}
        for name in TEXT_FIELDS:
            places = self.places[name]
            simple = len(places) == 1 and not places[0].steps
            cells[name] = raw.columns[places[0].column] if simple else column_cells(raw, places, location)
            if not self.turns and _holds_messages(cells[name]):
                return None
        if not self.turns:
            _check_some_text(list(map(_empty_mask, cells.values())), unknown, location)
        if not (self.turns or self.plain):
            both = [_rows_like_messages(cells[name]) for name in RESPONSES]
            if rows := both[0] & both[1]:
                name = str(self.places[RESPONSES[0]][0])
                raise location.error(_UNEXPECTED_MESSAGES, row=min(rows), column=name, hint=_UNEXPECTED_HINT)
        fields = {}
        for name, column in cells.items():
            own_name = "+".join(map(str, self.places[name]))
            part = RawBatch({own_name: column}, raw.num_rows)
            fields[name] = (turns_column if self.turns else _plain_turns)(part, own_name, location)
        return fields

    # Pairs: the column says which answer won

    def _convert_pairs(self, raw: RawBatch, location: Location) -> BatchOfRows:
        given = {name: self.cells(raw, name, location) for name in _TEXTS if name in self.places}
        models = [self._optional_strings(raw, f"{side}_model", location) for side in PAIR]
        self._check_scores(raw, location)
        self._check_lists_of_two(raw, location)
        reader = Reader(location)
        battles: list[_Sided] = []
        for row in range(raw.num_rows):
            reader.row = row
            cells = {name: column[row] for name, column in given.items()}
            if all(is_missing(cells[name]) or cells[name] == "" for name in PAIR):
                reader.column = " and ".join(str(self.places[name][0]) for name in PAIR)
                raise reader.error("no answers", "Is it a row of another layout? If not, leave it out.")
            sides = [_list_of_answers(cells[name]) for name in PAIR]
            names = (models[0][row], models[1][row])
            for number, (chosen, rejected) in enumerate(((c, r) for c in sides[0] for r in sides[1]), start=1):
                turns = self._battle(cells, (chosen, rejected), PAIR, reader)
                several = len(sides[0]) * len(sides[1]) > 1
                battles.append(_Sided(row, turns, names, (A, None), number if several else 0))
            if not (sides[0] and sides[1]):
                reader.column = "chosen" if not sides[0] else "rejected"
                raise reader.error("no answer", "Every row needs both answers.")
        return self._from_sided(raw, battles, reader)

    def _check_scores(self, raw: RawBatch, location: Location) -> None:
        """Refuse rows whose rejected answer has the higher score."""
        for row, cells in enumerate(zip(*(column_cells(raw, places, location) for places in self.scores), strict=True)):
            scores = [score for cell in cells if isinstance(score := comparable(cell), float)]
            if len(scores) == len(PAIR) and scores[0] < scores[1]:
                names = [str(places[0]) for places in self.scores]
                raise location.error(
                    f"{names[0]} is {cells[0]}, {names[1]} is {cells[1]}: the rejected answer has the higher score",
                    row=row,
                    hint=f"If scores do not say which answer is better: --columns {names[0]}=,{names[1]}=",
                )

    def _check_lists_of_two(self, raw: RawBatch, location: Location) -> None:
        """Refuse rows with a third answer, in layouts whose two answers are the items of one list."""
        place = self.places[PAIR[0]][0]
        if self.layout.lists and place.steps:
            third = column_cells(raw, (dataclasses.replace(place, steps=("2",)),), location)
            if (row := next((row for row, cell in enumerate(third) if cell is not None), None)) is not None:
                hint = (
                    f"To compare the first two: --columns chosen={place},rejected={place.column}.1 --format preferences"
                )
                raise location.error("more than two answers", row=row, column=place.column, hint=hint)

    # Lists of answers

    def _convert_lists(self, each: Each, raw: RawBatch, location: Location) -> BatchOfRows:
        lists = {key: column_cells(raw, places, location) for key, places in self.each_places.items()}
        cells = [parsed(cell) for cell in lists.pop("")]
        pairs, skipped, left_out = each.pairs(
            cells, {key: [parsed(c) for c in v] for key, v in lists.items()}, location
        )
        given = {name: self.cells(raw, name, location) for name in _TEXTS if name in self.places}
        reader = Reader(location)
        battles = []
        for pair in pairs:
            reader.row = pair.row
            row = {name: column[pair.row] for name, column in given.items()}
            turns = self._battle(_with_context(row, pair), pair.answers, (each.list_path, each.list_path), reader)
            model_a, model_b = (None if is_missing(name) else as_text(name) for name in pair.models)
            battles.append(_Sided(pair.row, turns, (model_a, model_b), pair.outcome, pair.number))
        return self._from_sided(raw, battles, reader, skipped=skipped, left_out_pairs=left_out)

    def _from_sided(self, raw: RawBatch, battles: list[_Sided], reader: Reader, **counts: int) -> BatchOfRows:
        """Battles whose sides a hash decides."""
        ids = self.ids(raw, reader.location).to_pylist()
        if "id" in self.places:
            counts["invented_ids"] = sum(battle.number > 0 for battle in battles)
        sided = [battle.with_sides() for battle in battles]
        columns = {
            "id": pa.array([f"{ids[b.row]}-{b.number}" if b.number else ids[b.row] for b in sided], pa.string()),
            "label": pa.array([b.outcome[0] for b in sided], pa.int8()),
            "model_a": pa.array([b.models[0] for b in sided], pa.string()),
            "model_b": pa.array([b.models[1] for b in sided], pa.string()),
        }
        return _from_turns(columns, [b.turns for b in sided], reader, **counts), [battle.row for battle in sided]

    # Columns that are not text

    def _outcomes(self, raw: RawBatch, models: Mapping[str, pa.Array], location: Location) -> dict[str, pa.Array]:
        """Label, soft labels and ``both_bad`` from wherever they are."""
        columns: dict[str, pa.Array] = {}
        labels: dict[str, list[int | None]] = {}
        if self.rule is not None:
            cells = [column_cells(raw, places, location) for places in self.rule_places]
            outcomes = self.rule.outcomes(cells, location)
            labels[", ".join(self.rule.columns)] = [label for label, _ in outcomes]
            if self.rule.has_both_bad:
                columns["both_bad"] = pa.array([bad for _, bad in outcomes], pa.bool_())
        words = [self.places["winner"]] if "winner" in self.places else []
        for places in (*words, *self.more_winners):
            a, b = (models[name].to_pylist() if name in models else [None] * raw.num_rows for name in MODELS)
            name = "+".join(map(str, places))
            cells = column_cells(raw, places, location)
            outcomes = outcomes_in_columns.winners(cells, (a, b), self.own_spellings, name, location)
            labels[name] = [label for label, _ in outcomes]
            if self.layout.has_both_bad:  # MT-bench does not distinguish bad ties from good ones
                columns.setdefault("both_bad", pa.array([bad for _, bad in outcomes], pa.bool_()))
        if any(name in self.places for name in WINNER_COLUMNS):
            if missing := [name for name in WINNER_COLUMNS if name not in self.places]:
                hint = "A labelled file has all three winner columns, an unlabelled one has none."
                raise location.error(missing_columns(missing), hint=hint)
            flags = [self._strings(raw, name, location).to_pylist() for name in WINNER_COLUMNS]
            labels[",".join(WINNER_COLUMNS)] = outcomes_in_columns.one_hot_labels(flags, location)
        if all(name in self.places for name in SOFT_LABEL_COLUMNS):
            soft = outcomes_in_columns.soft_labels(
                [self._strings(raw, name, location).to_pylist() for name in SOFT_LABEL_COLUMNS], location
            )
            columns |= soft
            if len(labels) == len(self.more_winners):  # nothing better known says who won
                labels = {",".join(SOFT_LABEL_COLUMNS): outcomes_in_columns.argmax_labels(soft), **labels}
            else:
                outcomes_in_columns.check_soft_labels(next(iter(labels.values())), soft, location)
        if labels:
            outcomes_in_columns.check_agreement(labels, location)
            columns["label"] = pa.array(_first_known(list(labels.values())), pa.int8())
        if "both_bad" in self.places:
            both_bad = outcomes_in_columns.flags(self._strings(raw, "both_bad", location).to_pylist())
            columns |= {} if both_bad is None else {"both_bad": pa.array(both_bad, pa.bool_())}
        return columns

    @functools.cached_property
    def own_spellings(self) -> dict[str, Outcome]:
        """The file's names of the answers' and the models' columns, as words for the winner."""
        words: dict[str, Outcome] = {}
        for names in (RESPONSES, CONVERSATIONS, MODELS):
            if all(name in self.places for name in names):
                for name, label in zip(names, (A, B), strict=True):
                    place = self.places[name][0]
                    words[spelling((place.column, *place.steps)[-1])] = (label, False)
        return words

    def ids(self, raw: RawBatch, location: Location) -> pa.Array:
        """The ids; without a column of ids, row numbers of the whole input."""
        if "id" not in self.places:
            first = location.rows_before + location.first_row
            return pa.array([str(number) for number in range(first, first + raw.num_rows)], pa.string())
        ids = self._strings(raw, "id", location)
        if ids.null_count:
            raise location.error("no id", row=first_null_row(ids), column=str(self.places["id"][0]))
        return ids

    def cells(self, raw: RawBatch, name: str, location: Location) -> list[Any]:
        """The cells of a canonical column; messages that are written as text are parsed."""
        cells = column_cells(raw, self.places[name], location)
        if name not in self.written_messages:
            return cells
        reader = Reader(location, column=str(self.places[name][0]))
        parsed = []
        for reader.row, cell in enumerate(cells):
            parsed.append(reader.conversation_cell(cell) if isinstance(cell, str) else cell)
        return parsed

    def _strings(self, raw: RawBatch, name: str, location: Location) -> pa.Array:
        places = self.places[name]
        if len(places) == 1 and not places[0].steps:
            return string_column(raw, places[0].column, location)
        own_name = "+".join(map(str, places))
        return string_column(
            RawBatch({own_name: column_cells(raw, places, location)}, raw.num_rows), own_name, location
        )

    def _optional_strings(self, raw: RawBatch, name: str, location: Location) -> list[str | None]:
        return self._strings(raw, name, location).to_pylist() if name in self.places else [None] * raw.num_rows


_TEXTS = ("prompt", "system", "history", *RESPONSES, *PAIR)


@dataclass(frozen=True)
class _Sided:
    """A battle, its first answer being the chosen one or the earlier one of a list."""

    row: int
    turns: AlignedTurns
    models: tuple[str | None, str | None]
    outcome: Outcome
    number: int
    """Appended to the id; 0: nothing."""

    def with_sides(self) -> _Sided:
        """The same with the answers on the sides that a hash decides."""
        if not swaps_sides(self.turns):
            return self
        turns = dataclasses.replace(self.turns, response_a=self.turns.response_b, response_b=self.turns.response_a)
        label = self.outcome[0]
        swapped = B if label == A else A if label == B else label
        return _Sided(self.row, turns, self.models[::-1], (swapped, self.outcome[1]), self.number)


def swaps_sides(turns: AlignedTurns) -> bool:
    """Whether the first answer becomes B, by a hash of the content.

    The hash sees the two answers in alphabetical order and decides whether the first of them becomes A. It does not
    depend on their order in the file, so the same two answers always stand in the same order, whoever won.
    """
    answers = ["\x1e".join(turn or "" for turn in side) for side in (turns.response_a, turns.response_b)]
    text = "\x1f".join(["\x1e".join(turn or "" for turn in turns.prompt), *sorted(answers)])
    swap = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=1).digest()[0] & 1
    return (answers[0] != min(answers)) ^ bool(swap)


def _list_of_answers(cell: Any) -> list[Any]:
    """Several chosen or rejected answers (RewardBench 2), or the one there is."""
    if isinstance(cell, (list, tuple)) and all(isinstance(item, str) for item in cell):
        return list(cell)
    return [cell]


def _with_context(row: dict[str, Any], pair: Pair) -> dict[str, Any]:
    """A row whose prompt is followed by earlier answers and replies."""
    if not pair.context:
        return row
    roles = ("assistant", "user")
    said = [{"role": roles[i % 2], "content": text} for i, text in enumerate(pair.context)]
    prompt = row["prompt"]
    before = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    return {**row, "prompt": [*before, *said]}


def _first_known(labels: Sequence[Sequence[int | None]]) -> list[int | None]:
    if len(labels) == 1:
        return list(labels[0])
    return [next((label for label in row if label is not None), None) for row in zip(*labels, strict=True)]


def _holds_messages(column: Any) -> bool:
    """Whether a column holds messages, not only texts or lists of texts."""
    if isinstance(column, list):
        return any(
            isinstance(cell, dict)
            or (isinstance(cell, (list, tuple)) and any(isinstance(i, (dict, list)) for i in cell[:1]))
            for cell in column
        )
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return bool(pa.types.is_nested(kind.value_type))
    return bool(pa.types.is_struct(kind))


def _check_some_text(empty: Sequence[NDArray[np.bool_]], unknown: NDArray[np.bool_], location: Location) -> None:
    """Refuse rows without answers and without prompt or outcome: they belong to another layout, or to none."""
    prompt, a, b = empty
    rows = np.flatnonzero(a & b & (prompt | unknown))
    if len(rows):
        what = "neither a prompt nor answers" if prompt[rows[0]] else "no answers, and no outcome"
        raise location.error(what, row=int(rows[0]), hint="Is it a row of another layout?")


_UNEXPECTED_MESSAGES = "the texts of this row are messages, those of the first rows are not"
_UNEXPECTED_HINT = "Read them as two files; --format generic or preferences reads all of them as plain text."


def is_written_message(cell: Any) -> bool:
    """Whether a cell is a text that holds messages as JSON."""
    return isinstance(cell, str) and LIKE_MESSAGES.match(cell) is not None


def _rows_like_messages(column: Any) -> set[int]:
    """The rows whose texts are messages."""
    if isinstance(column, list):
        return {row for row, cell in enumerate(column) if is_written_message(cell)}
    if not _is_text(column.type):
        return set()
    possible = pc.match_substring_regex(column, r"^\s*(\[\s*)?\{").fill_null(False)
    rows = np.flatnonzero(possible.to_numpy(zero_copy_only=False)).tolist()
    return {row for row in rows if is_written_message(column[row].cast(pa.string()).as_py())}


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def _empty_mask(column: Any) -> NDArray[np.bool_]:
    """Which cells hold nothing, or empty text."""
    if isinstance(column, list):
        return np.array([cell is None or cell == "" for cell in column], dtype=bool)
    if not _is_text(column.type):
        return _null_mask(column)
    lengths = pc.binary_length(column).fill_null(0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False) == 0, dtype=bool)


def _null_mask(column: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=bool)


def _plain_turns(raw: RawBatch, name: str, location: Location) -> tuple[pa.Array, int]:
    """Plain text as a single turn; lists of turns unchanged."""
    column = raw.columns[name]
    if isinstance(column, list):
        if any(isinstance(cell, (list, tuple)) for cell in column):
            row = next((row for row, cell in enumerate(column) if cell is None or isinstance(cell, str)), None)
            if row is not None:
                found = "nothing" if column[row] is None else excerpt(column[row])
                what = f"expected a list of turns as in other rows, found {found}"
                raise location.error(what, row=row, column=name, hint=TURNS_HINT)
        turns = [list(cell) if isinstance(cell, (list, tuple)) else [scalar_as_text(cell)] for cell in column]
        return turns_array(turns, name, location)
    if pa.types.is_nested(column.type):
        return turns_column(raw, name, location)
    return turns_array([[cell] for cell in string_column(raw, name, location).to_pylist()], name, location)


def scalar_as_text(cell: Any) -> Any:
    """Numbers and truth values as text, pandas' NaN as None, other cells as they are."""
    if is_missing(cell):
        return None
    return as_text(cell) if isinstance(cell, (bool, int, float)) else cell


def _from_turns(
    columns: Mapping[str, Any], turns: Sequence[AlignedTurns], reader: Reader, **counts: int
) -> CountedBatch:
    fields = {
        name: turns_array([getattr(battle, name) for battle in turns], name, reader.location) for name in TEXT_FIELDS
    }
    diverged = sum(battle.diverged for battle in turns)
    return _counted(columns, fields, diverged=diverged, dropped_parts=reader.dropped_parts, **counts)


def _counted(columns: Mapping[str, Any], fields: Mapping[str, tuple[pa.Array, int]], **counts: int) -> CountedBatch:
    """A canonical batch with what was repaired.

    Parameters
    ----------
    columns:
        The columns that are not text.
    fields:
        For each text field its turns, and how many of them held lone surrogates.
    counts:
        What else of :class:`ReadCounts` was counted.
    """
    batch = make_batch({**columns, **{name: turns for name, (turns, _) in fields.items()}})
    label = batch.column(batch.schema.get_field_index("label"))
    return batch, ReadCounts(
        battles=batch.num_rows,
        labelled=batch.num_rows - label.null_count,
        surrogates=sum(surrogates for _, surrogates in fields.values()),
        null_turns=sum(turns.flatten().null_count for turns, _ in fields.values()),
        **counts,
    )
