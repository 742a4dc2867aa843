"""Which layout a file has, where its columns are, what is not read, and the refusals that say how to read it."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefcli.battles import TEXT_FIELDS, Source, describe_battle
from prefcli.errors import InputError
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.readers import layouts
from prefcli.readers.cells import Location, RawBatch, excerpt, list_names, missing_columns, parse_nested
from prefcli.readers.conversations import is_transcript
from prefcli.readers.each import Each
from prefcli.readers.engine import CONVERSATIONS, PAIR, RESPONSES, Mapped
from prefcli.readers.layouts import Layout
from prefcli.readers.mapping import check_columns
from prefcli.readers.outcome_rules import OutcomeRule, comparable
from prefcli.readers.outcomes_in_columns import WINNERS, spelling
from prefcli.readers.paths import (
    ColumnPath,
    Places,
    column_cells,
    did_you_mean,
    find_column,
    is_missing,
    normalise,
    parse_places,
)

EXPECTED = (
    "Expected prompt, response_a, response_b and winner; conversation_a and conversation_b; or chosen and rejected. "
    "Other names with --columns prompt=NAME,..., other outcomes with --outcome, lists of answers with --each."
)
PEEK_ROWS = 100

Peek = Callable[[Sequence[str]], RawBatch]
"""The first rows of some columns."""

_NAMES_OF_OUTCOMES = """
    winner label labels preferred preference choice vote verdict judgment judgement better outcome result
    preferred_response better_response preferred_answer better_answer human_preference
