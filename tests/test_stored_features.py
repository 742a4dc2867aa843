"""Features on disk: the same battles in any order, and the same model from them, a few at a time."""

from __future__ import annotations

import errno
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.sparse import csr_matrix, vstack

from prefcli import readers
from prefcli.battles import labels_of
from prefcli.data import synthetic
from prefcli.errors import PrefcliError
from prefcli.metrics import one_hot
from prefcli.models import features as models
from prefcli.models.features import booster as boosting
from prefcli.models.features import statistics
from prefcli.models.features import stored as stored_features
from prefcli.models.features.names import COLUMNS
from prefcli.models.features.statistics import Features
from prefcli.models.features.stored import StoredFeatures


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    file = synthetic.write(tmp_path_factory.mktemp("stored"), train=150, test=10).train
    return next(batch for batch, _ in readers.open_battles(file).batches())


@pytest.fixture(scope="module")
def battles(batch) -> Features:
    return statistics.extract(batch)


@pytest.fixture
def stored(battles, tmp_path) -> StoredFeatures:
    on_disk = StoredFeatures(tmp_path / "new")
    for start in range(0, len(battles), 40):
        on_disk.append(battles.take(np.arange(start, min(start + 40, len(battles)))))
    return on_disk


def same(a: Features, b: Features) -> None:
    for name in ("prompt", "answers", "pair"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    same_words(a.words, b.words)


def same_words(a: csr_matrix, b: csr_matrix) -> None:
    assert a.shape == b.shape
    assert (a != b).nnz == 0


def test_battles_are_read_back_in_any_order_and_leave_no_file(battles, stored, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_features, "MAPPED_PARTS", 3)
    rows = np.random.default_rng(0).permutation(len(battles))[:60]
    same(stored.load(rows), battles.take(rows))
    same(stored.take(rows).load(np.array([7, 3, 3])), battles.take(rows[[7, 3, 3]]))
    same(stored.load(rows[:0]), battles.take(rows[:0]))
    np.testing.assert_array_equal(stored.take(rows).statistics(np.array([5])).pair, battles.pair[rows[[5]]])
    assert len(stored) == len(battles)
    assert len(stored.take(rows)) == 60
    assert not list((tmp_path / "new").iterdir())  # a killed process leaves nothing either


@pytest.mark.skipif(sys.platform == "win32", reason="a file with a hole takes its whole size")
def test_battles_are_read_from_files_of_more_entries_than_int32_counts(battles, tmp_path):
    stored, first, last = StoredFeatures(tmp_path), battles.take(np.array([0])), battles.take(np.array([1]))
    stored.append(first)
    hole = 1 << 31
    for column in (stored._buckets, stored._differences):
        column._bytes = column._file.seek(4 * hole, 1)
    stored._statistics.append(np.zeros(stored._statistics._width))
    stored._offsets = np.append(stored._offsets, stored._offsets[-1] + hole)
    stored.append(last)
    same(stored.load(np.array([2, 0])), Features.concatenate([last, first]))


def test_a_disk_that_takes_a_part_at_a_time_gets_all(battles, tmp_path, monkeypatch):
    stored = StoredFeatures(tmp_path)
    for column in (stored._statistics, stored._buckets, stored._differences):
        file = column._file
        monkeypatch.setattr(
            column, "_file", SimpleNamespace(fileno=file.fileno, write=lambda b, f=file: f.write(b[:999]))
        )
    stored.append(battles)
    same(stored.load(np.arange(len(battles))), battles)


@pytest.mark.parametrize("entries", [1, 700, 1 << 20])
def test_words_come_in_chunks_that_cover_each_battle_once(battles, stored, monkeypatch, entries):
    monkeypatch.setattr(statistics, "CHUNK_ENTRIES", entries)
    some = np.arange(10, 110, 3)
    for source, whole in ((battles, battles), (stored, battles), (stored.take(some), battles.take(some))):
        seen = list(source.word_chunks())
        assert [row for chunk, _ in seen for row in range(chunk.start, chunk.stop)] == list(range(len(whole)))
        same_words(vstack([words for _, words in seen], format="csr"), whole.words)
        assert all(words.nnz <= entries or words.shape[0] == 1 for _, words in seen)


def test_a_model_of_battles_on_disk_is_that_of_battles_in_memory(batch, battles, stored, monkeypatch):
    targets, keys = one_hot(labels_of(batch)).astype(np.float32), batch.column("prompt_key").to_numpy()
    settings = {"num_boost_round": 4}
    in_memory = models.fit(battles, targets, keys, threads=1, settings=settings)
    monkeypatch.setattr(boosting, "CHUNK_ROWS", 17)
    on_disk = models.fit(stored, targets, keys, threads=1, settings=settings)
    assert boosting.to_text(on_disk.booster) == boosting.to_text(in_memory.booster)
    np.testing.assert_allclose(on_disk.probabilities(stored), in_memory.probabilities(battles), atol=1e-6)


def test_bins_from_a_sample_of_the_rows_are_those_of_all_where_a_sample_has_every_value(monkeypatch):
    random = np.random.default_rng(0)
    rows = random.integers(0, 9, (600, 5)).astype(np.float32)
    labels = (rows[:, 0] > rows[:, 1]).astype(int)
    lightgbm = boosting.import_lightgbm()
    parameters = {"objective": "binary", "min_data_in_leaf": 5, "num_threads": 1, "seed": 0, "verbosity": -1}
    texts = []
    for bound in (600, 300):
        monkeypatch.setattr(boosting, "BIN_ROWS", bound)
        monkeypatch.setattr(boosting, "CHUNK_ROWS", 70)
        data = boosting.dataset(rows, labels, parameters, weight=np.ones(600))
        texts.append(lightgbm.train(parameters, data, 5).model_to_string())
        assert data.num_data() == 600
    assert texts[0] == texts[1]


def test_a_full_disk_is_an_error_that_names_the_folder(battles, stored, monkeypatch, tmp_path):
    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stored._statistics._file, "write", fail)
    with pytest.raises(PrefcliError, match="no space left on the disk") as raised:
        stored.append(battles)
    assert str(tmp_path / "new") in str(raised.value.where)


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PrefcliError) as raised:
        StoredFeatures(tmp_path / "file" / "new")
    assert "file" in str(raised.value.where)


