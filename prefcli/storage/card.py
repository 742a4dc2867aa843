"""The model card of a run: what the model is, what it was trained on, how good it is, how to use it.

The text is the template ``assets/model-card.md.jinja``. The YAML before it is what the Hugging Face hub reads
(https://huggingface.co/docs/hub/model-cards). Names of files and encoders and the command line come from outside:
the template escapes every value that it inserts, and the hub's library quotes them in YAML.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcli._version import __version__
from prefcli.battles import Source
from prefcli.errors import InputError, one_line
from prefcli.metrics import TWO_OUTCOMES, Score, describe_battles, describe_interval
from prefcli.options import TrainOptions
from prefcli.outcomes import TIE, A
from prefcli.reporting import visible
from prefcli.storage import files, hub, runs
from prefcli.storage.runs import CARD, CURVES, describe_unseen, unseen_outcomes
from prefcli.storage.sources import Sources

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from jinja2 import Template

MAX_LISTED_STATISTICS = 20
MAX_LISTED_FILES = 20
MAX_LISTED_SOURCES = 30
USE = "\n## Use\n"
"""The heading of the card's last part."""


def write(
    folder: Path,
    options: TrainOptions,
    config: Mapping[str, Any],
    validation: Score | None,
    calibration: str = "",
    importances: Sequence[tuple[str, float]] = (),
    *,
    by_source: Mapping[str, Score] | None = None,
    name: str | None = None,
) -> None:
    """Write the card into the run's folder.

    Parameters
    ----------
    folder, options, config:
        The run's.
    validation:
        Its scores on the held-out battles; None if there are none.
    calibration:
        Describes the temperature fitted on them.
    importances:
        Statistics and their shares of the gain, the largest first.
    by_source:
        The scores on the held-out battles of each source, in a run of several.
    name:
        The folder's final name, if it is not its name now.
    """
    name = visible(name or folder.name)
    data, resolved = config["data"], config["resolved"]
    source = Source.from_json(data["source"])
    sources, tie_log_nu = runs.sources_of(config), _tie_log_nu(folder)
    if tie_log_nu is not None and sources is not None and not sources.never_ties(None):
        base = sources.base()
        tie_log_nu += float(base[TIE] - base[A])
    weights = resolved.get("attention", "").split(";")[0] if options.lora_rank else resolved.get("merged", "")
    body = _template().render(
        name=name,
        options=options,
        data=data,
        resolved=resolved,
        source=source,
        unseen=describe_unseen(unseen, round(sum(data["outcomes"]))) if (unseen := unseen_outcomes(config)) else "",
        max_listed_files=MAX_LISTED_FILES,
        held_out=data.get("held_out_battles", 0),
        validation_file=Path(str(data.get("validation_file"))).name,
        validation=validation,
        interval=validation and describe_interval(validation.log_loss_ci, validation.log_loss_ci_reason),
        two_outcomes=TWO_OUTCOMES if validation and validation.outcomes == 2 else "",
        calibration=calibration,
        sources=_sources(sources, by_source or {}),
        max_listed_sources=MAX_LISTED_SOURCES,
        tie_log_nu=tie_log_nu,
        tie_share=None if tie_log_nu is None else 1 / (1 + 2 * math.exp(-tie_log_nu)),
        importances=importances[:MAX_LISTED_STATISTICS],
        curves=CURVES if (folder / CURVES).exists() else "",
        weights=weights[:1].upper() + weights[1:],
        command=config.get("command") or "prefcli train",
        version=__version__,
    )
    metadata = _metadata(name, options, source, resolved, validation, data["text"])
    files.write_text(folder / CARD, f"---\n{metadata}\n---\n\n{body}")


def _sources(sources: Sources | None, scores: Mapping[str, Score]) -> list[tuple[str, float, str, Score | None]]:
    """Of each source its name, how many battles of it were trained on, its share of ties in words, and its scores."""
    if sources is None:
        return []
    totals = sources.outcomes.sum(axis=1)
    rows = zip(sources.names, totals.tolist(), sources.can_tie.tolist(), sources.outcomes[:, TIE], strict=True)
    return [
        (name, total, "unknown" if not total else f"{ties / total:.1%}" if can else "none", scores.get(name))
        for name, total, can, ties in rows
    ]


def _tie_log_nu(folder: Path) -> float | None:
    """The logarithm of Davidson's ``nu`` in a reward run's weights; None where there is no such constant."""
    from safetensors import safe_open

    path = folder / runs.WEIGHTS
    if not path.is_file():
        return None
    with safe_open(path, framework="numpy") as stream:
        term = json.loads((stream.metadata() or {}).get(runs.TIE_METADATA, "{}"))
    return float(term["tie.bias"][0]) if set(term) == {"tie.bias"} else None


