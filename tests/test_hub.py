"""Runs from and to the hub, against a hub on this machine, and the messages when that fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Result
from fake_hub import Hub, Repo, serving

import prefcli
from prefcli import encoders
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError, ModelError, NetworkError
from prefcli.storage import files, hub, runs

CLI = Callable[..., Result]
pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def fast_run(tmp_path_factory: pytest.TempPathFactory, demo_files: Demo) -> Path:
    from prefcli.cli.main import run

    folder = tmp_path_factory.mktemp("fast")
    assert not run(["train", str(demo_files.train), "--recipe", "fast", "-o", str(folder / "run"),
                    "--workspace", str(folder / "w"), "--quiet"])  # fmt: skip
    return folder / "run"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that knows `me`, with an empty local cache; this process is logged in."""
    from huggingface_hub import constants

    with serving(Hub()) as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
        template = fake.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", fake.token)
        yield fake


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Upload and download


@pytest.mark.slow
def test_a_pushed_run_predicts_from_the_hub_as_it_does_from_its_folder(
    cli: CLI, server: Hub, fast_run: Path, demo_files: Demo
) -> None:
    pushed = cli("push", fast_run, "me/judge", "--json")
    assert pushed.code == 0, pushed.err
    assert pushed.json()["url"].endswith("/me/judge")
    repo = server.repos["me/judge"]
    assert repo.private
    assert {"booster.txt", "config.json", "README.md", files.CHECKSUMS, "validation.parquet"} <= set(repo.files)
    for source in (str(fast_run), "hf://me/judge", "hf://me/judge@main"):
        name = re.sub(r"\W", "", source)
        done = cli("predict", demo_files.test, "--model", source, "-o", f"{name}.csv")
        assert done.code == 0, done.err
        assert f"predicting with {source.rpartition('/')[2] if source.startswith('/') else source}" in done.err
    outputs = [path.read_bytes() for path in Path().glob("*.csv")]
    assert len(outputs) == 3
    assert len(set(outputs)) == 1
    assert prefcli.load("hf://me/judge").predict("p", "a", "b") == prefcli.load(fast_run).predict("p", "a", "b")


def test_only_what_prediction_needs_is_downloaded_and_only_once(server: Hub, fast_run: Path) -> None:
    server.repos["a/b"] = Repo(contents(fast_run) | {"evil.py": b"1/0", "big.bin": b"0"})
    folder = hub.find_run("hf://a/b")
    loaded = {line.rsplit("/", 1)[1] for line in server.downloads()}
    assert "booster.txt" in loaded
    assert not loaded & {"evil.py", "big.bin", "README.md", "metrics.jsonl", "curves.svg"}
    server.asked.clear()
    assert hub.find_run("hf://a/b") == folder
    as_run = {"what": "run", "is_complete": Path.exists, "needed": hub.RUN_FILES, "hint": ""}
    assert hub.find("a/b", **as_run) == (folder, "the hub's local cache")
    assert server.asked == []
    server.repos["a/c"] = server.repos["a/b"]
    assert hub.find("a/c", **as_run)[1] == "downloaded from the hub"


def test_an_interrupted_download_of_an_encoder_is_completed(server: Hub, bert_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    encoder = encoders.make_encoder(encoders.locate(str(bert_folder)), 0, seed=0)
    encoder.save_pretrained(folder, max_shard_size="20KB")
    for path in bert_folder.glob("*token*"):
        shutil.copy(path, folder)
    others = {"pytorch_model.bin": b"0", "consolidated.safetensors": b"0", "onnx/config.json": b"{}"}
    server.repos["a/b"] = Repo(contents(folder) | others, private=False)
    last = max(path.name for path in folder.glob("model-*.safetensors"))
    server.refuses = {f"{last}$": 400}  # of a 5xx the library would try again for 20 s
    with pytest.raises(NetworkError):
        encoders.locate("a/b")
    with pytest.raises(NetworkError, match="not in the hub's local cache"):
        encoders.locate("a/b", network=False)
    server.refuses = {}
    server.asked.clear()
    located = encoders.locate("a/b")
    assert {line.rsplit("/", 1)[1] for line in server.downloads()} >= {last}
    assert located.folder is not None
    assert {path.name for path in located.folder.iterdir()} == {path.name for path in folder.iterdir()}
    loaded = encoders.make_encoder(located, 0, seed=0).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in encoder.state_dict().items())
    assert encoders.locate("a/b", network=False).source == hub.CACHED