"""
OUTCOME_NAMES = frozenset(_NAMES_OF_OUTCOMES.split())
"""Names of a column that is read as the outcome if it holds words for a winner, and nothing else does."""

_OUTCOME_WORDS = re.compile(
    r"(^|_)(winner|win|labels?|preferred|preferences?|choice|votes?|verdict|judge?ments?|better|safer|best|outcome|"
    r"ratings?|scores?|ranks?|ranking|annotator_?\d*|annotations?|selected|\w*vote)($|_)"
)


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
    search = _Search(where, columns, peek, source if outcomes else _without_absent_outcome(source, where, columns))
    mapped = search.mapped()
    return search.with_outcome(mapped, outcomes)


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


class _Search:
    def __init__(self, where: str, columns: Sequence[str], peek: Peek, source: Source) -> None:
        self.where, self.peek, self.source = where, peek, source
        given = dict(source.columns or {})
        self.unmapped = {name for name, path in given.items() if not path}
        hidden = {find_column(name, columns) for name in self.unmapped}
        self.all_columns = list(columns)
        self.columns = [name for name in columns if name not in hidden]
        self.given = {name: self._places(path) for name, path in given.items() if path}
        used = {place.column for places in self.given.values() for place in places if not place.steps}
        self.free = [name for name in self.columns if name not in used]
        """Columns that the user has not given another name."""
        self.location = Location(where, 1)

    def _places(self, path: str, option: str = "--columns") -> Places:
        return parse_places(path, self.columns, self.where, option)

    def _find(self, name: str) -> str | None:
        return find_column(name, self.free)

    def error(self, what: str, hint: str) -> InputError:
        return InputError(what, where=self.where, hint=hint)

    # Which layout

    def mapped(self) -> Mapped:
        layout = self._layout()
        places = dict(self.given)
        for name, path in layout.columns.items():
            if name in places or name in self.unmapped or not (found := self._layout_places(path)):
                continue
            if name not in layouts.OPTIONAL_COLUMNS or not found[0].steps or self._holds_something(found):
                places[name] = found
        if layout is layouts.GENERIC:
            places = {**self._answers(), **places}
        if layout is layouts.PREFERENCES:
            places = {**self._pair(), **places}
        if layout in (layouts.GENERIC, layouts.PREFERENCES, layouts.LISTS):
            places |= self._around(places)
        if "id" not in places and (id_column := self._first(layouts.ID_COLUMNS)):
            places["id"] = self._places(id_column)
        for name in layout.outcome_columns:
            if name not in places and self.source.outcome is None and (column := self._find(name)):
                places[name] = self._places(column)
        mapped = Mapped(layout, {name: found for name, found in places.items() if name in layouts.CANONICAL_COLUMNS})
        self._check_paths(mapped.places)
        mapped = self._with_each(mapped, self.source.each or layout.each)
        return self._with_forms(mapped)

    def _check_paths(self, places: Mapping[str, Places]) -> None:
        """Refuse the user's paths that lead to nothing in any of the first rows."""
        for name in self.given.keys() & places.keys():
            for place in places[name]:
                if not place.steps or self._holds_something((place,)):
                    continue
                cells = [cell for cell in self._peek_cells((ColumnPath(place.column),)) if not is_missing(cell)]
                if cells:
                    keys = list(cells[0]) if isinstance(cells[0], dict) else []
                    holds = f"{place.column} holds {list_names(keys)}" if keys else f"{place.column} holds no objects"
                    hint = did_you_mean(place.steps[0], keys) or "Check the path; positions are counted from 0."
                    raise self.error(f"nothing is at {place} in the first rows; {holds}", hint)

    def _layout(self) -> Layout:
        if self.source.format is not None:
            return self._named(self.source.format)
        if self.source.each is not None:
            return layouts.LISTS
        families = self._families()
        if len(families) > 1:
            what = f"the columns fit several formats: {', '.join(families)}"
            raise self.error(what, "Choose one with --format.")
        for layout in layouts.SPECIFIC_LAYOUTS:
            if self._matches(layout):
                is_kaggle = layout is layouts.KAGGLE
                return (
                    layouts.GENERIC if is_kaggle and not self._find(WINNER_COLUMNS[0]) and not self._turns() else layout
                )
        if families == ["arena"]:
            return layouts.ARENA
        if families == ["preferences"]:
            return layouts.PREFERENCES
        if families == ["generic"] or self._pair_of_answers() is not None:
            return layouts.GENERIC
        raise self._no_layout()

    def _families(self) -> list[str]:
        """What kinds of answers the file has under the best-known names."""
        kinds = {"preferences": PAIR, "arena": CONVERSATIONS, "generic": RESPONSES}
        present = [
            kind for kind, names in kinds.items() if all(name in self.given or self._find(name) for name in names)
        ]
        if "preferences" not in present and self._names_of_pair() is not None:
            present.append("preferences")
        return present

    def _named(self, wanted: str) -> Layout:
        layout = next((layout for layout in layouts.LAYOUTS if layout.name == wanted), None)
        if layout is None:
            names = [layout.name for layout in layouts.LAYOUTS]
            raise InputError(
                f"unknown format {wanted!r}", hint=did_you_mean(wanted, names) or f"Choose one of {', '.join(names)}."
            )
        if missing := self._missing(layout):
            raise self.error(
                missing_columns(missing, self.all_columns), f"The format {layout.name} is {layout.summary}."
            )
        return layout

    def _matches(self, layout: Layout) -> bool:
        paths = [
            path
            for name, path in layout.columns.items()
            if name not in layouts.OPTIONAL_COLUMNS or (name == "id" and layout is layouts.KAGGLE)
        ]
        paths += OutcomeRule.parse(layout.outcome).columns if layout.outcome else ()
        if layout.each:
            each = Each.parse(layout.each)
            paths += [each.list_path, *(path for key, path in each.parallel.items() if key != "model")]
        needed = [*(path.split("+")[0].split(".")[0] for path in paths), *layout.also]
        return all(map(self._find, needed)) and not any(map(self._find, layout.without))

    def _absent(self, names: Sequence[str]) -> list[str]:
        """Those canonical names that neither the file has nor the user maps."""
        return [name for name in names if name not in self.given and not self._find(name)]

    def _missing(self, layout: Layout) -> list[str]:
        """Columns of a layout that neither the file has nor the user names."""
        if layout is layouts.GENERIC:
            return (
                []
                if self._pair_of_answers()
                else [name for name in TEXT_FIELDS if name not in self.given and not self._find(name)]
            )
        if layout is layouts.PREFERENCES:
            return (
                []
                if self._names_of_pair()
                else [name for name in PAIR if name not in self.given and not self._find(name)]
            )
        tops = {
            name: path.split("+")[0].split(".")[0]
            for name, path in layout.columns.items()
            if name not in layouts.OPTIONAL_COLUMNS and name not in self.given
        }
        return [top for top in tops.values() if not self._find(top)]

    def _layout_places(self, path: str) -> Places | None:
        """The places of a layout's path; parts of a sum that are not there are left out."""
        parts = [part for part in path.split("+") if self._find(part.split(".")[0])]
        return parse_places("+".join(parts), self.free, self.where) if parts else None

    def _holds_something(self, places: Places) -> bool:
        return not all(map(is_missing, self._peek_cells(places)))

    def _first(self, names: Sequence[str]) -> str | None:
        return next((column for name in names if name not in self.unmapped and (column := self._find(name))), None)

    # Prompt and answers under other names

    def _names_of_pair(self) -> tuple[str, str] | None:
        for names in layouts.PAIRS_OF_NAMES:
            columns = [self._find(name) for name in names]
            if all(columns):
                return columns[0], columns[1]  # type: ignore[return-value]
        return None

    def _pair(self) -> dict[str, Places]:
        if all(name in self.given for name in PAIR):
            return {}
        names = self._names_of_pair()
        if names is None:
            raise self.error(missing_columns(self._absent(PAIR), self.all_columns), EXPECTED)
        pair = {canonical: self._places(name) for canonical, name in zip(PAIR, names, strict=True)}
        for canonical in PAIR:
            if column := self._first((f"{canonical}_model", f"{canonical}_policy", f"model_{canonical}")):
                pair[f"{canonical}_model"] = self._places(column)
        return pair

    def _pair_of_answers(self) -> tuple[str, str] | None:
        """The two columns that are told apart by a, b or by numbers, if there is exactly one such pair."""
        pairs = self._suffixed(layouts.ANSWER_STEMS)
        return pairs[0] if len(pairs) == 1 else None

    def _suffixed(self, stems: Sequence[str]) -> list[tuple[str, str]]:
        by_name = {normalise(name): name for name in self.free}
        pairs = []
        for stem in stems:
            for first, second in layouts.SUFFIXES:
                if stem + first in by_name and stem + second in by_name:
                    pairs.append((by_name[stem + first], by_name[stem + second]))
        return pairs

    def _answers(self) -> dict[str, Places]:
        if all(name in self.given for name in RESPONSES):
            return {}
        names = (
            next(iter(self._suffixed(("response",))[:1]), None) if self._find("response_a") else self._pair_of_answers()
        )
        if names is None:
            missing = [name for name in RESPONSES if name not in self.given and not self._find(name)]
            if missing:
                raise self.error(missing_columns(missing, self.all_columns), EXPECTED)
            return {}
        return {canonical: self._places(name) for canonical, name in zip(RESPONSES, names, strict=True)}

    def _around(self, places: Mapping[str, Places]) -> dict[str, Places]:
        """Prompt, system text, earlier turns and models, under the names that are known for them."""
        around: dict[str, Places] = {}
        if "system" not in places and (system := self._first(layouts.SYSTEM_COLUMNS)):
            around["system"] = self._places(system)
        if "prompt" not in places and "prompt" not in self.unmapped:
            around |= self._prompt(places)
        if "response_a" in places and "model_a" not in places and "model_a" not in self.unmapped:
            models = self._suffixed(layouts.MODEL_STEMS)
            if len(models) == 1:
                around |= {"model_a": self._places(models[0][0]), "model_b": self._places(models[0][1])}
        return around

    def _prompt(self, places: Mapping[str, Places]) -> dict[str, Places]:
        present = [column for name in layouts.PROMPT_COLUMNS if (column := self._find(name))]
        if "chosen" in places and self._whole_conversations(places):
            return {"prompt": self._places("prompt")} if self._find("prompt") else {}
        if not present:
            if "chosen" in places:
                return {}
            raise self.error(
                missing_columns(["prompt"], self.all_columns),
                self._hint_for("prompt", [p.column for joined in places.values() for p in joined]),
            )
        parts = [present[0]]
        for names in layouts.PROMPTS_OF_PARTS:
            columns = [self._find(name) for name in names]
            if all(columns) and "prompt" not in present and "question" not in present:
                parts = [column for column in columns if column]
        others = [name for name in present if name not in parts]
        others += [name for name in self.free if name not in others and self._may_be_prompt(name, parts)]
        if others and not self._repeated(parts, others):
            together = sorted([*parts, *others], key=self.all_columns.index)
            raise self.error(
                f"the prompt may be in several columns: {', '.join(together)}",
                f"Name it: --columns prompt={'+'.join(together)} joins them, "
                f"--columns prompt={'+'.join(parts)} reads {' and '.join(parts)} alone.",
            )
        if parts[0] != "prompt" and normalise(parts[0]) == "history" and len(parts) > 1:
            return {"history": self._places(parts[0]), "prompt": self._places("+".join(parts[1:]))}
        return {"prompt": self._places("+".join(parts))}

    def _may_be_prompt(self, name: str, parts: Sequence[str]) -> bool:
        """Whether a column of texts has a name that is almost one for the prompt, such as ``inp``."""
        key = normalise(name)
        if name in parts or key in (*layouts.PROMPT_COLUMNS, *layouts.SYSTEM_COLUMNS):
            return False
        known = [*layouts.PROMPT_COLUMNS, *layouts.SYSTEM_COLUMNS]
        abbreviates = len(key) >= 3 and any(other.startswith(key) for other in known)
        misspells = difflib.get_close_matches(
            key, [other for other in known if abs(len(other) - len(key)) <= 2], 1, 0.8
        )
        return bool(abbreviates or misspells) and any(map(_is_text, self._peek_cells((ColumnPath(name),))))

    def _repeated(self, parts: Sequence[str], others: Sequence[str]) -> bool:
        """Whether the other columns hold nothing that the prompt does not hold, in the first rows."""
        raw = self.peek([*parts, *others])
        flat = {name: [_flat(cell) for cell in self._cells(raw, name)] for name in (*parts, *others)}
        prompts = ["\n".join(flat[name][row] for name in parts) for row in range(raw.num_rows)]
        return all(other in prompt for name in others for prompt, other in zip(prompts, flat[name], strict=True))

    def _whole_conversations(self, places: Mapping[str, Places]) -> bool:
        """Whether chosen and rejected of the first rows begin with the user's message."""
        raw = self.peek([place.column for name in PAIR for place in places[name]])
        cells = [cell for name in PAIR for cell in self._cells(raw, places[name]) if not is_missing(cell)]
        return bool(cells) and all(map(_is_conversation, cells))

    def _cells(self, raw: RawBatch, places: Places | str) -> list[Any]:
        return column_cells(raw, self._places(places) if isinstance(places, str) else places, self.location)

    # How cells are written

    def _with_each(self, mapped: Mapped, text: str) -> Mapped:
        if not text:
            return mapped
        each = Each.parse(text)
        parallel = {
            key: path for key, path in each.parallel.items() if self.source.each or self._find(path.split(".")[0])
        }
        fields = tuple((key, path) for key, path in each.fields if key not in each.parallel or key in parallel)
        each_places = {"": self._places(each.list_path, "--each")}
        each_places |= {key: self._places(path, "--each") for key, path in parallel.items()}
        return dataclasses.replace(mapped, each=dataclasses.replace(each, fields=fields), each_places=each_places)

    def _with_forms(self, mapped: Mapped) -> Mapped:
        """Decide from the first rows how texts are written."""
        layout, places = mapped.layout, mapped.places
        if layout is layouts.KAGGLE:
            return dataclasses.replace(mapped, turns=True)
        if "chosen" in places and "prompt" not in places:
            return dataclasses.replace(mapped, common_prompt=self._common_prompt(mapped))
        forced = self.source.format == "generic"
        rows = mapped.each is None and "response_a" in places
        as_messages = frozenset() if forced else self._written_messages(places)
        turns = rows and not forced and not as_messages and self._turns(places)
        transcripts = not rows
        return dataclasses.replace(mapped, turns=turns, transcripts=transcripts, written_messages=as_messages)

    def _turns(self, places: Mapping[str, Places] | None = None) -> bool:
        """Whether prompt and answers of the first row are texts that hold lists of turns."""
        places = places or {name: self._places(name) for name in TEXT_FIELDS}
        raw = self.peek([place.column for name in TEXT_FIELDS for place in places[name]])
        if not raw.num_rows:
            return True
        first = [self._cells(raw, places[name])[0] for name in TEXT_FIELDS]
        if all(isinstance(cell, str) and _LIKE_LIST.fullmatch(cell) for cell in first):
            if not all(map(_is_list_of_turns, first)):
                raise self.error(
                    f"the texts look like lists of turns, but cannot be read as such: {excerpt(first[0])}",
                    'Write lists as JSON, such as ["Hello", null]; NumPy\'s form says not where a turn ends. '
                    "--format generic reads them as plain text.",
                )
            return True
        return all(map(_is_list_of_turns, first)) and any(isinstance(cell, str) for cell in first)

    def _written_messages(self, places: Mapping[str, Places]) -> frozenset[str]:
        """The columns whose texts are messages, written as JSON or as Python writes them."""
        names = [name for name in (*TEXT_FIELDS, *PAIR, "system", "history") if name in places]
        raw = self.peek([place.column for name in names for place in places[name]])
        written = set()
        for name in names:
            cells = [cell for cell in self._cells(raw, places[name]) if not is_missing(cell)]
            if cells and all(isinstance(cell, str) and _LIKE_MESSAGES.match(cell) for cell in cells):
                written.add(name)
        return frozenset(written)

    def _common_prompt(self, mapped: Mapped) -> bool:
        """Whether the prompt is the common beginning of the answers: asked for, or no other column holds text."""
        if "prompt" in self.unmapped:
            return True
        read = set(mapped.columns)
        others = [name for name in self.columns if name not in read and normalise(name) not in layouts.ID_COLUMNS]
        raw = self.peek(others)
        texts = [name for name in others if any(map(_is_text, self._cells(raw, (ColumnPath(name),))))]
        if not texts:
            return True
        answers = self.peek([place.column for name in PAIR for place in mapped.places[name]])
        cells = [cell for name in PAIR for cell in self._cells(answers, mapped.places[name])]
        if any(isinstance(cell, str) and not is_transcript(cell) for cell in cells):
            raise self.error(
                f"no prompt: no column has a name that is known for it; not read: {list_names(texts)}",
                f"{self._hint_for('prompt', [])} If the answers begin with the prompt, add --columns prompt=",
            )
        return False

    # Outcomes

    def with_outcome(self, mapped: Mapped, needed: bool) -> Recognised:
        rule = self.source.outcome or mapped.layout.outcome
        if rule:
            mapped = self._with_rule(mapped, OutcomeRule.parse(rule))
        elif mapped.each is None and "chosen" not in mapped.places:
            mapped = self._with_words(mapped)
        not_read = [name for name in self.all_columns if name not in set(mapped.columns)]
        suspects = [] if self.source.outcome else self._suspects([n for n in not_read if n in self.columns])
        said = [place.column for name in ("winner", "label") for place in self.given.get(name, ())]
        suspects = list(dict.fromkeys([*(name for name in said if name in not_read), *suspects]))
        if suspects and not mapped.has_outcome and needed:
            raise self._unclear(mapped, suspects)
        questions = tuple(f"is {name} the outcome? {_how_to_read(name, self._values(name))}" for name in suspects)
        if mapped.rule or mapped.each or "chosen" in mapped.places:  # it is known which answer won
            questions = ()
        elif mapped.has_outcome:
            questions = tuple(f"{name} is not read: another column holds the outcome" for name in suspects)
        return Recognised(mapped, tuple(not_read), questions)

    def _with_rule(self, mapped: Mapped, rule: OutcomeRule) -> Mapped:
        places = {name: found for name, found in mapped.places.items() if name not in ("winner", *WINNER_COLUMNS)}
        if mapped.each is not None or "chosen" in places:
            raise self.error(
                f"--outcome cannot be used with {mapped.layout.name}", "There the answers' columns say which one won."
            )
        return dataclasses.replace(
            mapped,
            places=places,
            rule=rule,
            rule_places=tuple(self._places(path, "--outcome") for path in rule.columns),
        )

    def _with_words(self, mapped: Mapped) -> Mapped:
        """With the column that holds words for a winner, if one has a known name; numbers are never guessed."""
        places = {name: found for name, found in mapped.places.items() if name != "label"}
        if "winner" in places:
            values = _different(self._peek_cells(places["winner"]))
            if values and all(isinstance(comparable(value), float) for value in values):
                del places["winner"]
        mapped = dataclasses.replace(mapped, places=places)
        label = self.given.get("label")
        names = [place.column for place in label] if label else [n for n in self.free if normalise(n) in OUTCOME_NAMES]
        in_words = [name for name in names if self._are_words(name, mapped) and name not in mapped.columns]
        if mapped.has_outcome:  # these have to say the same
            return dataclasses.replace(mapped, more_winners=tuple(self._places(name) for name in in_words))
        if len(in_words) > 1:
            raise self.error(
                f"several columns hold words for a winner: {list_names(in_words)}",
                f"Choose one: --columns winner={in_words[0]}",
            )
        if not in_words:
            return mapped
        return dataclasses.replace(mapped, places={**places, "winner": self._places(in_words[0])})

    def _values(self, name: str) -> list[Any]:
        """The different values of a column in the first rows."""
        return _different(self._peek_cells((ColumnPath(name),)))

    def _peek_cells(self, places: Places) -> list[Any]:
        """The cells at some places in the first rows; none if they cannot be read."""
        try:
            return self._cells(self.peek([place.column for place in places]), places)
        except InputError:
            return []

    def _are_words(self, name: str, mapped: Mapped) -> bool:
        own = mapped.own_spellings
        values = [spelling(str(value)) for value in self._values(name)]
        return bool(values) and all(value in WINNERS or value in own for value in values)

    def _suspects(self, names: Sequence[str]) -> list[str]:
        """Columns that look like an outcome: by name, or by their values."""
        suspects = []
        for name in names:
            values = self._values(name) if len(names) < 100 else []
            words = [spelling(str(value)) for value in values]
            if _OUTCOME_WORDS.search(normalise(name)) or (words and all(word in WINNERS for word in words)):
                suspects.append(name)
        return suspects

    def _unclear(self, mapped: Mapped, suspects: Sequence[str]) -> InputError:
        """The refusal of a file whose outcome would have to be guessed, with its first battle in words."""
        name = suspects[0]
        values = self._values(name)
        what = (
            f"what {name} means is not clear: it holds {_list_values(values)}" if values else f"is {name} the outcome?"
        )
        readings = _readings(name, values)
        for first, second in self._suffixed(("score", "rating", "reward")):
            if first in suspects and second in suspects:
                what = f"what {first} and {second} mean is not clear"
                readings = [f"{first},{second}: higher", f"{first},{second}: lower"]
        battle = self._first_battle(mapped, readings)
        how = (
            " or ".join(f"--outcome '{reading}'" for reading in readings)
            or f"--outcome '{name}: ...=a, ...=b, ...=tie'"
        )
        hint = f"Say it with {how}; or {name} is no outcome: --columns {name}="
        return InputError(f"{what}{battle}", where=f"{self.where}, column {name}", hint=hint)

    def _first_battle(self, mapped: Mapped, readings: Sequence[str]) -> str:
        """The first battle in words, and who would win by each reading."""
        try:
            tried = []
            for reading in readings:
                with_rule = self._with_rule(mapped, OutcomeRule.parse(reading))
                tried.append(self._convert_first(with_rule))
            batch = tried[0] if tried else self._convert_first(mapped)
            text = describe_battle(batch, outcome=False)
            outcomes = [
                ("A wins", "B wins", "a tie", "no outcome")[
                    b.column("label")[0].as_py() if b.column("label")[0].as_py() is not None else 3
                ]
                for b in tried
            ]
        except (InputError, IndexError):
            return ""
        said = ", ".join(f"by {reading!r} {outcome}" for reading, outcome in zip(readings, outcomes, strict=True))
        return f"; the first battle: {text}" + (f"; {said}" if said else "")

    def _convert_first(self, mapped: Mapped) -> Any:
        raw = self.peek(mapped.columns)
        one = RawBatch({name: column[:1] for name, column in raw.columns.items()}, min(1, raw.num_rows))
        return mapped.convert(one, self.location)[0]

    # Refusals

    def _hint_for(self, name: str, read: Sequence[str]) -> str:
        """How to name a missing column, with a likely one if there is one."""
        others = [column for column in self.columns if column not in read]
        return f"{did_you_mean(name, others)} Name it with --columns {name}=NAME.".strip()

    def _no_layout(self) -> InputError:
        """The refusal of a file that no layout fits, from what *is* there."""
        names = self.all_columns
        special = _well_known(set(map(normalise, names)))
        if special:
            return self.error(special[0], special[1])
        pairs = self._suffixed(layouts.ANSWER_STEMS)
        if len(pairs) > 1:
            first = pairs[0]
            return self.error(
                f"several columns may be the answers: {', '.join(name for pair in pairs for name in pair)}",
                f"Name them: --columns response_a={first[0]},response_b={first[1]}",
            )
        if (lists := self._lists_of_answers()) is not None:
            return lists
        nearest = max(_NEAREST, key=self._nearness)
        if any(map(self._find, nearest)):
            missing = [name for name in nearest if not self._find(name) and name not in self.given]
            hints = [f"{name}: {question}" for name in missing if (question := did_you_mean(name, self.free))]
            example = ",".join(f"{name}=NAME" for name in missing)
            return self.error(
                missing_columns(missing, names), f"{' '.join(hints)} Name them with --columns {example}.".strip()
            )
        return self.error(missing_columns(list(TEXT_FIELDS), names), EXPECTED)

    def _nearness(self, names: Sequence[str]) -> float:
        """How much of a layout is there; a name that is almost right counts half."""
        found = [1.0 if self._find(name) else 0.5 if did_you_mean(name, self.free) else 0.0 for name in names]
        return sum(found) / len(names)

    def _lists_of_answers(self) -> InputError | None:
        """The refusal of a file with a list of answers in each row."""
        if self._names_of_pair() or any(map(self._find, (*RESPONSES, *CONVERSATIONS))):
            return None
        for name in self.free[:100]:
            cell = next(
                (cell for cell in self._peek_cells((ColumnPath(name),)) if isinstance(cell, list) and cell), None
            )
            if cell is None or _is_conversation(cell):
                continue
            what = f"{name} holds a list; which of its items are compared, and how, is not known"
            if not isinstance(cell[0], dict):
                return self.error(
                    what,
                    f"If they are two answers: --columns response_a={name}.0,response_b={name}.1 (or chosen=, "
                    f"rejected=). If they have scores in another column: --each '{name}: text=., score=/SCORES'",
                )
            keys = list(cell[0])
            text = next((key for key in keys if key in _TEXT_KEYS), "TEXT")
            score = next((key for key in keys if _SCORE_KEYS.search(normalise(key))), "score=SCORE")
            score = f"{'rank' if 'rank' in score else 'score'}={score}" if "=" not in score else score
            return self.error(
                f"{what}; they have {list_names(keys)}", f"Compare them by --each '{name}: text={text}, {score}'"
            )
        return None


