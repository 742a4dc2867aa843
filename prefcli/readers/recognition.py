"""Which layout a file has, where its columns are, and how its texts are written."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefcli import groups
from prefcli.battles import SOURCE, TEXT_FIELDS, Source
from prefcli.errors import InputError, did_you_mean
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.readers import layouts
from prefcli.readers.cells import LIKE_MESSAGES, excerpt, list_names, missing_columns
from prefcli.readers.conversations import is_transcript
from prefcli.readers.each import Each
from prefcli.readers.engine import CONVERSATIONS, PAIR, RESPONSES, Mapped
from prefcli.readers.file_columns import (
    LIKE_LIST,
    FileColumns,
    Peek,
    flat,
    is_conversation,
    is_list_of_turns,
    is_text,
)
from prefcli.readers.layouts import Layout
from prefcli.readers.mapping import check_columns
from prefcli.readers.outcome_rules import OutcomeRule
from prefcli.readers.outcome_search import find_outcome
from prefcli.readers.paths import Places, is_missing, normalise, parse_places
from prefcli.readers.refusals import no_layout

COLUMN_OR_COMPUTED = f"Groups are a column, or a path into one (a.b.0); --by also takes {', '.join(groups.COMPUTED)}"


@dataclass(frozen=True)
class Recognised:
    """How a file is read, and what is not read of it."""

    mapped: Mapped
    not_read: tuple[str, ...]
    questions: tuple[str, ...] = ()
    """Columns that are not read although they look like an outcome, in words."""


def recognise(where: str, columns: Sequence[str], peek: Peek, source: Source, *, outcomes: bool = True) -> Recognised:
    """Find out how a file is read.

    Parameters
    ----------
    where, columns:
        The file's name and its columns.
    peek:
        Gives the first rows of some columns; without rows if the file has none.
    source:
        What the user says: format, columns, outcome, each.
    outcomes:
        Whether a file is refused whose outcome is not understood.

    Raises
    ------
    InputError
        If no layout fits, several do, or what the columns mean would have to be guessed.
    """
    check_columns(source.columns or {})
    if not outcomes:
        source = _without_absent_outcome(source, where, columns)
    file_columns = FileColumns(where, columns, peek, source)
    mapped, questions = find_outcome(_Search(file_columns).mapped(), file_columns, outcomes)
    if source.source is not None:
        mapped = dataclasses.replace(mapped, source_places=parse_places(source.source, columns, where, "--source"))
    if source.by is not None:
        mapped = dataclasses.replace(mapped, by=source.by, by_places=_group_places(source, columns, where))
    not_read = tuple(name for name in columns if name not in set(mapped.columns))
    return Recognised(mapped, not_read, questions)


def _group_places(source: Source, columns: Sequence[str], where: str) -> Places:
    """Where the groups' names are; nowhere if they are computed."""
    by = str(source.by)
    try:
        return parse_places(by, columns, where, "--by")
    except InputError as error:
        if by in groups.COMPUTED or (by == SOURCE and (source.source or source.file_sources)):
            return ()
        hint = did_you_mean(by, [*columns, *groups.COMPUTED])
        if by == SOURCE:
            hint = "Sources are several files of votes, or named by --source COLUMN."
        raise InputError(error.what, where=where, hint=hint or f"{COLUMN_OR_COMPUTED}.") from None


def _without_absent_outcome(source: Source, where: str, columns: Sequence[str]) -> Source:
    """The source without what it says about outcomes that a file has not, as of battles that are to be predicted."""

    def is_there(path: str) -> bool:
        try:
            return bool(parse_places(path, columns, where))
        except InputError:
            return False

    mapping = source.columns or {}
    kept = {n: path for n, path in mapping.items() if not path or n not in layouts.OUTCOME_COLUMNS or is_there(path)}
    has_outcome = source.outcome is not None and all(map(is_there, OutcomeRule.parse(source.outcome).columns))
    return dataclasses.replace(source, columns=kept or None, outcome=source.outcome if has_outcome else None)


def find_candidates(columns: FileColumns) -> Mapped:
    """Where prompt, id and list of answers are in a file of several answers to each prompt.

    Raises
    ------
    InputError
        As :func:`recognise` does.
    """
    return _Search(columns, scored=False).mapped()


def matches(columns: FileColumns, layout: Layout) -> bool:
    """Whether all columns of a layout are there."""
    return _Search(columns).matches(layout)


