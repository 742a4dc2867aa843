"""Refusals of files that no layout fits, from what *is* there, with the option that would read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from prefcli.battles import TEXT_FIELDS
from prefcli.errors import InputError, closest_name, did_you_mean
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.readers import layouts
from prefcli.readers.cells import list_names, missing_columns
from prefcli.readers.engine import CONVERSATIONS, PAIR, RESPONSES
from prefcli.readers.file_columns import EXPECTED, MAX_COLUMNS, FileColumns, is_conversation, is_text
from prefcli.readers.paths import normalise

_NEAREST = (TEXT_FIELDS, CONVERSATIONS, PAIR)
_TEXT_KEYS = ("text", "answer", "response", "completion", "output", "content", "generation")
_BETTER = re.compile(r"(chosen|preferred|accept(ed)?|pos(itive)?|good|better|best|win(ning|ner)?|high(er)?|up)")
_WORSE = re.compile(
    r"(rejected|dispreferred|nonpreferred|neg(ative)?|bad|worse|worst|los(ing|e|er)|low(er)?|down|reject)"
)
_SCORE_KEYS = re.compile(r"(^|_)(score|rating|rank|reward|votes?)($|_)")


def no_layout(columns: FileColumns) -> InputError:
    """The error for a file that no layout fits."""
    names = columns.all_names
    if known := _well_known(set(map(normalise, names))):
        return columns.error(*known)
    pairs = columns.pairs(layouts.ANSWER_STEMS)
    if len(pairs) > 1:
        return columns.error(
            f"several columns may be the answers: {', '.join(name for pair in pairs for name in pair)}",
            f"Name them: --columns response_a={pairs[0][0]},response_b={pairs[0][1]}",
        )
    if (error := _objects(columns) or _lists_of_answers(columns)) is not None:
        return error
    if (better_and_worse := _better_and_worse(columns)) is not None:
        better, worse = better_and_worse
        prompt = columns.first(layouts.PROMPT_COLUMNS) or "NAME"
        example = f"prompt={prompt},chosen={better},rejected={worse}"
        hint = f"Are {better} and {worse} a better and a worse answer? Name them: --columns {example}"
        return columns.error(missing_columns(PAIR, names), hint)
    nearest = max(_NEAREST, key=lambda needed: _nearness(needed, columns))
    missing = columns.absent(nearest)
    if len(missing) == len(nearest):
        return columns.error(missing_columns(list(TEXT_FIELDS), names), _three_texts(columns) or EXPECTED)
    alike = {name: closest_name(name, columns.free) for name in missing}
    once = [close for close in alike.values() if list(alike.values()).count(close) == 1]  # no column is both answers
    hints = [f"Did you mean {close}?" for close in once if close]
    example = ",".join(f"{name}={close if close in once and close else 'NAME'}" for name, close in alike.items())
    return columns.error(missing_columns(missing, names), " ".join([*hints, f"Name them with --columns {example}"]))


def _three_texts(columns: FileColumns) -> str:
    """The option that takes the three columns of the longest texts, in the file's order, for prompt and answers."""
    lengths = {}
    for name in columns.free[:MAX_COLUMNS]:
        cells = columns.column(name)
        if any(map(is_text, cells)):
            lengths[name] = sum(len(str(cell)) for cell in cells if is_text(cell)) / len(cells)
    longest = sorted(lengths, key=lambda name: -lengths[name])[: len(TEXT_FIELDS)]
    if len(longest) < len(TEXT_FIELDS):
        return ""
    in_order = [name for name in lengths if name in longest]
    example = ",".join(f"{known}={name}" for known, name in zip(TEXT_FIELDS, in_order, strict=True))
    return f"If these are prompt and answers, name them: --columns {shlex.quote(example)}"


def _better_and_worse(columns: FileColumns) -> tuple[str, str] | None:
    """Two columns of text whose names differ in a word for the better and the worse, such as pos_resp and neg_resp."""
    texts = [name for name in columns.free[:MAX_COLUMNS] if any(map(is_text, columns.column(name)))]
    rests: list[dict[tuple[str, ...], str]] = []
    for words in (_BETTER, _WORSE):
        parts = {name: normalise(name).replace("non_", "non").split("_") for name in texts}
        found = {name: [part for part in own if not words.fullmatch(part)] for name, own in parts.items()}
        rests.append({tuple(rest): name for name, rest in found.items() if len(rest) < len(parts[name])})
    rest = next((rest for rest in rests[0] if rest in rests[1]), None)
    return None if rest is None else (rests[0][rest], rests[1][rest])


def _nearness(names: Sequence[str], columns: FileColumns) -> float:
    """How much of a layout is there; a name that is almost right counts half."""
    absent = columns.absent(names)
    alike = sum(bool(did_you_mean(name, columns.free)) for name in absent)
    return (len(names) - len(absent) + alike / 2) / len(names)


def _objects(columns: FileColumns) -> InputError | None:
    """The refusal of a file whose battles are inside of objects."""
    cells = {name: columns.column(name) for name in columns.free[:MAX_COLUMNS]}
    objects = {name: cell[0] for name, cell in cells.items() if len(cell) and isinstance(cell[0], dict)}
    for name, item in objects.items():
        for needed in _NEAREST:
            if not all(map(item.__contains__, needed)):
                continue
            if sum(item.keys() == other.keys() for other in objects.values()) > 1:
                return columns.error(
                    "every member of the file is a battle", "List them: jq -c '.[]' FILE | prefcli ... -"
                )
            names = [key for key in ("prompt", *needed, "winner") if key in item]
            example = ",".join(f"{key}={name}.{key}" for key in dict.fromkeys(names))
            return columns.error(
                f"{name} holds objects with {list_names(list(item))}", f"Name them: --columns {example}"
            )
    return None


def _lists_of_answers(columns: FileColumns) -> InputError | None:
    """The refusal of a file with a list of answers in each row."""
    if columns.pair_of_chosen() or any(map(columns.find, (*RESPONSES, *CONVERSATIONS))):
        return None
    for name in columns.free[:MAX_COLUMNS]:
        items = next((cell for cell in columns.column(name) if isinstance(cell, list) and cell), None)
        if items is None or is_conversation(items) or not isinstance(items[0], (str, dict)):
            continue
        what = f"{name} holds a list; which of its items are compared, and how, is not known"
        if not isinstance(items[0], dict):
            return columns.error(
                what,
                f"If they are two answers: --columns response_a={name}.0,response_b={name}.1 (or chosen=, "
                f"rejected=). If they have scores in another column: --each '{name}: text=., score=/SCORES'",
            )
        keys = list(items[0])
        text = next((key for key in keys if key in _TEXT_KEYS), "TEXT")
        score = next((key for key in keys if _SCORE_KEYS.search(normalise(key))), "SCORE")
        kind = "rank" if "rank" in score else "score"
        return columns.error(
            f"{what}; they have {list_names(keys)}", f"Compare them by --each '{name}: text={text}, {kind}={score}'"
        )
    return None


def _well_known(names: set[str]) -> tuple[str, str] | None:
    """What is missing in files that are published beside the battles."""
    if set(WINNER_COLUMNS) <= names <= {*WINNER_COLUMNS, "id", "p_chosen", "model_a", "model_b"}:
        return (
            "these are predictions, or labels, without prompts and answers",
            "Name the file of battles. Predictions are scored by: prefcli score PREDS LABELS",
        )
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
