"""Files from strangers do no harm: nothing in them is run, opened elsewhere, obeyed by a terminal, or told."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import payloads
import pytest
import torch
from conftest import Result, battle, write_csv
from markdown_it import MarkdownIt
from test_eda import batches
from test_eda import battle as votes

from prefcli import encoders, exploration, reporting
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError, ModelError
from prefcli.models import features
from prefcli.models.features import booster as boosting
from prefcli.options import TrainOptions
from prefcli.rendering import page
from prefcli.storage import card as card_room
from prefcli.storage import files, runs

CLI = Callable[..., Result]


def load(folder: Path) -> torch.nn.Module:
    return encoders.make_encoder(encoders.locate(str(folder)), 0, seed=0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Whom this process wanted to talk to."""
    import socket

    names: list[str] = []

    def refuse(host: str, *_: object, **__: object) -> list[Any]:
        names.append(str(host))
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return names


# Weights

PLACES = (
    ("pytorch_model.bin", ""),
    ("model.safetensors", ""),
    ("pytorch_model-2.bin", "pytorch_model.bin.index.json"),
    ("weights.pkl", "model.safetensors.index.json"),
    ("model-2.safetensors", "model.safetensors.index.json"),
)
"""What a pickle is called, and the index of shards that names it."""


@pytest.mark.slow
def test_a_pickle_is_refused_and_not_run_whatever_it_is_called(deberta_folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    tensors = dict(torch.load(deberta_folder / "pytorch_model.bin", weights_only=True))
    first, *others = tensors
    for number, (label, data) in enumerate(payloads.pickles(marker, tensors).items()):
        loose = tmp_path / "loose"
        loose.write_bytes(data)
        payloads.load_carelessly(label, loose)
        assert marker.exists(), f"{label} is no payload"
        marker.unlink()
        weights, index = PLACES[number % len(PLACES)]
        folder = shutil.copytree(deberta_folder, tmp_path / str(number))
        (folder / "pytorch_model.bin").rename(folder / "pytorch_model-1.bin")
        (folder / weights).write_bytes(data)
        if index:
            shards = {first: weights, **dict.fromkeys(others, "pytorch_model-1.bin")}
            (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": shards}))
        with pytest.raises(ModelError, match="not run") as refused:
            load(folder)
        assert not marker.exists(), label
        assert "safetensors" in refused.value.hint


def test_the_command_says_in_three_lines_that_a_pickle_was_not_run(
    cli: CLI, deberta_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(deberta_folder, tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(payloads.pickles(tmp_path / "ran", {})["torch zip, exec"])
    file = write_csv(tmp_path / "a.csv", [battle(i, i % 3) for i in range(40)])
    done = cli("train", file, "--encoder", folder, "--text", "raw")
    assert done.code == 1
    said = done.err[done.err.index("error: ") :]
    assert len(said.splitlines()) == 3
    assert "pytorch_model.bin) hold more than tensors and were not run" in said
    assert not (tmp_path / "ran").exists()


# Folders


@pytest.mark.parametrize("model_type", ["bert", "evil", "encoder-decoder"])
def test_code_in_a_models_folder_is_never_imported(bert_folder: Path, tmp_path: Path, model_type: str) -> None:
    code = dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), "evil.Evil")
    folder = payloads.changed(bert_folder, tmp_path / "model", "config.json", auto_map=code, model_type=model_type)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": code, "tokenizer_class": "Evil"}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    with contextlib.nullcontext() if model_type == "bert" else contextlib.suppress(ModelError):
        encoders.load_tokenizer(folder)
    if model_type == "bert":
        assert type(load(folder)).__name__ == "BertModel"
    else:
        with pytest.raises(ModelError) as refused:
            load(folder)
        assert model_type != "evil" or "code of its own, which prefcli never runs" in refused.value.what
        with pytest.raises(ModelError):
            encoders.from_config(json.loads((folder / "config.json").read_text()))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["BertModel", "RagTokenizer"])
def test_a_class_that_is_no_tokenizer_is_refused(bert_folder: Path, tmp_path: Path, name: str) -> None:
    folder = payloads.changed(bert_folder, tmp_path / "model", "tokenizer_config.json", tokenizer_class=name)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    with pytest.raises(ModelError):
        encoders.load_tokenizer(folder)


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_that_a_config_names_is_not_fetched(bert_folder: Path, tmp_path: Path, name: str) -> None:
    for number, kernel in enumerate(("kernels-community/flash-attn2", "evil/kernel@main:run", "flash_attention_2")):
        folder = payloads.changed(bert_folder, tmp_path / str(number), "config.json", **{name: kernel})
        assert load(folder).config._attn_implementation in ("sdpa", "eager")
        settings = json.loads((folder / "config.json").read_text())
        assert encoders.from_config(settings).config._attn_implementation in ("sdpa", "eager")


def test_quantised_weights_and_adapters_are_refused(bert_folder: Path, tmp_path: Path) -> None:
    quantised = payloads.changed(
        bert_folder, tmp_path / "q", "config.json", quantization_config={"quant_method": "mxfp4"}
    )
    with pytest.raises(ModelError, match="quantised"):
        load(quantised)
    adapter = payloads.changed(bert_folder, tmp_path / "a", "adapter_config.json", base_model_name_or_path="evil/base")
    with pytest.raises(ModelError, match="adapter"):
        load(adapter)


def test_a_config_cannot_make_loading_ask_the_hub(bert_folder: Path, tmp_path: Path, asked: list[str]) -> None:
    settings = {"model_type": "dpt", "backbone": "evil/backbone", "use_pretrained_backbone": True}
    folder = payloads.changed(bert_folder, tmp_path / "model", "config.json", **settings)
    whole = json.loads((folder / "config.json").read_text())
    encoders.load_tokenizer(folder)
    for attempt in (load, lambda _: encoders.from_config(whole)):
        with contextlib.suppress(ModelError):  # releases of transformers differ in what they make of it
            attempt(folder)
    assert asked == []
    from huggingface_hub import constants

    assert not constants.HF_HUB_OFFLINE  # what comes next may ask again


def test_names_in_a_models_files_stay_in_its_folder(bert_folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copyfile(bert_folder / name, tmp_path / f"outside-{name}")
    shutil.copyfile(bert_folder / "tokenizer.json", tmp_path / "outside-tokenizer.4.0.0.json")
    elsewhere = [f"../outside-{name}" for name in ("model.safetensors", "tokenizer.4.0.0.json")]
    elsewhere += [str(tmp_path / f"outside-{name}") for name in ("model.safetensors", "tokenizer.4.0.0.json")]
    elsewhere += ["a/../../outside-model.safetensors"]
    for number, name in enumerate(elsewhere):
        folder = payloads.changed(
            bert_folder, tmp_path / f"w{number}", "model.safetensors.index.json", metadata={}, weight_map={"x": name}
        )
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="outside of the model's folder"):
            load(folder)
        for setting in (
            {"fast_tokenizer_files": [name]},
            {"gguf_file": name},
            {"sp_model_kwargs": {"model_file": name}},
        ):
            folder = tmp_path / "t"
            payloads.changed(bert_folder, folder, "tokenizer_config.json", **setting)
            with pytest.raises(ModelError, match="outside of the model's folder"):
                encoders.load_tokenizer(folder)
            shutil.rmtree(folder)


def test_chat_templates_are_neither_run_nor_saved_under_their_own_names(bert_folder: Path, tmp_path: Path) -> None:
    template = "{{ cycler.__init__.__globals__.os.system('touch ran') }}"
    named = [{"name": name, "template": template} for name in ("../../outside", "default")]
    folder = payloads.changed(bert_folder, tmp_path / "model", "tokenizer_config.json", chat_template=named)
    encoders.load_tokenizer(folder).save_pretrained(tmp_path / "a" / "b")
    assert not list(tmp_path.rglob("*outside*")) + list(tmp_path.rglob("*.jinja")) + list(tmp_path.rglob("ran"))


def test_a_user_who_does_not_exist_is_no_encoder() -> None:
    with pytest.raises(InputError, match="no encoder folder"):
        encoders.locate("~nobody-has-this-name/model")


# Runs


@pytest.fixture(scope="module")
def fast_run(tmp_path_factory: pytest.TempPathFactory, demo_files: Demo) -> Path:
    from prefcli.cli.main import run

    folder = tmp_path_factory.mktemp("fast")
    assert not run(["train", str(demo_files.train), "--recipe", "fast", "-o", str(folder / "run"),
                    "--workspace", str(folder / "w"), "--quiet"])  # fmt: skip
    return folder / "run"


@pytest.mark.parametrize("name", ["booster.txt", "model.safetensors", "features.json", "config.json"])
def test_pickles_in_a_run_are_refused_and_not_run(
    cli: CLI, fast_run: Path, demo_files: Demo, tmp_path: Path, name: str
) -> None:
    pickles = payloads.pickles(tmp_path / "ran", {"w": torch.zeros(2)})
    for label, data in ((label, data) for label, data in pickles.items() if "exec" in label):
        folder = shutil.copytree(fast_run, tmp_path / "run", dirs_exist_ok=True)
        (folder / name).write_bytes(data)
        # Whoever changes a run can change its checksums: only the loaders stand between the file and the process.
        (folder / files.CHECKSUMS).unlink(missing_ok=True)
        manifest = json.loads((fast_run / features.MANIFEST).read_text())
        manifest["sha256"] = {one: files.sha256(folder / one) for one in manifest["sha256"]}
        if name != features.MANIFEST:
            (folder / features.MANIFEST).write_text(json.dumps(manifest))
        done = cli("predict", demo_files.test, "-m", folder, "-o", tmp_path / "p.csv", "--force")
        assert done.code == 1, label
        assert "unexpected" not in done.err
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split_feature", 99_999_999), ("split_feature", -1), ("left_child", 99_999_999), ("right_child", -99_999_999),
        ("left_child", 0), ("num_leaves", 99_999_999), ("num_leaves", 0), ("num_cat", 7), ("threshold", ""),
        ("num_tree_per_iteration", 5), ("max_feature_idx", 99_999_999), ("decision_type", 3), ("num_leaves", "1_0"),
        ("num_leaves", "8\nnum_leaves=7"), ("split_feature", "9" * 30), ("left_child", "nan"),
    ],
)  # fmt: skip
def test_trees_that_point_elsewhere_never_reach_lightgbm(fast_run: Path, key: str, value: object) -> None:
    text = (fast_run / "booster.txt").read_text()
    boosting.check_trees(text)
    broken = re.sub(rf"(?m)^{key}=\S+", f"{key}={value}", text, count=1)
    assert broken != text
    with pytest.raises((ValueError, KeyError)):
        boosting.check_trees(broken)