_NEAREST = (TEXT_FIELDS, CONVERSATIONS, PAIR)
_TEXT_KEYS = ("text", "answer", "response", "completion", "output", "content", "generation")
_SCORE_KEYS = re.compile(r"(^|_)(score|rating|rank|reward|votes?)($|_)")
_LIKE_LIST = re.compile(r"""\s*\[\s*['"].*['"]\s*\]\s*""", re.DOTALL)
_LIKE_MESSAGES = re.compile(r"""\s*(?:\[\s*)?\{\s*['"](?:role|from|content|value)['"]\s*:""")


def _well_known(names: set[str]) -> tuple[str, str] | None:
    """What is missing in files that are published beside the battles."""
    if {"g1_winner", "g2_winner"} <= names:
        return (
            "MT-bench's judgments without questions and answers: these are in other files, joined by question_id",
            "Join them first, as columns question, answer_1 and answer_2.",
        )
    if {"message_id", "parent_id", "text", "role"} <= names:
        return (
            "messages of OpenAssistant, one a row: which ones answer the same prompt is not in the row",
            "Use the file of trees (oasst_ready.trees.jsonl.gz).",
        )
    if {"games", "model", "judge"} <= names or {"games", "question_id"} <= names:
        return (
            "Arena-Hard's judgments without questions and answers: these are in other files",
            "Join them first, as columns prompt, response_a and response_b.",
        )
    if {"prompt", "completion", "label"} <= names or {"messages", "label"} <= names:
        return (
            "one answer a row (TRL's unpaired preferences): a battle needs two answers to one prompt",
            "Join the rows of the same prompt first.",
        )
    return None


