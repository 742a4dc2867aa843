"""Author scores of the architecture `features`, boosters of several seeds, and rounds chosen on several inner folds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import Result
from scipy.optimize import minimize

from prefcli import readers
from prefcli.battles import make_batch
from prefcli.data import synthetic
from prefcli.data.splits import split_folds
from prefcli.errors import ModelError
from prefcli.metrics import softmax
from prefcli.models import features as models
from prefcli.models.features import MANIFEST, Authors, FeaturesModel, authors, network, statistics
from prefcli.models.features import booster as boosting
from prefcli.models.features.booster import BoosterSettings, FitProgress
from prefcli.models.features.names import AUTHOR_COLUMNS, COLUMNS
from prefcli.models.features.network import Networks
from prefcli.models.features.statistics import Features
from prefcli.outcomes import SWAPPED

BATTLES = 420


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small boosters, and few battles are enough."""
    monkeypatch.setattr(BoosterSettings, "for_battles", lambda battles: BoosterSettings(8, 0.2, 10, 0.3, 8, 4))
    monkeypatch.setattr(authors, "ROUNDS", 15)
    monkeypatch.setattr(authors, "SMALL_DATASET", 200)


class Demo:
    """Battles of the demo's six models, measured."""

    def __init__(self, folder: Path) -> None:
        self.file = synthetic.write(folder, train=BATTLES, test=10).train
        batches = [batch for batch, _ in readers.open_battles(self.file).batches()]
        self.battles = Features.concatenate([statistics.extract(batch) for batch in batches])
        self.names = np.concatenate([models.author_names(batch) for batch in batches])
        self.keys = np.concatenate([batch.column("prompt_key").to_numpy() for batch in batches])
        self.labels = np.concatenate([batch.column("label").to_numpy() for batch in batches])
        self.targets = np.eye(3, dtype=np.float32)[self.labels]
        self.authors = Authors.of(self.names, self.targets)

    def fit(self, **options: Any) -> FeaturesModel:
        return models.fit(self.battles, self.targets, self.keys, authors=self.authors, threads=1, **options)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(tmp_path_factory.mktemp("demo"))


_fitted: dict[str, FeaturesModel] = {}


@pytest.fixture
def model(demo: Demo) -> FeaturesModel:
    """With author scores and two seeds; trained once."""
    if not _fitted:
        _fitted["model"] = demo.fit(settings={"seeds": 2})
    return _fitted["model"]


def votes(pairs: list[tuple[str, str]], label: int = 0) -> Authors:
    return Authors.of(np.array(pairs, dtype=object), np.tile(np.eye(3, dtype=np.float32)[label], (len(pairs), 1)))


# Ratings


def davidson_by_hand(codes: np.ndarray, targets: np.ndarray, models: int) -> tuple[np.ndarray, float]:
    """Strengths and log nu of the most likely Davidson model, by a general optimiser."""

    def loss(x: np.ndarray) -> float:
        d = x[codes[:, 0]] - x[codes[:, 1]]
        logits = np.stack([d / 2, -d / 2, np.full(len(d), x[models])], axis=1)
        return float(-(targets * (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))).sum() + 5e-4 * x @ x)

    x = minimize(loss, np.zeros(models + 1), tol=1e-10).x
    return x[:models] - x[:models].mean(), float(x[models])


def test_ratings_are_those_of_the_most_likely_model_also_of_soft_labels(demo):
    rows = np.arange(0, BATTLES, 2)
    targets = (0.7 * demo.targets + 0.1).astype(np.float32)
    rated = Authors.of(demo.names, targets)
    strengths, log_nu = davidson_by_hand(rated.codes[rows], targets[rows], 6)
    found = rated.ratings(rows)
    np.testing.assert_allclose(found.strengths[:6], strengths, atol=1e-3)
    assert found.log_nu == pytest.approx(log_nu, abs=1e-3)
    assert found.spread == pytest.approx(strengths.std(), abs=1e-3)
    a, b = strengths[rated.codes[rows]].T
    np.testing.assert_allclose(rated.margins(rows), (a - b) / strengths.std(), atol=1e-2)


