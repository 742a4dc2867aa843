"""What to do next: after each verb one or two commands that fit what was just seen.

They are written to stderr, on a terminal or not, but with neither ``--quiet`` nor ``--json``. Each can be pasted from
where the user is: its files are there, its outputs are not, and it carries over how files are read and the workspace.
What a run's figures recommend is in :mod:`prefcli.rendering.advice`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcli import readers
from prefcli.battles import STANDARD_INPUT, Source
from prefcli.errors import PrefcliError
from prefcli.pipeline.runs import summarise
from prefcli.pipeline.runs_compare import best_partner
from prefcli.rendering.advice import Advice, command_words, find_test, quote
from prefcli.reporting import visible
from prefcli.storage import hub, runs
from prefcli.storage.run_names import default_root, run_name

if TYPE_CHECKING:
    from prefcli.cli.common import Session
    from prefcli.exploration import Eda
    from prefcli.pipeline.runs import RunSummary
    from prefcli.pipeline.runs_compare import Partner, RunComparison

MAX_STEPS = 2
PAIR = '--prompt "Name a red fruit." --a "A cherry." --b "A banana."'
MAX_LOOKED_AT = 64 << 20
"""Bytes of a file of which it is found out what it holds."""
MIN_PROMPTS = 20
"""With fewer prompts training is not recommended."""


def show(session: Session, after: Callable[..., Sequence[Advice]], *facts: Any, **more_facts: Any) -> None:
    """Write the first steps after a verb to stderr; ``after`` gives them from the session and the facts."""
    if session.json or session.quiet or not session.is_main_process:
        return
    steps: Sequence[Advice] = ()
    with contextlib.suppress(PrefcliError, OSError, KeyError, ValueError):  # the verb is done all the same
        steps = after(session, *facts, **more_facts)
    sys.stdout.flush()  # results come first where both are one stream
    for step in steps[:MAX_STEPS]:
        print(f"Next: {visible(step.reason)}\n  {visible(step.command)}", file=sys.stderr)


class Commands:
    """Commands of the session's workspace, to be typed in the current folder."""

    def __init__(self, session: Session) -> None:
        self.workspace = session.workspace
        self._arguments = session.arguments
        is_default = session.workspace.root == default_root()
        self._carried = [] if is_default else [f"--workspace {quote(str(session.workspace.root))}"]

    def of(self, verb: str, *words: str) -> str:
        """A command of a verb."""
        return " ".join(["prefcli", verb, *filter(None, words), *self._carried])

    def again(self, *words: str, wrote: bool = False) -> str:
        """The command that was just run, with more flags; ``wrote`` says whether it wrote a file already."""
        force = ["--force"] if wrote and "--force" not in self._arguments else []
        return " ".join([shlex.join(["prefcli", *self._arguments]), *words, *force])

    def on_file(self, verb: str, source: Source, *models: str) -> str:
        """``predict`` or ``rank`` of files, into a new one; by the latest run if none is named."""
        usual = {"predict": "preds.csv", "rank": "ranked.jsonl"}[verb]
        named = [f"--model {quote(model)}" for model in models]
        return self.of(verb, command_words(source), *named, _to_unused(usual))

    def report(self, run: str) -> str:
        """The page of a run."""
        return self.of("report", quote(run), _to_unused(f"{Path(run).name}.html"))

    def page(self, run: str, reason: str) -> list[Advice]:
        """The page of a run, unless one is in the current folder."""
        return [] if os.path.lexists(f"{Path(run).name}.html") else [Advice(reason, self.report(run))]

    def name(self, run: Path) -> str:
        """What a run is called on the command line."""
        root = self.workspace.root
        return run.name if run.parent.resolve() == (root / "runs").resolve() else run_name(root, run)

    def names_to_predict(self, run: Path) -> list[str]:
        """The run as ``--model`` must name it: nothing for the latest one."""
        latest = self.workspace.latest("train") or {}
        is_latest = isinstance(latest.get("run"), str) and Path(latest["run"]).resolve() == run.resolve()
        return [] if is_latest else [self.name(run)]