def add_export(folder: Path, description: str, name: str) -> None:
    """Make the card in an export's ``folder`` say what the export is and how it is used, instead of its run.

    Parameters
    ----------
    folder, name:
        Where it is now; its final name.
    description:
        What it is, in Markdown.
    """
    path = folder / CARD
    card = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else f"# {_code(name)}\n"
    about, _, use = card.partition(USE)
    load = _code(f"prefcli.load({_python(name)})")
    how = f"\n```\nprefcli predict battles.csv --model {_shell(name)}\n```\n\nFrom Python: {load}.\n"
    made = use[use.rfind("\nMade with prefcli ") :] if "\nMade with prefcli " in use else ""
    text = f"{about}\n## Exported to ONNX\n\n{description}\n{USE}{how}{made}"
    with contextlib.suppress(InputError):  # its metadata was edited: it stays as it is
        edited = _parse(text, path)
        others = [tag for tag in edited.data.get("tags") or () if tag != "prefcli"]
        edited.data["library_name"], edited.data["pipeline_tag"] = "prefcli", None
        edited.data["tags"] = [*others, "onnx"]
        text = str(edited)
    files.write_text(path, text)


def set_license(folder: Path, license: str) -> None:
    """Set the license in a run's card, by its name on the hub: ``apache-2.0``, ``cc-by-4.0``.

    Raises
    ------
    InputError
        If it is not such a name, or the card cannot be read.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", license):
        raise InputError(
            f"{license!r} is not a license name of the hub", hint="Use apache-2.0, mit, cc-by-4.0 or the like."
        )
    path = folder / CARD
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the run's card: {one_line(error)}", where=str(path)) from None
    card = _parse(text, path)
    card.data["license"] = license
    files.write_text(path, str(card))


def _parse(text: str, path: Path) -> ModelCard:
    """A card as the hub's library reads it.

    Raises
    ------
    InputError
        If it cannot.
    """
    with hub.quiet():
        from huggingface_hub import ModelCard

        try:
            return ModelCard(text)
        except Exception as error:  # somebody may have edited it: YAML that is broken or says something else
            raise InputError(f"cannot read the run's card: {one_line(error)}", where=str(path)) from None


def _metadata(
    name: str,
    options: TrainOptions,
    source: Source,
    resolved: Mapping[str, Any],
    validation: Score | None,
    text: str,
) -> str:
    """The hub's metadata as YAML, without a license: whoever publishes the run must know what the data allows."""
    with hub.quiet():
        from huggingface_hub import EvalResult, ModelCardData

    from_hub = resolved.get("encoder_source", "").startswith(hub.SOURCES)
    is_hub_name = from_hub and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", options.encoder_name, re.ASCII)
    scores: dict[str, Any] = {}
    if validation is not None:
        interval = describe_interval(validation.log_loss_ci, validation.log_loss_ci_reason)
        held_out = describe_battles(validation.n, validation.prompts, "held-out battle")
        metrics = (
            ("log_loss", "log_loss", f"log loss, {interval}"),
            ("accuracy", "accuracy", "accuracy"),
            ("brier_score", "brier", "Brier score"),
            ("expected_calibration_error", "ece", "expected calibration error"),
        )
        scores = {
            "model_name": name,
            "metrics": ["log_loss", "accuracy", "brier_score"],
            "eval_results": [
                EvalResult(
                    task_type="preference-prediction",
                    task_name="preference prediction",
                    dataset_type="held-out",
                    dataset_name=visible(f"{held_out} of {source.title}"),
                    metric_type=metric,
                    metric_name=title,
                    metric_value=round(float(getattr(validation, key)), 4),
                )
                for metric, key, title in metrics
            ],
        }
    library = _library(options, text)
    return ModelCardData(
        library_name=library,
        # The hub then offers transformers' pipeline and its own inference, which must give the model's numbers.
        pipeline_tag="text-classification" if library == "transformers" else None,
        tags=["preference-prediction", *["reward-model"] * (options.architecture == "reward"), options.architecture]
        + (["prefcli"] if library != "prefcli" else []),
        base_model=options.encoder_name if is_hub_name else None,
        **scores,
    ).to_yaml()


def _library(options: TrainOptions, text: str) -> str:
    """The library whose classes compute the run as it is: a reward model of one part that reads text as it is."""
    if options.architecture != "reward" or options.folds or text != "raw":
        return "prefcli"
    return "peft" if options.lora_rank else "transformers"


@functools.cache
def _template() -> Template:
    """The card's template; what it inserts is escaped unless a filter has made it safe."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("prefcli", "assets"),
        finalize=lambda value: value if isinstance(value, Markup) else _escaped(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = {"code": _code, "shell": _shell, "python": _python}
    for name, function in filters.items():
        environment.filters[name] = lambda value, function=function: Markup(function(value))
    return environment.get_template("model-card.md.jinja")


def _escaped(value: object) -> str:
    """A value as plain text: what Markdown or HTML would interpret is escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", visible(str(value)))


def _code(value: object) -> str:
    """A value as a code span, in which Markdown and HTML interpret nothing.

    The fence is longer than any run of backticks in the text, and line breaks are shown, not made.
    """
    text = visible(str(value))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if not text or "`" in (text[0], text[-1]) else ""
    return f"{fence}{space}{text}{space}{fence}"


def _python(value: str) -> str:
    """A value as a literal of Python."""
    return json.dumps(visible(value), ensure_ascii=False)


def _shell(value: str) -> str:
    """A value as one word of a shell command."""
    return shlex.quote(visible(value))
