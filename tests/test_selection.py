"""Training targets: outcomes, soft labels, mixtures of both."""

from __future__ import annotations

import numpy as np
import pytest

from prefcli.data.selection import training_targets

NONE = [np.nan] * 3


def test_a_soft_label_replaces_the_outcome_and_a_battle_without_label_has_no_weight() -> None:
    targets = training_targets(np.array([0, 2, -1, -1]), np.array([NONE, [0.2, 0.3, 0.5], NONE, [0.6, 0.4, 0.0]]))
    assert targets == pytest.approx(np.array([[1, 0, 0], [0.2, 0.3, 0.5], [0, 0, 0], [0.6, 0.4, 0.0]]))


def test_the_weight_mixes_soft_label_and_outcome_where_both_are_known() -> None:
    soft = np.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
    targets = training_targets(np.array([0, -1]), soft, weight=0.25)
    assert targets == pytest.approx(np.array([[0.75 + 0.05, 0.075, 0.125], [0.2, 0.3, 0.5]]))
    assert training_targets(np.array([0]), soft[:1], weight=0.0) == pytest.approx(np.array([[1, 0, 0]]))


def test_the_temperature_softens_and_sharpens() -> None:
    soft = np.array([[0.8, 0.2, 0.0]])
    assert training_targets(np.array([-1]), soft, temperature=2.0)[0] == pytest.approx([2 / 3, 1 / 3, 0])
    assert training_targets(np.array([-1]), soft, temperature=0.5)[0] == pytest.approx([16 / 17, 1 / 17, 0])
