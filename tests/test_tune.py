"""``train --tune``: which settings are tried, what is concluded of them, and that a search that was stopped goes on."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import re
import shlex
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result, battle, write_csv

import prefcli
from prefcli.compute.distributed import World
from prefcli.data.synthetic import Demo
from prefcli.errors import Diverged, InputError, Interrupted, MissingPackage
from prefcli.models.features.booster import BoosterSettings
from prefcli.options import TrainOptions, flag_of, resolve
from prefcli.pipeline import tune as tune_verb
from prefcli.reporting import OneOfSeveral, Silent
from prefcli.storage import runs
from prefcli.storage.workspace import Workspace

tuning = importlib.import_module("prefcli.pipeline.tune")
CLI = Callable[..., Result]
PROMPTS = 200
BOOSTER = ("num_leaves", "shrinkage_rate", "min_data_in_leaf", "feature_fraction", "lambda_l2")
Quality = Callable[[TrainOptions], float]


class Stub:
    """In place of ``train``: a run whose losses depend on its options as ``quality`` says, with noise of its own.

    The logit of the true outcome is ``quality(options)`` and that of the others 0, give or take ``noise``.
    """

    def __init__(self, quality: Quality, noise: float = 0.3, prompts: int = PROMPTS) -> None:
        self.quality, self.noise, self.prompts = quality, noise, prompts
        self.trained: list[TrainOptions] = []
        self.fails: dict[int, BaseException] = {}
        """What is raised in place of a training, by how many were trained before."""

    def __call__(self, source: Any, workspace: Any, options: TrainOptions, *, output: Path, **_: Any) -> None:
        options.check()
        output.mkdir(parents=True, exist_ok=True)
        if error := self.fails.pop(len(self.trained), None):
            (output / "unfinished").touch()
            raise error
        random = np.random.default_rng(zlib.crc32(json.dumps(vars(options), sort_keys=True).encode()))
        n = 2 * self.prompts
        labels = np.arange(n) % 3
        logits = np.eye(3)[labels] * self.quality(options) + random.normal(0, self.noise, (n, 3))
        runs.finish(output)
        (output / "model.safetensors").touch()
        (output / "fold-1").mkdir()
        runs.write_config(output, options, {})
        runs.write_validation(output, runs.HeldOut([str(i) for i in range(n)], np.arange(n) // 2, logits, labels))
        runs.seal(output, trained=True)
        self.trained.append(options)


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "votes.csv", [battle(number, number % 3) for number in range(60)])


def run(votes: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch, trials: int = 20, **options: Any) -> tuning.Tuning:
    monkeypatch.setattr(tuning, "train", stub)
    given, _ = resolve({"recipe": "fast", **options})
    return tune_verb(votes, Workspace(votes.parent / ".prefcli"), given, trials=trials, fixed=options)


def leaves(options: TrainOptions) -> float:
    """Forty leaves are best, the default's 8 are bad; nothing else matters."""
    return 1.5 - abs(math.log((options.num_leaves or 8) / 40))


