"""``prefcli push``: upload a finished run to the hub."""

from __future__ import annotations

from typing import Annotated

import typer

from prefcli.cli import common
from prefcli.cli.flags import command
from prefcli.errors import plural

EXAMPLES = common.examples(
    "prefcli push my-run me/my-judge",
    "prefcli push my-run me/my-judge --public",
    "prefcli predict test.csv --model hf://me/my-judge",
)


@command()
def run(
    session: common.Session,
    run: common.RunArgument,
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub, created when missing.")],
    public: Annotated[
        bool, typer.Option("--public/--private", help="Whether everybody can see it, or only its owner.")
    ] = False,
    license: Annotated[
        str | None, typer.Option("--license", metavar="NAME", help="License to name in its card: apache-2.0, mit, ...")
    ] = None,
) -> None:
    """Upload a finished run to the Hugging Face hub.

    Then --model hf://owner/name takes it from there. Weights, tokenizer, options, card, log and the probabilities of
    held-out battles are uploaded; checkpoints are not.
    """
    from prefcli import pipeline
    from prefcli.cli import next_steps

    pushed = pipeline.push(run, name, session.workspace, private=not public, license=license, reporter=session.reporter)
    common.print_result(session, pushed, f"{pushed.url}: {plural(pushed.files, 'file')}")
    next_steps.show(session, next_steps.after_push, name)