def test_models_that_only_other_battles_connect_are_not_rated_together():
    """Three models met each other, and two others; battles between both groups are not among these."""
    connected = [("a", "b"), ("b", "c"), ("c", "a"), ("b", "a"), ("c", "b"), ("a", "c")] * 20
    apart = [("d", "e"), ("e", "d")] * 30
    rated = votes([*connected, *apart, *[("a", "d")] * 30])
    assert rated.models == 5
    without = np.arange(len(connected) + len(apart))
    strengths = rated.ratings(without).strengths
    assert np.isfinite(strengths[:3]).all()
    assert np.isnan(strengths[3:]).all()
    assert (rated.margins(without)[len(connected) :] == 0).all()
    assert np.isfinite(rated.ratings(np.arange(len(rated.codes))).strengths[:5]).all()


def test_an_answers_own_votes_move_its_rating_from_its_models(demo):
    """By the second derivative of the likelihood of its votes alone, with a normal prior, at its model's strength."""
    rows = np.arange(BATTLES)
    strengths, log_nu = davidson_by_hand(demo.authors.codes, demo.targets, 6)
    found = demo.authors.answer_ratings(rows, np.arange(2 * BATTLES).reshape(-1, 2))
    for battle in (0, 5, 17):
        d = np.subtract(*strengths[demo.authors.codes[battle]])

        def log_posterior(shift: float, d: float = float(d), target: Any = demo.targets[battle]) -> float:
            logits = np.array([(d + shift) / 2, -(d + shift) / 2, log_nu])
            return float(
                target @ (logits - np.logaddexp.reduce(logits))
                - shift**2 / (2 * (authors.ANSWER_SPREAD * strengths.std()) ** 2)
            )

        h = 1e-3
        up, here, down = (log_posterior(shift) for shift in (h, 0.0, -h))
        step = (up - down) / (2 * h) / -((up - 2 * here + down) / h**2)
        a, b = strengths[demo.authors.codes[battle]]
        np.testing.assert_allclose(found[2 * battle], (a + step) / strengths.std(), atol=5e-3)
        np.testing.assert_allclose(found[2 * battle + 1], (b - step) / strengths.std(), atol=5e-3)


def test_votes_on_one_answer_in_several_battles_add_up():
    pairs = [("a", "b")] * 40 + [("b", "a")] * 40
    rated = votes(pairs)
    one = rated.answer_ratings(np.arange(80), np.arange(160).reshape(-1, 2))
    shared = rated.answer_ratings(np.arange(80), np.where(np.arange(160) % 2 == 0, 0, np.arange(160)).reshape(-1, 2))
    assert abs(one[0]) < shared[0]  # A won all of its battles


def test_models_of_few_battles_without_a_name_or_that_never_met_the_others_are_not_rated():
    pairs = [("a", "b"), ("b", "c"), ("c", "a")] * 30 + [("x", "y")] * 40 + [("a", "rare"), ("", "b"), ("a", "a")]
    rated = votes(pairs)
    assert (rated.models, rated.battles) == (3, 90)
    assert rated.codes[-43:].tolist() == [[-1, -1]] * 40 + [[0, -1], [-1, 1], [0, 0]]
    assert rated.margins(np.arange(len(pairs)))[-43:].tolist() == [0.0] * 43


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([("", "")] * 300, "no author scores: the battles name no models that can be rated"),
        ([(f"m{2 * i}", f"m{2 * i + 1}") for i in range(300)], "the battles name no models that can be rated"),
        ([("chosen", "rejected")] * 300, "no author scores: 2 rated models, at least 5 are needed"),
        ([(f"m{i}", f"m{(i + 1) % 6}") for i in range(6)] * 20, "120 battles between rated models, at least 200 are"),
        ([(f"m{i}", f"m{(i + 1) % 6}") for i in range(6)] * 40, "author scores from the ratings of 6 models"),
    ],
    ids=["no names", "each model once", "two models", "few battles", "enough"],
)
def test_whether_there_are_author_scores_is_said(pairs, says):
    rated = votes(pairs)
    assert says in str(rated)
    assert rated.suffice == (not str(rated).startswith("no "))


def test_battles_of_one_prompt_alone_give_no_author_scores(demo):
    names = np.where(np.arange(BATTLES)[:, None] < 220, demo.names, "")
    keys = np.where(np.arange(BATTLES) < 220, 7, demo.keys)
    rated = Authors.of(names, demo.targets)
    assert rated.suffice
    assert models.fit(demo.battles, demo.targets, keys, authors=rated, threads=1).authors is None


def test_many_models_are_the_most_frequent_ones(monkeypatch):
    monkeypatch.setattr(authors, "MAX_MODELS", 2)
    rated = votes([("a", "b")] * 50 + [("b", "c")] * 40)
    assert (rated.models, rated.battles) == (2, 50)


