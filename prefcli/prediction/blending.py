"""Chooses the battles that blending weights, temperature and share of ties are fitted on; :mod:`.calibration` fits.

They come from the battles that all runs held out, or from a sample that the user names. Battles whose prompt is to be
predicted are left out, so that no score of the predictions is too good.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcli.battles import labels_of
from prefcli.errors import InputError, ModelError
from prefcli.prediction import calibration
from prefcli.prediction.calibration import Calibration
from prefcli.reporting import Reporter
from prefcli.storage import runs
from prefcli.storage.workspace import Stage


def from_validation(folders: Sequence[Path], predicted: NDArray[np.int64], reporter: Reporter) -> Calibration:
    """Fit blending weights of several runs, or one run's temperature, on the battles that all of them held out.

    The logits that runs keep are of the original order of the answers; swap averaging is not repeated for the fit.

    Parameters
    ----------
    folders:
        The runs.
    predicted:
        Prompt keys of the battles to be predicted.
    """
    try:
        held_out = [runs.read_validation(folder) for folder in folders]
    except ModelError:
        missing = [folder.name for folder in folders if not (folder / runs.VALIDATION).is_file()]
        reporter.note(f"equal weights, no temperature: nothing was held out by {', '.join(missing) or 'these runs'}")
        return Calibration.equal(len(folders))
    row_of = [
        {battle: row for row, battle in enumerate(zip(h.ids, h.keys.tolist(), h.labels.tolist(), strict=True))}
        for h in held_out
    ]
    common = [battle for battle in row_of[0] if all(battle in other for other in row_of[1:])]
    excluded = set(predicted.tolist())
    usable = [battle for battle in common if battle[1] not in excluded]
    if len(usable) < len(common):
        reporter.note(
            f"{len(common) - len(usable):,} validation battles share a prompt with those to be predicted: "
            "nothing is fitted on them"
        )
    rows = [np.array([row_of_run[battle] for battle in usable], dtype=np.intp) for row_of_run in row_of]
    fit = calibration.calibrate(
        [h.logits[r] for h, r in zip(held_out, rows, strict=True)],
        held_out[0].labels[rows[0]],
        held_out[0].keys[rows[0]],
    )
    reporter.note(f"{'blend on common' if len(folders) > 1 else 'calibration on'} validation battles: {fit}")
    return fit


def from_sample(
    sample: Stage,
    probabilities: Iterator[NDArray[np.float64]],
    predicted: NDArray[np.int64],
    name: str,
    reporter: Reporter,
) -> Calibration:
    """Refit temperature and share of ties on a labelled sample.

    Parameters
    ----------
    sample:
        Labelled battles.
    probabilities:
        Their predicted probabilities, batch by batch; not computed when the sample is refused.
    predicted:
        Prompt keys of the battles to be predicted.
    name:
        The sample's files, for messages.

    Raises
    ------
    InputError
        If no battle of the sample has an outcome, or all share a prompt with those to be predicted.
    """
    table = sample.table(["label", "prompt_key"])
    labels, keys = labels_of(table), table["prompt_key"].to_numpy()
    labelled = labels >= 0
    shared = labelled & np.isin(keys, predicted)
    if not labelled.any():
        raise InputError("no battle to calibrate on has an outcome", where=name)
    if shared.sum() == labelled.sum():
        raise InputError(
            "every battle to calibrate on shares its prompt with a battle to be predicted",
            where=name,
            hint="Calibrate on other battles: a score on battles the calibration has seen means nothing.",
        )
    if shared.any():
        reporter.warn(f"{shared.sum():,} battles of {name} share a prompt with those to be predicted: not fitted on")
    rows = np.flatnonzero(labelled & ~shared)
    logs = np.log(np.maximum(np.concatenate(list(probabilities))[rows], calibration.MIN_PROBABILITY))
    fit = calibration.calibrate([logs], labels[rows], keys[rows], tie=True)
    reporter.note(f"refitted on {name}: {fit}")
    return fit
