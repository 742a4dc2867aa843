"""What the help screens look like, in terminals of several widths, and what wrong usage gets."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import Result

from prefcli.cli import help
from prefcli.cli.main import COMMANDS, PANELS, app, run
from prefcli.options import TRAIN_PANELS, TrainOptions

CLI = Callable[..., Result]


@pytest.fixture(scope="module")
def contexts() -> dict[str, Any]:
    """Each command's context by its words; made once, because Typer makes all commands for every call."""
    root = typer.main.get_command(app)
    found = {"prefcli": root.context_class(root, info_name="prefcli")}
    for words in (*([verb] for verb in PANELS), *([verb, name] for verb, names in COMMANDS.items() for name in names)):
        parent = found[" ".join(["prefcli", *words[:-1]])]
        command = parent.command.commands[words[-1]]
        found[" ".join(["prefcli", *words])] = command.context_class(command, info_name=words[-1], parent=parent)
    return found


def panels(text: str) -> dict[str, list[str]]:
    """Rows of each panel: what stands to the left of its descriptions, or alone on a line."""
    found = {}
    for title, rows in re.findall(r"^([A-Z][^:\n]*):\n((?:  .*\n)+)", text, flags=re.M):
        found[title] = [re.split(r" {2,}", row.strip())[0] for row in rows.splitlines() if re.match(r"  \S", row)]
    return found


def test_without_a_command_the_help_is_shown(cli: CLI) -> None:
    bare = cli()
    assert (bare.code, bare.err) == (0, "")
    assert bare.out == cli("--help").out == cli("-h").out == cli("help").out
    assert cli("help", "runs", "show").out == cli("runs", "show", "--help").out


def test_flags_have_no_limits_that_their_conversion_does_not_know(contexts: dict[str, Any]) -> None:
    for words, context in contexts.items():
        for parameter in context.command.params:
            info = parameter.type_descriptor.parameter_info
            defaults = type(info)(default=None)
            for name in ("max", "clamp", "parser", "formats", "exists", "writable", "readable"):
                assert getattr(info, name) == getattr(defaults, name), f"{words} {parameter.name}: {name}"
            assert (info.resolve_path, info.case_sensitive) == (False, True)


