"""Architectures and what is done with several models: both orders, blending, calibration, soft labels, recipes.

Some tests plant leaks: what is fitted for prediction must not see the battles that are predicted.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import KAGGLE_COLUMNS, Result, battle, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from prefcli import encoders, metrics
from prefcli.battles import make_batch
from prefcli.compute import devices
from prefcli.data import synthetic
from prefcli.data.synthetic import Demo
from prefcli.data.tables import read_probabilities
from prefcli.errors import InputError
from prefcli.models import neural
from prefcli.options import RECIPES, TrainOptions, resolve
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.prediction.inference import Member, predict_batch
from prefcli.storage import runs

CLI = Callable[..., Result]
pytestmark = pytest.mark.slow
TURNS = pa.list_(pa.string())
WORDS = (*synthetic.LIKED, *synthetic.DISLIKED, *synthetic.NEUTRAL)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def a_model(bert_folder: Path, **options: Any) -> neural.NeuralModel:
    """A small model with a head that is far from zero, so that every difference shows."""
    chosen = TrainOptions(**{"max_length": 48, **options})
    tokenizer = encoders.load_tokenizer(bert_folder)
    encoder = encoders.make_encoder(encoders.locate(str(bert_folder)), len(tokenizer), seed=0)
    import torch

    torch.manual_seed(chosen.seed)
    model = neural.build(chosen, encoder, tokenizer, chosen.max_length, devices.place("cpu", "fp32"))
    with torch.no_grad():
        model.module.classifier.weight.mul_(20)
    return model


def as_batch(rows: list[tuple[list[str | None], ...]]) -> pa.RecordBatch:
    columns = {name: pa.array([row[i] for row in rows], TURNS) for i, name in enumerate(("prompt", "response_a", "response_b"))}  # fmt: skip  # noqa: E501
    return make_batch({"id": pa.array([str(i) for i in range(len(rows))]), **columns})


some_text = st.one_of(
    st.none(), st.text(max_size=30), st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join)
)  # fmt: skip
some_turns = st.lists(some_text, min_size=1, max_size=3)
MODELS = [
    {"architecture": "siamese"},
    {"architecture": "siamese", "combine": "interaction", "truncation": "head-tail"},
    {"architecture": "cross-encoder"},
    {"architecture": "cross-encoder", "combine": "interaction", "truncation": "head-tail"},
]


@pytest.mark.parametrize("options", MODELS, ids=lambda o: "-".join(o.values()))
def test_swapped_answers_get_swapped_probabilities_with_swap_averaging(
    bert_folder: Path, options: dict[str, Any]
) -> None:
    model = a_model(bert_folder, **options)
    member = Member((model,), "raw")
    asymmetry = []

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.tuples(some_turns, some_turns, some_turns), min_size=1, max_size=5))
    def check(rows: list[Any]) -> None:
        there, back = as_batch(rows), as_batch([(prompt, b, a) for prompt, a, b in rows])
        one, two = (predict_batch(member, batch, swap_average=True) for batch in (there, back))
        assert np.allclose(one, two[:, [1, 0, 2]], atol=1e-6)
        assert len(metrics.find_improper(one)) == 0
        plain = [predict_batch(member, batch) for batch in (there, back)]
        asymmetry.append(np.abs(plain[0] - plain[1][:, [1, 0, 2]]).max())

    check()
    assert max(asymmetry) > 0.01, "without averaging the order matters, or this test shows nothing"


@pytest.mark.parametrize("architecture", ["siamese", "cross-encoder"])
def test_both_orders_together_give_the_logits_of_each_order_alone(bert_folder: Path, architecture: str) -> None:
    model = a_model(bert_folder, architecture=architecture)
    rows = [(["river"], ["clear step " * n], ["vague wrong"]) for n in range(1, 20)]
    both = model.logits_from_tokens(model.tokenise(iter([as_batch(rows)])), both_orders=True)
    original = model.logits_from_tokens(model.tokenise(iter([as_batch(rows)])))[0]
    swapped = model.logits_from_tokens(model.tokenise(iter([as_batch([(p, b, a) for p, a, b in rows])])))[0]
    assert np.allclose(both[0], original, atol=1e-5)
    assert np.allclose(both[1], swapped, atol=1e-5)


def test_a_cross_encoder_reads_both_answers_at_once(bert_folder: Path) -> None:
    """What A is changes how B is read: its logits are no function of (prompt, A) plus one of (prompt, B)."""

    def interaction(architecture: str) -> float:
        model = a_model(bert_folder, architecture=architecture)
        a, b = ["clear step"], ["vague wrong"]
        rows = [(["river"], x, y) for x in (a, b) for y in (a, b)]
        aa, ab, ba, bb = model.logits_from_tokens(model.tokenise(iter([as_batch(rows)])))[0]
        return float(np.abs(aa - ab - ba + bb).max())

    assert interaction("siamese") < 1e-5
    assert interaction("cross-encoder") > 1e-3


# Whole commands


def trained(cli: CLI, file: Path, name: str, *flags: object) -> Path:
    done = cli("train", file, "--text", "raw", "--limit", 200, "--validation", 0.4, "--output", name, *flags)
    assert done.code == 0, done.err
    return Path(name)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory, demo_files: Demo) -> tuple[Path, Path, Path]:
    """A workspace with two runs whose splits are the same: a siamese and a cross-encoder."""
    from prefcli.cli.main import run

    folder = tmp_path_factory.mktemp("two")
    for name, flags in (("siamese", ()), ("cross", ("--architecture", "cross-encoder", "--swap"))):
        arguments = ["--workspace", folder / "ws", "train", demo_files.train, "--encoder", "tiny", "--text", "raw"]
        arguments += ["--validation", 0.5, "--epochs", 3, "--output", folder / name, *flags]
        assert run([str(a) for a in arguments]) == 0
    return folder / "siamese", folder / "cross", folder / "ws"


def test_a_cross_encoder_trains_predicts_and_is_named_in_its_card(
    cli: CLI, two_runs: tuple[Path, Path, Path], demo_files: Demo
) -> None:
    _, cross, _ = two_runs
    card = (cross / "README.md").read_text()
    assert "Architecture: cross-encoder (concat)" in card
    assert "both orders" in card
    held_out = runs.read_validation(cross)
    assert cli("predict", demo_files.train, "--model", cross, "--no-calibration", "-o", "p.parquet").code == 0
    found = dict(zip(*(x.tolist() for x in read_probabilities(Path("p.parquet"))), strict=True))
    expected = metrics.softmax(held_out.logits)
    assert np.allclose([found[name] for name in held_out.ids], expected, atol=1e-5)


def test_head_and_tail_and_interaction_train_and_load(cli: CLI, tmp_path: Path) -> None:
    long = " ".join(["clear"] * 100)
    rows = [battle(i, i % 3, response_a=[f"{long} start", f"step {i}"], response_b=[long]) for i in range(40)]
    file = write_csv(tmp_path / "long.csv", rows)
    flags = ["--truncation", "head-tail", "--combine", "interaction", "--architecture", "cross-encoder"]
    run = trained(cli, file, "run", "--encoder", "tiny", "--max-length", 64, *flags)
    assert "head-tail kept" in (run / "README.md").read_text()
    assert "40 battles (100.0%) cut" not in (run / "README.md").read_text()
    assert cli("predict", file, "--model", run, "-o", "p.csv").code == 0
    loaded = neural.load(run, devices.place("cpu", "fp32"))
    ids = loaded.inputs(loaded.tokenise(iter([as_batch([(["q"], [long], [long])])])), np.array([0]))["input_ids"][0]
    assert "…" in loaded.tokenizer.decode(ids.tolist())


def test_fast_attention_is_reported_is_optional_and_changes_no_prediction(
    cli: CLI, demo_files: Demo, deberta_folder: Path
) -> None:
    flags = ["--encoder", deberta_folder, "--text", "raw", "--limit", 60, "--max-length", 48]
    done = cli("train", demo_files.train, *flags, "--output", "fast")
    assert done.code == 0, done.err
    assert "; fast attention" in done.err
    assert runs.read_config(Path("fast"))["resolved"]["attention"] == "fast attention"
    done = cli("train", demo_files.train, *flags, "--no-fast-attention", "--output", "slow")
    assert done.code == 0, done.err
    assert "transformers' own attention, as asked" in done.err
    found = []
    for name, more in (("a", []), ("b", ["--no-fast-attention"])):
        assert cli("predict", demo_files.test, "--model", "fast", "-o", f"{name}.parquet", *more).code == 0
        found.append(read_probabilities(Path(f"{name}.parquet"))[1])
    assert np.allclose(found[0], found[1], atol=1e-5)


def test_options_that_do_not_fit_the_architecture_are_refused() -> None:
    with pytest.raises(InputError, match=r"--epochs, --swap: not used by --architecture features"):
        resolve({"architecture": "features", "epochs": 2, "swap": True})
    with pytest.raises(InputError, match="--combine is 'magic'"):
        resolve({"combine": "magic"})


def test_a_recipe_is_a_set_of_defaults_that_flags_and_files_win_over(cli: CLI, demo_files: Demo) -> None:
    options, origins = resolve({"recipe": "strong", "swap": False}, {"max_length": 700})
    expected = replace(TrainOptions(), **{**RECIPES["strong"], "recipe": "strong", "swap": False, "max_length": 700})
    assert options == expected
    assert (origins["combine"], origins["max_length"], origins["swap"]) == ("recipe", "file", "flag")
    assert resolve({})[0] == TrainOptions(), "the baseline recipe is the defaults"
    assert resolve({}, {"recipe": "seed"})[0].recipe == "baseline", "the name it had before"
    for name in RECIPES:
        resolve({"recipe": name})
    done = cli("train", demo_files.train, "--recipe", "strong", "--encoder", "tiny", "--limit", 40, "--output", "r")
    assert done.code == 0, done.err
    assert "recipe strong" in done.err
    assert "--combine interaction" in done.err
    config = runs.read_config(Path("r"))
    assert config["options"]["combine"] == "interaction"
    assert config["origins"]["swap"] == "recipe"
    assert cli("train", demo_files.train, "--config", "r/config.json", "--output", "again").code == 0
    assert Path("r/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()


def test_a_run_of_features_says_what_it_looks_at_and_beats_the_prior(features_run: Path) -> None:
    card = (features_run / "README.md").read_text()
    assert "## What it looks at" in card
    assert "| score of the words |" in card
    assert "Text: raw" in card
    held_out = runs.read_validation(features_run)
    assert metrics.log_loss(metrics.softmax(held_out.logits), held_out.labels) < metrics.prior_log_loss(held_out.labels)


def test_features_with_folds_are_resumed_and_reproduced_to_the_byte(cli: CLI, demo_files: Demo) -> None:
    import shutil

    flags = ["--architecture", "features", "--folds", 2]
    assert cli("train", demo_files.train, *flags, "--output", "folds").code == 0
    whole = Path("folds/validation.parquet").read_bytes()
    card = Path("folds/README.md").read_text()
    assert "## What it looks at" in card
    kept = Path("folds/fold-1/booster.txt").stat().st_mtime_ns
    shutil.rmtree("folds/fold-2")
    for name in ("validation.parquet", "README.md"):
        Path("folds", name).unlink()
    done = cli("train", "--resume", "folds")
    assert done.code == 0, done.err
    assert Path("folds/validation.parquet").read_bytes() == whole
    assert Path("folds/README.md").read_text() == card
    assert Path("folds/fold-1/booster.txt").stat().st_mtime_ns == kept
    assert cli("train", demo_files.train, "--config", "folds/config.json", "--output", "again").code == 0
    for fold in ("fold-1", "fold-2"):
        assert Path("again", fold, "booster.txt").read_bytes() == Path("folds", fold, "booster.txt").read_bytes()
    assert cli("predict", demo_files.test, "--model", "again", "-o", "p.csv").code == 0


def test_features_read_raw_text_whatever_preprocess_left(cli: CLI, demo_files: Demo) -> None:
    assert cli("preprocess", demo_files.train).code == 0
    done = cli("train", "--recipe", "fast", "--output", "run")
    assert done.code == 0, done.err
    assert "training on the battles preprocess last read" in done.err
    assert runs.read_config(Path("run"))["options"]["text"] == "raw"
    done = cli("train", "--recipe", "fast", "--text", "nltk", "--output", "normalised")
    assert done.code == 0, done.err
    assert runs.read_config(Path("normalised"))["options"]["text"] == "nltk"


def test_a_damaged_features_run_is_refused(cli: CLI, demo_files: Demo) -> None:
    assert cli("train", demo_files.train, "--recipe", "fast", "--output", "run").code == 0
    booster = Path("run/booster.txt")
    booster.write_text(booster.read_text().replace("tree", "trees", 1))
    done = cli("predict", demo_files.test, "--model", "run", "-o", "p.csv")
    assert done.code == 1
    assert "booster.txt is changed" in done.err
    Path("run/SHA256SUMS").unlink()
    assert "booster.txt is damaged" in cli("predict", demo_files.test, "--model", "run", "-o", "p.csv").err
    assert not Path("p.csv").exists()


def test_features_and_neural_runs_blend(cli: CLI, two_runs: tuple[Path, Path, Path], demo_files: Demo) -> None:
    """They need their text normalised differently; both were split by prompt with the same seed."""
    flags = ["--recipe", "fast", "--validation", 0.5, "--output", "fast"]
    assert cli("train", demo_files.train, *flags).code == 0
    result = blended(cli, demo_files.test, [Path("fast"), two_runs[1]], "--swap-average")
    assert len(result["weights"]) == 2
    assert result["models"] == ["fast", "cross"]
    common = set(runs.read_validation(Path("fast")).ids) & set(runs.read_validation(two_runs[1]).ids)
    assert len(common) == 120
    assert "on 120 battles" in result["calibration"]


# Several models


def blended(cli: CLI, file: Path, members: list[Path], *flags: object) -> dict[str, Any]:
    models = [part for member in members for part in ("--model", member)]
    done = cli("predict", file, *models, "-o", "blend.parquet", "--force", "--json", *flags)
    assert done.code == 0, done.err
    return dict(done.json()) | {"err": done.err}


def fitted_weights(held_out: list[runs.HeldOut], rows: Any = slice(None)) -> Any:
    """The calibration of a blend, beginning with weights by the squares of how far each run is below its prior."""
    from prefcli.prediction import calibration

    labels, keys, logits = held_out[0].labels[rows], held_out[0].keys[rows], [h.logits[rows] for h in held_out]
    losses = np.array([metrics.log_loss(metrics.softmax(z), labels) for z in logits])
    squares = np.maximum(metrics.prior_log_loss(labels) - losses, 0) ** 2
    start = squares / squares.sum() if squares.max() >= 1e-6 else None
    return calibration.calibrate(logits, labels, keys, start=start)


def test_a_blend_uses_the_weights_fitted_on_common_validation_battles(
    cli: CLI, two_runs: tuple[Path, Path, Path], demo_files: Demo
) -> None:
    members = list(two_runs[:2])
    result = blended(cli, demo_files.test, members)
    held_out = [runs.read_validation(member) for member in members]
    assert held_out[0].ids == held_out[1].ids
    expected = fitted_weights(held_out)
    assert result["weights"] == pytest.approx(expected.weights)
    parts = []
    for number, member in enumerate(members):
        plain = ["--no-calibration", "-o", f"{number}.parquet"]
        assert cli("predict", demo_files.test, "--model", member, *plain).code == 0
        parts.append(read_probabilities(Path(f"{number}.parquet"))[1])
    assert np.allclose(read_probabilities(Path("blend.parquet"))[1], expected.apply(parts), atol=1e-6)


def test_equal_weights_are_reported_and_are_the_geometric_mean(
    cli: CLI, two_runs: tuple[Path, Path, Path], demo_files: Demo
) -> None:
    result = blended(cli, demo_files.test, list(two_runs[:2]), "--no-calibration")
    assert result["weights"] == [0.5, 0.5]
    other = trained(cli, demo_files.train, "elsewhere", "--encoder", "tiny", "--validation", 0)
    result = blended(cli, demo_files.test, [two_runs[0], other])
    assert result["weights"] == [0.5, 0.5]
    assert "nothing was held out by elsewhere" in result["err"]


def test_battles_that_are_predicted_do_not_take_part_in_the_fit(
    cli: CLI, two_runs: tuple[Path, Path, Path], demo_files: Demo, tmp_path: Path
) -> None:
    """Planted leak: half of the validation battles are predicted. The weights are those of the other half alone."""
    members = list(two_runs[:2])
    held_out = [runs.read_validation(member) for member in members]
    leaked = set(np.unique(held_out[0].keys)[::2].tolist())
    with demo_files.train.open(newline="") as stream:
        rows = {row["id"]: row for row in csv.DictReader(stream)}
    chosen = [rows[name] for name, key in zip(held_out[0].ids, held_out[0].keys.tolist(), strict=True) if key in leaked]
    file = write_csv(tmp_path / "leak.csv", chosen)
    result = blended(cli, file, members)
    apart = ~np.isin(held_out[0].keys, list(leaked))
    expected = fitted_weights(held_out, apart)
    assert result["weights"] == pytest.approx(expected.weights)
    assert f"{expected.before:.4f} -> {expected.after:.4f} on {apart.sum():,} battles" in result["calibration"]
    assert expected.before != pytest.approx(fitted_weights(held_out).before, abs=1e-3)
    for member in members:
        assert f"{len(chosen)} validation battles of {member.name} with a prompt that is to be" in result["err"]


def test_runs_with_different_splits_are_blended_on_what_both_held_out(
    cli: CLI, two_runs: tuple[Path, Path, Path], demo_files: Demo
) -> None:
    """A battle that one of the runs was trained on would give that run too much weight."""
    other = trained(cli, demo_files.train, "other", "--encoder", "tiny", "--seed", 5)
    common = set(runs.read_validation(two_runs[0]).ids) & set(runs.read_validation(other).ids)
    result = blended(cli, demo_files.test, [two_runs[0], other])
    assert f"on {len(common):,} battles" in result["calibration"] or f"{len(common):,} battles of" in result["err"]


def other_voters(path: Path, source: Path, prefix: str, truth: Path | None = None) -> Path:
    """The same battles as seen by voters who call two thirds of everything a tie."""
    with source.open(newline="") as stream, (truth or source).open(newline="") as outcomes:
        rows = [row | outcome for row, outcome in zip(csv.DictReader(stream), csv.DictReader(outcomes), strict=True)]
    for number, row in enumerate(rows):
        row["prompt"] = json.dumps([f"{prefix} {number}"])
        if number % 3:
            row |= dict(zip(WINNER_COLUMNS, ("0", "0", "1"), strict=True))
    return write_csv(path, rows, KAGGLE_COLUMNS)


def test_calibrating_on_other_voters_moves_the_share_of_ties(
    cli: CLI, two_runs: tuple[Path, Path, Path], demo_files: Demo, tmp_path: Path
) -> None:
    sample = other_voters(tmp_path / "sample.csv", demo_files.train, "sample")
    target = other_voters(tmp_path / "target.csv", demo_files.test, "target", demo_files.truth)
    losses = {}
    for name, flags in (("plain", []), ("refitted", ["--calibrate", sample])):
        result = blended(cli, target, [two_runs[1]], *flags)
        done = cli("score", "blend.parquet", target, "--json")
        assert done.code == 0, done.err
        losses[name] = done.json()["log_loss"]
    assert result["tie_shift"] > 0.5
    assert "refitted on" in result["err"]
    assert losses["refitted"] < losses["plain"] - 0.1


def test_predicted_battles_in_a_calibration_sample_are_refused_or_have_no_effect(
    cli: CLI, two_runs: tuple[Path, Path, Path], demo_files: Demo, tmp_path: Path
) -> None:
    sample = other_voters(tmp_path / "sample.csv", demo_files.train, "sample")
    target = other_voters(tmp_path / "target.csv", demo_files.test, "target", demo_files.truth)
    done = cli("predict", target, "--model", two_runs[1], "--calibrate", target, "-o", "p.csv")
    assert done.code == 2
    assert "shares its prompt" in done.err
    assert not Path("p.csv").exists()
    clean = blended(cli, target, [two_runs[1]], "--calibrate", sample)
    honest = read_probabilities(Path("blend.parquet"))[1]
    with sample.open(newline="") as one, target.open(newline="") as two:
        rows = [*csv.DictReader(one), *({**row, "id": f"x{row['id']}"} for row in csv.DictReader(two))]
    planted = write_csv(tmp_path / "planted.csv", rows)
    leaking = blended(cli, target, [two_runs[1]], "--calibrate", planted)
    assert np.allclose(read_probabilities(Path("blend.parquet"))[1], honest, atol=1e-6)
    assert leaking["tie_shift"] == pytest.approx(clean["tie_shift"], abs=1e-5)
    assert "60 battles of" in leaking["err"]


def test_impossible_calibrations_are_refused(cli: CLI, two_runs: tuple[Path, Path, Path], demo_files: Demo) -> None:
    model = ["--model", two_runs[0], "-o", "p.csv"]
    done = cli("predict", demo_files.test, *model, "--calibrate", demo_files.test)
    assert done.code == 2
    assert "no battle to calibrate on has an outcome" in done.err
    done = cli("predict", demo_files.test, *model, "--calibrate", demo_files.train, "--activation", "none")
    assert done.code == 2


# Soft labels


def test_a_student_learns_from_its_teachers_predictions_alone(cli: CLI, demo_files: Demo, tmp_path: Path) -> None:
    """Distillation on battles without outcome: what predict writes, train takes."""
    with demo_files.train.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    unlabelled = write_csv(tmp_path / "battles.csv", rows, ["id", "prompt", "response_a", "response_b"])
    certain = [[0.9, 0.05, 0.05] if int(row["id"]) % 2 else [0.1, 0.1, 0.8] for row in rows]
    table = {"id": [row["id"] for row in rows]} | {n: [p[i] for p in certain] for i, n in enumerate(WINNER_COLUMNS)}
    pq.write_table(pa.table(table), tmp_path / "teacher.parquet")
    refused = cli("train", unlabelled, "--encoder", "tiny", "--validation", 0)
    assert refused.code == 2
    flags = ["--encoder", "tiny", "--text", "raw", "--validation", 0, "--output", "student"]
    done = cli("train", unlabelled, "--soft-labels", "teacher.parquet", "--soft-temperature", 2, *flags)
    assert done.code == 0, done.err
    assert "240 battles with soft labels, 240 of them without an outcome" in done.err
    assert "Soft labels: weight 1" in Path("student/README.md").read_text()
    assert cli("predict", unlabelled, "--model", "student", "-o", "p.parquet").code == 0
    # It reproduces the teacher's shares: sqrt-softened, A is likelier than tie, tie likelier than B.
    shares = read_probabilities(Path("p.parquet"))[1].mean(axis=0)
    expected = np.mean([np.sqrt(p) / np.sqrt(p).sum() for p in certain], axis=0)
    assert shares == pytest.approx(expected, abs=0.08)


def test_out_of_fold_predictions_are_a_teacher(cli: CLI, demo_files: Demo) -> None:
    assert cli("train", demo_files.train, "--recipe", "fast", "--folds", 3, "--output", "teacher").code == 0
    flags = ["--recipe", "fast", "--soft-labels", "teacher/validation.parquet", "--soft-weight", 0.5]
    done = cli("train", demo_files.train, *flags, "--output", "student")
    assert done.code == 0, done.err
    assert "240 battles with soft labels, 0 of them without an outcome" in done.err
    booster = Path("student/booster.txt").read_bytes()
    assert cli("train", demo_files.train, "--recipe", "fast", "--output", "plain").code == 0
    assert Path("plain/booster.txt").read_bytes() != booster


def test_the_weight_of_soft_labels_has_an_effect(cli: CLI, tmp_path: Path) -> None:
    """Outcomes say A, the teacher says tie: with weight 0 the model says A, with weight 1 tie."""
    rows = [battle(i, 0) for i in range(60)]
    file = write_csv(tmp_path / "battles.csv", rows)
    table = {"id": [row["id"] for row in rows], "winner_model_a": [0.0] * 60, "winner_model_b": [0.0] * 60}
    pq.write_table(pa.table(table | {"winner_tie": [1.0] * 60}), tmp_path / "teacher.parquet")
    found = []
    for weight in (0, 1):
        flags = ["--soft-labels", "teacher.parquet", "--soft-weight", weight, "--validation", 0, "--epochs", 3]
        assert cli("train", file, "--encoder", "tiny", "--output", f"w{weight}", *flags).code == 0
        assert cli("predict", file, "--model", f"w{weight}", "-o", f"{weight}.parquet").code == 0
        found.append(read_probabilities(Path(f"{weight}.parquet"))[1].mean(axis=0).argmax())
    assert found == [0, 2]


def test_soft_labels_that_fit_no_battle_or_have_changed_are_refused(cli: CLI, demo_files: Demo, tmp_path: Path) -> None:
    flags = ["--encoder", "tiny", "--limit", 40, "--keep-checkpoints"]
    done = cli("train", demo_files.train, *flags, "--soft-labels", "nowhere.csv")
    assert done.code == 2
    assert "nowhere.csv" in done.err
    table = pa.table({"id": ["x"], **{name: [1 / 3] for name in WINNER_COLUMNS}})
    pq.write_table(table, "teacher.parquet")
    done = cli("train", demo_files.train, *flags, "--soft-labels", "teacher.parquet")
    assert done.code == 2
    assert "no id of the soft labels" in done.err
    pq.write_table(pa.table({"id": ["1", "x"], **{name: [1 / 3] * 2 for name in WINNER_COLUMNS}}), "teacher.parquet")
    done = cli("train", demo_files.train, *flags, "--soft-labels", "teacher.parquet", "--output", "run")
    assert done.code == 0, done.err
    assert "1 of 2 soft labels belong to no battle" in done.err
    pq.write_table(table, "teacher.parquet")
    assert "have changed" in cli("train", "--resume", "run").err


def test_battles_without_outcome_are_never_scored_on(cli: CLI, tmp_path: Path) -> None:
    """Columns p_a, p_b, p_tie, some of them undecided: trained on, not held out."""
    soft = [[0.5, 0.5, 0.0] if i % 2 else [0.7, 0.2, 0.1] for i in range(60)]
    rows = [battle(i, None) | dict(zip(("p_a", "p_b", "p_tie"), p, strict=True)) for i, p in enumerate(soft)]
    file = write_csv(tmp_path / "soft.csv", rows, ["id", "prompt", "response_a", "response_b", "p_a", "p_b", "p_tie"])
    done = cli("train", file, "--encoder", "tiny", "--validation", 0.5, "--output", "run", "--json")
    assert done.code == 0, done.err
    held_out = runs.read_validation(Path("run"))
    assert 0 < len(held_out.ids) < 30
    assert all(int(name) % 2 == 0 for name in held_out.ids)
    assert set(held_out.labels.tolist()) == {0}
    assert done.json()["validation"]["n"] == len(held_out.ids)
