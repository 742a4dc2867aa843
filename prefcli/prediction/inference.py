"""Battles -> probabilities: streaming, swap averaging, several models.

Softmax happens here and nowhere else. Memory does not grow with the number of battles: a batch goes in, its
probabilities come out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.errors import InputError
from prefcli.options import TrainOptions
from prefcli.outcomes import OUTCOMES, SWAPPED
from prefcli.storage import runs

if TYPE_CHECKING:
    import pyarrow as pa

    from prefcli.compute.devices import DeviceRequest
    from prefcli.compute.distributed import World
    from prefcli.models import Model
    from prefcli.storage.workspace import Stage

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """One run that takes part in a prediction.

    Attributes
    ----------
    models:
        Its model, or one for each of its folds.
    text:
        The text normalisation they need.
    """

    models: tuple[Model, ...]
    text: str


def open_runs(
    folders: Sequence[Path], request: DeviceRequest, *, fast_attention: bool = True, encoder: str | None = None
) -> list[Member]:
    """Load runs, each with all its folds, after checking their files.

    Parameters
    ----------
    folders:
        Of the runs.
    request:
        Device and precision, as the user asked.
    fast_attention, encoder:
        See :func:`prefcli.models.load`.

    Raises
    ------
    InputError
        If an encoder is named that none of them needs.
    ModelError
        If a run is damaged or cannot be loaded.
    """
    from prefcli import models

    for folder in folders:
        runs.verify(folder)
    if encoder is not None and not any(runs.read_config(folder)["options"].get("lora_rank") for folder in folders):
        raise InputError(
            "--encoder says where the encoder of adapters lies, and none of the runs has any", hint="Leave it out."
        )
    return [
        Member(
            tuple(
                models.load(member, request, fast_attention=fast_attention, encoder=encoder)
                for member in runs.members(folder)
            ),
            TrainOptions(**runs.read_config(folder)["options"]).normalisation,
        )
        for folder in folders
    ]


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
        Battles, their text normalised as the run needs it.
    swap_average:
        Average each model's prediction with the one for the exchanged answers, exchanged back. Swapping A and B then
        swaps the first two probabilities exactly.
    activation:
        ``softmax`` gives probabilities; ``none`` gives the raw scores, as the seed's ablation submits them.
    done:
        Told how many battles each step finished.

    Returns
    -------
    Shape ``[n, 3]``, float64, in the order A, B, tie.
    """
    finish = metrics.softmax if activation == "softmax" else np.asarray
    predictions = []
    for model in member.models:
        straight, exchanged = model.logits(batch, swap_average=swap_average, done=done)
        prediction = finish(straight)
        if exchanged is not None:
            prediction = (prediction + finish(exchanged)[:, SWAPPED]) / 2
        predictions.append(prediction)
    return np.asarray(np.mean(predictions, axis=0))


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
    """Ids and each member's predictions of the first ``total`` battles, in order, on every rank.

    Parameters
    ----------
    members:
        The runs.
    stages:
        For each run the same battles, their text normalised as it needs it.
    total:
        How many battles to predict.
    world:
        The ranks share the work: of every few row groups each takes one.
    swap_average, activation, done:
        See :func:`predict_batch`.
    """
    import pyarrow as pa

    groups = zip(*(stage.batches() for stage in stages), strict=True)
    left = total
    while left and (turn := list(itertools.islice(groups, world.size))):
        sizes = [min(left - sum(len(g[0]) for g in turn[:i]), len(group[0])) for i, group in enumerate(turn)]
        own: tuple[pa.Array, list[Array]] = (pa.array([], pa.string()), [np.empty((0, len(OUTCOMES)))] * len(members))
        if world.rank < len(turn) and sizes[world.rank] > 0:
            mine = [batch.slice(0, sizes[world.rank]) for batch in turn[world.rank]]
            own = (
                mine[0].column("id"),
                [
                    predict_batch(member, batch, swap_average=swap_average, activation=activation, done=done)
                    for member, batch in zip(members, mine, strict=True)
                ],
            )
        for ids, predictions in world.gather(own):
            if len(ids):
                yield ids, predictions
                left -= len(ids)
