"""Questions with several answers each: a list of answers in a row, or one answer a row, grouped by prompt.

Which column holds the answers is known by its name, or said with ``--columns`` or ``--each``; everything around them is
found as in files of battles (:mod:`~prefcli.readers.recognition`). What is not understood is refused.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

from prefcli.battles import Source
from prefcli.candidates import ANSWERS, LIST_COLUMNS, make_candidates
from prefcli.errors import InputError
from prefcli.readers import layouts
from prefcli.readers.battle_file import digest_of, peek_file, peek_table
from prefcli.readers.cells import Location, RawBatch, json_excerpt, list_names, parsed, turns_array
from prefcli.readers.containers import Container, column_names, open_container, raw_batches, readable, scan_json
from prefcli.readers.conversations import Reader, Texts, to_dialogues
from prefcli.readers.each import value_at
from prefcli.readers.engine import Mapped, is_written_message, scalar_as_text
from prefcli.readers.file_columns import LIKE_LIST, FileColumns, Peek, is_list_of_turns
from prefcli.readers.layouts import ANSWER_STEMS, CANDIDATE_COLUMNS, MODEL_STEMS, SPECIFIC_LAYOUTS
from prefcli.readers.mapping import check_columns
from prefcli.readers.outcome_rules import number
from prefcli.readers.paths import as_text, column_cells, is_missing
from prefcli.readers.recognition import find_candidates, matches
from prefcli.readers.tables import raw_table
from prefcli.reporting import NO_PROGRESS, SILENT, Progress, Reporter
from prefcli.storage.paths import check_different

ANSWER_COLUMNS = tuple(name for name in ANSWER_STEMS if name not in ("summary", "text"))
"""Names of columns that hold one answer."""
TEXT_KEYS = ("text", "content", "response", "completion", "answer", "output", "generation")
"""Where the text of an answer is that is an object."""
EXPECTED = (
    "Expected a prompt with a list of answers (responses, completions, ...), or prompt and response, one answer a row. "
    "Other names with --columns prompt=NAME,responses=NAME, lists of objects with --each 'NAME: text=KEY'."
)
AROUND = ("prompt", "system", "history")
"""What is read beside the answers."""
MAX_GROUPED_BYTES = 1 << 30
"""Text of files of single answers, which are held in memory until the last one is read."""
BATCH_QUESTIONS = 1024
BATCH_BYTES = 8 << 20

Turns = list[str | None]


@dataclass(frozen=True)
class CandidateCounts:
    """What was read, and what was repaired. Adds up with ``+``."""

    questions: int = 0
    answers: int = 0
    single: int = 0
    """Questions with one answer only."""
    surrogates: int = 0
    """Turns that held lone surrogates, replaced by U+FFFD."""
    dropped_parts: int = 0
    """Parts of messages that are not text, such as images."""
    several_ids: int = 0
    """Questions whose answers, one a row, have different ids."""

    def warnings(self) -> list[str]:
        """The repairs, in words for the user."""
        repairs = (
            (self.surrogates, "turns held lone surrogates, which were replaced by U+FFFD"),
            (self.dropped_parts, "parts of messages are not text (images, for example) and were dropped"),
            (self.several_ids, "questions have answers with different ids; each has the id of its first answer"),
        )
        return [f"{count:,} {what}" for count, what in repairs if count]

    def __add__(self, other: CandidateCounts) -> CandidateCounts:
        return CandidateCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class Question:
    """A prompt with its answers."""

    id: str
    prompt: Turns
    responses: list[Turns] = field(default_factory=list)
    models: list[str | None] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)

    @property
    def size(self) -> int:
        """About how many bytes its texts take."""
        return sum(len(turn or "") for turns in (self.prompt, *self.responses) for turn in turns)


@dataclass(frozen=True)
class CandidateMapping:
    """How a file of answers is read."""

    mapped: Mapped
    """Where prompt and id are, and the list of answers, or the single answer under ``response``."""
    turns: bool = False
    """Whether the texts are lists of turns, written as JSON."""
    messages: bool = False
    """Whether the texts of the answers are messages, written as JSON."""

    @property
    def grouped(self) -> bool:
        """Whether a row holds one answer."""
        return self.mapped.each is None

    def to_json(self) -> dict[str, object]:
        """Everything that determines how rows are read."""
        return {**self.mapped.to_json(), "turns": self.turns, "messages": self.messages}

    def convert(self, raw: RawBatch, location: Location) -> tuple[list[Question], int]:
        """The questions of raw columns, one a row, and how many parts of messages were dropped.

        Raises
        ------
        InputError
            On the first row that is not a question with answers.
        """
        mapped = self.mapped
        mapped.check_empty(raw, location)
        ids = mapped.ids(raw, location).to_pylist()
        rows = self._single(raw, location) if self.grouped else self._lists(raw, location)
        around = {name: mapped.cells(raw, name, location) for name in AROUND if name in mapped.places}
        reader = Reader(location)
        questions = []
        for row, answers in enumerate(rows):
            reader.row = row
            cells = {name: column[row] for name, column in around.items()}
            texts = [answer["text"] for answer in answers]
            if self.messages:
                texts = list(map(parsed, texts))
            elif not self.turns and all(map(is_written_message, texts)):
                reader.column = self.answers
                raise reader.error(
                    "the answers of this row are messages, those of the first rows are not", "Read them as two files."
                )
            prompt, responses = self._texts(cells, texts, reader)
            models = [None if is_missing(answer.get("model")) else as_text(answer["model"]) for answer in answers]
            scores = [self._score(answer, row, location) for answer in answers]
            questions.append(Question(ids[row], prompt, responses, models, scores))
        return questions, reader.dropped_parts

    # Answers as cells of the file

    @property
    def answers(self) -> str:
        """The column of the answers."""
        each = self.mapped.each
        return str(self.mapped.places["response"][0]) if each is None else each.list_path

    def _single(self, raw: RawBatch, location: Location) -> list[list[dict[str, Any]]]:
        names = [name for name in ("response", "model") if name in self.mapped.places]
        columns = [self.mapped.cells(raw, name, location) for name in names]
        keys = ["text" if name == "response" else name for name in names]
        rows = [[dict(zip(keys, cells, strict=True))] for cells in zip(*columns, strict=True)]
        for row, (answer,) in enumerate(rows):
            if is_missing(answer["text"]):
                raise location.error("no answer", row=row, column=self.answers, hint='An empty answer is "".')
        return rows

    def _lists(self, raw: RawBatch, location: Location) -> list[list[dict[str, Any]]]:
        each = self.mapped.each
        assert each is not None
        columns = {
            key: [parsed(cell) for cell in column_cells(raw, places, location)]
            for key, places in self.mapped.each_places.items()
        }
        rows = []
        for row, cell in enumerate(columns.pop("")):
            beside = {key: column[row] for key, column in columns.items()}
            answers = each.answers(row, cell, beside, location)
            if not answers:
                raise location.error("no answers", row=row, column=self.answers, hint="Leave the row out.")
            self._check_items(cell, answers, dict(each.fields)["text"], functools.partial(location.error, row=row))
            rows.append(answers)
        return rows

    def _check_items(self, items: Sequence[Any], answers: Sequence[dict[str, Any]], path: str, error: Any) -> None:
        """Refuse items of a list that are nothing, or not what the others are."""
        for number_, (item, answer) in enumerate(zip(items, answers, strict=True), start=1):
            which = f"answer {number_} of {len(items)}"
            if is_missing(item):
                raise error(f"{which} is null", column=self.answers, hint='Leave it out; an empty answer is "".')
            if path == "." and isinstance(item, dict) and not _is_message(item):
                hint = f"Say where its text is: --each '{self.answers}: text=KEY'"
                raise error(f"{which} is {json_excerpt(item)}, not text", column=self.answers, hint=hint)
            if path != "." and is_missing(answer["text"]):
                found = f"has {list_names(list(item))}" if isinstance(item, dict) else f"is {json_excerpt(item)}"
                raise error(
                    f"{which} has no {path}: it {found}", column=self.answers, hint="Every answer needs a text."
                )

    @staticmethod
    def _score(answer: Mapping[str, Any], row: int, location: Location) -> float | None:
        for name, sign in (("score", 1.0), ("rank", -1.0)):
            if name in answer and (value := number(answer[name], row, name, location)) is not None:
                return sign * value
        return None

    # Texts as turns

    def _texts(self, cells: Mapping[str, Any], answers: Sequence[Any], reader: Reader) -> tuple[Turns, list[Turns]]:
        """Prompt and answers of a row as turns."""
        prompt = parsed(cells.get("prompt")) if self.turns else cells.get("prompt")
        if isinstance(prompt, list) and is_list_of_turns(prompt):
            return self._lists_of_turns(prompt, cells, answers, reader)
        texts = Texts(
            tuple(map(scalar_as_text, answers)),
            (self.answers,) * len(answers),
            prompt=prompt,
            prompt_name="+".join(map(str, self.mapped.places["prompt"])) if "prompt" in self.mapped.places else "",
            system=cells.get("system"),
            history=cells.get("history"),
            transcripts=self.mapped.transcripts,
        )
        dialogues = to_dialogues(texts, reader)
        return dialogues[0].prompts, [dialogue.responses for dialogue in dialogues]

    def _lists_of_turns(
        self, prompt: Turns, cells: Mapping[str, Any], answers: Sequence[Any], reader: Reader
    ) -> tuple[Turns, list[Turns]]:
        reader.column = self.answers
        responses = []
        for number_, cell in enumerate(answers, start=1):
            turns = parsed(cell) if self.turns else scalar_as_text(cell)
            turns = [turns] if isinstance(turns, str) and len(prompt) == 1 else turns
            if not isinstance(turns, list) or len(turns) != len(prompt) or not is_list_of_turns(turns):
                raise reader.error(
                    f"the prompt is a list of {len(prompt)} turns, answer {number_} is {json_excerpt(cell)}",
                    "Write every answer as a list of as many turns, or the prompt as text or messages.",
                )
            responses.append(turns)
        if cells.get("history"):
            reader.column = "history"
            raise reader.error("earlier turns beside a list of turns as the prompt", "Leave it out: --columns history=")
        system = scalar_as_text(cells.get("system"))
        first = "\n\n".join(text for text in (system, prompt[0]) if text) if system else prompt[0]
        return [first, *prompt[1:]], responses


def _is_message(item: Mapping[str, Any]) -> bool:
    return bool({"role", "from", "messages"} & set(item))


# Which column holds the answers


def recognise_candidates(where: str, columns: Sequence[str], peek: Peek, source: Source) -> CandidateMapping:
    """Find out how a file of answers is read.

    Parameters
    ----------
    where, columns:
        The file's name and its columns.
    peek:
        Gives the first rows of some columns.
    source:
        What the user says: format, columns, each.

    Raises
    ------
    InputError
        If the answers are not found, or are in several columns.
    """
    check_columns(source.columns or {}, CANDIDATE_COLUMNS)
    if source.outcome is not None:
        raise InputError("--outcome is for battles: answers that are to be ranked have none", hint="Leave it out.")
    search = _AnswerSearch(where, columns, peek, source)
    mapped = find_candidates(search.found())
    return _with_forms(mapped, FileColumns(where, columns, peek, Source(())))


class _AnswerSearch:
    """Finds the column of the answers; what is around them is then found as for any file."""

    def __init__(self, where: str, columns: Sequence[str], peek: Peek, source: Source) -> None:
        self.source = source
        mapping = dict(source.columns or {})
        self.list_path, self.single = mapping.pop("responses", None), mapping.get("response")
        self.file = (where, columns, peek)
        self.columns = FileColumns(where, columns, peek, dataclasses.replace(source, columns=mapping or None))
        self.mapping = mapping

    def found(self) -> FileColumns:
        """The file's columns, with what says where the answers are."""
        said = [
            name
            for name, value in (
                ("--each", self.source.each), ("--format", self.source.format),
                ("--columns responses", self.list_path), ("--columns response", self.single),
            ) if value
        ]  # fmt: skip
        if len(said) > 1:
            raise InputError(f"{' and '.join(said)} say differently where the answers are", hint="Use one of them.")
        if self.source.each:
            return self._reading(each=self.source.each)
        if self.source.format:
            return self._reading(format=self._layout(self.source.format))
        if self.list_path:
            return self._list(self.list_path)
        if self.single:
            return self._one_a_row(self.single)
        return self._search()

    def _reading(self, *, each: str | None = None, format: str | None = None) -> FileColumns:
        source = dataclasses.replace(self.source, columns=self.mapping or None, each=each, format=format)
        return FileColumns(*self.file, source)

    @staticmethod
    def _layout(name: str) -> str:
        names = [layout.name for layout in SPECIFIC_LAYOUTS if _has_list(layout)]
        if name not in names:
            hint = f"Formats with several answers a row are {', '.join(names)}; others without --format."
            raise InputError(f"--format {name} is for battles, not for answers to rank", hint=hint)
        return name

    def _search(self) -> FileColumns:
        """By the columns' names."""
        columns = self.columns
        layout = next((x for x in SPECIFIC_LAYOUTS if _has_list(x) and matches(columns, x)), None)
        if layout is not None:
            return self._reading(format=layout.name)
        lists = [column for name in LIST_COLUMNS if (column := columns.find(name))]
        singles = [column for name in ANSWER_COLUMNS if (column := columns.find(name))]
        if len(lists) + len(singles) > 1:
            example = f"responses={lists[0]}" if lists else f"response={singles[0]}"
            raise columns.error(
                f"the answers may be in several columns: {', '.join([*lists, *singles])}",
                f"Name theirs: --columns {example}",
            )
        if lists:
            return self._list(lists[0])
        if singles:
            return self._one_a_row(singles[0])
        raise self._nothing()

    def _nothing(self) -> InputError:
        columns = self.columns
        try:
            if columns.pairs(ANSWER_STEMS) or columns.pair_of_chosen() or columns.find("conversation_a"):
                hint = "prefcli predict compares the two. To rank answers, give each prompt a list: responses."
                return columns.error("two answers a row: these are battles", hint)
        except InputError as several:
            return columns.error(several.what, "Give each prompt one list of its answers: responses.")
        return columns.error(f"no column holds answers; found {list_names(columns.all_names)}", EXPECTED)

    def _list(self, path: str) -> FileColumns:
        """A list of answers, which are texts, conversations or objects."""
        cells = [parsed(cell) for cell in self.columns.cells(self.columns.places(path)) if not is_missing(cell)]
        if wrong := [cell for cell in cells if not isinstance(cell, list)]:
            hint = f"If it is one answer a row: --columns response={path}"
            raise self.columns.error(f"{path} holds {json_excerpt(wrong[0])}, not a list of answers", hint)
        items = [item for cell in cells for item in cell]
        fields_ = [f"text={self._text_key(path, items)}"]
        objects = [item for item in items if isinstance(item, dict)]
        if objects and fields_ != ["text=."]:
            fields_ += [f"model={key}" for key in MODEL_STEMS if key in objects[0]][:1]
        elif (models := self.columns.find("models")) and all(isinstance(c, list) for c in self.columns.column(models)):
            fields_.append(f"model=/{models}")
        return self._reading(each=f"{path}: {', '.join(fields_)}")

    def _text_key(self, path: str, items: Sequence[Any]) -> str:
        """Where the text of an answer is in its object; ``.`` if it is the item itself."""
        objects = [item for item in items if isinstance(item, dict)]
        if not objects or all(map(_is_message, objects)):
            return "."
        keys = [key for key in TEXT_KEYS if key in objects[0]]
        if len(keys) == 1:
            return keys[0]
        what = "several keys of the answers may be their text" if keys else "no known key of the answers is their text"
        hint = f"Say which one is: --each '{path}: text={keys[0] if keys else 'KEY'}'"
        raise self.columns.error(f"{what}; they have {list_names(list(objects[0]))}", hint)

    def _one_a_row(self, path: str) -> FileColumns:
        mapping = {**self.mapping, "response": path}
        model = self.columns.first(MODEL_STEMS)
        if model and "model" not in mapping:
            mapping["model"] = model
        return FileColumns(*self.file, Source((), columns=mapping))


