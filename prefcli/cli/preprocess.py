"""``prefcli preprocess``: normalise the text of battles and cache the result."""

from __future__ import annotations

from typing import Annotated

import typer

from prefcli.cli import common
from prefcli.cli.completion import complete_values
from prefcli.cli.flags import command
from prefcli.errors import one_line
from prefcli.options import TEXTS

EXAMPLES = common.examples(
    "prefcli preprocess train.csv",
    "prefcli preprocess train.csv --text light --preview 3",
)


@command()
def run(
    session: common.Session,
    reading: common.Reading,
    file: common.FilesArgument,
    text: Annotated[
        str,
        typer.Option(
            "--text",
            metavar="|".join(TEXTS),
            help="nltk: the baseline's; light: Unicode and white space.",
            autocompletion=complete_values(TEXTS),
        ),
    ] = "nltk",
    preview: Annotated[
        int, typer.Option("--preview", min=0, metavar="N", help="Show N battles before and after; write nothing.")
    ] = 0,
    workers: common.WorkersOption = None,
) -> None:
    """Normalise texts and cache them, for training to start from."""
    from prefcli import pipeline
    from prefcli.cli import next_steps

    battles = reading.like(file)
    if preview:
        _print_preview(pipeline.preview(battles, text=text, battles=preview), session)
        next_steps.show(session, next_steps.after_preview)
        return
    result = pipeline.preprocess(battles, session.workspace, text=text, workers=workers, reporter=session.reporter)
    stage = result.stage
    summary = {"stage": str(stage.path), "text": text, "reused": stage.reused, "battles": stage.rows, **result.counts}
    common.print_result(session, summary, str(stage.path))
    labels = stage.table(["label"])["label"]
    next_steps.show(session, next_steps.after_preprocess, battles, len(labels) - labels.null_count)


def _print_preview(previews: list[tuple[str, dict[str, tuple[str, str]]]], session: common.Session) -> None:
    """Battles before and after normalisation: JSON has the whole texts, else they are cut to a line each."""
    if session.json:
        texts = [
            {"id": battle_id, **{field: {"before": old, "after": new} for field, (old, new) in fields.items()}}
            for battle_id, fields in previews
        ]
        common.print_json({"preview": texts})
        return
    for battle_id, fields in previews:
        common.say(f"battle {battle_id}")
        for field, (before, after) in fields.items():
            print(f"  {field}")
            for when, version in (("before: ", before), ("after:  ", after)):
                print(f"    {when}{common.visible(one_line(version, 300))}")
