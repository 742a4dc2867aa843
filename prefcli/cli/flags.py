"""How a verb becomes a Typer command: the flags that all verbs share, and flags made from option dataclasses.

Flags, keys of ``--config`` and entries of a run's config agree, because all are the fields of one dataclass.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from prefcli.cli import common, help
from prefcli.cli.completion import complete_encoder, complete_values
from prefcli.errors import InputError, closest_name, did_you_mean
from prefcli.options import RECIPE_SUMMARIES, TRAIN_PANELS, PairOptions, PredictOptions, TrainOptions, flag_of

Verb = Callable[..., None]

OPENERS: dict[str, Callable[..., Any]] = {"session": common.open_session, "reading": common.open_reading}
"""Parameters of verbs that are made from flags."""


class _Conversion:
    """How values of flags are converted, in place of Typer's own way: that one imports pydantic, even for a help.

    It knows the types that flags here have, and of Typer's limits only ``min``; a test refuses others.
    """

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value, or a list where several are allowed."""
        kind = param.type_descriptor.annotation
        if param.multiple or param.nargs == -1:
            (kind,) = get_args(kind)
            return [self._convert(each, kind, param, ctx) for each in value or ()]
        return None if value is None else self._convert(value, kind, param, ctx)

    def _convert(self, value: Any, kind: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, kind):
            return value
        try:
            number = kind(value)
        except ValueError:
            if issubclass(kind, Enum):
                raise _not_one_of(param, value, [each.value for each in kind], ctx) from None
            expected = "a whole number" if kind is int else "a number"
            raise _usage_error(f"{param.opts[-1]} is {value!r}, expected {expected}", ctx) from None
        if param.min is not None and number < param.min:
            raise _usage_error(f"{param.opts[-1]} is {value}, at least {param.min} is needed", ctx)
        return number


def _not_one_of(param: Any, value: str, choices: Sequence[str], ctx: Any) -> InputError:
    return _usage_error(
        f"{param.opts[-1]} is {value!r}, not one of {', '.join(choices)}", ctx, did_you_mean(value, choices)
    )


def _usage_error(what: str, ctx: Any, hint: str = "") -> InputError:
    return InputError(what, hint=f"{hint} Try: {ctx.command_path} --help".strip())


class VerbCommand(TyperCommand):
    """A command with a help in panels."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        convert_quickly(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help.page(self, ctx))

    def get_short_help_str(self, limit: int = 0) -> str:
        return help.short(self)


class RootGroup(TyperGroup):
    """The command ``prefcli``: without a verb it shows its help, as ``help`` and ``help VERB`` do."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        convert_quickly(self.get_params(ctx))
        if not ctx.resilient_parsing and args[:1] in ([], ["help"]):
            args = [*args[1:], "--help"]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and not ctx.resilient_parsing:
            raise no_such_command(args[0], self, ctx)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help.page(self, ctx))

    def get_short_help_str(self, limit: int = 0) -> str:
        return help.short(self)


class VerbGroup(RootGroup):
    """A verb with commands of its own, of which the first is meant where none is named.

    Options of the command may stand before its name.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = (i for i, word in enumerate(args) if word in self.commands and args[max(i - 1, 0)] != "--workspace")
        position = next(named, None)
        if position is not None:
            args = [args[position], *args[:position], *args[position + 1 :]]
        elif (args or not ctx.resilient_parsing) and not {"-h", "--help"} & set(args):
            misspelt = args and closest_name(args[0], self.commands) and not Path(args[0]).exists()
            if misspelt and not ctx.resilient_parsing:
                raise no_such_command(args[0], self, ctx)
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


def convert_quickly(parameters: Iterable[Any]) -> None:
    """Let Typer convert values by :class:`_Conversion`; one without this attribute converts them in its own way."""
    for parameter in parameters:
        vars(parameter)["_runtime_param"] = _Conversion()


def no_such_command(name: str, group: Any, ctx: Any) -> InputError:
    """The error for a command that does not exist, with a similar one of the group or of a group in it."""
    inner = {each: f"{verb} {each}" for verb, of in group.commands.items() for each in getattr(of, "commands", ())}
    commands = {**inner, **{each: each for each in group.commands}}
    similar = commands.get(closest_name(name, commands))
    return _usage_error(f"no such command: {name}", ctx, f"Did you mean {similar}?" if similar else "")


Options = type[TrainOptions | PredictOptions | PairOptions]


def command(*options: Options, without: Collection[str] = ()) -> Callable[[Verb], Verb]:
    """Decorate a verb ``run(session, ...)``: it gets the flags of :func:`prefcli.cli.common.open_session`.

    A verb with a parameter ``reading`` also gets those of :func:`~prefcli.cli.common.open_reading`. If it ends in
    ``**flags``, it also gets a flag for every field of each of ``options`` that is no parameter of its own. Flags in
    ``without`` are left out.
    """

    def decorate(verb: Verb) -> Verb:
        own = {**inspect.signature(verb, eval_str=True).parameters}
        openers = {name: function for name, function in OPENERS.items() if own.pop(name, None)}
        shared = {name: {**inspect.signature(function, eval_str=True).parameters} for name, function in openers.items()}
        own.pop("flags", None)
        of_verb = [*own.values(), *(p for opened in shared.values() for p in opened.values())]
        of_options = [p for kind in options for p in _parameters(kind) if p.name not in own]
        parameters = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in (of_options + of_verb if TrainOptions in options else of_verb + of_options)
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
    panels = _panels(options)
    for f in sorted(dataclasses.fields(options), key=lambda f: list(panels).index(f.name)):
        kind = next(k for k in getattr(hints[f.name], "__args__", (hints[f.name],)) if k is not type(None))
        flag = flag_of(prefix + f.name)
        choices = f.metadata.get("choices") or f.metadata.get("each_of")
        metavar = f.metadata.get("metavar") or (
            "|".join(choices) if choices else {int: "N", float: "X", str: "NAME"}.get(kind)
        )
        default = help.spell(f.default)
        values = choices or f.metadata.get("suggestions", ())
        complete = complete_values(values, RECIPE_SUMMARIES if f.name == "recipe" else None)
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
            metavar=metavar,
            help=f.metadata["help"] + (f" [default: {default}]" if default else ""),
            show_default=False,
            rich_help_panel=panels[f.name],
            autocompletion=complete_encoder if f.name == "encoder" else complete if values else None,
        )
        annotation = list[str] if "each_of" in f.metadata else kind
        yield inspect.Parameter(
            prefix + f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[annotation | None, option],
        )


def _panels(options: Options) -> dict[str, str]:
    """Where the help shows each field, in this order."""
    if options is TrainOptions:
        return {name: panel for panel, names in TRAIN_PANELS.items() for name in names}
    names = [f.name for f in dataclasses.fields(options)]
    if options is PairOptions:
        return dict.fromkeys(names, help.PAIRS)
    of_hardware = ("device", "precision", "fast_attention", "workers")
    return {name: "Hardware" if name in of_hardware else "Options" for name in names}