def test_names_are_read_from_battles():
    texts = {name: pa.array([["x"], ["x"]], pa.list_(pa.string())) for name in ("prompt", "response_a", "response_b")}
    columns = {"id": ["1", "2"], "model_a": ["m", None], "model_b": [None, "n"]}
    batch = make_batch({name: pa.array(values, pa.string()) for name, values in columns.items()} | texts)
    names = models.author_names(batch)
    assert names.tolist() == [["m", ""], ["", "n"]]
    assert names.dtype == object  # an array of characters would be as wide as the longest name


# Training


def test_no_vote_on_a_prompt_reaches_the_scores_of_its_own_battles(demo):
    folds = split_folds(demo.keys, demo.labels.astype(np.int64), 4, 0)
    here = np.sort(np.concatenate([folds[0][1], folds[2][1]]))
    others = np.setdiff1d(np.arange(BATTLES), here)
    scores = []
    for labels in (demo.labels, np.where(np.isin(np.arange(BATTLES), here), (demo.labels + 1) % 3, demo.labels)):
        rated = Authors.of(demo.names, np.eye(3, dtype=np.float32)[labels])
        progress = FitProgress(BATTLES, 4, lambda *_: None, authors=True)
        options = {"seed": 0, "threads": 1, "progress": progress}
        scores.append(authors.train_boosters(demo.battles, rated, demo.keys, folds, **options)[1])
    np.testing.assert_array_equal(scores[0][here], scores[1][here])
    assert (scores[0][others] != scores[1][others]).all(axis=1).mean() > 0.9


def test_answers_of_better_models_get_higher_scores(demo, model):
    rated = demo.authors.answer_ratings(np.arange(BATTLES), np.arange(2 * BATTLES).reshape(-1, 2))
    scores = model.authors.scores(demo.battles, 1)
    assert np.corrcoef(scores[:, :2].ravel(), rated)[0, 1] > 0.2
    skill = np.array([synthetic.SKILLS[name] for name in demo.names.ravel()]).reshape(-1, 2)
    assert np.corrcoef(scores[:, 2], skill[:, 0] - skill[:, 1])[0, 1] > 0.5


def test_swapped_answers_get_swapped_probabilities_exactly_and_all_columns_are_swapped(demo, model):
    swapped = Features(demo.battles.prompt, demo.battles.answers[:, ::-1], demo.battles.pair, -demo.battles.words)
    np.testing.assert_array_equal(model.probabilities(swapped), model.probabilities(demo.battles)[:, SWAPPED])
    original, other = model._tables(demo.battles)
    columns = (*COLUMNS, *AUTHOR_COLUMNS)
    assert original.shape == (BATTLES, len(columns))
    for column, name in enumerate(columns):
        side, _, what = name.partition(": ")
        partner = columns.index({"A": f"B: {what}", "B": f"A: {what}"}.get(side, name))
        expected = original[:, partner] * (-1 if side == "A - B" else 1)
        np.testing.assert_array_equal(other[:, column], expected, err_msg=name)


def test_author_scores_are_among_the_importances(model):
    importances = dict(model.importances())
    assert importances["author strength"] > 0
    assert importances["author strength by words"] > 0


def test_contributions_include_author_scores_and_sum_to_the_difference_of_the_scores(demo, model):
    model = dataclasses.replace(model, networks=None)  # whose contributions are approximate, see test_networks.py
    batch = next(batch for batch, _ in readers.open_battles(demo.file).batches()).slice(0, 4)
    found = model.contributions(batch)
    assert found.names[-2:] == ("author strength", "author strength by words")
    original, swapped = model._tables(statistics.extract(batch))
    a, b, _ = boosting.mean_over_orders(model.booster, original, swapped, raw_score=True).T
    np.testing.assert_allclose(found.log_odds.sum(axis=1), a - b, atol=1e-9)
    np.testing.assert_allclose(found.values[:, -2], model.authors.scores(demo.battles, 1)[:4, :2], rtol=1e-5)


def test_without_names_the_model_is_that_of_a_release_that_knew_none(demo):
    model = models.fit(demo.battles, demo.targets, demo.keys, threads=1)
    assert model.authors is None
    assert model.booster.num_feature() == len(COLUMNS)


# Seeds and rounds