def unused(name: str) -> str:
    """The name of a new file in the current folder: with a number if it is taken."""
    path = Path(name)
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, 1000))
    return str(next((other for other in (path, *numbered) if not os.path.lexists(other)), path))


def _to_unused(usual: str) -> str:
    """The flag for another output where the usual one exists."""
    output = unused(usual)
    return "" if output == usual else f"--output {quote(output)}"


def has_lists(path: Path) -> bool:
    """Whether a file holds several answers to each prompt; one that takes long to look at is not looked at."""
    with contextlib.suppress(PrefcliError):
        if path.stat().st_size > MAX_LOOKED_AT:
            return False
        readers.open_candidates(Source((path,)))
        return True
    return False


def _is_read_once(source: Source) -> bool:
    return STANDARD_INPUT in source.paths


def after_eda(session: Session, source: Source, eda: Eda, *, page: bool, export: bool) -> list[Advice]:
    """Train on labelled battles, or predict the others; look at the problems, or at the page."""
    if _is_read_once(source):
        return []
    commands, words = Commands(session), command_words(source)
    steps = []
    if eda.labelled and eda.prompts >= MIN_PROMPTS:
        steps.append(Advice("a model of these votes, in minutes", commands.of("train", words, "--recipe fast")))
    elif not eda.labelled and session.workspace.latest("train"):
        steps.append(Advice("what the latest run predicts", commands.on_file("predict", source)))
    problems = eda.problems.duplicates + eda.problems.contradictory
    if problems and not export:
        again = commands.again("--export", unused("problems.csv"), wrote=page)
        steps.append(Advice("the ids of repeated and contradictory battles", again))
    if not page:
        again = commands.again("--report", unused("eda.html"), wrote=export)
        steps.append(Advice("everything as a page with plots", again))
    return steps


def after_preview(session: Session) -> list[Advice]:
    """Normalise all of the file."""
    words = list(session.arguments)
    for number, word in enumerate(words):
        if word == "--preview":
            del words[number : number + 2]
            break
        if word.startswith("--preview="):
            del words[number]
            break
    return [] if "-" in words else [Advice("normalise all battles", shlex.join(["prefcli", *words]))]


def after_preprocess(session: Session, source: Source, labelled: int) -> list[Advice]:
    """Train on what is cached, or predict."""
    commands = Commands(session)
    if labelled:
        steps = [
            Advice("train on this text", commands.of("train")),
            Advice("or on text statistics, in minutes and without an encoder", commands.of("train", "--recipe fast")),
        ]
        return steps if labelled >= MIN_PROMPTS else []
    if session.workspace.latest("train") and not _is_read_once(source):
        return [Advice("what the latest run predicts", commands.on_file("predict", source))]
    return []


def after_train(session: Session, run: Path, *, held_out: bool) -> list[Advice]:
    """Predict the test file, by the blend that is better if there is one; see where the run fails; try one pair."""
    commands = Commands(session)
    name, partner = commands.name(run), best_partner(run, session.workspace)
    config = runs.read_config(run)
    source = Source.from_json(config["data"]["source"])
    test = find_test(*source.paths)
    steps = []
    is_fallback = config["options"]["encoder"] == "tiny" and config["origins"].get("encoder") == "default"
    if is_fallback and config["options"]["architecture"] != "reward":
        better = commands.of("train", command_words(source), "--recipe fast")
        steps.append(Advice("a better model than with tiny, whose weights begin at random", better))
    if partner is not None:
        steps.append(_of_partner(commands, name, partner, None if test is None else Source((test,))))
    elif test is not None:
        steps.append(_of_test(commands, test, commands.names_to_predict(run)))
    if held_out:
        steps.append(Advice("how good it is, where it fails, what to try", commands.report(name)))
    named = [f"--model {quote(model)}" for model in commands.names_to_predict(run)]
    return [*steps, Advice("what it says of one pair of answers", commands.of("compare", PAIR, *named))]