def _has_list(layout: layouts.Layout) -> bool:
    """Whether the rows of a layout hold one prompt and its answers."""
    return bool(layout.each) and "replies=" not in layout.each


def _with_forms(mapped: Mapped, columns: FileColumns) -> CandidateMapping:
    """Decide from the first rows whether texts are written lists of turns, or written messages."""
    if "prompt" not in mapped.places:
        return CandidateMapping(mapped)
    prompts = [cell for cell in columns.cells(mapped.places["prompt"]) if not is_missing(cell)]
    if mapped.each is None:
        answers = [cell for cell in columns.cells(mapped.places["response"]) if not is_missing(cell)]
    else:
        lists = [parsed(cell) for cell in columns.cells(mapped.each_places[""])]
        path = dict(mapped.each.fields)["text"]
        items = [item for cell in lists if isinstance(cell, list) for item in cell]
        answers = items if path == "." else [value_at(item, path) for item in items]
    written = bool(prompts) and all(isinstance(cell, str) and LIKE_LIST.fullmatch(cell) for cell in prompts)
    turns = written and bool(answers) and all(map(is_list_of_turns, [*prompts, *answers]))
    messages = not turns and bool(answers) and all(map(is_written_message, answers))
    return CandidateMapping(mapped, turns, messages)


# Files and tables


