"""Chooses the battles that blending weights, temperature and share of ties are fitted on; :mod:`.calibration` fits.

They come from the battles that all runs held out, or from a sample that the user names. Battles whose prompt is to be
predicted are left out, so that no score of the predictions is too good.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.battles import labels_of
from prefcli.errors import InputError, ModelError
from prefcli.options import PredictOptions
from prefcli.prediction import calibration
from prefcli.prediction.calibration import Calibration
from prefcli.prediction.stacking import Covariates
from prefcli.reporting import Reporter
from prefcli.storage import runs
from prefcli.storage.sources import Sources
from prefcli.storage.workspace import Stage

MIN_GAIN = 1e-3
"""A run whose validation log loss is not that far below its prior gets no weight beside one whose is."""


@dataclass(frozen=True)
class HeldOutRun:
    """What is known of a run from its held-out battles, without those whose prompt is predicted.

    Attributes
    ----------
    name:
        Of the run.
    held_out:
        Its battles.
    logs:
        Log probabilities of the outcomes as the run predicts them, shape ``[n, 3]``.
    unseen:
        The outcomes that it never saw in training.
    no_scale:
        Why no temperature can be fitted on these battles; empty if it can.
    """

    name: str
    held_out: runs.HeldOut
    logs: NDArray[np.float64]
    unseen: tuple[int, ...]
    no_scale: str

    @property
    def losses(self) -> tuple[float, float]:
        """Log loss of the run and of the prior on these battles; there must be one."""
        labels = self.held_out.labels
        probabilities = metrics.held_out_probabilities(self.logs, labels, self.unseen)
        return metrics.log_loss(probabilities, labels), metrics.prior_log_loss(labels)


FOLDS_PREDICT_THEIR_MEAN = "every battle was held out by one fold only, and the mean over folds predicts"
ONE_ORDER = "its held-out battles are kept in one order of the answers, and both orders predict"


def held_out_run(
    folder: Path,
    predicted: NDArray[np.int64],
    reporter: Reporter,
    *,
    swap_average: bool = False,
    as_source: str | None = None,
) -> HeldOutRun:
    """Read a run's held-out battles.

    Parameters
    ----------
    folder:
        The run's.
    predicted:
        Prompt keys of the battles to be predicted.
    swap_average:
        Whether the run predicts the mean over both orders of the answers.
    as_source:
        The source that a run of several predicts for; None for those that can tie, pooled. The battles are theirs.

    Raises
    ------
    ModelError
        If nothing was held out.
    """
    held_out, config = runs.read_validation(folder), runs.read_config(folder)
    held_out = as_predicted(held_out, runs.sources_of(config), as_source)
    no_scale = ""
    if runs.members(folder) != [folder]:
        no_scale = FOLDS_PREDICT_THEIR_MEAN
    elif swap_average and held_out.swapped is None:
        no_scale = ONE_ORDER
    with np.errstate(invalid="ignore"):
        probabilities = held_out.probabilities(swap_average=swap_average and held_out.swapped is not None)
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        reporter.warn(
            f"{metrics.plural((~finite).sum(), 'held-out battle')} of {folder.name} with logits that are not finite "
            f"numbers (the first is {held_out.ids[int(np.argmin(finite))]}): not fitted on"
        )
    shared = np.isin(held_out.keys, predicted)
    if shared.any():
        reporter.note(
            f"{metrics.plural(shared.sum(), 'validation battle')} of {folder.name} with a prompt that is to be "
            "predicted: not fitted on"
        )
    rows = np.flatnonzero(finite & ~shared)
    logs = np.log(np.maximum(probabilities[rows], calibration.MIN_PROBABILITY))
    return HeldOutRun(folder.name, held_out.take(rows), logs, runs.unseen_as(config, as_source), no_scale)


def as_predicted(held_out: runs.HeldOut, sources: Sources | None, as_source: str | None = None) -> runs.HeldOut:
    """The held-out battles of the sources that a run predicts for, with the logits that it predicts with."""
    names, pooled = held_out.sources, held_out.pooled
    if sources is None or names is None or pooled is None:
        return held_out
    if as_source is not None:
        return held_out.take(np.flatnonzero([name == as_source for name in names]))
    shift = pooled - held_out.logits  # the same in both orders of the answers
    swapped = None if held_out.swapped is None else held_out.swapped + shift
    as_pooled = dataclasses.replace(held_out, logits=pooled, swapped=swapped)
    cannot_tie = {name for name, can_tie in zip(sources.names, sources.can_tie.tolist(), strict=True) if not can_tie}
    everywhere = len(cannot_tie) == len(sources.names)
    return as_pooled.take(np.flatnonzero([name not in cannot_tie or everywhere for name in names]))


def equal_weights(folders: Sequence[Path], *, as_source: str | None = None) -> Calibration:
    """Equal weights of runs; an outcome that none of them saw in training keeps its probability."""
    unseen = [set(runs.unseen_as(runs.read_config(folder), as_source)) for folder in folders]
    return Calibration.equal(len(folders), tuple(sorted(set.intersection(*unseen))))


def from_options(
    folders: Sequence[Path], predicted: NDArray[np.int64], reporter: Reporter, options: PredictOptions
) -> Calibration:
    """The calibration of runs that options ask for, apart from one on a sample: none, a fit, or a temperature.

    ``predicted`` are the prompt keys of the battles to be predicted.
    """
    if not options.calibrated or (options.temperature is not None and len(folders) == 1):
        fit = equal_weights(folders, as_source=options.as_source)
    else:
        fit = from_validation(
            folders, predicted, reporter, swap_average=options.swap_average, as_source=options.as_source
        )
    if options.temperature is not None:
        fit = fit.at_temperature(options.temperature)
        reporter.note(f"calibration: {fit}")
    return fit


def from_validation(
    folders: Sequence[Path],
    predicted: NDArray[np.int64],
    reporter: Reporter,
    *,
    swap_average: bool = False,
    as_source: str | None = None,
) -> Calibration:
    """Fit one run's temperature, or blending weights of several runs, on the battles that all of them held out.

    A temperature is fitted only for what is then used. Folds predict their mean, which is less certain than each fold,
    but every battle was held out by one fold alone: their temperature stays 1. With ``swap_average`` it is fitted on
    the mean over both orders of the answers, where the run keeps the logits of both.

    Parameters
    ----------
    folders:
        The runs.
    predicted:
        Prompt keys of the battles to be predicted.
    swap_average, as_source:
        Whether the runs predict the mean over both orders of the answers; see :func:`held_out_run`.
    """
    known: list[HeldOutRun] = []
    missing: list[str] = []
    for folder in folders:
        try:
            run = held_out_run(folder, predicted, reporter, swap_average=swap_average, as_source=as_source)
            known.append(run)
        except ModelError as error:
            missing.append(folder.name)
            if (folder / runs.VALIDATION).is_file():
                reporter.warn(f"{folder.name}: {error.what}")
    equal = equal_weights(folders, as_source=as_source)
    if len(folders) > 1:
        return _blend(known, missing, equal, reporter)
    if missing:
        reporter.note(f"temperature 1: nothing was held out by {missing[0]}")
        return equal
    (run,) = known
    fit = calibration_of(run)
    reporter.note(f"calibration on validation battles: {fit}")
    return fit


def calibration_of(run: HeldOutRun) -> Calibration:
    """One run's temperature, if its held-out battles can tell it."""
    if run.no_scale:
        remark = f"{run.no_scale} (--calibrate FILE fits it on other battles)"
        return Calibration((1.0,), unseen=run.unseen, remarks=(remark,))
    return calibration.calibrate([run.logs], run.held_out.labels, run.held_out.keys, unseen=run.unseen)


