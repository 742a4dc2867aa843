"""``prefcli runs``: what runs there are, what they are, how they differ, which of them is better, and removing them.

A run that is damaged, unfinished or of an earlier release is part of every list: what cannot be read is empty, and
``problem`` says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from prefcli import metrics
from prefcli.battles import PathLike, Source, user_path
from prefcli.console import LOGGING
from prefcli.errors import InputError, PrefcliError, did_you_mean, one_line
from prefcli.options import ARCHITECTURES, TrainOptions
from prefcli.reporting import Reporter
from prefcli.storage import files, runs
from prefcli.storage.run_names import run_folders, run_name
from prefcli.storage.workspace import Workspace

STATUSES = ("finished", "unfinished", "training", "damaged")
SORTS = ("when", "name", "loss", "gain", "size")


@dataclass(frozen=True, repr=False)
class RunSummary:
    """What ``prefcli runs`` shows of a run; what is not known is None or empty."""

    name: str
    """In the workspace; of a run elsewhere its path."""
    path: Path
    status: str
    """One of :data:`STATUSES`."""
    problem: str
    """Why it is damaged."""
    is_latest: bool
    """Whether ``predict`` takes it without ``--model``."""
    when: str
    """When its configuration was written: local time, ISO 8601."""
    architecture: str
    encoder: str | None
    """None for ``features``."""
    text: str
    data: str
    """The files it was trained on, without their folders."""
    train_battles: int | None
    """Of a run with folds all battles."""
    held_out_battles: int | None
    score: metrics.Score | None
    """On its held-out battles."""
    held_out: str
    """A digest of the held-out battles and their outcomes: log losses of runs can be compared where it is equal."""
    bytes: int
    checkpoint_bytes: int
    """Those of the ``bytes`` that only resuming its training needs."""
    options: dict[str, Any]
    """As its configuration has them."""

    def __repr__(self) -> str:
        what = ", ".join(filter(None, (self.architecture, self.encoder, self.data)))
        score = "no score" if self.log_loss is None else f"log_loss={self.log_loss:.4f}"
        return f"Run({self.name!r}, {self.status}, {what}, {score})"

    JSON_PROPERTIES: ClassVar = ("log_loss", "log_loss_ci", "prior_log_loss", "gain", "outcomes")

    @property
    def log_loss(self) -> float | None:
        return self.score.log_loss if self.score else None

    @property
    def log_loss_ci(self) -> metrics.Interval | None:
        return self.score.log_loss_ci if self.score else None

    @property
    def prior_log_loss(self) -> float | None:
        return self.score.prior_log_loss if self.score else None

    @property
    def gain(self) -> float | None:
        """How far the log loss is below that of the prior."""
        return self.score.prior_log_loss - self.score.log_loss if self.score else None

    @property
    def outcomes(self) -> int | None:
        """2 where its log loss is of two outcomes, see :class:`metrics.Score`."""
        return self.score.outcomes if self.score else None


def list_runs(
    workspace: Workspace | PathLike | None = None,
    *,
    folders: Iterable[PathLike] = (),
    sort: str = "when",
    architecture: str | None = None,
    where: Mapping[str, str] | None = None,
    reporter: Reporter = LOGGING,
) -> list[RunSummary]:
    """The runs of a workspace, and those trained from it into other places.

    Parameters
    ----------
    workspace:
        Where they are.
    folders:
        More runs, or folders that hold runs.
    sort:
        ``when``: the newest first; ``name``; ``loss``: the lowest validation log loss first; ``gain``: the one that is
        furthest below its prior first; ``size``: the largest first. Runs without a score come last.
    architecture:
        Only runs of this architecture.
    where:
        Only runs whose fields (of :class:`RunSummary` or :class:`TrainOptions`) have these values, written as text;
        ``none`` is one.
    reporter:
        Receives notes, warnings and progress.

    Raises
    ------
    InputError
        If there is no such field, order or architecture, or no run in one of the folders.
    """
    workspace = Workspace.of(workspace)
    conditions = {**({"architecture": architecture} if architecture else {}), **(where or {})}
    known = {field.name for kind in (RunSummary, TrainOptions) for field in dataclasses.fields(kind)}
    if unknown := sorted(set(conditions) - known.union(RunSummary.JSON_PROPERTIES)):
        raise InputError(
            f"runs have no {unknown[0]!r}",
            hint=did_you_mean(unknown[0], known) or "Filter by the flags of prefcli train, or by the keys of --json.",
        )
    if architecture and architecture not in ARCHITECTURES:
        hint = did_you_mean(architecture, ARCHITECTURES) or f"Architectures are {', '.join(ARCHITECTURES)}."
        raise InputError(f"no architecture {architecture!r}", hint=hint)
    if sort not in SORTS:
        hint = did_you_mean(sort, SORTS) or f"Sort by {', '.join(SORTS)}."
        raise InputError(f"cannot sort by {sort!r}", hint=hint)
    found = run_folders(workspace.root)
    for folder in map(Path, folders):
        found += _runs_in(folder)
    found = list({folder.resolve(): folder for folder in reversed(found)}.values())
    summaries = []
    with reporter.track("reading runs", len(found), "runs") as progress:
        for folder in found:
            summaries.append(summarise(workspace, folder))
            progress.advance()
    chosen = [run for run in summaries if all(_has(run, name, value) for name, value in conditions.items())]
    return sorted(chosen, key=lambda run: _sort_key(run, sort))


def _runs_in(folder: Path) -> list[Path]:
    """A folder that is a run, or the runs in it."""
    if runs.is_run(folder):
        return [folder]
    inside = [path for path in folder.iterdir() if runs.is_run(path)] if folder.is_dir() else []
    if not inside:
        raise InputError("no run is there", where=str(folder), hint="Name a run's folder, or one that holds runs.")
    return inside


def _sort_key(run: RunSummary, sort: str) -> tuple[Any, ...]:
    if sort == "name":
        return (run.name,)
    if sort == "size":
        return (-run.bytes, run.name)
    if sort == "when":
        return (-datetime.fromisoformat(run.when).timestamp(), run.name)
    value = run.log_loss if sort == "loss" else None if run.gain is None else -run.gain
    return (value is None, value or 0.0, run.name)


def _has(run: RunSummary, name: str, wanted: str) -> bool:
    """Whether a field of a run has a value that is given as text: a field of the summary, else an option."""
    is_own = hasattr(run, name)
    value = getattr(run, name) if is_own else run.options.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(wanted) == value
    return str(value).lower() == wanted.lower()


def different_battles(summaries: Iterable[RunSummary]) -> int:
    """How many different sets of held-out battles the runs were scored on: log losses compare within one of them."""
    return len({run.held_out for run in summaries if run.log_loss is not None})


def summarise(workspace: Workspace, folder: Path, *, scored: bool = True) -> RunSummary:
    """What is known of a run; never an error. Without ``scored`` it has no figures of its held-out battles."""
    config, problem = _config(folder)
    score, held_out = None, None
    is_unfinished = runs.is_unfinished(folder)
    if not is_unfinished and not problem:
        problem = _missing_files(folder)
    if scored and not is_unfinished and not problem and (folder / runs.VALIDATION).is_file():
        try:
            held_out = runs.read_validation(folder)
            score = runs.validation_score(held_out, runs.unseen_outcomes(config))
        except (PrefcliError, ValueError, IndexError) as error:
            problem = one_line(error.what if isinstance(error, PrefcliError) else error)
    options, data = _options(config), _mapping(config, "data")
    architecture = str(options.get("architecture", ""))
    status = "damaged" if problem else "unfinished" if is_unfinished else "finished"
    if is_unfinished and runs.is_being_trained(folder):
        status, problem = "training", ""
    return RunSummary(
        name=run_name(workspace.root, folder),
        path=folder,
        status=status,
        problem=problem,
        is_latest=folder.resolve() == latest_run(workspace),
        when=datetime.fromtimestamp(written(folder)).isoformat(timespec="seconds"),
        architecture=architecture,
        encoder=None if architecture in ("", "features") else str(options.get("encoder", "")),
        text=str(data.get("text") or ""),
        data=_data_title(data),
        train_battles=_train_battles(options, data),
        held_out_battles=score.n if score else _count(data, "held_out_battles"),
        score=score,
        held_out=_digest(held_out) if held_out else "",
        bytes=files.size_of(folder),
        checkpoint_bytes=sum(map(files.size_of, checkpoint_folders(folder))),
        options=options,
    )


def _config(folder: Path) -> tuple[dict[str, Any], str]:
    """A run's configuration as far as it can be read, and what is wrong with it."""
    try:
        return runs.read_config(folder), ""
    except PrefcliError as error:
        problem = error.what
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((folder / runs.CONFIG).read_text(encoding="utf-8"))
        return (config if isinstance(config, dict) else {}), problem
    return {}, "" if runs.is_unfinished(folder) else problem