@dataclass(frozen=True)
class CandidateFile:
    """One or more files of answers, each with how it is read."""

    source: Source
    containers: tuple[Container, ...]
    mappings: tuple[CandidateMapping, ...]

    @property
    def has_ids(self) -> bool:
        """Whether the files hold ids; if not, a question's id is the number of its (first) row."""
        return "id" in self.mappings[0].mapped.places

    @property
    def not_read(self) -> tuple[str, ...]:
        """Columns that are not read."""
        names = {}
        for container, mapping in zip(self.containers, self.mappings, strict=True):
            read = set(mapping.mapped.columns)
            names.update(dict.fromkeys(name for name in column_names(container) if name not in read))
        return tuple(names)

    @property
    def description(self) -> str:
        """How the files are read, for the user to check."""
        mapping = self.mappings[0]
        where = mapping.answers
        how = f"one answer a row in {where}, grouped by prompt" if mapping.grouped else f"lists of answers in {where}"
        containers = dict.fromkeys(container.description for container in self.containers if container.description)
        return "; ".join([*containers, how])

    @property
    def size(self) -> int:
        """Bytes of the files on disk."""
        return sum(container.size for container in self.containers)

    def digest(self, progress: Progress = NO_PROGRESS) -> str:
        """SHA-256 of the content."""
        return digest_of(self.containers, progress)

    def options(self) -> dict[str, object]:
        """What else determines the questions, for the cache's fingerprint."""
        members = [container.member for container in self.containers if container.member]
        options: dict[str, object] = {"read": [mapping.to_json() for mapping in self.mappings]}
        return options | {"encoding": self.source.encoding, "members": members}

    def batches(self, progress: Progress = NO_PROGRESS) -> Iterator[tuple[pa.RecordBatch, CandidateCounts]]:
        """The questions in the files' order, a batch at a time, with what was repaired in each.

        ``progress`` is advanced by bytes.

        Raises
        ------
        InputError
            On the first row that is not a question with answers, if a file holds none, or if single answers take more
            than :data:`MAX_GROUPED_BYTES`.
        """
        if self.mappings[0].grouped:
            yield from _in_batches(self._grouped(progress))
            return
        for questions, dropped in self._questions(progress):
            batch, counts = _to_batch(questions)
            yield batch, counts + CandidateCounts(dropped_parts=dropped)

    def _questions(self, progress: Progress) -> Iterator[tuple[list[Question], int]]:
        rows_before = 0
        for container, mapping in zip(self.containers, self.mappings, strict=True):
            rows = 0
            for raw in raw_batches(container, mapping.mapped.columns, progress):
                if raw.num_rows:
                    with readable(container.name):
                        yield mapping.convert(raw, Location(container.name, rows + 1, rows_before))
                    rows += raw.num_rows
            if not rows:
                raise InputError("the file holds no answers", where=container.name, hint=EXPECTED)
            rows_before += rows

    def _grouped(self, progress: Progress) -> Iterator[tuple[Question, CandidateCounts]]:
        groups = _Groups(str(self.source), self.has_ids)
        for questions, dropped in self._questions(progress):
            groups.add(questions, dropped)
        yield from groups.questions()


