"""What the tests share: small battles, tiny encoders made at run time, and the command run in this process."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

# One thread each: the tests run side by side, and waiting threads would slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Without AMX, precision "auto" is float32 on every CPU, also in the processes that tests start.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"

# Started in the background of a shell, this process ignores SIGINT, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

from prefcli.data import synthetic
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.storage.workspace import Workspace

KAGGLE_COLUMNS = ["id", "model_a", "model_b", "prompt", "response_a", "response_b", *WINNER_COLUMNS]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in an empty folder, with its own hub cache, and never asks the network by accident."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFCLI_WORKSPACE", raising=False)


@pytest.fixture(autouse=True, scope="session")
def short_networks() -> Iterator[dict[str, int]]:
    """Networks of `features` would take two seconds of hundreds of trainings; gives what they are outside the tests."""
    from prefcli.models.features import network

    with pytest.MonkeyPatch.context() as patched:
        usual = {"MIN_STEPS": network.MIN_STEPS, "EPOCHS": network.EPOCHS}
        patched.setattr(network, "MIN_STEPS", 10)
        patched.setattr(network, "EPOCHS", 1)
        yield usual


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / ".prefcli")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Run ``prefcli`` with some arguments in this process."""
    from prefcli.cli.main import run

    def call(*arguments: object) -> Result:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run([str(argument) for argument in arguments])
        return Result(code, out.getvalue(), err.getvalue())

    return call


def start_process(
    *commands: tuple[Mapping[str, str], Sequence[object]], output: Path
) -> multiprocessing.process.BaseProcess:
    """Start a process that runs commands of ``prefcli``, each with environment variables; see :mod:`preloaded`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patched:  # the server would ignore a module that it does not find
        patched.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    texts = [(dict(own), [*map(str, arguments)]) for own, arguments in commands]
    target = importlib.import_module("preloaded").call
    process = context.Process(target=target, args=(texts, Path.cwd(), dict(os.environ), output.absolute()))
    process.start()
    return process


def run_ranks(*commands: Sequence[object], ranks: int = 2) -> list[Result]:
    """Run commands of ``prefcli`` one after the other in each of some processes, as ``torchrun`` would start them."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in commands]
        meetings = [{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])} for server in servers]
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, f"rank-{rank}") for rank in range(ranks)]
        try:
            for rank, output in enumerate(outputs):
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                variables = [meeting | place for meeting in meetings]
                processes.append(start_process(*zip(variables, commands, strict=True), output=output))
            for process in processes:
                process.join(timeout=300)
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [
            Result(process.exitcode or 0, *(output.with_suffix(suffix).read_text() for suffix in (".out", ".err")))
            for process, output in zip(processes, outputs, strict=True)
        ]


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] = KAGGLE_COLUMNS) -> Path:
    """Rows as CSV; lists become JSON, as Kaggle writes turns."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: json.dumps(v, separators=(",", ":")) if isinstance(v, list) else v for k, v in row.items()}
            )
    return path


def battle(number: int = 1, winner: int | None = 0, **fields: Any) -> dict[str, Any]:
    """A row in Kaggle's layout; ``winner`` is 0, 1, 2, or None for no outcome."""
    row = {
        "id": str(number),
        "model_a": "left",
        "model_b": "right",
        "prompt": [f"question {number}"],
        "response_a": ["one answer"],
        "response_b": ["another answer"],
    }
    row |= {name: "" if winner is None else int(winner == i) for i, name in enumerate(WINNER_COLUMNS)}
    return row | fields


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> synthetic.Demo:
    """A small demo: 240 battles to train on, 60 to test."""
    return synthetic.write(tmp_path_factory.mktemp("demo"), train=240, test=60)


@pytest.fixture(scope="session")
def features_run(tmp_path_factory: pytest.TempPathFactory, demo_files: synthetic.Demo) -> Path:
    """A run of the architecture ``features`` on the small demo."""
    import prefcli

    folder = tmp_path_factory.mktemp("features")
    return prefcli.train(demo_files.train, recipe="fast", output=folder / "run", workspace=folder / "ws").run


