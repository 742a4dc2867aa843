"""Where a training can be watched besides its own ``metrics.jsonl``: TensorBoard and Weights & Biases.

A tracker is told what the log is told and changes nothing about the training: one that fails is left behind with a
warning. Nothing is tracked unless ``--tracker`` asks for it, and only ``wandb`` uses the network, unless
``WANDB_MODE=offline``.

What lies there is made again from ``metrics.jsonl`` whenever a training is continued, so no step is there twice. All of
it lies in folders of its own below the run's, which no checksum covers and no prediction reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from prefcli.errors import NetworkError, PrefcliError, one_line
from prefcli.options import TrainOptions
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files

NAMES = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "scale": "train/loss_scale",
    "validation_log_loss": "validation/log_loss",
}
"""What of a line of ``metrics.jsonl`` is tracked, and as what."""
FINAL = "final/"
"""What the names of the finished run's metrics begin with."""


class Tracker(Protocol):
    """One service or format."""

    def begin(self, options: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> None:
        """The training begins, or goes on after the lines of ``metrics.jsonl`` that are ``known``.

        Raises
        ------
        PrefcliError
            If it cannot be tracked.
        """

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """What one step, or one validation, gave."""

    def conclude(self, values: Mapping[str, float]) -> None:
        """The metrics of the finished run."""

    def close(self, *, failed: bool) -> None:
        """No more will come."""


class TensorBoard:
    """Event files in ``RUN/tensorboard``; ``tensorboard --logdir .prefcli/runs`` shows all runs side by side."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None
        self._step = 0

    def begin(self, options: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            if self._folder.exists():
                files.remove(self._folder)
            self._writer = SummaryWriter(str(self._folder), flush_secs=10)
        except OSError as error:
            raise files.write_error(self._folder, error) from None
        self._writer.add_text("options", "\n".join(f"    {name}: {value}" for name, value in options.items()))
        for line in known:
            self.record(line["step"], _tracked(line))

    def record(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def conclude(self, values: Mapping[str, float]) -> None:
        self.record(self._step, values)

    def close(self, *, failed: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class WandB:
    """A run of Weights & Biases; its own files lie in ``RUN/wandb``.

    It is sent the options and the metrics and nothing else: neither code nor packages nor the machine's description,
    nor what is printed. What the user set in ``WANDB_...`` variables (project, entity, mode) holds.
    """

    def __init__(self, folder: Path, title: str) -> None:
        self._folder = folder
        self._title = title
        self._run: Any = None

    def begin(self, options: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb's own crash reports
        import wandb

        identity = self._identity()
        for left in self._own.glob(f"offline-run-*-{identity}"):  # of this run, before it was continued
            files.remove(left)
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, save_code=False,
            x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "prefcli"),
                id=identity,
                name=self._title,
                resume="allow",
                dir=str(self._folder.absolute()),  # its service is a process of its own
                config=dict(options),
                settings=settings,
            )
        except wandb.errors.CommError as error:
            raise NetworkError(
                f"Weights & Biases cannot be reached: {one_line(error)}",
                hint="Set WANDB_MODE=offline and send the run later with wandb sync, or leave --tracker wandb out.",
            ) from None
        except Exception as error:  # no key, a full disk, a setting it refuses: they differ from release to release
            raise PrefcliError(
                f"Weights & Biases cannot be used: {one_line(error)}",
                hint="Log in with wandb login, set WANDB_MODE=offline, or leave --tracker wandb out.",
            ) from None
        # The service keeps what it was sent before, and a continued training repeats it exactly.
        there = 0 if self._run.offline else self._run.starting_step
        for line in known:
            if line["step"] >= there:
                self.record(line["step"], _tracked(line))

    @property
    def _own(self) -> Path:
        return self._folder / "wandb"

    def _identity(self) -> str:
        """By which the service knows this run, also when it is continued."""
        kept = self._own / "prefcli-run-id"
        with contextlib.suppress(OSError, ValueError):
            if (identity := kept.read_text(encoding="ascii").strip()).isalnum():
                return identity
        identity = secrets.token_hex(4)
        files.write_text(kept, identity + "\n")
        return identity

    def record(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def conclude(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def close(self, *, failed: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(failed))


class Trackers:
    """Those that were asked for, as one; without any, nothing happens."""

    def __init__(self, trackers: Mapping[str, Tracker], options: TrainOptions, reporter: Reporter = SILENT) -> None:
        self._trackers = dict(trackers)
        self._options = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
        self._reporter = reporter
        self._begun = False

    def begin(self, known: Sequence[Mapping[str, Any]] = ()) -> None:
        """The training begins, or goes on after these lines of ``metrics.jsonl``.

        Raises
        ------
        PrefcliError
            If one of the trackers cannot be used.
        """
        self._begun = True
        for tracker in self._trackers.values():
            tracker.begin(self._options, known)

    def record(self, line: Mapping[str, Any]) -> None:
        """A line was added to ``metrics.jsonl``."""
        self._each(lambda tracker: tracker.record(line["step"], _tracked(line)))

    def conclude(self, score: Mapping[str, Any] | None) -> None:
        """The training is done; ``score`` holds every metric on the held-out battles."""
        if self._trackers and not self._begun:
            self.begin()
        numbers = {k: float(v) for k, v in (score or {}).items() if type(v) in (int, float)}
        self._each(lambda tracker: tracker.conclude({FINAL + name: value for name, value in numbers.items()}))

    def close(self, *, failed: bool) -> None:
        """No more will come."""
        self._each(lambda tracker: tracker.close(failed=failed))

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                do(tracker)
            except Exception as error:
                # Hours of training are worth more than their picture.
                del self._trackers[name]
                self._reporter.warn(f"{name} is told no more, the training goes on: {one_line(error)}")


NOTHING = Trackers({}, TrainOptions())


def require(options: TrainOptions) -> None:
    """See that what the options ask for is installed.

    Raises
    ------
    PrefcliError
        Naming the packages that are missing.
    """
    if missing := [name for name in options.trackers if importlib.util.find_spec(name) is None]:
        raise PrefcliError(
            f"--tracker {','.join(missing)} needs a package that is not installed: {', '.join(missing)}",
            hint='Install it with: pip install "prefcli[track]"',
        )


@contextlib.contextmanager
def following(folder: Path, options: TrainOptions, title: str, reporter: Reporter) -> Iterator[Trackers]:
    """The trackers of one run, or of one fold of it.

    Parameters
    ----------
    folder:
        Of the run or fold; what they write lies below it.
    options:
        Which trackers, and what is said of the run.
    title:
        What people read as the run's name.
    reporter:
        Hears of a tracker that failed.
    """
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(folder),
        "wandb": lambda: WandB(folder, title),
    }
    trackers = Trackers({name: makers[name]() for name in options.trackers}, options, reporter)
    failed = True
    try:
        yield trackers
        failed = False
    finally:
        trackers.close(failed=failed)


def _tracked(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line; what damage has made of them otherwise is left out."""
    return {told: float(line[name]) for name, told in NAMES.items() if type(line.get(name)) in (int, float)}
