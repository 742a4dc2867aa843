"""The model card of a run: what the model is, what it was trained on, how good it is, how to use it.

It begins with the YAML that the Hugging Face hub reads (https://huggingface.co/docs/hub/model-cards). What it names
(files, folders, encoders, a command line) comes from outside, so all of it stays letters, in Markdown and in YAML.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefcli._version import __version__
from prefcli.battles import Source
from prefcli.errors import InputError
from prefcli.options import TrainOptions
from prefcli.reporting import visible
from prefcli.storage import files, hub
from prefcli.storage.runs import CARD, CURVES

LISTED_STATISTICS = 20
NO_SHARED_PROMPT = "\nThe held-out battles share no prompt with the training battles.\n"
LISTED_FILES = 20


def write(
    folder: Path,
    options: TrainOptions,
    config: Mapping[str, Any],
    validation: Mapping[str, Any] | None,
    calibration: str = "",
    importances: Sequence[tuple[str, float]] = (),
    *,
    name: str | None = None,
) -> None:
    """Write the card into the run's folder.

    Parameters
    ----------
    folder, options, config:
        The run's.
    validation:
        Its score on the held-out battles.
    calibration:
        What is said of the temperature fitted on them.
    importances:
        What the model looks at, by share, the largest first.
    name:
        What the folder will be called, if not as it is now.
    """
    title = name or folder.name
    data, resolved = config["data"], config["resolved"]
    if validation is None:
        figures = "No battle was held out: there is no honest figure for this model.\n"
    else:
        low, high = validation["log_loss_ci"]
        figures = (
            "| metric | value |\n|---|---|\n"
            f"| held-out battles | {validation['n']:,} |\n"
            f"| log loss | {validation['log_loss']:.4f} (95 % interval {low:.4f} to {high:.4f}) |\n"
            f"| of the class prior | {validation['prior_log_loss']:.4f} |\n"
            f"| of a uniform guess | {validation['uniform_log_loss']:.4f} |\n"
            f"| accuracy | {validation['accuracy']:.3f} |\n"
            f"| Brier score | {validation['brier']:.4f} |\n"
            f"| expected calibration error | {validation['ece']:.4f} |\n"
        )
        if calibration:
            figures += f"\nThese figures are of the model as it is. `predict` calibrates it: {calibration}.\n"
    curves = f"\n![Learning curves]({CURVES})\n" if (folder / CURVES).exists() else ""
    shown = visible(title)
    card = f"""---
{_front_matter(shown, options, data, resolved, validation)}---

# {_code(title)}

Predicts which of two answers to a prompt a person prefers, as three probabilities: A, B, tie.

## How good it is

{figures}{"" if validation is None else NO_SHARED_PROMPT}{curves}
## What it is

{_described(options, data, resolved)}
{_looked_at(importances)}
## What it was trained on

{data["train_battles"]:,} battles of {_code(Source.from_json(data["source"]).title)}: A {data["shares"][0]:.1%},
B {data["shares"][1]:.1%}, ties {data["shares"][2]:.1%}. The file's SHA-256 is {_code(data["source_sha256"])}.
{_files(data)}
{_split(options, data)}

## Limits

{_limits(options, validation)}

## Use

```
prefcli predict battles.csv --model {shlex.quote(shown)}
```

From Python:

```python
from prefcli._version import __version__

judge = prefcli.load({json.dumps(shown, ensure_ascii=False)})
print(judge.predict("What is 2 + 2?", "4", "5"))
```

Where it was pushed to the hub, `hf://owner/name` takes the place of the run's name in both.

Made with prefcli {__version__}: {_code(config.get("command") or "prefcli train")}
"""
    files.write_text(folder / CARD, card)


def add_export(folder: Path, told: str, name: str) -> None:
    """Say in the card of an exported run what it is: behind everything that the run's own card says.

    Parameters
    ----------
    folder:
        Of the export, with a copy of the run's card if it had one.
    told:
        How close it is to the run.
    name:
        What the folder will be called.
    """
    path = folder / CARD
    card = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else f"# {_code(name)}\n"
    use = f"```\nprefcli predict battles.csv --model {shlex.quote(visible(name))}\n```\n"
    files.write_text(path, f"{card}\n## Exported to ONNX\n\n{told}\n\n{use}")


def state_license(folder: Path, license: str) -> None:
    """Say in a run's card under which license it is; the hub's names are lower case: ``apache-2.0``, ``cc-by-4.0``.

    Raises
    ------
    InputError
        If that is no such name, or the card has no front matter.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", license):
        raise InputError(f"{license!r} is no license of the hub", hint="Say apache-2.0, mit, cc-by-4.0 or the like.")
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"the run's card cannot be read: {error}", where=str(folder / CARD)) from None
    front, fence, body = text.partition("\n---\n")
    if not front.startswith("---\n") or not fence:
        raise InputError("the run's card has no front matter", where=str(folder / CARD))
    lines = [line for line in front.split("\n") if not line.startswith("license:")]
    files.write_text(folder / CARD, "\n".join([*lines, f"license: {_yaml(license)}"]) + fence + body)