def _blend(known: Sequence[HeldOutRun], missing: Sequence[str], equal: Calibration, reporter: Reporter) -> Calibration:
    """Weights of several runs: fitted on common held-out battles, else by how good each was on its own."""
    if missing:
        return _equal_weights(equal, known, f"nothing was held out by {_listed(missing)}", reporter)
    weights, reason = _weights_by_gain(known)
    rows = common_rows([run.held_out for run in known])
    held_out = known[0].held_out
    fit = calibration.calibrate(
        [run.logs[r] for run, r in zip(known, rows, strict=True)],
        held_out.labels[rows[0]],
        held_out.keys[rows[0]],
        scale=not any(run.no_scale for run in known),
        start=weights,
        unseen=equal.unseen,
    )
    if fit.before is not None:
        reporter.note(f"blend on common validation battles: {fit}")
    elif weights is None:
        return _equal_weights(equal, known, f"{reason}; {fit.remarks[0]}", reporter)
    else:
        figures = ", ".join(map(_figure, known))
        reporter.note(f"weights by each run's own validation log loss ({figures}): {fit}")
    return fit


def _equal_weights(equal: Calibration, known: Sequence[HeldOutRun], reason: str, reporter: Reporter) -> Calibration:
    """The weights ``equal``, with a warning that says what is known of the runs."""
    figures = ", ".join(_figure(run) for run in known if run.held_out.ids)
    known_losses = f": validation log loss {figures}" if figures else ""
    reporter.warn(f"equal weights ({reason}): a weak run can worsen a blend{known_losses}")
    return dataclasses.replace(equal, remarks=(reason,))