def test_a_booster_read_without_sizes_predicts_the_same(fast_run: Path) -> None:
    import lightgbm

    text = (fast_run / "booster.txt").read_text()
    booster = features.load(fast_run).booster
    assert booster is not None
    rows = np.random.default_rng(0).normal(size=(50, len(features.COLUMNS)))
    assert np.array_equal(booster.predict(rows), lightgbm.Booster(model_str=text).predict(rows))


# Terminals


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(payloads.TERMINAL))
def test_escape_sequences_are_shown_not_obeyed(cli: CLI, tmp_path: Path, name: str) -> None:
    text = payloads.TERMINAL[name]
    rows = [
        battle(i, i % 3, id=f"{text}{i}", model_a=text, model_b=f"{text}2", prompt=[text, str(i)], response_a=[text])
        for i in range(30)
    ]
    file = write_csv(tmp_path / f"{text.replace('/', '')}.csv", rows)
    for arguments in (
        ["eda", file], ["preprocess", file], ["preprocess", file, "--preview", 2], ["eda", f"no{text}.csv"],
        ["predict", file, "-m", text], ["eda", file, "--format", text], ["eda", file, "--json"],
    ):  # fmt: skip
        done = cli(*arguments)
        for character in set(done.out + done.err) - {"\n"}:
            assert character.isprintable() or character == "\x7f", (arguments, character)


