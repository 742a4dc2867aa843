"""Flags made from option dataclasses, so that flags, keys of ``--config`` and entries of a run's config agree."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, get_type_hints

import typer

from prefcli.options import PredictOptions, TrainOptions, flag_of


def add_option_flags(
    verb: Callable[..., None], options: type[TrainOptions | PredictOptions], without: Collection[str] = ()
) -> None:
    """Give a verb that ends in ``**flags`` a flag for every field of ``options`` except those in ``without``."""
    signature = inspect.signature(verb, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    parameters += [p for p in _parameters(options) if p.name not in without]
    verb.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {p.name: p.annotation for p in parameters}


def given_options(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given as flags; a flag that was repeated becomes a comma-separated list."""
    return {
        name: ",".join(value) if isinstance(value, list) else value
        for name, value in flags.items()
        if value is not None and value != []
    }


def _parameters(options: type[TrainOptions | PredictOptions]) -> Iterator[inspect.Parameter]:
    """One parameter for every field; its default None means "not given", which keeps the origins of options apart."""
    hints = get_type_hints(options)
    for f in dataclasses.fields(options):
        kind = next(k for k in getattr(hints[f.name], "__args__", (hints[f.name],)) if k is not type(None))
        flag = flag_of(f.name)
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
            f.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, option]
        )