def test_every_command_is_described_in_one_line_of_80_columns(cli: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli().out.splitlines()
    for verb, title in PANELS.items():
        position = next(i for i, line in enumerate(lines) if re.match(rf"  {verb} {{2,}}\S.*\.$", line))
        assert lines.index(f"{title}:") < position
        assert lines[position + 1] == "" or re.match(r"  \S", lines[position + 1]), verb
    assert list(panels(cli().out))[:3] == list(dict.fromkeys(PANELS.values()))


@pytest.mark.parametrize("width", [50, 80, 120])
def test_screens_fit_the_terminal_and_name_values_as_users_do(
    width: int, contexts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for words, context in contexts.items():
        text = help.page(context.command, context)
        body, examples = re.split(r"\n(?:Examples|Start here):\n|$(?!\n)", text, maxsplit=1)
        too_long = [line for line in body.splitlines() if len(line) > min(width, 100)]
        assert [line for line in too_long if len(line.split()) > 1] == [], words  # a single word cannot be wrapped
        assert [line for line in examples.splitlines() if len(line) > 80] == [], words
        assert not re.search(r"<\w+|list\[|\.\.\.$|[\[ ]0\.0\]|\[required\]|x>=", body.replace("FILE...", "")), words


def test_the_ten_options_that_most_people_need_come_first(cli: CLI) -> None:
    assert panels(cli("train", "--help").out)["Most used"] == [
        "--recipe baseline|fast|strong",
        *("--encoder NAME|DIR", "--text nltk|light|raw", "--epochs N", "--max-length N", "--batch-size N", "--lr X"),
        *("--folds N", "--resume RUN", "-o, --output DIR", "--estimate"),
    ]


def test_every_option_of_training_is_in_one_panel(cli: CLI) -> None:
    names = [name for names in TRAIN_PANELS.values() for name in names]
    assert sorted(names) == sorted(f.name for f in dataclasses.fields(TrainOptions))
    text = cli("train", "--help").out
    for name in names:
        assert len(re.findall(rf"^  --{name.replace('_', '-')}\b(?!-)", text, flags=re.M)) == 1, name


def test_files_and_defaults_are_written_as_people_do(cli: CLI) -> None:
    text = " ".join(cli("train", "--help").out.split())
    assert "Usage: prefcli train [OPTIONS] [FILE]..." in text
    assert "--clip X Maximum norm of the gradient; 0: no clipping. [default: 1]" in text
    assert "--weight-decay X AdamW's weight decay, not applied to biases and norms. [default: 0.01]" in text
    assert "[default: on]" in text
    assert "Usage: prefcli score [OPTIONS] PREDS... LABELS" in cli("score", "--help").out
    assert "--outcomes auto|2|3" in cli("score", "--help").out


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", ["", "1"])
def test_headings_and_flags_are_coloured_on_a_terminal_only(
    no_color: str, cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm-256color")
    with contextlib.redirect_stdout(Screen()) as screen:
        run(["push", "--help"])
    plain = cli("push", "--help").out
    assert "\033" not in plain
    assert re.sub(r"\033\[\d+m", "", screen.getvalue()) == plain
    assert ("\033[1mArguments:\033[0m\n  \033[36mRUN\033[0m" in screen.getvalue()) == (no_color == "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("eda", "error: missing FILE\n  Usage: prefcli eda [OPTIONS] FILE...\n  Try: prefcli eda --help\n"),
        ("trian x.csv", "error: no such command: trian\n  Did you mean train? Try: prefcli --help\n"),
        ("prune", "error: no such command: prune\n  Did you mean runs prune? Try: prefcli --help\n"),
        ("xyz", "error: no such command: xyz\n  Try: prefcli --help\n"),
        ("runs shwo x", "error: no such command: shwo\n  Did you mean show? Try: prefcli runs --help\n"),
        ("train --epoch 2", "error: no such option: --epoch\n  Did you mean --epochs? Try: prefcli train --help\n"),
        ("train --epochs", "error: option '--epochs' requires an argument\n  Try: prefcli train --help\n"),
        ("train --epochs two", "error: --epochs is 'two', expected a whole number\n  Try: prefcli train --help\n"),
        ("train --lr x", "error: --lr is 'x', expected a number\n  Try: prefcli train --help\n"),
        ("ablate a --seeds 0", "error: --seeds is 0, at least 1 is needed\n  Try: prefcli ablate --help\n"),
        ("score a b --outcomes 4", "error: --outcomes is '4', not one of auto, 2, 3\n  Try: prefcli score --help\n"),
        (
            "train --text nlkt --pooling men",
            "error: --text is 'nlkt', not one of nltk, light, raw; --pooling is 'men', not one of auto, mean, last, "
            "cls, attention\n"
            "  Did you mean nltk, mean?\n",
        ),
        ("train --tracker wanb", "error: --tracker has 'wanb', not one of tensorboard, wandb\n  Did you mean wandb?\n"),
        ("train --config c.toml", "error: unknown option 'batchsize'\n  in c.toml\n  Did you mean batch_size?\n"),
        ("train --config c.json", "error: unknown option 'epoch'\n  in c.json\n  Did you mean epochs?\n"),
        ("predict x.csv --model god", "error: no run at 'god'\n  Did you mean good?\n"),
        ("runs --architecture reword", "error: no architecture 'reword'\n  Did you mean reward?\n"),
        ("runs --sort los", "error: cannot sort by 'los'\n  Did you mean loss?\n"),
        ("train --recipe fsat", "error: --recipe is 'fsat', not one of baseline, fast, strong\n  Did you mean fast?\n"),
    ],
)
def test_wrong_usage_says_what_was_meant(arguments: str, said: str, cli: CLI) -> None:
    Path(".prefcli/runs/good").mkdir(parents=True)
    Path("x.csv").touch()
    Path("c.toml").write_text("batchsize = 3\n")
    Path("c.json").write_text('{"options": {"epoch": 3}}')
    done = cli(*arguments.split())
    assert (done.code, done.out, done.err) == (2, "", said)