def _weights_by_gain(known: Sequence[HeldOutRun]) -> tuple[list[float] | None, str]:
    """Weights that sum to 1, or why there are none.

    They are proportional to the squares of how far each run's validation log loss is below its prior. In simulations,
    where runs see the outcomes through noise of their own, the best weights are near to these, from equally good runs
    to those of which one knows next to nothing; proportional ones leave a weak run too much.
    """
    if few := [run.name for run in known if len(run.held_out.ids) < calibration.MIN_BATTLES]:
        return None, f"fewer than {calibration.MIN_BATTLES} held-out battles of {_listed(few)} can be used"
    gains = [max(prior - loss, 0.0) for loss, prior in (run.losses for run in known)]
    if max(gains) < MIN_GAIN:
        return None, "no run is better than its prior"
    squares = np.square(gains)
    return (squares / squares.sum()).tolist(), ""


def _figure(run: HeldOutRun) -> str:
    loss, prior = run.losses
    return f"{run.name} {loss:.4f} (prior {prior:.4f}, {metrics.plural(len(run.held_out.ids), 'battle')})"


def common_rows(held_out: Sequence[runs.HeldOut]) -> list[NDArray[np.intp]]:
    """For each run the rows of the battles that all of them held out, in one order."""
    row_of = [
        {battle: row for row, battle in enumerate(zip(h.ids, h.keys.tolist(), h.labels.tolist(), strict=True))}
        for h in held_out
    ]
    common = [battle for battle in row_of[0] if all(battle in other for other in row_of[1:])]
    return [np.array([row_of_run[battle] for battle in common], dtype=np.intp) for row_of_run in row_of]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def from_sample(
    sample: Stage,
    probabilities: Iterator[NDArray[np.float64]],
    predicted: NDArray[np.int64],
    name: str,
    reporter: Reporter,
    *,
    trained: NDArray[np.int64],
    unseen: Sequence[int] = (),
) -> Calibration:
    """Refit temperature and share of ties on a labelled sample, and what :func:`.calibration.with_stack` adds.

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
    trained:
        Prompt keys of the battles that the runs were trained on, as far as they are known.
    unseen:
        Outcomes that no run saw in training.

    Raises
    ------
    InputError
        If no battle of the sample has an outcome, or all share a prompt with those to be predicted or trained on.
    """
    table = sample.table(["label", "prompt_key"])
    labels, keys = labels_of(table), table["prompt_key"].to_numpy()
    labelled = labels >= 0
    if not labelled.any():
        raise InputError("no battle to calibrate on has an outcome", where=name)
    usable = labelled.copy()
    for others, whose, why in (
        (predicted, "a battle to be predicted", "a score on battles the calibration has seen means nothing"),
        (trained, "a battle that the model was trained on", "a model is overconfident on its own training data"),
    ):
        shared = usable & np.isin(keys, others)
        usable &= ~shared
        if not usable.any():
            raise InputError(
                f"every battle to calibrate on shares its prompt with {whose}",
                where=name,
                hint=f"Calibrate on other battles: {why}.",
            )
        if shared.any():
            reporter.warn(
                f"{metrics.plural(shared.sum(), 'battle')} of {name} with the prompt of {whose}: not fitted on"
            )
    rows = np.flatnonzero(usable)
    logs = np.log(np.maximum(np.concatenate(list(probabilities))[rows], calibration.MIN_PROBABILITY))
    fit = calibration.calibrate([logs], labels[rows], keys[rows], tie=True, unseen=unseen)
    fit = calibration.with_stack(fit, np.exp(logs), labels[rows], keys[rows], Covariates.of(sample).take(rows))
    reporter.note(f"refitted on {name}: {fit}")
    return fit