def _front_matter(
    name: str,
    options: TrainOptions,
    data: Mapping[str, Any],
    resolved: Mapping[str, Any],
    validation: Mapping[str, Any] | None,
) -> str:
    """The hub's metadata. It has no license: whose the data is and what they allow is for whoever publishes the run."""
    lines = [
        "library_name: prefcli",
        "pipeline_tag: text-classification",
        f"tags: [preference-prediction, reward-model, {options.architecture}]",
    ]
    if resolved.get("encoder_source") in hub.SOURCES and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", options.encoder, re.ASCII):
        lines.append(f"base_model: {_yaml(options.encoder)}")
    if validation is not None:
        low, high = validation["log_loss_ci"]
        held_out = f"{validation['n']:,} held-out battles of {Source.from_json(data['source']).title}"
        lines += [
            "metrics: [log_loss, accuracy, brier_score]",
            "model-index:",
            f"- name: {_yaml(name)}",
            "  results:",
            "  - task: {type: text-classification, name: preference prediction}",
            f"    dataset: {{type: held-out, name: {_yaml(held_out)}}}",
            "    metrics:",
        ]
        told = (
            ("log_loss", validation["log_loss"], f"log loss, 95 % interval {low:.4f} to {high:.4f}"),
            ("accuracy", validation["accuracy"], "accuracy"),
            ("brier_score", validation["brier"], "Brier score"),
            ("expected_calibration_error", validation["ece"], "expected calibration error"),
        )
        lines += [f"    - {{type: {kind}, value: {value:.4f}, name: {_yaml(words)}}}" for kind, value, words in told]
    return "\n".join([*lines, ""])


def _files(data: Mapping[str, Any]) -> str:
    """The names of the files, where there are several."""
    paths = Source.from_json(data["source"]).paths
    if len(paths) < 2:
        return ""
    more = f"\n- {len(paths) - LISTED_FILES} more" if len(paths) > LISTED_FILES else ""
    return "\n" + "\n".join(f"- {_code(path.name)}" for path in paths[:LISTED_FILES]) + more + "\n"


def _split(options: TrainOptions, data: Mapping[str, Any]) -> str:
    """How the held-out battles were chosen."""
    count = data.get("held_out_battles", 0)
    if options.folds:
        return (
            f"Split into {options.folds} folds by prompt, stratified by outcome, seed {options.seed}: every battle is "
            "held out once, and judged by the model that did not see its prompt."
        )
    if data.get("validation_file"):
        return (
            f"Held out: {count:,} battles of {_code(Path(str(data['validation_file'])).name)}; training battles that "
            "share a prompt with them were left out."
        )
    if not options.validation:
        return "No battle was held out."
    return (
        f"Held out: {count:,} of these battles ({options.validation:.0%}), drawn by prompt, stratified by outcome, "
        f"seed {options.seed}."
    )


def _limits(options: TrainOptions, validation: Mapping[str, Any] | None) -> str:
    tested = (
        "It was not tested on any battle."
        if validation is None
        else f"It was tested on {validation['n']:,} battles of the source it learnt from, and on nothing else."
    )
    if options.architecture == "features":
        position = "it answers both orders alike by its making, whatever its voters' bias was"
    elif options.swap:
        position = "it was shown both orders of every battle; what bias is left was not measured"
    else:
        position = (
            "it was shown one order of every battle, and its bias was not measured; `--swap-average` takes it out"
        )
    return f"""It predicts the taste of the people (or judges) who voted in this data, on prompts like theirs. It does
not know whether an answer is true, and it rewards what those voters rewarded, length and markup included.

{tested} Not tested:

- other voters: another public, or people instead of a language model as judge (`--calibrate` refits what can be)
- other languages and other kinds of prompts than the data's; figures are not told apart by language
- position bias: {position}"""


def _yaml(text: str) -> str:
    """Text as a double-quoted scalar of YAML, of which JSON's strings are a part: it ends where it should."""
    return json.dumps(visible(text), ensure_ascii=False)


def _described(options: TrainOptions, data: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    soft = ""
    if data.get("soft_labels_sha256"):
        soft = (
            f"\n- Soft labels: weight {options.soft_weight:g} against outcomes, "
            f"temperature {options.soft_temperature:g}; the file's SHA-256 is {_code(data['soft_labels_sha256'])}."
        )
    if options.architecture == "features":
        return (
            f"- Architecture: features, gradient boosting on {resolved['columns']:,} text statistics and hashed "
            f"n-grams, in both orders of the answers\n- Text: {_plain(data['text'])}; seed {options.seed}.{soft}"
        )
    orders = "both orders" if options.swap else "the order given"
    told = resolved.get("attention", "").split(";")[0] if options.lora_rank else resolved.get("merged", "")
    adapted = f"- {_plain(told[:1].upper() + told[1:])}\n" if told else ""
    return (
        f"- Architecture: {options.architecture} ({_plain(options.combine)}); encoder: {_code(options.encoder)} "
        f"({_plain(resolved['encoder_source'])})\n"
        f"{adapted}"
        f"- Text: {_plain(data['text'])}; at most {resolved['max_length']:,} tokens in a sequence, "
        f"{_plain(options.truncation)} kept. Training texts: {_plain(resolved['cut'])}.\n"
        f"- Trained for {options.epochs} epoch(s), {options.batch_size} battles a step in {orders}, "
        f"peak learning rate {resolved['lr']:g}, {_plain(resolved['placement'])}, seed {options.seed}.{soft}"
    )


def _looked_at(importances: Sequence[tuple[str, float]]) -> str:
    if not importances:
        return ""
    rows = "".join(f"| {_plain(name)} | {share:.1%} |\n" for name, share in importances[:LISTED_STATISTICS])
    return (
        "\n## What it looks at\n\nShare of the gain of all splits, answers' and differences' columns of one statistic "
        f"together.\n\n| statistic | share |\n|---|---|\n{rows}"
    )


def _code(text: object) -> str:
    """A name from outside as a code span: whatever Markdown or HTML it holds stays letters.

    The fence is longer than any run of backticks in the text, and line breaks are shown, not made.
    """
    shown = visible(str(text))
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    apart = " " if not shown or "`" in (shown[0], shown[-1]) else ""
    return f"{fence}{apart}{shown}{apart}{fence}"


def _plain(text: object) -> str:
    """Words from outside as plain text, what Markdown or HTML would obey escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", visible(str(text)))
