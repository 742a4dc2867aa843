"""``prefcli score``: score predictions against labels, joined by id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefcli import metrics
from prefcli.data import tables
from prefcli.reporting import SILENT, Reporter


def score(
    predictions: Path, labels: Path, *, renormalize: bool = False, seed: int = 0, reporter: Reporter = SILENT
) -> metrics.Score:
    """Score predictions against labels, joined by id, in memory that does not grow with the files.

    Parameters
    ----------
    predictions:
        A file with ``id`` and the three winner columns as probabilities.
    labels:
        A file with ``id`` and the three winner columns one-hot, such as Kaggle's ``train.csv``.
    renormalize:
        Apply the competition grader's rule: clip to [1e-15, 1], divide by the row's sum.
    seed:
        Of the bootstrap interval.

    Raises
    ------
    InputError
        If the files do not fit together, or the predictions are not probabilities; it names the first such rows.
    """
    with reporter.track("scoring", None) as progress:

        def parts() -> Iterator[metrics.Part]:
            for probabilities, true_labels in tables.join_predictions(predictions, labels, renormalize=renormalize):
                yield probabilities, true_labels, None
                progress.advance(len(true_labels))

        return metrics.score_stream(parts(), seed=seed)
