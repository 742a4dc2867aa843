"""One file per architecture behind one interface.

A model is trained by :mod:`prefcli.training`, saved in a run's folder, and loaded from there with :func:`load`. It
gives logits, three numbers per battle whose softmax is the probabilities of A, B and tie. Nothing is imported here
until a model is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeGuard

from prefcli.outcomes import TIE, A

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from prefcli.compute.devices import DeviceRequest


class Model(Protocol):
    """A trained model: battles in, logits out."""

    def logits(
        self, batch: pa.RecordBatch, *, swap_average: bool = False, done: Callable[[int], None] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Logits ``[n, 3]`` of battles; with ``swap_average`` also those of the battles with A and B swapped.

        ``done`` is called with the number of battles that each step finished.
        """


class RewardModel(Model, Protocol):
    """A model that also gives a number to each single answer."""

    def rewards(self, batch: pa.RecordBatch, *, done: Callable[[int], None] | None = None) -> NDArray[np.float64]:
        """The numbers ``[n]`` of answers; ``batch`` has the columns ``prompt`` and ``response``, lists of turns."""

    @property
    def tie_log_nu(self) -> float | None:
        """The logarithm of Davidson's ``nu``, the odds of ties; None if it depends on the prompt."""


def has_rewards(model: Model) -> TypeGuard[RewardModel]:
    """Whether a model gives a number to a single answer: those of the architecture ``reward`` do."""
    return hasattr(model, "rewards")


@dataclass(frozen=True)
class _Adjusted:
    """A model to whose logits a base is added, and that gives outcomes which it never saw a fixed probability."""

    model: Model
    base: NDArray[np.float64] | None
    """Logits ``[3]``, see :mod:`prefcli.storage.sources`; None for a run of one source."""
    unseen: tuple[int, ...]

    def logits(
        self, batch: pa.RecordBatch, *, swap_average: bool = False, done: Callable[[int], None] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        from prefcli.metrics import with_unseen

        def adjusted(logits: NDArray[np.float64]) -> NDArray[np.float64]:
            return with_unseen(logits if self.base is None else logits + self.base, self.unseen)

        logits, swapped = self.model.logits(batch, swap_average=swap_average, done=done)
        return adjusted(logits), None if swapped is None else adjusted(swapped)


@dataclass(frozen=True)
class _AdjustedReward(_Adjusted):
    """The same for a reward model, whose rewards do not change."""

    model: RewardModel

    @property
    def tie_log_nu(self) -> float | None:
        log_nu = self.model.tie_log_nu
        if log_nu is None or self.base is None or TIE in self.unseen:
            return log_nu
        return float(log_nu + self.base[TIE] - self.base[A])

    def rewards(self, batch: pa.RecordBatch, *, done: Callable[[int], None] | None = None) -> NDArray[np.float64]:
        return self.model.rewards(batch, done=done)


def unadjusted(model: Model) -> Model:
    """The model as it was trained, whatever :func:`load` adds to its logits."""
    return model.model if isinstance(model, _Adjusted) else model


def load(
    folder: Path,
    request: DeviceRequest,
    *,
    fast_attention: bool = True,
    encoder: str | None = None,
    as_source: str | None = None,
) -> Model:
    """The model in the folder of a run or of one of its folds; see :func:`prefcli.models.neural.load`.

    A run of several sources predicts as one of them (``as_source``) votes, else as those that can tie, pooled. An
    outcome that none of the training battles had gets :data:`prefcli.metrics.UNSEEN_PROBABILITY`.

    Raises
    ------
    ModelError
        If it cannot be loaded.
    """
    from prefcli.storage import runs

    config = runs.read_config(folder)
    if runs.runtime_of(config) == "features":
        from prefcli.models import features

        model: Model = features.load(folder, as_source=as_source)
    else:
        model = _load(folder, runs.runtime_of(config), request, fast_attention=fast_attention, encoder=encoder)
    sources, unseen = runs.sources_of(config), runs.unseen_as(config, as_source)
    if sources is None and not unseen:
        return model
    base = None if sources is None else sources.base(as_source)
    return _AdjustedReward(model, base, unseen) if has_rewards(model) else _Adjusted(model, base, unseen)


def _load(folder: Path, runtime: str, request: DeviceRequest, *, fast_attention: bool, encoder: str | None) -> Model:
    if runtime == "onnx":
        from prefcli.models import exported

        return exported.load(folder, device=request.device, precision=request.precision)
    from prefcli.models import neural

    return neural.load(folder, request.placement, fast_attention=fast_attention, encoder=encoder)
