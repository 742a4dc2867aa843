"""Battles -> probabilities: streaming, swap averaging, several models.

Softmax is applied here and nowhere else. Memory does not grow with the number of battles.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.battles import BATTLE_SCHEMA, one_batch
from prefcli.errors import InputError, ModelError
from prefcli.options import PredictOptions, TrainOptions
from prefcli.outcomes import OUTCOMES, SWAPPED, TIE, A, B
from prefcli.storage import runs

if TYPE_CHECKING:
    import pyarrow as pa

    from prefcli.compute.devices import DeviceRequest
    from prefcli.compute.distributed import World
    from prefcli.models import Model
    from prefcli.reporting import Progress
    from prefcli.storage.workspace import Stage

Array = NDArray[np.float64]


class NonFiniteError(ModelError):
    """A model computes something for a battle that is not a finite number."""


@dataclass(frozen=True)
class Member:
    """One run that takes part in a prediction."""

    models: tuple[Model, ...]
    """Its model, or one per fold."""
    text: str
    """The text normalisation it was trained on."""


def open_runs(folders: Sequence[Path], options: PredictOptions, request: DeviceRequest) -> list[Member]:
    """Load runs, each with all its folds, after checking their files.

    Parameters
    ----------
    folders:
        The runs' folders.
    options:
        How to predict; ``fast_attention``, ``encoder`` and ``as_source`` are used here.
    request:
        Device and precision as requested.

    Raises
    ------
    InputError
        If an encoder or a source is given but no run needs it, or a run does not have the source.
    ModelError
        If a run is damaged or cannot be loaded.
    """
    from prefcli import models

    for folder in folders:
        runs.verify(folder)
    trained = [TrainOptions(**runs.read_config(folder)["options"]) for folder in folders]
    if options.encoder is not None and not any(run.lora_rank for run in trained):
        raise InputError("--encoder is for LoRA runs, and none of the runs is one", hint="Leave it out.")
    _check_source(folders, options.as_source)
    return [
        Member(
            tuple(
                models.load(
                    member,
                    request,
                    fast_attention=options.fast_attention,
                    encoder=options.encoder,
                    as_source=options.as_source,
                )
                for member in runs.members(folder)
            ),
            run.normalisation,
        )
        for folder, run in zip(folders, trained, strict=True)
    ]


def models_in(members: Sequence[Member]) -> int:
    """How many models compute each battle: runs, or their folds."""
    return sum(len(member.models) for member in members)


def advancing(progress: Progress, world: World) -> Callable[[int], None]:
    """What is called with the number of battles that this rank has finished; the others finish as many meanwhile."""
    return lambda count: progress.advance(count * world.size)


def _check_source(folders: Sequence[Path], as_source: str | None) -> None:
    if as_source is None:
        return
    sources = [runs.sources_of(runs.read_config(folder)) for folder in folders]
    if not any(sources):
        raise InputError(
            "--as-source is for runs of several sources, and none of the runs is one", hint="Leave it out."
        )
    for folder, of_run in zip(folders, sources, strict=True):
        if of_run is not None:
            of_run.check(as_source, str(folder))


def predict_batch(
    member: Member,
    batch: pa.RecordBatch,
    *,
    swap_average: bool = False,
    activation: str = "softmax",
    done: Callable[[int], None] | None = None,
) -> Array:
    """One run's predictions of a batch of battles, the mean over its folds.

    Parameters
    ----------
    member:
        The run.
    batch:
        Battles with the run's text normalisation.
    swap_average:
        Average each model's prediction with the one for swapped answers, swapped back. Swapping A and B then swaps the
        first two probabilities exactly.
    activation:
        ``softmax`` gives probabilities; ``none`` gives raw scores, as the original notebook's ablation submits them.
    done:
        Called with the number of battles that each step finished.

    Returns
    -------
    Shape ``[n, 3]``, float64, in the order A, B, tie.

    Raises
    ------
    NonFiniteError
        If a logit is not a finite number.
    """
    orders = _of_models(member, batch, both_orders=swap_average, activation=activation, done=done)
    return np.asarray(orders.mean(axis=1).mean(axis=0))


def predict_orders(member: Member, batch: pa.RecordBatch) -> Array:
    """One run's probabilities of a batch of battles in both orders of the answers, the mean over its folds.

    Returns
    -------
    Shape ``[2, n, 3]``: as given, and with A and B swapped, swapped back. The mean over both is :func:`predict_batch`'s
    with ``swap_average``, the first is that without.

    Raises
    ------
    NonFiniteError
        If a logit is not a finite number.
    """
    return np.asarray(_of_models(member, batch, both_orders=True).mean(axis=0))


def _of_models(
    member: Member,
    batch: pa.RecordBatch,
    *,
    both_orders: bool,
    activation: str = "softmax",
    done: Callable[[int], None] | None = None,
) -> Array:
    """What each model of a run predicts in each order of the answers, swapped back: ``[models, orders, n, 3]``."""
    activate = metrics.softmax if activation == "softmax" else np.asarray
    predictions = []
    for model in member.models:
        logits, swapped = model.logits(batch, swap_average=both_orders, done=done)
        if len(broken := metrics.find_non_finite(np.stack([logits] if swapped is None else [logits, swapped]))):
            raise NonFiniteError(
                f"the model computes no finite numbers for {metrics.plural(len(broken), 'battle')}, "
                f"the first is battle {batch.column('id')[int(broken[0])].as_py()}",
                hint="Predict with --precision fp32; if that does not help, the run's training has diverged.",
            )
        predictions.append([activate(logits)] if swapped is None else [activate(logits), activate(swapped)[:, SWAPPED]])
    return np.array(predictions)


def answer_scores(member: Member, batch: pa.RecordBatch, *, done: Callable[[int], None] | None = None) -> Array:
    """What a run of a reward model says of single answers, the mean over its folds.

    Parameters
    ----------
    member:
        The run; its models have rewards.
    batch:
        Columns ``prompt`` and ``response``, lists of turns with the run's text normalisation.
    done:
        Called with the number of answers that each step finished.

    Returns
    -------
    Shape ``[2, n]``: the rewards, and the logarithms of Davidson's parameter for ties between equally good answers.

    Raises
    ------
    NonFiniteError
        If a reward is not a finite number.
    """
    scores = np.mean([_answer_scores(model, batch, done) for model in member.models], axis=0)
    if broken := int((~np.isfinite(scores[0])).sum()):
        raise NonFiniteError(
            f"the model computes no finite rewards for {metrics.plural(broken, 'answer')}",
            hint="Try --precision fp32; if that does not help, the run's training has diverged.",
        )
    return np.asarray(scores)


def _answer_scores(model: Any, batch: pa.RecordBatch, done: Callable[[int], None] | None) -> Array:
    log_nu = getattr(model, "tie_log_nu", None)
    if log_nu is not None:
        return np.stack([model.rewards(batch, done=done), np.full(batch.num_rows, log_nu)])
    logits, _ = model.logits(_against_themselves(batch), done=done)
    return np.stack([logits[:, A], logits[:, TIE] - logits[:, [A, B]].mean(axis=1)])


def _against_themselves(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Battles of each answer against itself: where ties depend on the prompt, these say how."""
    import pyarrow as pa

    columns = {"prompt": batch.column("prompt"), "response_a": batch.column("response")}
    columns |= {"response_b": batch.column("response"), "id": pa.array(map(str, range(batch.num_rows)))}
    return pa.record_batch(
        [columns.get(f.name, pa.nulls(batch.num_rows, f.type)) for f in BATTLE_SCHEMA], names=BATTLE_SCHEMA.names
    )


