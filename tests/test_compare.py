"""One battle judged: ``Predictor.compare``, ``prefcli.compare`` and ``prefcli compare``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import prefcli
from prefcli.models import features
from prefcli.models.features.model import table, word_scores
from prefcli.models.features.statistics import extract
from prefcli.outcomes import A, B
from prefcli.prediction.predictor import Predictor, _battle

PROMPT = "Name a red fruit."
SHORT = "A cherry."
LONG = "Sorry, I cannot say that.\n\n- **Cherries** are red\n- bananas are yellow\n\nDoes that help?"


@pytest.fixture(scope="module")
def predictor(features_run: Path) -> Predictor:
    return prefcli.load(features_run)


def test_its_probabilities_are_those_of_predict(predictor: Predictor) -> None:
    compared = predictor.compare(PROMPT, SHORT, LONG)
    assert compared.probabilities == predictor.predict(PROMPT, SHORT, LONG)
    assert compared.orders == (compared.probabilities, compared.probabilities)
    assert compared.agree


def test_contributions_add_up_to_the_log_odds_of_lightgbms_raw_scores(features_run: Path) -> None:
    compared = prefcli.load(features_run, calibrated=False).compare(PROMPT, SHORT, LONG)
    model = features.load(features_run)
    assert model.booster is not None
    battles = extract(_battle(PROMPT, SHORT, LONG))
    scores = word_scores(battles.words, model.word_weights)
    given, swapped = (
        np.asarray(model.booster.predict(table(battles, scores, swapped=s), raw_score=True)) for s in (False, True)
    )
    expected = ((given[0, A] - given[0, B]) + (swapped[0, B] - swapped[0, A])) / 2
    assert sum(each.log_odds for each in compared.contributions) == pytest.approx(expected, abs=1e-9)
    assert abs(expected) > 0.01


def test_swapped_answers_negate_every_contribution_exactly(predictor: Predictor) -> None:
    given, swapped = predictor.compare(PROMPT, SHORT, LONG), predictor.compare(PROMPT, LONG, SHORT)
    assert len(given.contributions) > 5
    assert {(c.name, c.log_odds) for c in given.contributions} == {(c.name, -c.log_odds) for c in swapped.contributions}
