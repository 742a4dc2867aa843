"""Rows joined by id: the same result in memory and on disk, and every mismatch with its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prefcli import metrics, pipeline
from prefcli.data import joining
from prefcli.data.joining import Join, Rows
from prefcli.errors import PrefcliError


def rows(ids: list[int], values: np.ndarray, size: int = 7) -> Iterator[Rows]:
    for start in range(0, len(ids), size):
        part = pa.array([str(i) for i in ids[start : start + size]], pa.string())
        yield Rows(part, values[start : start + size], start + 1)


@pytest.fixture(params=[1 << 18, 10], ids=["in memory", "on disk"])
def _memory_limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "IN_MEMORY_ROWS", request.param)


@pytest.mark.usefixtures("_memory_limit")
def test_rows_with_equal_ids_are_joined_in_any_order() -> None:
    random = np.random.default_rng(0)
    left, right = random.permutation(500), random.permutation(500)
    with Join(rows(left.tolist(), left[:, None] * 1.0), rows(right.tolist(), right[:, None] * 2.0)) as join:
        pairs = [np.concatenate(part, axis=1) for part in join.rows()]
    joined = np.concatenate(pairs)
    assert sorted(joined[:, 0]) == list(range(500))
    assert np.array_equal(joined[:, 0] * 2, joined[:, 1])
    assert join.mismatches == joining.Mismatches.of(2)
    assert join.sizes == (500, 500)


@pytest.mark.usefixtures("_memory_limit")
def test_mismatches_are_counted_and_the_first_rows_named() -> None:
    left, right = [*range(100), 5, 50, 7, 5], range(10, 130)
    with Join(rows(left, np.zeros((104, 3))), rows(list(right), np.zeros((120, 1)))) as join:
        assert sum(len(a) for a, _ in join.rows()) == 90
    expected = joining.Mismatches.of(2)
    expected.duplicates[0].add([(101, "5", 6), (102, "50", 51), (103, "7", 8)], 4)
    expected.extra[0].add([(1, "0"), (2, "1"), (3, "2")], 10)
    expected.missing[0].add([(91, "100"), (92, "101"), (93, "102")], 30)
    assert join.mismatches == expected


@pytest.mark.usefixtures("_memory_limit")
def test_of_several_streams_the_rows_that_all_have_are_joined() -> None:
    random = np.random.default_rng(2)
    ids = [random.permutation(500)[:size] for size in (300, 400, 450)]
    with Join(*(rows(own.tolist(), own[:, None] * 1.0) for own in ids)) as join:
        parts = [np.concatenate(part, axis=1) for part in join.rows()]
    joined = np.concatenate(parts)
    first, second, last = map(set, (own.tolist() for own in ids))
    assert set(joined[:, 0]) == first & second & last
    assert (joined == joined[:, :1]).all()
    assert [m.count for m in join.mismatches.missing] == [len(last - first), len(last - second)]
    assert [m.count for m in join.mismatches.extra] == [len(first - last), len(second - last)]


def test_a_score_is_the_same_in_memory_and_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    n = 3000
    guesses, truth = random.dirichlet([1, 1, 1], size=n), random.integers(0, 3, n)
    head = "id,winner_model_a,winner_model_b,winner_tie\n"
    lines = [f"{i},{a!r},{b!r},{c!r}" for i, (a, b, c) in enumerate(guesses.tolist())]
    (tmp_path / "p.csv").write_text(head + "\n".join(lines) + "\n")
    label_lines = [f"{i}," + ",".join(str(int(truth[i] == k)) for k in range(3)) for i in random.permutation(n)]
    (tmp_path / "y.csv").write_text(head + "\n".join(label_lines) + "\n")
    in_memory = pipeline.score(tmp_path / "p.csv", tmp_path / "y.csv")
    monkeypatch.setattr(joining, "IN_MEMORY_ROWS", 100)
    on_disk = pipeline.score(tmp_path / "p.csv", tmp_path / "y.csv")
    assert in_memory.log_loss == pytest.approx(metrics.log_loss(guesses, truth), abs=1e-12)
    for name in ("n", "log_loss", "binary_log_loss", "accuracy", "brier", "ece", "prior_log_loss", "clipped"):
        assert getattr(on_disk, name) == pytest.approx(getattr(in_memory, name), abs=1e-12), name
    assert on_disk.log_loss_ci == pytest.approx(in_memory.log_loss_ci, abs=5e-3)


def test_a_full_disk_is_reported_with_the_folder_of_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "IN_MEMORY_ROWS", 10)

    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(joining.tempfile, "TemporaryFile", full)
    with pytest.raises(PrefcliError) as error:
        Join(rows(list(range(50)), np.zeros((50, 3))), iter(()))
    assert "no space left" in error.value.what
    assert "TMPDIR" in error.value.hint
    assert error.value.exit_code == 1