def test_boosters_are_averaged_as_one(demo):
    import lightgbm

    random = np.random.default_rng(0)
    rows, labels = random.random((200, 5)), random.integers(3, size=200)
    settings = BoosterSettings(8, 0.2, 10, 0.5, 4, 4)
    data = lightgbm.Dataset(rows, labels)
    boosters = [lightgbm.train(settings.parameters(seed, 1), data, 4) for seed in range(3)]
    mean = boosting.mean_booster(boosters)
    expected = np.mean([booster.predict(rows, raw_score=True) for booster in boosters], axis=0)
    np.testing.assert_allclose(mean.predict(rows, raw_score=True), expected, rtol=1e-12)
    again = boosting.from_text(boosting.to_text(mean), columns=5)
    np.testing.assert_array_equal(again.predict(rows), mean.predict(rows))
    assert np.std([booster.predict(rows) for booster in boosters], axis=0).max() > 0.01


def test_progress_counts_author_scores_and_all_seeds(demo, monkeypatch):
    monkeypatch.setattr(boosting, "SMALL_DATASET", 200)
    reported: list[tuple[str, float, float]] = []
    model = demo.fit(settings={"seeds": 2}, progress=lambda *what: reported.append(what))
    names, done, total = zip(*reported, strict=True)
    choices = ["choosing rounds 1/2", "choosing rounds 2/2"]
    assert list(dict.fromkeys(names)) == [
        "words",
        "author scores",
        *choices,
        "final fit 1/2",
        "final fit 2/2",
        "networks",
    ]
    assert list(done) == sorted(done)
    assert done[-1] == pytest.approx(total[-1])
    assert model.booster.num_trees() == 3 * 2 * (int(np.argmin(model.curve)) + 1)


def test_rounds_are_the_best_on_average_over_two_inner_folds_of_many_battles(demo, monkeypatch):
    monkeypatch.setattr(boosting, "SMALL_DATASET", 200)
    import lightgbm

    random = np.random.default_rng(0)
    rows, labels = random.random((600, 4)).astype(np.float32), random.integers(3, size=300)
    targets = np.eye(3, dtype=np.float32)[labels]
    data = boosting.BoosterData(rows, np.concatenate([targets, targets[:, SWAPPED]]))
    folds = split_folds(np.arange(300), labels, 4, 0)
    progress = FitProgress(300, 4, lambda *_: None)
    trained = boosting.train(data, folds, seed=0, threads=1, progress=progress)
    curves = []
    for fold in folds[:2]:
        inside, outside = (data.take(np.concatenate([part, part + 300]), {}) for part in fold)
        curve: dict[str, Any] = {}
        record = lightgbm.record_evaluation(curve)
        parameters = BoosterSettings.for_battles(300).parameters(0, 1)
        lightgbm.train(parameters, inside, len(trained.curve), valid_sets=[outside], callbacks=[record])
        curves.append(curve["valid_0"]["multi_logloss"])
    np.testing.assert_allclose(trained.curve, np.mean(curves, axis=0))
    assert trained.booster.current_iteration() == np.argmin(trained.curve) + 1


# Folders