def test_the_data_sets_of_an_inner_fold_are_gone_when_the_next_are_made(monkeypatch):
    random = np.random.default_rng(0)
    targets = np.eye(3, dtype=np.float32)[random.integers(3, size=200)]
    data = boosting.BoosterData(random.random((400, 3)).astype(np.float32), np.concatenate([targets, targets]))
    folds = [(np.arange(100), np.arange(100, 200)), (np.arange(100, 200), np.arange(100))]
    alive: list[int] = []
    made = weakref.WeakSet()
    make = boosting.dataset

    def recorded(*args, **fields):
        alive.append(len(made))
        data_set = make(*args, **fields)
        made.add(data_set)
        return data_set

    monkeypatch.setattr(boosting, "dataset", recorded)
    progress = boosting.FitProgress(200, 2, lambda *_: None)
    boosting.train(data, folds, seed=0, threads=1, progress=progress, settings={"num_boost_round": 2})
    assert alive == [0, 1, 0, 1, 0]


def test_memory_is_estimated_from_the_rows_that_bins_are_found_on_or_from_all_bins():
    bins_of_a_million = 2_000_000 * len(COLUMNS)
    assert bins_of_a_million < boosting.memory_of(1_000_000) < 1.3 * bins_of_a_million
    assert boosting.memory_of(100_000) == boosting.memory_of(200_000) < boosting.memory_of(600_000)
    assert 10 * boosting.memory_of(1000) == boosting.memory_of(10_000)


@pytest.mark.parametrize(("bound", "is_said"), [(400, True), (1000, False)])
def test_a_training_says_that_bins_are_from_a_sample(cli, demo_files, monkeypatch, bound, is_said):
    monkeypatch.setattr(boosting, "BIN_ROWS", bound)
    trained = cli("train", demo_files.train, "--recipe", "fast", "--limit", 240, "--output", "run")
    assert trained.code == 0
    said = "bins of the columns are from a sample: 400 of 432 rows, which are the battles in both orders"
    assert (said in trained.err) is is_said, trained.err