class _Groups:
    """Single answers, held in memory, by their prompts."""

    def __init__(self, where: str, has_ids: bool) -> None:
        self.where, self.has_ids = where, has_ids
        self.by_prompt: dict[tuple[str | None, ...], Question] = {}
        self.several: set[tuple[str | None, ...]] = set()
        self.size = self.dropped = 0

    def add(self, questions: Sequence[Question], dropped: int) -> None:
        """Put each answer to its prompt: the same text, turn by turn."""
        self.dropped += dropped
        for one_answer in questions:
            key = tuple(one_answer.prompt)
            question = self.by_prompt.setdefault(key, one_answer)
            if question is not one_answer:
                question.responses += one_answer.responses
                question.models += one_answer.models
                question.scores += one_answer.scores
                if self.has_ids and question.id != one_answer.id:
                    self.several.add(key)
            self.size += (
                one_answer.size if question is one_answer else sum(map(len, filter(None, one_answer.responses[0])))
            )
        if self.size > MAX_GROUPED_BYTES:
            raise InputError(
                f"more than {MAX_GROUPED_BYTES / 2**30:g} GiB of single answers: all are held in memory to group them",
                where=self.where,
                hint="Give one row a prompt, with a list of its answers (responses), or divide the file by prompt.",
            )

    def questions(self) -> Iterator[tuple[Question, CandidateCounts]]:
        """The questions in the order of their first answers."""
        dropped = CandidateCounts(dropped_parts=self.dropped)
        for key, question in self.by_prompt.items():
            yield question, CandidateCounts(several_ids=key in self.several) + dropped
            dropped = CandidateCounts()


