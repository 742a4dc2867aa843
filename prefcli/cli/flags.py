"""How a verb becomes a Typer command: the flags that all verbs share, and flags made from option dataclasses.

Flags, keys of ``--config`` and entries of a run's config agree, because all are the fields of one dataclass.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from prefcli.cli import common
from prefcli.options import PairOptions, PredictOptions, TrainOptions, flag_of

Verb = Callable[..., None]

OPENERS: dict[str, Callable[..., Any]] = {"session": common.open_session, "reading": common.open_reading}
"""Parameters of verbs that are made from flags."""


class VerbCommand(TyperCommand):
    """A command whose help shows each panel of options under its title."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                default = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
        for title, records in panels.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class VerbGroup(TyperGroup):
    """A verb with commands of its own, of which the first is meant where none is named.

    Options of the command may stand before its name.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = (i for i, word in enumerate(args) if word in self.commands and args[max(i - 1, 0)] != "--workspace")
        position = next(named, None)
        if position is not None:
            args = [args[position], *args[:position], *args[position + 1 :]]
        elif not ctx.resilient_parsing and not {"-h", "--help"} & set(args):
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


Options = type[TrainOptions | PredictOptions | PairOptions]


def command(*options: Options, without: Collection[str] = ()) -> Callable[[Verb], Verb]:
    """Decorate a verb ``run(session, ...)``: it gets the flags of :func:`prefcli.cli.common.open_session`.

    A verb with a parameter ``reading`` also gets those of :func:`~prefcli.cli.common.open_reading`. If it ends in
    ``**flags``, it also gets a flag for every field of each of ``options``. Flags in ``without`` are left out.
    """

    def decorate(verb: Verb) -> Verb:
        own = {**inspect.signature(verb, eval_str=True).parameters}
        openers = {name: function for name, function in OPENERS.items() if own.pop(name, None)}
        shared = {name: {**inspect.signature(function, eval_str=True).parameters} for name, function in openers.items()}
        own.pop("flags", None)
        parameters = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in (
                *own.values(),
                *(p for opened in shared.values() for p in opened.values()),
                *(p for kind in options for p in _parameters(kind)),
            )
            if p.name not in without
        ]

        @functools.wraps(verb)
        def run(**flags: Any) -> None:
            flags = {name: _with_home(value) for name, value in flags.items()}
            for name, function in openers.items():
                flags[name] = function(**{flag: flags.pop(flag) for flag in shared[name] if flag in flags})
            verb(**flags)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _with_home(value: Any) -> Any:
    """Paths with the home folder in place of ``~``, which a shell leaves in ``--report=~/page.html``."""
    if isinstance(value, list):
        return [_with_home(item) for item in value]
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def given_options(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given as flags; a flag that was repeated becomes a comma-separated list."""
    return {
        name: ",".join(value) if isinstance(value, list) else value
        for name, value in flags.items()
        if value is not None and value != []
    }


def take_pair_options(flags: dict[str, Any]) -> dict[str, Any]:
    """Remove the flags ``--pairs-...`` from others; the fields of :class:`PairOptions` that they give."""
    names = [f.name for f in dataclasses.fields(PairOptions)]
    return given_options({name: flags.pop(PairOptions.PREFIX + name) for name in names})


def _parameters(options: Options) -> Iterator[inspect.Parameter]:
    """One parameter for every field; its default None means "not given", which keeps the origins of options apart."""
    hints = get_type_hints(options)
    prefix = getattr(options, "PREFIX", "")
    for f in dataclasses.fields(options):
        kind = next(k for k in getattr(hints[f.name], "__args__", (hints[f.name],)) if k is not type(None))
        flag = flag_of(prefix + f.name)
        choices = f.metadata.get("choices") or f.metadata.get("each_of")
        metavar = "|".join(choices) if choices else {int: "N", float: "X", str: "NAME"}.get(kind)
        default = "on" if f.default is True else f.default
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
            metavar=metavar,
            help=f.metadata["help"] + ("" if default is None or default is False else f" [default: {default}]"),
            show_default=False,
        )
        annotation = list[str] if "each_of" in f.metadata else kind
        yield inspect.Parameter(
            prefix + f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[annotation | None, option],
        )