REWARD_RUN: dict[str, Any] = {
    "architecture": "reward", "encoder": "tiny", "text": "raw", "max_length": 64, "lr": 1e-3, "precision": "fp32",
    "tie": "prompt", "checkpoint_every": 2, "limit": 60, "batch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="session")
def reward_run(tmp_path_factory: pytest.TempPathFactory, demo_files: synthetic.Demo) -> Path:
    """A run of the architecture ``reward`` on the small demo."""
    import prefcli

    folder = tmp_path_factory.mktemp("reward")
    return prefcli.train(demo_files.train, output=folder / "run", workspace=folder / "w", **REWARD_RUN).run


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT-shaped pretrained folder: safetensors weights and a fast tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    from prefcli import encoders

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = encoders.train_tokenizer([" ".join((*synthetic.LIKED, *synthetic.DISLIKED, *synthetic.NEUTRAL))] * 3)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def deberta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeBERTa-v3-shaped pretrained folder as the hub has it: ``spm.model`` and float16 ``pytorch_model.bin``."""
    import sentencepiece
    import torch
    from transformers import DebertaV2Config, DebertaV2Model

    folder = tmp_path_factory.mktemp("deberta")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join((*synthetic.LIKED, *synthetic.DISLIKED, *synthetic.NEUTRAL))] * 3),
        model_prefix=str(folder / "spm"), vocab_size=300, hard_vocab_limit=False,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]",
        unk_piece="[UNK]", user_defined_symbols=["[MASK]"], minloglevel=2,
    )  # fmt: skip
    (folder / "spm.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    config = DebertaV2Config(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16,
        norm_rel_ebd="layer_norm", share_att_key=True, max_relative_positions=-1, position_biased_input=False,
        type_vocab_size=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DebertaV2Model(config).half()
    config.architectures = ["DebertaV2Model"]
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="session")
def one_layer(tmp_path_factory: pytest.TempPathFactory, bert_folder: Path, deberta_folder: Path) -> dict[str, Path]:
    """The first layer of both, where one shows as much as two: exporting takes seconds a layer."""
    import torch
    from safetensors.torch import load_file, save_file

    folders = {"bert": bert_folder, "deberta": deberta_folder}
    for name, source in folders.items():
        folders[name] = shutil.copytree(source, tmp_path_factory.mktemp("one-layer") / name)
        config = json.loads((source / "config.json").read_text())
        (folders[name] / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
        path = next(path for path in folders[name].iterdir() if path.suffix in (".safetensors", ".bin"))
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        first = {name: tensor for name, tensor in state.items() if ".layer.1." not in name}
        save_file(first, path, {"format": "pt"}) if path.suffix == ".safetensors" else torch.save(first, path)
    return folders


LANGUAGE_MODEL_SHAPE = {
    "vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8, "sliding_window": 16},
    "llama": {},
    "qwen2": {},
}


def make_language_model(folder: Path, family: str) -> Path:
    """A folder as the hub has them: random weights, no special tokens but a beginning (not Qwen's) and an end."""
    import torch
    from tokenizers import processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    from prefcli import encoders

    trained = encoders.train_tokenizer([" ".join((*synthetic.LIKED, *synthetic.DISLIKED, *synthetic.NEUTRAL))] * 3, 560)
    backend = trained.backend_tokenizer
    begins = family != "qwen2"
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A" if begins else "$A",
        pair="[CLS] $A [CLS] $B" if begins else "$A $B",
        special_tokens=[("[CLS]", backend.token_to_id("[CLS]"))] if begins else [],
    )
    # The id that pads is the one that ends texts, as in most language models.
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="[CLS]" if begins else None, eos_token="[SEP]", pad_token="[SEP]"
    ).save_pretrained(folder)
    ends = backend.token_to_id("[SEP]")
    config = AutoConfig.for_model(
        family, **LANGUAGE_MODEL_SHAPE, **FAMILIES[family], pad_token_id=ends, eos_token_id=ends, bos_token_id=1
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder
