"""Where encoders come from, how they are loaded, and what is said when they cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from prefcli import encoders
from prefcli.errors import InputError, ModelError, NetworkError
from prefcli.models.packing import Template


def test_a_folder_is_found_before_anything_else(bert_folder: Path) -> None:
    assert encoders.locate(str(bert_folder)).folder == bert_folder


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no config.json"):
        encoders.locate(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "~/nowhere", "a\\b", " "])
def test_a_path_that_leads_nowhere_never_reaches_the_hub(name: str) -> None:
    with pytest.raises(InputError, match="no encoder folder"):
        encoders.locate(name)


def test_bert_loads_from_its_folder_with_its_own_weights(bert_folder: Path) -> None:
    from safetensors.torch import load_file

    located = encoders.locate(str(bert_folder))
    module = encoders.make_encoder(located, 0, seed=0)
    saved = load_file(bert_folder / "model.safetensors")
    loaded = module.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


@pytest.mark.slow
def test_deberta_loads_from_the_hubs_files_in_float32(deberta_folder: Path) -> None:
    """The hub has float16 weights in a .bin and a sentencepiece model, no tokenizer.json."""
    located = encoders.locate(str(deberta_folder))
    tokenizer = encoders.make_tokenizer(located, [])
    module = encoders.make_encoder(located, 0, seed=0)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    saved = torch.load(deberta_folder / "pytorch_model.bin", weights_only=True)
    assert torch.equal(
        module.state_dict()["embeddings.word_embeddings.weight"], saved["embeddings.word_embeddings.weight"].float()
    )
    pieces = tokenizer.tokenize("a precise answer")
    assert "".join(pieces) == "▁a▁precise▁answer"
    assert encoders.max_input_length(module) is None  # its positions are relative: 512 is no limit


def test_a_pair_equals_what_each_tokenizer_makes_of_it(bert_folder: Path, deberta_folder: Path) -> None:
    import numpy as np

    for folder in (bert_folder, deberta_folder):
        tokenizer = encoders.load_tokenizer(folder)
        template = Template.from_tokenizer(tokenizer)
        first, second = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("clear example", "vague answer"))
        packed = template.pair.join([np.array(first, np.int32), np.array(second, np.int32)])
        ids, start = packed.ids, packed.spans[1][0]
        whole = tokenizer("clear example", "vague answer")
        assert ids.tolist() == whole["input_ids"]
        assert template.pair.overhead == 3
        if template.last_type is not None:
            assert whole["token_type_ids"] == [0] * start + [template.last_type] * (len(ids) - start)


def test_tinys_tokenizer_is_the_same_for_the_same_text() -> None:
    texts = ["the river and the mountain", "a mountain of music by the river"] * 5
    one, two = (encoders.train_tokenizer(texts) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()


def test_tinys_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    tiny = encoders.ResolvedModel(None, "")
    one, same, other = (encoders.make_encoder(tiny, 50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    first = [m.state_dict()["embeddings.word_embeddings.weight"] for m in (one, same, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_a_damaged_folder_is_one_model_error(bert_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((bert_folder / name).read_bytes())
    (broken / "model.safetensors").write_bytes((bert_folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        encoders.make_encoder(encoders.locate(str(broken)), 0, seed=0)


def test_an_architecture_round_trips_through_json(bert_folder: Path) -> None:
    module = encoders.make_encoder(encoders.locate(str(bert_folder)), 0, seed=0)
    again = encoders.from_config(json.loads(json.dumps(encoders.config_dict(module))))
    again.load_state_dict(module.state_dict())


# The hub, as a server on this machine


class _Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for models that do not exist, are gated, or never come."""

    def do_GET(self) -> None:
        name = self.path.split("?")[0].removeprefix("/api/models/")
        if name.startswith("slow/"):
            time.sleep(30)
        code, error = (403, "GatedRepo") if name.startswith("gated/") else (404, "RepoNotFound")
        if name.startswith("broken/"):
            code, error = 500, ""
        self.send_response(code)
        self.send_header("X-Error-Code", error)
        self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def _locate_elsewhere(name: str, endpoint: str, home: Path, **environment: str) -> tuple[str, float]:
    """The hub's address is read when its library is imported: ask in a process of its own."""
    code = (
        "import sys; from prefcli import encoders, errors\n"
        "try: encoders.locate(sys.argv[1])\n"
        "except errors.PrefcliError as e: print(type(e).__name__, e.what)\n"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, name],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout, time.monotonic() - started


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("no/such-model", "ModelError", "knows no model"),
        ("gated/model", "ModelError", "gated"),
        ("broken/model", "NetworkError", "did not give"),
    ],
)
def test_the_hubs_refusals_are_reported(hub: str, tmp_path: Path, name: str, kind: str, words: str) -> None:
    said, _ = _locate_elsewhere(name, hub, tmp_path)
    assert said.startswith(kind)
    assert words in said


@pytest.mark.slow
@pytest.mark.network
def test_a_hub_that_never_answers_times_out(hub: str, tmp_path: Path) -> None:
    said, seconds = _locate_elsewhere("slow/model", hub, tmp_path)
    assert said.startswith(NetworkError.__name__)
    assert seconds < 25  # five for the hub, the rest for starting Python on a busy machine


def test_a_missing_network_is_reported(tmp_path: Path) -> None:
    said, _ = _locate_elsewhere("some/model", "http://127.0.0.1:9", tmp_path)
    assert "no network" in said


def test_offline_mode_is_respected(tmp_path: Path) -> None:
    said, _ = _locate_elsewhere("some/model", "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in said


def test_a_model_in_the_hubs_cache_needs_no_network(bert_folder: Path, tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--some--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / ("0" * 40)).symlink_to(bert_folder)
    code = "import sys; from prefcli import encoders; print(encoders.locate('some/model').source)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "local cache" in done.stdout


SETTINGS = """
import json, os, sys
from pathlib import Path
before = dict(os.environ)
import prefcli
from prefcli import encoders
assert not {"transformers", "huggingface_hub"} & set(sys.modules)
encoders.load_tokenizer(Path(sys.argv[1]))
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging
settings = [
    are_progress_bars_disabled(), logging.is_progress_bar_enabled(), logging.get_verbosity(),
    constants.HF_HUB_DISABLE_TELEMETRY, constants.HF_HUB_OFFLINE, dict(os.environ) == before,
]
logging.set_verbosity_info()
logging.disable_progress_bar()
encoders.load_tokenizer(Path(sys.argv[1]))
settings += [are_progress_bars_disabled(), logging.is_progress_bar_enabled(), logging.get_verbosity()]
print(json.dumps(settings))
"""


@pytest.mark.slow
def test_loading_leaves_the_callers_settings_of_the_libraries_alone(bert_folder: Path) -> None:
    import logging

    unset = ("HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", SETTINGS, str(bert_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == [False, True, logging.WARNING, False, False, True, True, False, logging.INFO]
    assert done.stderr == ""