@pytest.fixture
def folder(model: FeaturesModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_model_is_loaded_to_the_bit_and_earlier_releases_refuse_it(demo, model, folder):
    loaded = models.load(folder, threads=1)
    np.testing.assert_array_equal(loaded.probabilities(demo.battles), model.probabilities(demo.battles))
    assert loaded.importances() == model.importances()
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["format"] == (4 if model.networks else 3)
    assert sorted(manifest["sha256"]) == ["authors-1.txt", "authors-2.txt", "booster.txt", "model.safetensors"]


def test_a_model_of_sources_with_author_scores_is_loaded_to_the_bit(demo, tmp_path):
    sources = models.BattleSources(np.array(["s", "t"] * (BATTLES // 2), dtype=object), np.zeros((BATTLES, 3)))
    model = demo.fit(sources=sources)
    model.save(tmp_path / "saved")
    loaded = models.load(tmp_path / "saved", threads=1)
    assert loaded.lacks_base
    assert loaded.authors is not None
    of_each = [model.scores(demo.battles, ["s"] * BATTLES), loaded.scores(demo.battles, ["s"] * BATTLES)]
    np.testing.assert_array_equal(*of_each)


def test_a_model_with_networks_is_loaded_to_the_bit_and_its_manifest_is_checked(demo, model, tmp_path):
    random, columns = np.random.default_rng(0), len(model.columns)
    layers = tuple(network._initial(random, columns) for _ in range(2))
    mean, scale = random.random((2, columns)).astype(np.float32)
    joined = dataclasses.replace(model, networks=Networks(mean, scale, layers, 0.3))
    joined.save(tmp_path)
    loaded = models.load(tmp_path, threads=1)
    probabilities = loaded.probabilities(demo.battles)
    np.testing.assert_array_equal(probabilities, joined.probabilities(demo.battles))
    alone = dataclasses.replace(model, networks=None).probabilities(demo.battles)
    logits = 0.7 * np.log(alone) + 0.3 * loaded.networks.scores(*model._tables(demo.battles))
    np.testing.assert_allclose(probabilities, softmax(logits), rtol=1e-9)
    assert np.abs(probabilities - alone).max() > 0.01
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["format"] == 4
    for wrong in (
        {"count": 3, "share": 0.3},
        {"count": 2, "share": float("nan")},
        {"count": 2, "share": "0.3"},
        {"count": 1.5, "share": 0.3},
        {"count": 2, "share": 0.3, "more": 1},
        [],
    ):
        (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "networks": wrong}))
        with pytest.raises(ModelError, match="the model cannot be loaded"):
            models.load(tmp_path)


def changed(folder: Path, name: str, text: str) -> None:
    """Another file, with the right checksum."""
    (folder / name).write_text(text)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_untrusted_boosters_of_author_scores_are_checked(folder):
    text = (folder / "authors-1.txt").read_text()
    (folder / "authors-1.txt").write_text(text + " ")
    with pytest.raises(ModelError, match=r"authors-1\.txt is damaged: it is not the file that was saved"):
        models.load(folder)
    columns = int(re.search(r"max_feature_idx=(\d+)", text)[1]) + 1
    beyond = re.sub(r"(?m)^split_feature=\d+", f"split_feature={columns}", text, count=1)
    for other, says in (
        (beyond, r"authors-1\.txt is damaged or malicious: tree 0 is invalid"),
        ((folder / "booster.txt").read_text(), r"authors-1\.txt is of another model"),
        ("", r"authors-1\.txt is damaged"),
    ):
        changed(folder, "authors-1.txt", other)
        with pytest.raises(ModelError, match=says):
            models.load(folder)


# The command


def test_a_fold_without_author_scores_is_named_where_the_first_one_has_them(
    demo: Demo, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    of, calls = Authors.of, 0

    def without_names_in_the_last(names: np.ndarray, targets: np.ndarray) -> Authors:
        nonlocal calls
        calls += 1  # for the first message, then for each fold
        return of(np.where(calls == 3, "", names).astype(object), targets)

    prior = FeaturesModel(np.zeros(statistics.BUCKETS, dtype=np.float32), np.array([0.4, 0.4, 0.2]), None)
    monkeypatch.setattr(Authors, "of", staticmethod(without_names_in_the_last))
    monkeypatch.setattr(models, "fit", lambda *battles, **options: prior)
    done = cli("train", demo.file, "--recipe", "fast", "--folds", 2, "--output", "run")
    assert done.code == 0, done.err
    said = " ".join(done.err.split())
    assert "; author scores from the ratings of 6 models" in said
    assert "fold 2 of 2: no author scores: the battles name no models that can be rated" in said


@pytest.mark.slow
def test_train_says_whether_there_are_author_scores_and_so_does_the_card(
    demo: Demo, cli: Callable[..., Result], tmp_path: Path
) -> None:
    done = cli("train", demo.file, "--recipe", "fast", "--seeds", 2, "--folds", 2, "--output", "run")
    assert done.code == 0, done.err
    assert "author scores from the ratings of 6 models" in done.err
    assert "- Author scores from the ratings of 6 models\n" in Path("run/README.md").read_text()
    assert "| author strength |" in Path("run/README.md").read_text()
    config = json.loads(Path("run/config.json").read_text())
    assert config["options"]["seeds"] == 2
    before = [Path(f"run/fold-{fold}/booster.txt").read_bytes() for fold in (1, 2)]
    for file in ("run/SHA256SUMS", "run/fold-2/SHA256SUMS", "run/fold-2/authors-2.txt"):  # as if killed before
        Path(file).unlink()
    Path("run/unfinished").touch()
    done = cli("train", "--resume", "run")
    assert done.code == 0, done.err
    assert [Path(f"run/fold-{fold}/booster.txt").read_bytes() for fold in (1, 2)] == before
    models.load(Path("run/fold-2"))
