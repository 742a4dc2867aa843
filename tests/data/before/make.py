"""Make before.tar.gz: a workspace, runs of every kind and their predictions, by the prefcli on the import path.

Usage: PYTHONPATH=A_CHECKOUT_OF_THE_RELEASE python make.py
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import torch
from transformers import BertConfig, BertModel

from prefcli import demo, encoders
from prefcli.cli.main import run

ARCHIVE = Path(__file__).parent.resolve() / "before.tar.gz"
BATTLES = 80
NEURAL = ("--encoder", "encoder", "--max-length", 48, "--epochs", 2, "--batch-size", 8, "--lr", 1e-2)
RUNS: dict[str, tuple[object, ...]] = {
    "features": ("--architecture", "features"),
    "siamese": NEURAL,
    "cross-encoder": (*NEURAL, "--architecture", "cross-encoder", "--text", "raw"),
    "adapters": (*NEURAL, "--lora-rank", 2),
    "folds": (*NEURAL, "--folds", 2),
}


def prefcli(*arguments: object) -> int:
    print("prefcli", *arguments, file=sys.stderr)
    return run([*map(str, arguments), "--quiet"])


def make_encoder(folder: Path) -> None:
    """A BERT of one layer with random weights, and its tokenizer."""
    tokenizer = encoders.train_tokenizer([" ".join((*demo.LIKED, *demo.DISLIKED))] * 3, 120)
    tokenizer.save_pretrained(folder)
    config: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertModel(
        BertConfig(**config, vocab_size=len(tokenizer), intermediate_size=16, max_position_embeddings=48)
    ).save_pretrained(folder)


@contextlib.contextmanager
def interrupted_after(steps: int) -> Any:
    """Within it, this process gets SIGINT in its optimizer step of that number."""
    step, count = torch.optim.AdamW.step, 0

    def counted(self: torch.optim.AdamW, *arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == steps:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments, **named)

    torch.optim.AdamW.step = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.optim.AdamW.step = step  # type: ignore[method-assign]


def without_checkpoints_of_finished_runs(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "/checkpoints/step-" in member.name and "unfinished" not in member.name else member


def main() -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        demo.write(Path(), train=BATTLES, test=12)
        make_encoder(Path("encoder"))
        assert prefcli("preprocess", "train.csv") == 0
        for run_name, options in RUNS.items():
            precision = () if run_name == "features" else ("--precision", "fp32")
            train = ("train", "train.csv", *options, *precision, "--validation", 0.25, "--output")
            assert prefcli(*train, f"runs/{run_name}") == 0
            if run_name == "siamese":
                with interrupted_after(5):
                    assert prefcli(*train, "runs/unfinished") == 130
                assert prefcli("export", "runs/siamese", "--onnx", "runs/exported") == 0
        for run_name in (*RUNS, "exported"):
            predict = ("predict", "test.csv", "--precision", "fp32", "--model", f"runs/{run_name}")
            assert prefcli(*predict, "--output", f"predictions/{run_name}.csv") == 0
        with tarfile.open(ARCHIVE, "w:gz") as archive:
            for path in sorted(Path().iterdir()):
                archive.add(path, filter=without_checkpoints_of_finished_runs)
    print(ARCHIVE, ARCHIVE.stat().st_size)


if __name__ == "__main__":
    main()