def _mapping(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's options, those that an earlier release did not have at their defaults; empty if it has none."""
    options = _mapping(config, "options")
    if not options:
        return {}
    try:
        return dataclasses.asdict(TrainOptions(**options))
    except TypeError:  # of a newer release
        return {**dataclasses.asdict(TrainOptions()), **options}


def _count(data: Mapping[str, Any], name: str) -> int | None:
    value = data.get(name)
    return value if isinstance(value, int) else None


def _train_battles(options: Mapping[str, Any], data: Mapping[str, Any]) -> int | None:
    counts = [_count(data, name) for name in ("train_battles", "held_out_battles")]
    if options.get("folds") and None not in counts:  # the configuration of a run with folds counts those of one fold
        return sum(filter(None, counts))
    return counts[0]


def _data_title(data: Mapping[str, Any]) -> str:
    try:
        return Source.from_json(data["source"]).title
    except (KeyError, TypeError, IndexError, AttributeError):
        return ""


def _missing_files(folder: Path) -> str:
    """Which files of a run are gone. Their content is checked by ``runs show``: that takes as long as reading them."""
    try:
        members = runs.all_folders(folder)
        gone = [
            str((member / name).relative_to(folder))
            for member in members
            for name in files.read_checksums(member)
            if not (member / name).is_file()
        ]
    except (PrefcliError, ValueError, OSError) as error:
        return one_line(error.what if isinstance(error, PrefcliError) else error)
    gone += [str(member.relative_to(folder)) for member in members if not member.is_dir()]
    return f"{', '.join(gone[: runs.MAX_LISTED])}: gone" if gone else ""


def written(folder: Path) -> float:
    """When a run's configuration was written, in seconds since 1970."""
    path = folder / runs.CONFIG
    with contextlib.suppress(OSError):
        return (path if path.is_file() else folder).stat().st_mtime
    return 0.0


def checkpoint_folders(folder: Path) -> list[Path]:
    """Where a run and its folds have checkpoints."""
    return [
        path for path in (folder / runs.CHECKPOINTS, *sorted(folder.glob(f"*/{runs.CHECKPOINTS}"))) if path.is_dir()
    ]


def _digest(held_out: runs.HeldOut) -> str:
    order = np.lexsort([held_out.labels, held_out.keys, np.array(held_out.ids, dtype=str)])
    digest = hashlib.sha256("\n".join(held_out.ids[row] for row in order).encode())
    digest.update(np.ascontiguousarray(held_out.keys[order]).tobytes())
    digest.update(np.ascontiguousarray(held_out.labels[order]).tobytes())
    return digest.hexdigest()[:16]


def latest_run(workspace: Workspace) -> Path | None:
    """The run that ``predict`` takes without ``--model``."""
    record = workspace.latest("train")
    return Path(record["run"]).resolve() if record and isinstance(record.get("run"), str) else None


def find_run(workspace: Workspace, name: PathLike) -> Path:
    """The folder of a run, in whatever state it is.

    Raises
    ------
    InputError
        If there is no such run.
    """
    for folder in (user_path(name), workspace.runs / name):
        is_inside = folder.parent == workspace.runs and not folder.name.startswith(".")
        if (folder.is_dir() or folder.is_symlink()) and (runs.is_run(folder) or is_inside):
            return folder
    return workspace.find_run(name)


@dataclass(frozen=True)
class OptionValue:
    """An option of a run that is not the default."""

    name: str
    value: Any
    default: Any
    origin: str
    """``flag``, ``file`` or ``recipe``; empty where the run does not say."""


@dataclass(frozen=True, repr=False)
class RunDetails:
    """Everything about one run."""

    summary: RunSummary
    damage: str
    """What is wrong with it; every file is compared with its checksum."""
    command: str
    options: tuple[OptionValue, ...]
    """Those that differ from the defaults."""
    resolved: dict[str, Any]
    """What ``auto`` became, and what was found about the encoder."""
    data: dict[str, Any]
    versions: dict[str, Any]
    validation: metrics.Score | None
    files: dict[str, int]
    """Bytes by path."""

    def __repr__(self) -> str:
        changed = ", ".join(f"{option.name}={option.value!r}" for option in self.options)
        return f"RunDetails({self.summary!r}, {changed or 'default options'}, {len(self.files)} files)"


def show_run(run: PathLike, workspace: Workspace | PathLike | None = None) -> RunDetails:
    """Everything about a run, whose files are checked.

    Parameters
    ----------
    run, workspace:
        By name or folder; where it is found by name.

    Raises
    ------
    InputError
        If there is no such run.
    """
    workspace = Workspace.of(workspace)
    folder = find_run(workspace, run)
    config, _ = _config(folder)
    summary = summarise(workspace, folder)
    damage, score = summary.problem, None
    try:
        runs.verify(folder, resuming=runs.is_unfinished(folder))
        score = summary.score
    except PrefcliError as error:
        damage = error.what
    origins = _mapping(config, "origins")
    defaults = dataclasses.asdict(TrainOptions())
    changed = (
        OptionValue(name, value, defaults.get(name), str(origins.get(name, "")))
        for name, value in summary.options.items()
        if name not in defaults or value != defaults[name]
    )
    return RunDetails(
        summary=summary,
        damage=damage,
        command=str(config.get("command", "")),
        options=tuple(changed),
        resolved=_mapping(config, "resolved"),
        data=_mapping(config, "data"),
        versions=_mapping(config, "versions"),
        validation=score,
        files={
            path.relative_to(folder).as_posix(): path.lstat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_symlink() or path.is_file()
        },
    )


@dataclass(frozen=True)
class RunsDiff:
    """What differs between runs: for each name, the runs' values in the order of ``runs``."""

    runs: tuple[str, ...]
    options: dict[str, list[Any]]
    resolved: dict[str, list[Any]]
    data: dict[str, list[Any]]
    versions: dict[str, list[Any]]
    figures: dict[str, list[Any]]


FIGURES = ("train_battles", "held_out_battles", "log_loss", "log_loss_ci", "prior_log_loss", "gain", "bytes")


def diff_runs(names: Sequence[PathLike], workspace: Workspace | PathLike | None = None) -> RunsDiff:
    """Options and figures in which runs differ. An option that a run of an earlier release lacks has its default.

    Parameters
    ----------
    names, workspace:
        Runs by name or folder; where they are found by name.

    Raises
    ------
    InputError
        If there is no such run, or only one is given.
    """
    workspace = Workspace.of(workspace)
    folders = find_several(workspace, names)
    configs = [_config(folder)[0] for folder in folders]
    summaries = [summarise(workspace, folder) for folder in folders]
    data = _differences([_mapping(config, "data") for config in configs])
    return RunsDiff(
        runs=tuple(run.name for run in summaries),
        options=_differences([run.options for run in summaries]),
        resolved=_differences([_mapping(config, "resolved") for config in configs]),
        data={name: values for name, values in data.items() if name not in FIGURES},
        versions=_differences([_mapping(config, "versions") for config in configs]),
        figures=_differences([{name: getattr(run, name) for name in FIGURES} for run in summaries]),
    )


def find_several(workspace: Workspace, names: Sequence[PathLike]) -> list[Path]:
    """The folders of at least two different runs.

    Raises
    ------
    InputError
        If there is no such run, or fewer than two are named, or one twice.
    """
    folders = [find_run(workspace, name) for name in names]
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise InputError("two different runs are needed", hint="Name each run once; prefcli runs lists them.")
    return folders


def _differences(values: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for of_run in values for name in of_run)
    rows = {name: [of_run.get(name) for of_run in values] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}