def _in_batches(
    questions: Iterator[tuple[Question, CandidateCounts]],
) -> Iterator[tuple[pa.RecordBatch, CandidateCounts]]:
    together: list[Question] = []
    counts, size = CandidateCounts(), 0
    for question, more in questions:
        together.append(question)
        counts += more
        size += question.size
        if len(together) >= BATCH_QUESTIONS or size >= BATCH_BYTES:
            batch, own = _to_batch(together)
            yield batch, own + counts
            together, counts, size = [], CandidateCounts(), 0
    if together:
        batch, own = _to_batch(together)
        yield batch, own + counts


def _to_batch(questions: Sequence[Question]) -> tuple[pa.RecordBatch, CandidateCounts]:
    location = Location("", 1)  # all turns are text by now
    answers = [turns for question in questions for turns in question.responses]
    prompts, in_prompts = turns_array([question.prompt for question in questions], "prompt", location)
    responses, in_responses = turns_array(answers, "responses", location)
    sizes = [len(question.responses) for question in questions]
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + size)
    models = [question.models if any(question.models) else None for question in questions]
    scores = [question.scores if any(s is not None for s in question.scores) else None for question in questions]
    batch = make_candidates(
        {
            "id": pa.array([question.id for question in questions], pa.string()),
            "prompt": prompts,
            "responses": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), responses, type=ANSWERS),
            "models": pa.array(models, pa.list_(pa.string())),
            "scores": pa.array(scores, pa.list_(pa.float64())),
        }
    )
    return batch, CandidateCounts(
        questions=len(questions), answers=len(answers), single=sizes.count(1), surrogates=in_prompts + in_responses
    )