def test_a_file_name_in_a_progress_bar_is_shown_not_obeyed(tmp_path: Path) -> None:
    """On a real terminal, where bars are drawn."""
    code = (
        "import sys; from prefcli.console import Console\n"
        "terminal = Console()\n"
        "with terminal.track(sys.argv[1], 2) as progress: progress.advance(1, sys.argv[1])\n"
        "terminal.note(sys.argv[1]); terminal.warn(sys.argv[1])\n"
    )
    text = "reading \x1b]0;owned\x07\x1b[31m\u202e:smile:"
    leader, follower = pty.openpty()
    subprocess.run([sys.executable, "-c", code, text], stderr=follower, stdout=follower, check=True,
                   env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"})  # fmt: skip
    os.close(follower)
    said = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert said.count("owned") >= 3
    assert not {"\x1b]0", "\x07", "\x1b[31m\\", "\u202e"} & {
        piece for piece in ("\x1b]0", "\x07", "\u202e") if piece in said
    }
    assert ":smile:" in said


@pytest.mark.slow
def test_debug_shows_escape_sequences_and_keeps_the_exit_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefcli", "eda", "missing\x1b]0;owned\x07.csv", "--debug"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "\x1b" not in done.stderr
    assert "\\x1b]0;owned\\x07" in done.stderr


