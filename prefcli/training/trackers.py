"""Trackers of a training besides its own ``metrics.jsonl``: TensorBoard and Weights & Biases.

A tracker gets the same records as the log and changes nothing about the training: one that fails is disabled with a
warning. Nothing is tracked unless ``--tracker`` asks for it, and only ``wandb`` uses the network, unless
``WANDB_MODE=offline``.

When a training is resumed, its tracks are written again from ``metrics.jsonl``, so no step is there twice. They are in
folders of their own below the run's, which no checksum covers and no prediction reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prefcli.errors import NetworkError, PrefcliError, one_line
from prefcli.options import TrainOptions
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files

if TYPE_CHECKING:
    from prefcli.metrics import Score

NAMES = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "scale": "train/loss_scale",
    "validation_log_loss": "validation/log_loss",
}
"""Fields of ``metrics.jsonl`` that are tracked, and their names there."""
FINAL = "final/"
"""Prefix of the finished run's metrics."""


class Tracker(Protocol):
    """One service or format."""

    def begin(self, options: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """The training starts, or resumes after these ``records`` of ``metrics.jsonl``.

        Raises
        ------
        PrefcliError
            If it cannot be tracked.
        """

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """The values of one record."""

    def conclude(self, values: Mapping[str, float]) -> None:
        """The metrics of the finished run."""

    def close(self, *, failed: bool) -> None:
        """The training has ended."""


class TensorBoard:
    """Event files in ``RUN/tensorboard``; ``tensorboard --logdir .prefcli/runs`` shows all runs side by side."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None
        self._step = 0

    def begin(self, options: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            if self._folder.exists():
                files.remove(self._folder)
            self._writer = SummaryWriter(str(self._folder), flush_secs=10)
        except OSError as error:
            raise files.write_error(self._folder, error) from None
        self._writer.add_text("options", "\n".join(f"    {name}: {value}" for name, value in options.items()))
        for line in records:
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
    """A run of Weights & Biases; its own files are in ``RUN/wandb``.

    Only options and metrics are sent: no code, no packages, no description of the machine, no console output. The
    user's ``WANDB_...`` variables (project, entity, mode) apply.
    """

    def __init__(self, folder: Path, title: str) -> None:
        self._folder = folder
        self._title = title
        self._run: Any = None

    def begin(self, options: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb's own crash reports
        import wandb

        identity = self._identity()
        for folder in self._own.glob(f"offline-run-*-{identity}"):  # of this run, before it was resumed
            files.remove(folder)
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
                dir=str(self._folder.absolute()),  # its service is another process
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
        # The service has the steps before, and a resumed training repeats them exactly.
        first = 0 if self._run.offline else self._run.starting_step
        for line in records:
            if line["step"] >= first:
                self.record(line["step"], _tracked(line))

    @property
    def _own(self) -> Path:
        return self._folder / "wandb"

    def _identity(self) -> str:
        """The run's id at the service, the same when it is resumed."""
        path = self._own / "prefcli-run-id"
        with contextlib.suppress(OSError, ValueError):
            if (identity := path.read_text(encoding="ascii").strip()).isalnum():
                return identity
        identity = secrets.token_hex(4)
        files.write_text(path, identity + "\n")
        return identity

    def record(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def conclude(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def close(self, *, failed: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(failed))


class Trackers:
    """All requested trackers as one; without any, nothing happens."""

    def __init__(self, trackers: Mapping[str, Tracker], options: TrainOptions, reporter: Reporter = SILENT) -> None:
        self._trackers = dict(trackers)
        self._options = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
        self._reporter = reporter
        self._begun = False

    def begin(self, records: Sequence[Mapping[str, Any]] = ()) -> None:
        """The training starts, or resumes after these lines of ``metrics.jsonl``.

        Raises
        ------
        PrefcliError
            If one of the trackers cannot be used.
        """
        self._begun = True
        for tracker in self._trackers.values():
            tracker.begin(self._options, records)

    def record(self, line: Mapping[str, Any]) -> None:
        """A line was added to ``metrics.jsonl``."""
        self._each(lambda tracker: tracker.record(line["step"], _tracked(line)))

    def conclude(self, score: Score | None) -> None:
        """The training is done; ``score`` is that of the held-out battles."""
        if self._trackers and not self._begun:
            self.begin()
        numbers = {k: float(v) for k, v in ({} if score is None else vars(score)).items() if type(v) in (int, float)}
        self._each(lambda tracker: tracker.conclude({FINAL + name: value for name, value in numbers.items()}))

    def close(self, *, failed: bool) -> None:
        """The training has ended."""
        self._each(lambda tracker: tracker.close(failed=failed))

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                do(tracker)
            except Exception as error:
                # A tracker that fails must not end hours of training.
                del self._trackers[name]
                self._reporter.warn(f"{name} failed and was disabled; training continues: {one_line(error)}")


NOTHING = Trackers({}, TrainOptions())


@contextlib.contextmanager
def tracking(folder: Path, options: TrainOptions, title: str, reporter: Reporter) -> Iterator[Trackers]:
    """The trackers of one run, or of one fold of it.

    Parameters
    ----------
    folder:
        Of the run or fold; the trackers write below it.
    options:
        Which trackers, and the run's options.
    title:
        The run's name as people read it.
    reporter:
        Gets a warning when a tracker fails.
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
    """The numbers of a line; values that damage has turned into something else are left out."""
    return {tracked: float(line[name]) for name, tracked in NAMES.items() if type(line.get(name)) in (int, float)}