def open_candidates(source: Source, reporter: Reporter = SILENT) -> CandidateFile:
    """Recognise how one or more files of answers are read; ``reporter`` gets the progress of what reads a whole file.

    Raises
    ------
    InputError
        If a file cannot be read, the answers are not found in it, or the files do not fit together.
    """
    if not source.paths:
        raise InputError("no file to read")
    check_different(source.paths)
    containers = tuple(open_container(path, "test", source.encoding, reporter) for path in source.paths)
    scan_json(containers, reporter)
    mappings = tuple(
        recognise_candidates(c.name, column_names(c), functools.partial(peek_file, c), source) for c in containers
    )
    for container, mapping in zip(containers, mappings, strict=True):
        if mapping.grouped != mappings[0].grouped or set(mapping.mapped.places) != set(mappings[0].mapped.places):
            raise InputError(
                "the files hold their answers in different ways",
                where=f"{containers[0].name}, {container.name}",
                hint="Files that are read together must have the same columns.",
            )
    return CandidateFile(source, containers, mappings)


@dataclass(frozen=True)
class CandidateTable:
    """Questions that were in memory already."""

    questions: pa.RecordBatch
    has_ids: bool
    """Whether the table has ids; if not, those of the questions are numbers of rows."""
    grouped: bool
    """Whether a row holds one answer."""


def read_candidates(table: Any, source: Source | None = None, *, name: str = "the table") -> CandidateTable:
    """Questions that are in memory already, in any form that files may have; see :func:`open_candidates`.

    Parameters
    ----------
    table:
        See :func:`~prefcli.readers.tables.raw_table`.
    source:
        How it is read, as a source of no files.
    name:
        The table's name in error messages.

    Raises
    ------
    InputError
        If it is not a table, or its rows are not questions with answers.
    """
    raw = raw_table(table, name)
    if not raw.num_rows:
        raise InputError("there are no answers", where=name, hint=EXPECTED)
    peek = functools.partial(peek_table, raw)
    mapping = recognise_candidates(name, list(raw.columns), peek, source or Source(()))
    questions, dropped = mapping.convert(raw.select(mapping.mapped.columns), Location(name, 1))
    has_ids = "id" in mapping.mapped.places
    if mapping.grouped:
        groups = _Groups(name, has_ids)
        groups.add(questions, dropped)
        questions = [question for question, _ in groups.questions()]
    return CandidateTable(_to_batch(questions)[0], has_ids, mapping.grouped)
