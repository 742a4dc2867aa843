"""A share of cases with its 95 % confidence interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcli.bootstrap import Z95


@dataclass(frozen=True)
class Share:
    """A share of n cases with its 95 % interval; see :func:`share`."""

    value: float
    low: float
    high: float
    n: int


def share(hits: float, n: int, design_effect: float = 1.0) -> Share:
    """A share with Wilson's score interval at 95 %.

    ``(p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)``; E. B. Wilson, "Probable inference, the law of
    succession, and statistical inference", Journal of the American Statistical Association 22 (1927).
    With a design effect, of which :func:`clustered_share` makes use, n in the interval is divided by it.
    """
    if not n:
        return Share(float("nan"), 0.0, 1.0, 0)
    p, cases = hits / n, n / design_effect
    centre = p + Z95**2 / (2 * cases)
    half_width = Z95 * float(np.sqrt(p * (1 - p) / cases + Z95**2 / (4 * cases**2)))
    scale = 1 + Z95**2 / cases
    return Share(p, max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale), n)


def clustered_share(hit: NDArray[np.bool_], clusters: NDArray[np.int64]) -> Share:
    """The share of hits, with an interval that holds when the cases of one cluster (prompt) resemble each other.

    Wilson's interval of as many independent cases as would give the share the variance that it has between clusters
    (E. L. Korn and B. I. Graubard, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data", Survey Methodology 24, 1998). Where all cases are equal they count as one per cluster.
    """
    n = len(hit)
    if not n:
        return share(0, 0)
    _, cluster = np.unique(clusters, return_inverse=True)
    number = int(cluster.max()) + 1
    p = float(hit.mean())
    if number == 1 or p in (0.0, 1.0):
        return share(int(hit.sum()), n, n / number)
    between = float((np.bincount(cluster, hit - p) ** 2).sum()) * number / (number - 1)
    return share(int(hit.sum()), n, max(between / (n * p * (1 - p)), 1.0))