def _different(cells: Sequence[Any]) -> list[Any]:
    """The different values of cells, without empty ones and lists."""
    values = [cell for cell in cells if not is_missing(cell) and cell != "" and isinstance(cell, (str, int, float))]
    return list(dict.fromkeys(values))


def _in_words(label: int | None) -> str:
    return "no outcome" if label is None else ("A wins", "B wins", "a tie")[label]


def _flat(cell: Any) -> str:
    """Every text of a cell but the assistant's, one after the other."""
    if isinstance(cell, dict):
        role = str(cell.get("role", cell.get("from", "")))
        if role.lower() in ("assistant", "gpt", "model", "bot"):
            return ""
        return "\n".join(filter(None, (_flat(value) for value in cell.values() if value != role)))
    if isinstance(cell, (list, tuple)):
        return "\n".join(filter(None, map(_flat, cell)))
    return "" if is_missing(cell) else str(cell).strip()


def _is_conversation(cell: Any) -> bool:
    if isinstance(cell, str):
        if _LIKE_MESSAGES.match(cell):
            try:
                return _is_conversation(parse_nested(cell.strip()))
            except (ValueError, RecursionError):
                return False
        return is_transcript(cell) and cell.lstrip().startswith("Human:")
    if not isinstance(cell, (list, tuple)):
        return False
    messages = [item for item in cell if isinstance(item, (dict, list, tuple)) and item]
    roles = [item.get("role", item.get("from")) if isinstance(item, dict) else item[0] for item in messages]
    return any(str(role).lower() in ("user", "human", "prompter") for role in roles)


