"""``prefcli score``: predictions against the truth, joined by id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefcli import metrics
from prefcli.data import tables
from prefcli.reporting import SILENT, Reporter


def score(
    predictions: Path, labels: Path, *, renormalize: bool = False, seed: int = 0, reporter: Reporter = SILENT
) -> metrics.Score:
    """Score predictions against the truth, joined by id. Memory does not grow with the files.

    Parameters
    ----------
    predictions:
        A file with ``id`` and the three winner columns as probabilities.
    labels:
        A file with ``id`` and the three winner columns as truth: Kaggle's ``train.csv`` will do.
    renormalize:
        Apply the grader's rule to rows that are not probabilities: clip to [1e-15, 1], divide by the sum.
    seed:
        Of the bootstrap.

    Raises
    ------
    InputError
        If the files do not fit together, or the predictions are not probabilities; the first rows are named.
    """
    with reporter.track("scoring", None) as progress:

        def counted() -> Iterator[tuple[metrics.Array, metrics.Labels]]:
            for guesses, outcomes in tables.matched(predictions, labels, renormalize=renormalize):
                yield guesses, outcomes
                progress.advance(len(outcomes))

        return metrics.score_stream(counted(), seed=seed)