def test_paths_on_stdout_are_shown_not_obeyed(cli: CLI, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", [battle(i, i % 3) for i in range(20)])
    done = cli("preprocess", file, "--workspace", tmp_path / "w\x1b[2J")
    assert done.code == 0
    assert "w\\x1b[2J" in done.out
    assert "\x1b" not in done.out + done.err


@pytest.mark.slow
def test_visible_leaves_nothing_a_terminal_obeys() -> None:
    every = "".join(map(chr, range(0x110000)))
    assert reporting.visible(every).isprintable()
    assert reporting.visible("a b é 漢 \\n") == "a b é 漢 \\n"


# Papers


def test_the_pages_policy_allows_nothing_but_its_own_style() -> None:
    text = page.render(exploration.explore(batches([votes()])), "votes.csv")
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', text)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@pytest.mark.parametrize(
    "place", ["source", "sha", "command", "placement", "source_of_encoder", "cut", "encoder", "folder"]
)
def test_what_a_card_names_stays_plain_text(tmp_path: Path, place: str) -> None:
    data = {"train_battles": 10, "shares": [0.3, 0.3, 0.4], "source_sha256": "0" * 64, "text": "raw"}
    known = {"encoder_source": "built in", "max_length": 64, "cut": "nothing", "lr": 0.1, "placement": "cpu, fp32"}

    def card(text: str, at: str) -> str:
        config: dict[str, Any] = {
            "data": {
                **data,
                "source": {"paths": [text if at == "source" else "a.csv"], "format": None, "columns": None},
            },
            "resolved": dict(known), "command": text if at == "command" else "prefcli train a.csv",
        }  # fmt: skip
        if at == "sha":
            config["data"]["source_sha256"] = text
        if at in ("placement", "cut", "source_of_encoder"):
            config["resolved"]["encoder_source" if at == "source_of_encoder" else at] = text
        name = text.replace("/", "|").replace("\x00", "")[:60] if at == "folder" else "run"
        folder = tmp_path / name.encode("utf-8", "replace").decode()
        folder.mkdir(exist_ok=True)
        options = dataclasses.replace(TrainOptions(), encoder=text if at == "encoder" else "tiny")
        card_room.write(folder, options, config, None)
        return (folder / runs.CARD).read_text(encoding="utf-8")

    def tags(text: str) -> list[str]:
        front, body = text.split("\n---\n", 1)
        shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
        return [front, *(tag for tag in re.findall(r"<(\w+)", shown) if tag != "code")]

    plain = tags(card("name", "nowhere"))
    for text in (*payloads.MARKDOWN, *payloads.markup("http://127.0.0.1:9/"), *payloads.TERMINAL.values()):
        made = card(text, place)
        assert tags(made) == plain, text
        assert all(c.isprintable() or c == "\n" for c in made)


def test_a_cards_command_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "run $(touch owned); x"
    folder.mkdir()
    config = {
        "data": {"train_battles": 1, "shares": [1, 0, 0], "source_sha256": "0", "text": "raw",
                 "source": {"paths": ["a.csv"], "format": None, "columns": None}},
        "resolved": {"columns": 3},
    }  # fmt: skip
    card_room.write(folder, TrainOptions(architecture="features"), config, None)
    assert "--model 'run $(touch owned); x'" in (folder / runs.CARD).read_text()


# Secrets


@pytest.mark.slow
@pytest.mark.parametrize("token", ["hf_SECRET", "hf_SECRET with\nillegal\u00e9 letters"])
def test_tokens_and_passwords_are_never_told(tmp_path: Path, token: str) -> None:
    file = write_csv(tmp_path / "a.csv", [battle(i, i % 3) for i in range(20)])
    environment = {
        **os.environ, "HF_TOKEN": token, "HUGGING_FACE_HUB_TOKEN": "hf_SECRET", "HF_HOME": str(tmp_path / "hub"),
        "HTTP_PROXY": "http://user:SECRET@127.0.0.1:9", "HTTPS_PROXY": "http://user:SECRET@127.0.0.1:9",
        "HF_ENDPOINT": "http://hub.invalid",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "prefcli", "train", str(file), "--encoder", "some/model", "--debug"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "SECRET" not in done.stdout + done.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()]
    assert left == []