def _rows(batches: Sequence[pa.RecordBatch], start: int, end: int) -> pa.RecordBatch:
    """Some rows of batches that follow one another."""
    import pyarrow as pa

    return one_batch(pa.Table.from_batches(batches).slice(start, end - start))


def stream(
    members: Sequence[Member],
    stages: Sequence[Stage],
    total: int,
    *,
    world: World,
    swap_average: bool = False,
    activation: str = "softmax",
    done: Callable[[int], None] | None = None,
) -> Iterator[tuple[pa.Array, list[Array]]]:
    """Yield ids and each member's predictions of the first ``total`` battles, in order, on every rank.

    Parameters
    ----------
    members:
        The runs.
    stages:
        For each run the same battles, with its text normalisation.
    total:
        How many battles to predict.
    world:
        Of every ``world.size`` row groups together each rank predicts an equal part, so that a small file, too, is
        shared by all.
    swap_average, activation, done:
        See :func:`predict_batch`.
    """
    import pyarrow as pa

    row_groups = zip(*(stage.batches() for stage in stages), strict=True)
    left = total
    while left and (groups := list(itertools.islice(row_groups, world.size))):
        size = min(left, sum(len(batches[0]) for batches in groups))
        start, end = (size * rank // world.size for rank in (world.rank, world.rank + 1))
        own: tuple[pa.Array, list[Array]] = (pa.array([], pa.string()), [np.empty((0, len(OUTCOMES)))] * len(members))
        if start < end:
            parts = [_rows(batches, start, end) for batches in zip(*groups, strict=True)]
            predictions = [
                predict_batch(member, part, swap_average=swap_average, activation=activation, done=done)
                for member, part in zip(members, parts, strict=True)
            ]
            own = parts[0].column("id"), predictions
        for ids, predictions in world.gather(own):
            if len(ids):
                yield ids, predictions
                left -= len(ids)