def test_a_repository_without_all_files_of_its_index_is_refused(server: Hub, bert_folder: Path) -> None:
    files = contents(bert_folder)
    del files["model.safetensors"]
    files["model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    ).encode()
    server.repos["a/b"] = Repo(files, private=False)
    with pytest.raises(ModelError, match="model-00001-of-00001.safetensors of 1 files"):
        encoders.locate("a/b")


@pytest.mark.slow
def test_a_pushed_reward_run_has_its_chat_template_and_gives_its_rewards_from_the_hub(
    cli: CLI, server: Hub, demo_files: Demo, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    prefcli.train(demo_files.train, architecture="reward", encoder="tiny", max_length=32, limit=30, output="run")
    expected = prefcli.load("run").score("What is red?", ["A cherry.", ""])
    assert cli("push", "run", "me/reward").code == 0
    assert server.repos["me/reward"].files["chat_template.jinja"] == Path("run/chat_template.jinja").read_bytes()
    shutil.rmtree("run")
    assert prefcli.load("hf://me/reward").score("What is red?", ["A cherry.", ""]).tolist() == expected.tolist()
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (cached,) = (tmp_path / "hub").glob("models--me--reward/snapshots/*")
    assert AutoTokenizer.from_pretrained(cached).apply_chat_template(chat, tokenize=False) == "[CLS]q[SEP]a[SEP]"


@pytest.mark.slow
def test_a_neural_run_with_folds_is_pushed_and_found_without_checkpoints(
    cli: CLI, server: Hub, demo_files: Demo, tmp_path: Path
) -> None:
    done = cli("train", demo_files.train, "--encoder", "tiny", "--text", "raw", "--max-length", 32, "--limit", 60,
               "--folds", 2, "-o", "run", "--push-to", "me/folds", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert done.json()["pushed"].endswith("/me/folds")
    names = set(server.repos["me/folds"].files)
    assert {"fold-1/model.safetensors", "fold-2/config.json", f"fold-2/{files.CHECKSUMS}"} <= names
    assert not any("checkpoints" in name for name in names)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    for model in ("hf://me/folds", tmp_path / "elsewhere"):
        output = f"{len(str(model))}.csv"
        assert cli("predict", demo_files.test, "-m", model, "-o", output, "--limit", 10).code == 0
    first, second = (path.read_bytes() for path in Path().glob("*.csv"))
    assert first == second


def test_a_second_push_replaces_the_first_run_completely(server: Hub, fast_run: Path, tmp_path: Path) -> None:
    server.repos["me/judge"] = Repo(contents(fast_run) | {"adapter_config.json": b"{}", "fold-9/config.json": b"{}"})
    prefcli.push(fast_run, "me/judge")
    assert set(server.repos["me/judge"].files) == set(runs.published_files(fast_run))


# What is refused


@pytest.mark.slow
def test_a_run_changed_after_the_push_is_not_loaded(cli: CLI, server: Hub, fast_run: Path, demo_files: Demo) -> None:
    intact = contents(fast_run)
    cases = {
        "changed": intact | {"booster.txt": intact["booster.txt"] + b" "},
        "no SHA256SUMS": {name: data for name, data in intact.items() if name != files.CHECKSUMS},
        "is gone": {name: data for name, data in intact.items() if name != "features.json"},
        "is not in SHA256SUMS": intact | {"tokenizer.json": b"{}"},
    }
    for number, (words, files_there) in enumerate(cases.items()):
        server.repos[f"a/{number}"] = Repo(files_there, private=False)
        done = cli("predict", demo_files.test, "-m", f"hf://a/{number}", "-o", "p.csv")
        assert done.code == 1, words
        assert "not a complete run of prefcli" in done.err
        assert words in done.err
    assert not Path("p.csv").exists()


@pytest.mark.parametrize("name", ["hf://", "hf://alone", "hf://a/b/c", "hf://../x", "hf://a/b@", "hf://a b/c"])
def test_an_invalid_name_is_wrong_usage(cli: CLI, server: Hub, demo_files: Demo, name: str) -> None:
    done = cli("predict", demo_files.test, "-m", name, "-o", "p.csv")
    assert done.code == 2, done.err
    assert server.asked == []


def test_a_run_of_the_hub_cannot_be_continued(cli: CLI, server: Hub) -> None:
    done = cli("train", "--resume", "hf://a/b")
    assert done.code == 2
    assert "no checkpoint" in done.err


def test_models_that_cannot_be_had_are_explained(server: Hub) -> None:
    server.repos |= {"a/gated": Repo(private=False, gated=True), "a/run": Repo()}
    for name, words in {
        "a/none": "knows no model",
        "a/gated": "gated",
        "a/run@nowhere": "no such revision",
    }.items():
        with pytest.raises(ModelError) as refused:
            hub.find_run(f"hf://{name}")
        assert words in refused.value.what
    server.refuses = {"/api/models/a/run$": 503}
    with pytest.raises(NetworkError, match="did not give the run a/run"):
        hub.find_run("hf://a/run")
    server.refuses = {"/api/models/a/run$": 403}
    with pytest.raises(ModelError, match="refuses .403."):
        hub.find_run("hf://a/run")


def test_offline_mode_and_no_network_have_different_messages(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match="no network: the hub cannot be reached"):
        hub.find_run("hf://a/b")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE"):
        hub.find_run("hf://a/b")
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE"):
        hub.check_push("me/judge")


@pytest.mark.slow
def test_a_hub_that_never_answers_is_given_up(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "CHECK_SECONDS", 0.3)
    server.hangs = "."
    started = time.monotonic()
    with pytest.raises(NetworkError, match="cannot be reached"):
        hub.find_run("hf://a/b")
    with pytest.raises(NetworkError, match="cannot be reached"):
        hub.check_push("me/judge")
    assert time.monotonic() - started < 10


# Pushing


@pytest.mark.parametrize("name", ["judge", "a/b/c", "me/", "/x", "me/a--b", "me/x.git", "me/a b", "hf://me/x"])
def test_a_name_that_cannot_be_pushed_to_is_refused_before_any_work(
    cli: CLI, server: Hub, demo_files: Demo, name: str
) -> None:
    done = cli("train", demo_files.train, "--recipe", "fast", "--push-to", name, "-o", "run")
    assert done.code == 2
    assert "owner/name" in done.err
    assert not Path("run").exists()
    assert server.asked == []


def test_a_login_without_write_access_is_refused_before_any_work(
    cli: CLI, server: Hub, demo_files: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(words: str) -> None:
        done = cli("train", demo_files.train, "--recipe", "fast", "--push-to", "me/judge", "-o", "run")
        assert done.code == 1
        assert words in done.err
        assert server.token not in done.err
        assert not Path("run").exists()

    account = server.account
    server.account = account | {"auth": {"accessToken": {"role": "read"}}}
    refused("can only read")
    server.account = account | {"name": "you", "orgs": [{"name": "ours"}]}
    refused("cannot write to me/, only to you, ours")
    server.account = account
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused("does not know the token")
    monkeypatch.delenv("HF_TOKEN")
    refused("nobody is logged in")


@pytest.mark.slow
def test_a_failed_push_loses_nothing_and_says_how_to_repeat_it(
    cli: CLI, server: Hub, demo_files: Demo, tmp_path: Path
) -> None:
    server.refuses = {"/commit/": 403}
    done = cli("train", demo_files.train, "--recipe", "fast", "--push-to", "me/judge", "-o", "a run", "--json")
    assert done.code == 1
    assert done.json()["pushed"] is None
    assert done.json()["validation"]["log_loss"] > 0
    assert "the run is complete, but was not pushed" in done.err
    assert "Push it later: prefcli push 'a run' me/judge" in done.err
    assert cli("predict", demo_files.test, "-o", "p.csv").code == 0
    server.refuses = {}
    shutil.copy(demo_files.test, "test.csv")
    pushed = cli("push", "a run", "me/judge")
    assert (pushed.code, "booster.txt" in server.repos["me/judge"].files) == (0, True)
    command = "prefcli predict test.csv --model hf://me/judge"
    assert pushed.err.endswith(f"Next: predict test.csv\n  {command}\n")
    assert cli(*command.split()[1:]).code == 0


def test_a_repository_that_is_public_or_holds_no_run_is_not_changed(cli: CLI, server: Hub, fast_run: Path) -> None:
    server.repos["me/other"] = Repo({"weights.h5": b"0"})
    server.repos["me/public"] = Repo(private=False)
    done = cli("push", fast_run, "me/other")
    assert (done.code, "not a run of prefcli" in done.err) == (2, True)
    assert set(server.repos["me/other"].files) == {"weights.h5"}
    done = cli("push", fast_run, "me/public")
    assert (done.code, "public already" in done.err) == (2, True)
    assert server.repos["me/public"].files == {}
    assert cli("push", fast_run, "me/public", "--public").code == 0
    assert "booster.txt" in server.repos["me/public"].files


def test_a_damaged_or_unfinished_run_is_not_pushed(server: Hub, fast_run: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(fast_run, tmp_path / "broken")
    (broken / "booster.txt").write_text("other")
    with pytest.raises(ModelError, match="damaged"):
        prefcli.push(broken, "me/judge")
    unfinished = shutil.copytree(fast_run, tmp_path / "unfinished")
    (unfinished / runs.UNFINISHED).touch()
    with pytest.raises(ModelError, match="did not finish"):
        prefcli.push(unfinished, "me/judge")
    with pytest.raises(InputError, match="no run at"):
        prefcli.push("nowhere", "me/judge")
    assert server.asked == []


@pytest.mark.slow
def test_the_command_finds_a_run_where_hf_endpoint_says(fast_run: Path, demo_files: Demo, tmp_path: Path) -> None:
    """As a user has it: a process of its own, and the hub's address from the environment."""
    with serving(Hub()) as fake:
        fake.repos["a/b"] = Repo(contents(fast_run), private=False)
        done = subprocess.run(
            [sys.executable, "-m", "prefcli", "predict", str(demo_files.test), "-m", "hf://a/b"],
            env={**os.environ, "HF_ENDPOINT": fake.endpoint, "HF_HOME": str(tmp_path / "h"), "HF_TOKEN": "hf_SECRET"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "SECRET" not in done.stdout + done.stderr
    assert Path("preds.csv").is_file()