class _Search:
    """Finds the layout of a file and the places of its texts.

    Parameters
    ----------
    columns:
        The file's.
    scored:
        Whether lists of answers have scores, so that pairs of them are battles.
    """

    def __init__(self, columns: FileColumns, *, scored: bool = True) -> None:
        self.columns, self.scored = columns, scored
        self.empty: tuple[Places, ...] = ()

    def mapped(self) -> Mapped:
        """How the file is read, but for its outcome."""
        columns = self.columns
        layout = self._layout() if self.scored or self.columns.source.format else layouts.LISTS
        places = dict(columns.given)
        for name, path in layout.columns.items():
            if name in places or name in columns.unmapped or not (found := self._layout_places(path)):
                continue
            if name not in layouts.OPTIONAL_COLUMNS or not found[0].steps or columns.holds_something(found):
                places[name] = found
        if layout is layouts.GENERIC:
            places |= self._answers(RESPONSES, columns.pair_of_answers)
        if layout is layouts.PREFERENCES:
            places |= self._answers(PAIR, columns.pair_of_chosen)
        if layout in (layouts.GENERIC, layouts.PREFERENCES, layouts.LISTS):
            places |= self._around(places)
        needs_prompt = "response_a" in places or layout.each or columns.source.each or not self.scored
        if "prompt" not in places and needs_prompt:
            used = {place.column for joined in places.values() for place in joined}
            used.add(columns.find(_top((columns.source.each or layout.each).partition(":")[0])) or "")
            texts = [name for name in columns.texts() if name not in (*used, *layouts.OUTCOME_COLUMNS)]
            raise columns.error(missing_columns(["prompt"], columns.all_names), columns.hint_for("prompt", texts))
        if "id" not in places and (id_column := columns.first(layouts.ID_COLUMNS)):
            places["id"] = columns.places(id_column)
        for name in layout.outcome_columns:
            if name not in places and columns.source.outcome is None and (column := columns.find(name)):
                places[name] = columns.places(column)
        self._check_paths(places)
        scores = self._scores() if "chosen" in places else ()
        mapped = Mapped(layout, places, scores=scores, empty=self.empty)
        return self._with_forms(self._with_each(mapped, columns.source.each or layout.each))

    def _scores(self) -> tuple[Places, ...]:
        """The scores of chosen and rejected that are in a file beside them."""
        for word in ("score", "rating"):
            for names in ([f"{word}_{side}" for side in PAIR], [f"{side}_{word}" for side in PAIR]):
                found = [column for name in names if (column := self.columns.find(name))]
                if len(found) == len(PAIR):
                    return tuple(map(self.columns.places, found))
        return ()

    def _check_paths(self, places: Mapping[str, Places]) -> None:
        """Refuse the user's paths that lead to nothing in any of the first rows."""
        paths = [place for name in self.columns.given if name in places for place in places[name] if place.steps]
        for place in paths:
            cells = [cell for cell in self.columns.column(place.column) if not is_missing(cell)]
            if not cells or self.columns.holds_something((place,)):
                continue
            keys = list(cells[0]) if isinstance(cells[0], dict) else []
            holds = f"{place.column} holds {list_names(keys) or 'no objects'}"
            hint = did_you_mean(place.steps[0], keys) or "Check the path; positions are counted from 0."
            raise self.columns.error(f"nothing is at {place} in the first rows; {holds}", hint)

    # Which layout

    def _layout(self) -> Layout:
        if self.columns.source.format is not None:
            return self._named(self.columns.source.format)
        if self.columns.source.each is not None:
            return layouts.LISTS
        families = self._families()
        if len(families) > 1:
            raise self._several(list(families))
        for layout in layouts.SPECIFIC_LAYOUTS:
            if self.matches(layout):
                own = {self.columns.find(_top(path)) for path in layout.columns.values()}
                foreign = [other for other, names in families.items() if not names <= own]
                if foreign := foreign or self._of_other_answers(layout):
                    raise self._several([layout, *foreign])
                if layout is layouts.KAGGLE and not self.columns.find(WINNER_COLUMNS[0]) and not self._turns():
                    return layouts.GENERIC
                return layout
        if families:
            return next(iter(families))
        if self.columns.pair_of_answers() is not None:
            return layouts.GENERIC
        raise no_layout(self.columns)

    def _of_other_answers(self, layout: Layout) -> list[Layout]:
        """The other layouts that fit but compare other columns, as in a file of both kinds of rows."""
        own = {layout.columns.get(name) for name in RESPONSES}
        if own == {None}:
            return []
        others = [other for other in layouts.SPECIFIC_LAYOUTS if own - {other.columns.get(name) for name in RESPONSES}]
        return [other for other in others if RESPONSES[0] in other.columns and self.matches(other)]

    def _several(self, fitting: Sequence[Layout]) -> InputError:
        what = f"the columns fit several formats: {', '.join(layout.name for layout in fitting)}"
        return self.columns.error(what, "Choose one with --format, or leave columns out: --columns NAME=")

    def _families(self) -> dict[Layout, set[str | None]]:
        """The layouts whose answers are there, under their best-known names, and the columns of these answers."""
        columns = self.columns
        kinds = ((layouts.PREFERENCES, PAIR), (layouts.ARENA, CONVERSATIONS), (layouts.GENERIC, RESPONSES))
        present = {layout: set(map(columns.find, names)) for layout, names in kinds if not columns.absent(names)}
        if layouts.PREFERENCES not in present and (pair := columns.pair_of_chosen()) is not None:
            present[layouts.PREFERENCES] = set(pair)
        return present

    def _named(self, wanted: str) -> Layout:
        layout = next((layout for layout in layouts.LAYOUTS if layout.name == wanted), None)
        if layout is None:
            names = [layout.name for layout in layouts.LAYOUTS]
            hint = did_you_mean(wanted, names) or f"Choose one of {', '.join(names)}."
            raise InputError(f"unknown format {wanted!r}", hint=hint)
        missing = [
            _top(path)
            for name, path in layout.columns.items()
            if name not in (*layouts.OPTIONAL_COLUMNS, *self.columns.given) and not self.columns.find(_top(path))
        ]
        if missing:
            what = missing_columns(missing, self.columns.all_names)
            raise self.columns.error(what, f"The format {layout.name} is {layout.summary}.")
        return layout

    def matches(self, layout: Layout) -> bool:
        """Whether all columns of a layout are there; its outcome is that of its own two answers."""
        if layout.outcome and self.columns.given.keys() & {*RESPONSES, *CONVERSATIONS, *PAIR}:
            return False
        paths = [path for name, path in layout.columns.items() if name not in layouts.OPTIONAL_COLUMNS]
        paths += OutcomeRule.parse(layout.outcome).columns if layout.outcome else ()
        if layout.each:
            each = Each.parse(layout.each)
            paths += [each.list_path, *(path for key, path in each.parallel.items() if key != "model")]
        needed = [*map(_top, paths), *layout.also]
        if not all(map(self.columns.find, needed)) or any(map(self.columns.find, layout.without)):
            return False
        return all(map(self._holds_lists, layout.lists))

    def _holds_lists(self, name: str) -> bool:
        """Whether a column holds lists of texts, perhaps written as JSON."""
        cells = [c for c in self.columns.column(self.columns.find(name) or name) if not is_missing(c) and c != ""]
        return bool(cells) and all(map(is_list_of_turns, cells))

    def _layout_places(self, path: str) -> Places | None:
        """The places of a layout's path; parts of a sum that are not there are left out."""
        parts = [part for part in path.split("+") if self.columns.find(_top(part))]
        if not parts:
            return None
        places = parse_places("+".join(parts), self.columns.free, self.columns.where)
        whole = places[0].column
        is_key = bool(places[0].steps) and str(places[0].steps[0]).isidentifier()
        if is_key and any(map(is_conversation, self.columns.column(whole))):
            return self.columns.places(whole)  # the messages themselves instead of an object that holds them
        return places

    # Prompt and answers under other names

    def _answers(self, names: tuple[str, str], find_pair: Callable[[], tuple[str, str] | None]) -> dict[str, Places]:
        """The two answers: mapped by the user, under their own names, or under others."""
        columns = self.columns
        missing = columns.absent(names)
        if not missing:
            if names == RESPONSES and not columns.given.keys() & {*names}:
                columns.pairs(("response",))  # refuses a third one
            pair = {name: columns.given.get(name) or columns.places(name) for name in names}
        elif len(missing) == 2 and (found := find_pair()) is not None:
            pair = {name: columns.places(column) for name, column in zip(names, found, strict=True)}
        else:
            raise columns.error(missing_columns(missing, columns.all_names), columns.hint_for(missing[0]))
        for name in PAIR if names == PAIR else ():
            model = columns.first((f"{name}_model", f"{name}_policy", f"model_{name}"))
            if model and f"{name}_model" not in columns.given:
                pair[f"{name}_model"] = columns.places(model)
        return pair

    def _around(self, places: Mapping[str, Places]) -> dict[str, Places]:
        """Prompt, system text, earlier turns and models, under the names that are known for them."""
        columns = self.columns
        around: dict[str, Places] = {}
        if "system" not in places and (system := columns.first(layouts.SYSTEM_COLUMNS)):
            around["system"] = columns.places(system)
        if "prompt" not in places and "prompt" not in columns.unmapped:
            around |= self._prompt(places)
        if "response_a" in places and not {"model_a", "model_b"} & {*places, *columns.unmapped}:
            models = columns.pairs(layouts.MODEL_STEMS)
            if len(models) == 1:
                around |= {"model_a": columns.places(models[0][0]), "model_b": columns.places(models[0][1])}
        return around

    def _prompt(self, places: Mapping[str, Places]) -> dict[str, Places]:
        columns = self.columns
        if "chosen" in places:
            answers = columns.answers(places, PAIR)
            if answers and all(map(is_conversation, answers)):
                return {"prompt": columns.places("prompt")} if columns.find("prompt") else {}
        present = [column for name in layouts.PROMPT_COLUMNS if (column := columns.find(name))]
        around: dict[str, Places] = {}
        history = columns.find("history")
        if history in present[1:] and all(map(_is_history, columns.column(history))):
            around["history"] = columns.places(history)
            present.remove(history)
        if not present:
            return around
        together = [column for name in layouts.PROMPT_OF_PARTS if (column := columns.find(name))]
        parts = together if present[0] in together else present[:1]
        others = [name for name in present if name not in parts]
        others += [name for name in columns.free if name not in (*others, history) and self._may_be_prompt(name, parts)]
        if others and not self._repeated(parts, others):
            together = sorted([*parts, *others], key=columns.all_names.index)
            raise columns.error(
                f"the prompt may be in several columns: {', '.join(together)}",
                f"Name it: --columns prompt={'+'.join(together)} joins them, "
                f"--columns prompt={'+'.join(parts)} reads {' and '.join(parts)} alone.",
            )
        self._check_prompt(parts)
        self.empty = tuple(columns.places(name) for name in others if not any(map(flat, columns.column(name))))
        return {**around, "prompt": columns.places("+".join(parts))}

    def _may_be_prompt(self, name: str, parts: Sequence[str]) -> bool:
        """Whether a column of texts has a name that is almost one for the prompt, such as ``inp``."""
        known = (*layouts.PROMPT_COLUMNS, *layouts.SYSTEM_COLUMNS)
        key = normalise(name)
        if name in parts or key in known:
            return False
        abbreviates = len(key) >= 3 and any(other.startswith(key) for other in known)
        of_like_length = [other for other in known if abs(len(other) - len(key)) <= 2]
        misspells = difflib.get_close_matches(key, of_like_length, 1, 0.8)
        return bool(abbreviates or misspells) and any(map(is_text, self.columns.column(name)))

    def _repeated(self, parts: Sequence[str], others: Sequence[str]) -> bool:
        """Whether the other columns hold nothing that the prompt does not hold, in the first rows."""
        texts = {name: list(map(flat, self.columns.column(name))) for name in (*parts, *others)}
        prompts = ["\n".join(cells) for cells in zip(*(texts[name] for name in parts), strict=True)]
        return all(other in prompt for name in others for prompt, other in zip(prompts, texts[name], strict=True))

    def _check_prompt(self, parts: Sequence[str]) -> None:
        """Refuse a prompt that is empty in one of the first rows, where another column holds text."""
        texts = [list(map(flat, self.columns.column(name))) for name in parts]
        row = next((row for row, cells in enumerate(zip(*texts, strict=True), start=1) if not any(cells)), None)
        if row is None or normalise(parts[0]) == "prompt":
            return
        raise InputError(
            "no prompt",
            where=f"{self.columns.where}, row {row}, column {' and '.join(parts)}",
            hint="Is it in another column? Name it with --columns prompt=NAME.",
        )

    # How cells are written

    def _with_each(self, mapped: Mapped, text: str) -> Mapped:
        if not text:
            return mapped
        columns = self.columns
        each = Each.parse(text, scored=self.scored)
        parallel = {key: path for key, path in each.parallel.items() if columns.source.each or columns.find(_top(path))}
        fields = tuple((key, path) for key, path in each.fields if key not in each.parallel or key in parallel)
        each_places = {"": columns.places(each.list_path, "--each")}
        each_places |= {key: columns.places(path, "--each") for key, path in parallel.items()}
        return dataclasses.replace(mapped, each=dataclasses.replace(each, fields=fields), each_places=each_places)

    def _with_forms(self, mapped: Mapped) -> Mapped:
        """Decide from the first rows how texts are written."""
        places = mapped.places
        if mapped.layout is layouts.KAGGLE:
            return dataclasses.replace(mapped, turns=True)
        rows = "response_a" in places
        if rows and self.columns.source.format == layouts.GENERIC.name:
            return dataclasses.replace(mapped, transcripts=False, plain=True)
        plain = self.columns.source.format == layouts.PREFERENCES.name
        written = self._written_messages(places) | self._written_lists(mapped)
        turns = rows and not written and self._turns(places)
        common_prompt = "chosen" in places and "prompt" not in places and self._common_prompt(mapped, written)
        return dataclasses.replace(
            mapped,
            turns=turns,
            transcripts=not rows,
            written_messages=written,
            common_prompt=common_prompt,
            plain=plain,
        )

    def _turns(self, places: Mapping[str, Places] | None = None) -> bool:
        """Whether prompt and answers of the first row that has them are texts that hold lists of turns."""
        places = places or {name: self.columns.places(name) for name in TEXT_FIELDS}
        rows = list(zip(*(self.columns.cells(places[name]) for name in TEXT_FIELDS), strict=False))
        first = next((row for row in rows if not any(is_missing(cell) or cell == "" for cell in row)), ())
        if not first:
            return not rows
        if all(isinstance(cell, str) and LIKE_LIST.fullmatch(cell) for cell in first):
            if not all(map(is_list_of_turns, first)):
                raise self.columns.error(
                    f"the texts look like lists of turns, but cannot be read as such: {excerpt(first[0])}",
                    'Write lists as JSON, such as ["Hello", null]; NumPy\'s form says not where a turn ends. '
                    "--format generic reads them as plain text.",
                )
            return True
        if all(map(is_list_of_turns, first)):
            return any(isinstance(cell, str) for cell in first)
        for number, row in enumerate(rows, start=1):
            if all(isinstance(cell, str) and is_list_of_turns(cell) for cell in row):
                raise self.columns.error(
                    f"the texts of row {number} are lists of turns, those of row 1 are not",
                    "Read them as two files; --format generic reads all of them as plain text.",
                )
        return False

    def _written_messages(self, places: Mapping[str, Places]) -> frozenset[str]:
        """The columns whose texts are messages, written as JSON or as Python writes them."""
        written = set()
        for name in (*TEXT_FIELDS, *PAIR, "system", "history"):
            cells = [cell for cell in (self.columns.answers(places, [name]) if name in places else []) if cell != ""]
            like_messages = [isinstance(cell, str) and bool(LIKE_MESSAGES.match(cell)) for cell in cells]
            some_are = any(like_messages) and (
                "prompt" in written or (name in PAIR and any(map(is_conversation, cells)))
            )
            if (like_messages and all(like_messages)) or some_are:  # rows of text are refused in the latter case
                written.add(name)
        return frozenset(written)

    def _written_lists(self, mapped: Mapped) -> frozenset[str]:
        """Chosen and rejected, if their texts are lists of answers, written as JSON."""
        if "chosen" not in mapped.places or mapped.places["chosen"][0].steps:
            return frozenset()
        if mapped.layout.lists:
            return frozenset(PAIR)
        cells = [cell for cell in self.columns.answers(mapped.places, PAIR) if cell != ""]
        if not cells or not all(isinstance(cell, str) and is_list_of_turns(cell) for cell in cells):
            return frozenset()
        if self.columns.source.format is not None:
            return frozenset()
        raise self.columns.error(
            f"chosen and rejected are texts that hold lists: {excerpt(cells[0])}",
            "--format reward-bench-2 reads each as a list of answers, --format preferences as one answer.",
        )

    def _common_prompt(self, mapped: Mapped, written: frozenset[str]) -> bool:
        """Whether the prompt is the common beginning of the answers: asked for, or no other column holds text."""
        columns = self.columns
        if written & set(PAIR):
            return False
        if "prompt" in columns.unmapped:
            return True
        texts = [name for name in columns.texts() if name not in mapped.columns]
        plain = [cell for cell in columns.answers(mapped.places, PAIR) if isinstance(cell, str)]
        if texts and not all(map(is_transcript, plain)):
            raise columns.error(
                f"no prompt: no column has a name that is known for it; not read: {list_names(texts)}",
                f"{columns.hint_for('prompt', texts).rstrip('.')}; if the answers begin with it: --columns prompt=",
            )
        return not texts


def _is_history(cell: Any) -> bool:
    """Whether a cell may hold earlier turns: a list, perhaps written as JSON, or nothing."""
    return is_missing(cell) or isinstance(cell, list) or (isinstance(cell, str) and cell.strip()[:1] in ("", "["))


def _top(path: str) -> str:
    """The column of a layout's path, of a sum the first one."""
    return path.split("+")[0].split(".")[0]
