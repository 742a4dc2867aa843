"""The model card of a run: what the model is, what it was trained on, how good it is, how to use it.

What it names (files, folders, encoders, a command line) comes from outside, so all of it stays letters in Markdown.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import prefcli
from prefcli import files
from prefcli.options import TrainOptions
from prefcli.readers import Source
from prefcli.reporting import visible
from prefcli.runs import CARD, CURVES

LISTED_STATISTICS = 20


def write(
    folder: Path,
    options: TrainOptions,
    config: Mapping[str, Any],
    validation: Mapping[str, Any] | None,
    calibration: str = "",
    importances: Sequence[tuple[str, float]] = (),
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
    """
    data, resolved = config["data"], config["resolved"]
    if validation is None:
        figures = "Nothing was held out (`--validation 0`): there is no honest figure for this model.\n"
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
            f"\nThese figures are of the model as it is. `predict` calibrates it: {calibration}.\n"
        )
    curves = f"\n![Learning curves]({CURVES})\n" if (folder / CURVES).exists() else ""
    card = f"""---
library_name: prefcli
license: other
pipeline_tag: text-classification
tags: [preference-prediction, reward-model, {options.architecture}]
---

# {_code(folder.name)}

Predicts which of two answers to a prompt a person prefers, as three probabilities: A, B, tie.

## How good it is

{figures}
The held-out battles share no prompt with the training battles.
{curves}
## What it is

{_described(options, data, resolved)}
{_looked_at(importances)}
## What it was trained on

{data["train_battles"]:,} battles of {_code(Source.from_json(data["source"]).title)}: A {data["shares"][0]:.1%},
B {data["shares"][1]:.1%}, ties {data["shares"][2]:.1%}. The file's SHA-256 is {_code(data["source_sha256"])}.

## Limits

It predicts the taste of the people (or judges) who voted in this data, on prompts like theirs. It does not know whether
an answer is true, and it rewards what those voters rewarded, length and markup included.

## Use

```
prefcli predict battles.csv --model {shlex.quote(visible(folder.name))}
```

Made with prefcli {prefcli.__version__}: {_code(config.get("command", "prefcli train"))}
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
    return (
        f"- Architecture: {options.architecture} ({_plain(options.combine)}); encoder: {_code(options.encoder)} "
        f"({_plain(resolved['encoder_source'])})\n"
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