def _of_test(commands: Commands, test: Path, models: Sequence[str]) -> Advice:
    """Predict battles, or rank answers where the file has several to each prompt."""
    verb = "rank" if has_lists(test) else "predict"
    return Advice(f"{verb} {test.name}", commands.on_file(verb, Source((test,)), *models))


def _of_partner(commands: Commands, name: str, partner: Partner, source: Source | None) -> Advice:
    """Blend two runs to predict files; compare them where there are none."""
    assert partner.gain.ci is not None
    reason = (
        f"with {partner.run} its log loss on the held-out battles is {-partner.gain.difference:.4f} lower than that of "
        f"either (95 %: {-partner.gain.ci[1]:.4f} to {-partner.gain.ci[0]:.4f})"
    )
    if source is not None:
        return Advice(reason, commands.on_file("predict", source, name, partner.run))
    return Advice(reason, commands.of("runs compare", quote(name), quote(partner.run)))


def after_predict(
    session: Session, source: Source, output: Path, *, can_be_scored: bool, models: Sequence[str]
) -> list[Advice]:
    """Score what can be scored; else a better blend, or the page of the run."""
    commands = Commands(session)
    latest = (session.workspace.latest("train") or {}).get("run")
    models = models or [commands.name(Path(str(latest)))]
    local = [model for model in models if not model.startswith(hub.PREFIX)]
    steps = []
    if can_be_scored and not _is_read_once(source):
        steps.append(Advice("score them", commands.of("score", quote(str(output)), command_words(source))))
    if len(models) == len(local) == 1 and not _is_read_once(source):
        partner = best_partner(session.workspace.find_run(local[0]), session.workspace)
        steps += [] if partner is None else [_of_partner(commands, local[0], partner, source)]
    if len(models) == len(local) == 1 and _held_out(commands, local[0]):
        steps += commands.page(local[0], "how good the run is, where it fails")
    elif len(local) > 1:
        steps.append(Advice("which of the runs is better", commands.of("runs compare", *map(quote, local))))
    return steps


def _held_out(commands: Commands, name: str) -> bool:
    """Whether a run kept held-out battles."""
    with contextlib.suppress(PrefcliError):
        return (commands.workspace.find_run(name) / runs.VALIDATION).is_file()
    return False


def after_score(session: Session, files: Sequence[Path], *, by: bool, page: bool, prompts: bool) -> list[Advice]:
    """The page of the scores, and scores by group where the labels have texts."""
    if STANDARD_INPUT in files:
        return []
    commands = Commands(session)
    steps = []
    if not page:
        reason = "calibration, confusion and the most surprising battles as a page"
        steps.append(Advice(reason, commands.again("--report", unused("scores.html"))))
    if not by and prompts:
        steps.append(Advice("scores by the length of the answers", commands.again("--by length")))
    return steps


def after_rank(session: Session, source: Source, *, best: bool, pairs: bool) -> list[Advice]:
    """Also write the best answers, and pairs to train on."""
    if _is_read_once(source):
        return []
    commands = Commands(session)
    steps = []
    if not best:
        again = commands.again("--best", unused("best.jsonl"), wrote=True)
        steps.append(Advice("the best answer to each prompt, as text", again))
    if not pairs:
        again = commands.again("--pairs", unused("pairs.jsonl"), wrote=True)
        steps.append(Advice("preference pairs to train on", again))
    return steps


def after_runs(session: Session, summaries: Sequence[RunSummary], *, filtered: bool = False) -> list[Advice]:
    """Compare the two best of the same battles, or look at the best; continue what is unfinished."""
    commands = Commands(session)
    if not summaries and not filtered:
        return [after_nothing(commands)]
    scored = [run for run in summaries if run.log_loss is not None]
    scored.sort(key=lambda run: (run.log_loss_ci is None, run.log_loss))  # scores of a few battles say little
    steps = []
    for run in summaries:
        if run.status == "unfinished":
            steps.append(Advice(f"continue {run.name}", commands.of("train --resume", quote(run.name))))
            break
    pairs = itertools.combinations([run for run in scored if run.log_loss_ci is not None], 2)
    alike = next(((first, second) for first, second in pairs if first.held_out == second.held_out), None)
    if alike is not None:
        names = [quote(run.name) for run in alike]
        reason = f"is {alike[0].name} clearly better than {alike[1].name}?"
        steps.append(Advice(reason, commands.of("runs compare", *names)))
    if scored:
        steps += commands.page(scored[0].name, f"where {scored[0].name} fails, and what to try")
    return steps


