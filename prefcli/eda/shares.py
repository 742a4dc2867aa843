"""A share of cases with its 95 % confidence interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefcli.metrics import Z95


@dataclass(frozen=True)
class Share:
    """A share of n cases with its 95 % interval; see :func:`share`."""

    value: float
    low: float
    high: float
    n: int


def share(hits: float, n: int) -> Share:
    """A share with Wilson's score interval at 95 %.

    ``(p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)``; E. B. Wilson, "Probable inference, the law of
    succession, and statistical inference", Journal of the American Statistical Association 22 (1927).
    """
    if not n:
        return Share(float("nan"), 0.0, 1.0, 0)
    p = hits / n
    centre = p + Z95**2 / (2 * n)
    half_width = Z95 * float(np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2)))
    scale = 1 + Z95**2 / n
    return Share(p, max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale), n)