def _is_list_of_turns(cell: Any) -> bool:
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = parse_nested(cell.strip())
        except (ValueError, RecursionError):
            return False
    return isinstance(cell, list) and bool(cell) and all(turn is None or isinstance(turn, str) for turn in cell)


def _is_text(cell: Any) -> bool:
    """Whether a cell holds text that could be a question; numbers and truth values are none."""
    if isinstance(cell, (list, dict)):
        return bool(_flat(cell))
    return (
        isinstance(cell, str)
        and isinstance(comparable(cell), str)
        and cell.strip().lower() not in ("", "true", "false")
    )


def _list_values(values: Sequence[Any]) -> str:
    shown = ", ".join(excerpt(value, 20).strip("'") for value in values[:5])
    return shown + (", ..." if len(values) > 5 else "")


def _readings(name: str, values: Sequence[Any]) -> list[str]:
    """The two likely meanings of a column of numbers."""
    present = {number for value in values if isinstance(number := comparable(value), float)}
    if not present or not all(isinstance(comparable(value), float) for value in values):
        return []
    for choices, first, second in (
        ({0.0, 1.0}, "1=a, 0=b", "0=a, 1=b"),
        ({1.0, 2.0}, "1=a, 2=b", "2=a, 1=b"),
        ({-1.0, 1.0}, "1=a, -1=b", "-1=a, 1=b"),
        ({-1.0, 0.0, 1.0}, "1=a, -1=b, 0=tie", "-1=a, 1=b, 0=tie"),
        ({0.0, 1.0, 2.0}, "0=a, 1=b, 2=tie", "1=a, 2=b, 0=tie"),
        ({1.0, 2.0, 3.0}, "1=a, 2=b, 3=tie", "1=a, 3=b, 2=tie"),
    ):
        if present <= choices:
            return [f"{name}: {first}", f"{name}: {second}"]
    low, high = min(present), max(present)
    middle = 0.0 if low < 0 < high else 0.5 if low >= 0 and high <= 1 else (low + high) / 2
    bound = f"{middle:g}"
    return [f"{name}: >{bound}=a, <{bound}=b, {bound}=tie", f"{name}: <{bound}=a, >{bound}=b, {bound}=tie"]


def _how_to_read(name: str, values: Sequence[Any]) -> str:
    readings = _readings(name, values) or [f"{name}: ...=a, ...=b"]
    return f"--outcome '{readings[0]}' reads it, --columns {name}= says no"
