"""Which battles blending weights, temperature and share of ties may be fitted on: none that is to be predicted.

The fit itself is :mod:`.calibration`. A run's held-out battles were not learnt from; what several runs held out
in common none of them has learnt from. Of both, and of a sample that the user names, the battles whose prompt is about
to be predicted are left out, so that no figure on the predictions flatters.
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
    """Blending weights of several runs or one run's temperature, from the battles that all of them held out.

    The logits that runs keep are those of the answers in their given order; swap averaging is not repeated for the fit.

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
    positions = [
        {battle: row for row, battle in enumerate(zip(h.ids, h.keys.tolist(), h.labels.tolist(), strict=True))}
        for h in held_out
    ]
    common = [battle for battle in positions[0] if all(battle in other for other in positions[1:])]
    apart = np.isin(np.array([key for _, key, _ in common], dtype=np.int64), predicted, invert=True)
    usable = [battle for battle, use in zip(common, apart.tolist(), strict=True) if use]
    if len(usable) < len(common):
        reporter.note(
            f"{len(common) - len(usable):,} validation battles share a prompt with those to be predicted: "
            "nothing is fitted on them"
        )
    rows = [np.array([position[battle] for battle in usable], dtype=np.intp) for position in positions]
    found = calibration.calibrate(
        [h.logits[r] for h, r in zip(held_out, rows, strict=True)],
        held_out[0].labels[rows[0]],
        held_out[0].keys[rows[0]],
    )
    reporter.note(f"{'blend on common' if len(folders) > 1 else 'calibration on'} validation battles: {found}")
    return found


def from_sample(
    sample: Stage,
    guesses: Iterator[NDArray[np.float64]],
    predicted: NDArray[np.int64],
    name: str,
    reporter: Reporter,
) -> Calibration:
    """Temperature and share of ties refitted on a labelled sample.

    Parameters
    ----------
    sample:
        Labelled battles.
    guesses:
        Their probabilities so far, batch by batch; not asked for when the sample is refused.
    predicted:
        Prompt keys of the battles to be predicted.
    name:
        What the user called the sample.

    Raises
    ------
    InputError
        If no battle of the sample has an outcome, or all share a prompt with those to be predicted.
    """
    small = sample.table(["label", "prompt_key"])
    labels, keys = labels_of(small), small["prompt_key"].to_numpy()
    labelled = labels >= 0
    leaks = labelled & np.isin(keys, predicted)
    if not labelled.any():
        raise InputError("no battle to calibrate on has an outcome", where=name)
    if leaks.sum() == labelled.sum():
        raise InputError(
            "every battle to calibrate on shares its prompt with a battle to be predicted",
            where=name,
            hint="Calibrate on other battles: a figure on battles the calibration has seen means nothing.",
        )
    if leaks.any():
        reporter.warn(f"{leaks.sum():,} battles of {name} share a prompt with those to be predicted: not calibrated on")
    rows = np.flatnonzero(labelled & ~leaks)
    logs = np.log(np.maximum(np.concatenate(list(guesses))[rows], calibration.SMALLEST))
    found = calibration.calibrate([logs], labels[rows], keys[rows], tie=True)
    reporter.note(f"refitted on {name}: {found}")
    return found
