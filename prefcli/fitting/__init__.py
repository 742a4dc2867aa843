"""From selected battles to a fitted model in a run's folder: one file per kind of model behind one interface."""

from __future__ import annotations

from collections.abc import Sequence

from prefcli.fitting.work import Fitted, Fitter, Work
from prefcli.selection import Fold

__all__ = ["Fitted", "Fitter", "Work", "fitter_for"]


def fitter_for(work: Work, folds: Sequence[Fold]) -> Fitter:
    """What fits the architecture that was chosen; what all folds share (tokens, statistics) is made here, once."""
    if work.options.architecture == "features":
        from prefcli.fitting.features import FeaturesFitter

        return FeaturesFitter(work)
    from prefcli.fitting.neural import NeuralFitter

    return NeuralFitter(work, folds)