def test_a_planted_better_setting_is_found_and_named_as_what_mattered(
    votes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(leaves)
    found = run(votes, stub, monkeypatch)
    assert (len(found.trials), found.trials[0].settings, found.is_better) == (20, {}, True)
    assert stub.trained[0].num_leaves is None
    assert {options.folds for options in stub.trained} == {3}
    assert 25 <= found.settings["num_leaves"] <= 64
    assert max(found.importances, key=found.importances.__getitem__) == "num_leaves"
    assert sum(found.importances.values()) == pytest.approx(1)
    best, difference = found.trials[found.best - 1], found.difference
    assert best.log_loss == min(trial.log_loss for trial in found.trials)
    assert difference is not None
    # Halves of the prompts: two battles each. The one that decided is not the one that says how much is gained.
    assert (found.battles, found.prompts, difference.n, difference.prompts) == (200, 100, 200, 100)
    held_out = [runs.read_validation(found.folder / f"trial-{number}") for number in (1, found.best)]
    default, chosen = (-np.log(h.probabilities(swap_average=False))[np.arange(400), h.labels] for h in held_out)
    everywhere = float((chosen - default).mean())
    on_chosen = best.log_loss - found.trials[0].log_loss
    assert (difference.difference + on_chosen) / 2 == pytest.approx(everywhere)
    assert found.reading.startswith(f"Trial {found.best} is clearly better than the default: log loss -")
    assert "400" not in found.reading
    assert "200 battles of 100 prompts that it was not chosen on" in found.reading
    assert "What mattered: --num-leaves " in found.reading
    assert sorted(path.name for path in (found.folder / "trial-7").iterdir()) == [
        "SHA256SUMS", "config.json", "validation.parquet",
    ]  # fmt: skip


@pytest.mark.parametrize(("prompts", "reason"), [(PROMPTS, "95 %: "), (30, "no interval: 15 prompts, 20 are needed")])
def test_the_default_is_kept_where_nothing_differs_but_by_luck(
    prompts: int, reason: str, votes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Silent, "warn", lambda self, text: said.append(text))
    found = run(votes, Stub(lambda options: 0.5, prompts=prompts), monkeypatch, trials=12)
    assert found.best > 1, "the best of 12 is another one than the first, by luck"
    assert (found.is_better, found.settings, found.importances) == (False, {}, {})
    assert f"Trial {found.best} is not clearly better than the default" in found.reading
    assert reason in found.reading
    warned = "whatever is found, the default will be kept: no interval: 15 prompts, 20 are needed on which settings are"
    assert [text.startswith(warned) for text in said] == [True] * (prompts == 30)
    assert found.reading.endswith("The default is kept. Which settings mattered is said of 20 trials or more.")
    assert found.flags


def test_how_often_chance_alone_is_taken_for_a_gain(votes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 searches among equals about one is: the upper end of a 95 % interval is below zero in 2.5 %."""
    monkeypatch.setattr(tuning.metrics, "DIFFERENCE_ROUNDS", 200, raising=True)
    search = tuning._Search(votes.parent, TrainOptions(architecture="features", folds=3), {})
    labels, wrong = np.arange(80) % 3, 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        held_out = [
            runs.HeldOut([""] * 80, np.arange(80), np.eye(3)[labels] + random.normal(0, 1, (80, 3)), labels)
            for _ in range(15)
        ]
        losses = [tuning._losses(each) for each in held_out]
        chosen_on = tuning._are_chosen_on(np.arange(80), 0)
        tried = [tuning.Trial({"num_leaves": 9}, float(each[chosen_on].mean())) for each in losses]
        wrong += tuning._conclude(search, np.arange(80), losses, tried).is_better
    assert wrong <= 4, "the best of 15 was compared on the battles that it was chosen on"


def test_a_default_that_is_best_is_kept(votes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(votes, Stub(lambda options: 3.0 * (options.num_leaves is None)), monkeypatch, trials=3)
    assert (found.best, found.difference, found.settings, found.flags) == (1, None, {}, [])
    assert found.reading.startswith("No setting was better than the default, which is kept.")


def test_a_search_that_was_stopped_goes_on_and_ends_as_one_that_was_not(
    votes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = run(votes, Stub(leaves), monkeypatch, trials=10)
    other = tmp_path / "other"
    other.mkdir()
    votes = votes.rename(other / "votes.csv")
    stub = Stub(leaves)
    stub.fails = {7: Interrupted(15, "interrupted after step 3", hint="Continue with: prefcli train --resume X")}
    with pytest.raises(Interrupted) as stopped:
        run(votes, stub, monkeypatch, trials=10)
    assert (stopped.value.exit_code, str(stopped.value)) == (
        143, "trial-8: interrupted after step 3\nThe same command goes on there."
    )  # fmt: skip
    assert run(votes, stub, monkeypatch, trials=8).trials == whole.trials[:8]
    again = run(votes, stub, monkeypatch, trials=10)
    assert len(stub.trained) == 10, "no trial was trained twice"
    assert (again.trials, again.best, again.reading) == (whole.trials, whole.best, whole.reading)
    damaged = again.folder / "trial-2" / "validation.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(prefcli.ModelError, match="validation.parquet"):
        run(votes, stub, monkeypatch, trials=10)


def test_a_trial_that_diverges_does_not_count_unless_it_is_the_default(
    votes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(leaves)
    stub.fails = {3: Diverged("the loss is no longer a number")}
    found = run(votes, stub, monkeypatch, trials=6)
    assert [math.isinf(trial.log_loss) for trial in found.trials] == [False, False, False, True, False, False]
    assert (len(stub.trained), run(votes, stub, monkeypatch, trials=6)) == (5, found)
    stub.fails = {5: Diverged("the loss is no longer a number")}
    with pytest.raises(Diverged):
        run(votes, stub, monkeypatch, trials=6, limit=50)


def test_what_is_given_stays_and_the_rest_is_within_the_documented_space(
    votes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(lambda options: 0.5)
    found = run(votes, stub, monkeypatch, trials=8, lambda_l2=0.0, folds=2)
    assert {(options.lambda_l2, options.folds) for options in stub.trained} == {(0.0, 2)}
    assert list(found.trials[1].settings) == ["num_leaves", "shrinkage_rate", "min_data_in_leaf", "feature_fraction"]
    neural = TrainOptions(encoder="tiny", batch_size=24, folds=3, max_length=64)
    search = tuning._Search(votes.parent, neural, tuning._space(neural, 60))
    tried = [tuning.Trial({}, 1.0)]
    for _ in range(12):
        tried.append(tuning.Trial(search.next(tried), 1.0))
    values = {name: {trial.settings[name] for trial in tried[1:]} for name in tried[1].settings}
    assert list(values) == ["lr", "warmup", "epochs", "label_smoothing", "weight_decay", "batch_size", "max_length"]
    assert all(2.5e-4 <= rate <= 4e-3 and rate == float(f"{rate:.3g}") for rate in values["lr"])  # tiny: 1e-3
    assert values["epochs"] <= {1, 2, 3}
    assert values["batch_size"] <= {8, 16, 24, 32}
    assert values["max_length"] == {32, 64}
    assert values["weight_decay"] <= {0.0, 0.01, 0.1}


def test_what_cannot_be_tuned_is_refused(votes: Path, cli: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(*flags: str, file: tuple[Path, ...] = (votes,)) -> str:
        done = cli("train", *file, "--recipe", "fast", "--tune", *flags)
        assert (done.code, done.out) == (2, "")
        return done.err.splitlines()[-2 if "\n  " in done.err else -1]

    assert error("1") == "error: --tune is 1, at least 2 is needed"
    assert error("4", "--estimate") == "error: --tune cannot be combined with --estimate"
    assert "--validation-file exclude each other" in error("4", "--validation-file", str(votes))
    assert error("4", file=()) == "error: --tune needs the battles: name the file"
    everything = "--num-leaves 9 --shrinkage-rate 0.1 --min-data-in-leaf 9 --feature-fraction 0.5 --lambda-l2 1".split()
    assert "every setting that is tuned is given" in error("4", *everything)
    monkeypatch.setattr(tuning, "from_environment", lambda: World(rank=1, size=2))
    with pytest.raises(InputError, match="does not run under torchrun"):
        prefcli.tune(votes, trials=4, recipe="fast")
    monkeypatch.setattr(tuning, "from_environment", World)
    with pytest.raises(InputError, match="at least 2 is needed: the first trial is the default"):
        prefcli.tune(votes, trials=1, recipe="fast")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name))
    with pytest.raises(MissingPackage) as missing:
        prefcli.tune(votes, trials=4, recipe="fast")
    assert str(missing.value) == "--tune needs optuna, which is not installed\nInstall: pip install optuna"


def few_rounds(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    settings = BoosterSettings(8, 0.2, 10, 0.3, rounds, 10)
    monkeypatch.setattr(BoosterSettings, "for_battles", lambda battles: settings)


def test_the_boosters_settings_are_flags_that_a_run_records(
    cli: CLI, demo_files: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_rounds(monkeypatch, 3)
    flags = "--num-leaves 5 --shrinkage-rate 0.11 --min-data-in-leaf 7 --feature-fraction 0.4 --lambda-l2 2.5".split()
    assert cli("train", demo_files.train, "--recipe", "fast", *flags, "-o", "run").code == 0
    booster = Path("run/booster.txt").read_text()
    for setting in (
        "num_leaves: 5", "learning_rate: 0.11", "min_data_in_leaf: 7", "feature_fraction: 0.4", "lambda_l2: 2.5",
    ):  # fmt: skip
        assert f"[{setting}]" in booster
    assert cli("train", demo_files.train, "--config", "run/config.json", "-o", "again").code == 0
    assert Path("again/booster.txt").read_text() == booster
    refused = cli("train", demo_files.train, "--num-leaves", 5)
    assert refused.err.endswith(
        "error: --num-leaves: not used by --architecture siamese\n  Leave it out, or choose --recipe fast.\n"
    )
    assert "--shrinkage-rate is 0.0, it must be above 0" in cli("train", "a", "--shrinkage-rate", 0).err


@pytest.mark.slow
def test_the_command_tunes_says_what_it_found_and_trains(
    cli: CLI, demo_files: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_rounds(monkeypatch, 3)
    monkeypatch.setattr(tuning, "train", Stub(leaves))
    command = ("train", demo_files.train, "--recipe", "fast", "--folds", 2)
    done = cli(*command, "--tune=2", "--output", "tuned")
    assert done.code == 0, done.err
    assert re.search(r"^2 trials, the best first; 200 battles of 100 prompts$", done.out, re.M)
    assert re.search(r"^1 +\d\.\d{4} +default +default", done.out, re.M)
    assert "trial 1 of 2: the default\n" in done.err
    assert "trial 2 of 2: --num-leaves " in done.err
    assert "Trial 2 is clearly better than the default: log loss -0." in done.out
    assert "Its settings are used." in done.out
    (line,) = re.findall(r"^Trial 2: (prefcli train .*)$", done.out, re.M)
    words = shlex.split(line)
    assert words[:7] == ["prefcli", *map(str, command)]
    assert not {"--tune=2", "--output", "tuned"} & set(words)
    config = json.loads(Path("tuned/config.json").read_text())
    by_line = dict(zip(words[7::2], words[8::2], strict=True))
    assert by_line == {flag_of(name): str(config["options"][name]) for name in BOOSTER}
    assert {config["origins"][name] for name in BOOSTER} == {"tuned"}
    again = cli(*command, "--tune", 2, "--json")
    assert "holds 2 of 2 trials: going on there" in again.err
    result = again.json()
    assert (result["tuning"]["is_better"], result["tuning"]["best"], len(result["tuning"]["trials"])) == (True, 2, 2)
    assert result["tuning"]["settings"] == {name: config["options"][name] for name in BOOSTER}
    booster = "fold-1/booster.txt"
    assert Path(result["run"], booster).read_bytes() == Path("tuned", booster).read_bytes()


def test_a_trial_is_a_training_with_folds(demo_files: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    few_rounds(monkeypatch, 3)
    found = prefcli.tune(demo_files.train, trials=2, recipe="fast", limit=60, folds=2, num_leaves=6)
    config = runs.read_config(found.folder / "trial-2")
    config["options"]["encoder"] = None
    options, given = TrainOptions(**config["options"]), {"recipe": "fast", "limit": 60, "folds": 2, "num_leaves": 6}
    assert options == resolve({**given, **found.trials[1].settings, "text": "raw"})[0]
    held_out = runs.read_validation(found.folder / "trial-2")
    assert len(held_out.ids) == 60 > found.battles > 20
    assert not Workspace(".prefcli").runs.exists(), "trials are no runs that predict would take"


def test_what_an_earlier_trial_said_is_not_said_again() -> None:
    said: list[str] = []

    class Recorder(Silent):
        def warn(self, text: str) -> None:
            said.append(text)

        note = warn

    noted: set[str] = set()
    for number in (1, 2):
        reporter = OneOfSeveral(Recorder(), number, 2, noted)
        reporter.warn("few battles")
        reporter.note("a note")
        reporter.warn(f"of trial {number}")
    assert said == ["few battles", "a note", "of trial 1", "of trial 2"]