def after_nothing(commands: Commands) -> Advice:
    """Where there is no run yet."""
    if Path("train.csv").is_file():
        return Advice("a first run, in minutes", commands.of("train train.csv --recipe fast"))
    return Advice("all verbs on made-up battles", f"prefcli demo {unused('prefcli-demo')}")


def after_show(session: Session, run: RunSummary, *, damaged: bool) -> list[Advice]:
    """The page of a finished run; continue an unfinished one."""
    commands = Commands(session)
    if run.status == "unfinished":
        return [Advice("continue it", commands.of("train --resume", quote(run.name)))]
    if damaged or run.log_loss is None:
        return []
    return commands.page(run.name, "where it fails, and what to try")


def after_compare(session: Session, comparison: RunComparison) -> list[Advice]:
    """The blend with the best run if it is better, else predictions of the best one; and its page."""
    commands = Commands(session)
    lowest = min(comparison.scores, key=lambda name: comparison.scores[name].log_loss)
    partner = best_partner(session.workspace.find_run(lowest), session.workspace)
    test = find_test()
    steps = []
    if partner is not None:
        steps.append(_of_partner(commands, lowest, partner, None if test is None else Source((test,))))
    elif test is not None:
        steps.append(_of_test(commands, test, commands.names_to_predict(session.workspace.find_run(lowest))))
    return [*steps, *commands.page(lowest, f"where {lowest} fails, and what to try")]


def after_diff(session: Session, names: Sequence[str]) -> list[Advice]:
    """Compare the runs, if they held out the same battles."""
    workspace = session.workspace
    digests = {summarise(workspace, workspace.find_run(name)).held_out for name in names}
    if len(digests) > 1 or "" in digests:
        return []
    return [Advice("which is better, on the same battles", Commands(session).of("runs compare", *map(quote, names)))]


def after_prune(session: Session) -> list[Advice]:
    """Remove what was listed."""
    return [Advice("remove them", Commands(session).again("--yes"))]


def after_report(session: Session, run: Path, *, advised: bool) -> list[Advice]:
    """Predict the test file; nothing where the figures recommended something."""
    commands = Commands(session)
    test = find_test(*Source.from_json(runs.read_config(run)["data"]["source"]).paths)
    return [] if advised or test is None else [_of_test(commands, test, commands.names_to_predict(run))]


def after_export(session: Session, run: Path, export: Path) -> list[Advice]:
    """Predict with the export, and compare it with the run."""
    commands = Commands(session)
    source = Source.from_json(runs.read_config(run)["data"]["source"])
    test = find_test(*source.paths)
    steps = [_of_test(commands, test, [str(export)])] if test is not None else []
    if all((folder / runs.VALIDATION).is_file() for folder in (run, export)):
        names = (quote(commands.name(run)), quote(str(export)))
        steps.append(Advice("what differs from the run", commands.of("runs diff", *names)))
    return steps


def after_push(session: Session, name: str) -> list[Advice]:
    """Predict with the run from anywhere."""
    commands, test = Commands(session), find_test()
    return [] if test is None else [_of_test(commands, test, [f"{hub.PREFIX}{name}"])]


def after_ablate(session: Session, folder: Path) -> list[Advice]:
    """Look at the runs."""
    return [Advice("its runs", Commands(session).of("runs", quote(str(folder))))]


def after_demo(session: Session, folder: Path, run: Path) -> list[Advice]:
    """Try the verbs in the demo's folder."""
    here = f"cd {quote(str(folder))} && prefcli"
    return [
        Advice("where its model fails, and what to try", f"{here} report {quote(f'.prefcli/runs/{run.name}')}"),
        Advice("a better model of the same votes", f"{here} train train.csv --recipe fast"),
    ]
