"""What runs without torch and transformers runs, and what needs them says which line to type.

``make light-check`` runs this in a fresh environment that has neither, ``test_light.py`` in the one of the tests.
It works in the current folder, which is empty, with a neural run and its ONNX export that were made elsewhere.

    python light_install.py make-runs FOLDER       trains and exports the two, with torch
    python light_install.py NEURAL_RUN ONNX_RUN    runs the commands, without
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shlex
import sys
from pathlib import Path

from prefcli.cli.main import run
from prefcli.data import synthetic

OPTIONAL = (
    "torch", "transformers", "onnx", "onnxruntime", "onnxscript", "optuna", "peft", "tensorboard", "wandb", "fastapi",
    "uvicorn", "prometheus_client",
)  # fmt: skip
WITHOUT = {
    "torch transformers nltk scipy sklearn": """
score test_truth.csv test_truth.csv --json
""",
    "torch transformers nltk": """
eda train.csv --report votes.html
eda train.csv --judge judge.csv --json
eda train.csv --export odd.csv --label-errors
preprocess train.csv --text raw
train train.csv --recipe fast --estimate
train train.csv --recipe fast --output fast
train train.csv --recipe fast --folds 2 --output folds
predict test.csv --model fast --estimate
predict test.csv --model fast --output preds.csv
predict test.csv --model fast --model folds --swap-average --output blend.parquet
predict test.csv --model fast --calibrate train.csv --output refit.csv
predict lines.jsonl --model fast --output -
score preds.csv test_truth.csv --report score.html
score preds.csv refit.csv test_truth.csv
rank answers.jsonl --model fast --best best.jsonl --pairs pairs.jsonl
serve fast --port 0
runs list
runs show fast
runs diff fast folds
runs compare fast folds
report fast
""",
    "torch transformers": """
preprocess train.csv
preprocess train.csv --preview 2
runs rm folds --yes
runs prune --yes
""",
}
"""Modules, and commands that import none of them; in this order, because all run in one process."""
TORCH = 'torch "transformers[sentencepiece]"'
NEEDS = {
    "demo demo": TORCH,
    "train train.csv": TORCH,
    "train train.csv --encoder tiny --estimate": TORCH,
    "train train.csv --recipe strong": TORCH,
    "train train.csv --architecture reward --lora-rank 4": f"{TORCH} peft",
    "train train.csv --recipe fast --tracker tensorboard": "torch tensorboard",
    "train train.csv --recipe fast --tracker wandb": "wandb",
    "train train.csv --recipe fast --tune 2": "optuna",
    "ablate train.csv": TORCH,
    "predict test.csv --model NEURAL --output p.csv": TORCH,
    "predict lines.jsonl --model NEURAL --output -": TORCH,
    "predict test.csv --model fast --model NEURAL --estimate": TORCH,
    "predict test.csv --model ONNX --output p.csv": "onnx onnxruntime",
    "rank answers.jsonl --model NEURAL --output neural.jsonl": TORCH,
    "serve fast": "fastapi uvicorn prometheus-client",
    "export NEURAL --onnx exported": f"{TORCH} onnx onnxruntime onnxscript",
}
"""Commands, and what ``pip install`` needs for them where nothing optional is installed."""


def write_files() -> None:
    """The files that the commands name, in the current folder."""
    synthetic.write(Path(), train=120, test=40)
    Path("judge.csv").write_bytes(Path("train.csv").read_bytes())
    question = {"id": "1", "prompt": "Name a fruit.", "responses": ["A cherry.", "Bananas are yellow.", "Unsure."]}
    pair = {"prompt": "Name a fruit.", "response_a": "A cherry.", "response_b": "Bananas are yellow."}
    Path("lines.jsonl").write_text(json.dumps(pair) + "\n")
    Path("answers.jsonl").write_text(json.dumps(question) + "\n")


def call(command: str) -> tuple[int, str]:
    """Exit code and messages of one command, run in this process."""
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(shlex.split(command))
    return code, err.getvalue()


def main(neural: str, onnx: str, *, predict_onnx: bool) -> None:
    """Run all commands; ``neural`` and ``onnx`` are runs, of which the latter can predict if that is asked for."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    write_files()
    steps = [(modules, command) for modules, block in WITHOUT.items() for command in block.strip().splitlines()]
    if importlib.util.find_spec("fastapi"):
        from prefcli.serving import server

        server.run = lambda *ready_to_serve: None  # which would not return
    else:
        steps = [step for step in steps if not step[1].startswith("serve")]
    if predict_onnx:
        steps += [("torch transformers", f"predict test.csv --model {onnx} --swap-average --output onnx.csv")]
        steps += [("torch transformers", f"rank answers.jsonl --model {onnx} --output onnx.jsonl")]
    for modules, command in steps:
        code, messages = call(command)
        assert code == 0, f"prefcli {command}\n{messages}"
        imported = sorted(set(modules.split()) & set(sys.modules))
        assert not imported, f"prefcli {command} imports {imported}"
        print("done:", command)
    code, messages = call("push fast me/fast")
    assert messages.startswith("error: HF_HUB_OFFLINE forbids pushing"), messages
    sys.modules |= dict.fromkeys(OPTIONAL)  # as if they were not installed
    for command, packages in NEEDS.items():
        code, messages = call(command.replace("NEURAL", neural).replace("ONNX", onnx))
        line = f"Install: pip install {packages}\n"
        assert code == 1, f"prefcli {command}\n{messages}"
        assert messages.count("error:") == 1, messages
        assert messages.endswith(line), f"prefcli {command}\n{messages}\ndoes not end with: {line}"
        print("refused:", command)


def make_runs(folder: Path) -> None:
    """The two runs that :func:`main` needs, in an environment with torch."""
    import prefcli

    train = synthetic.write(folder / "data", train=60, test=10).train
    common = {"workspace": folder / "workspace"}
    prefcli.train(train, encoder="tiny", max_length=32, output=folder / "neural", **common)
    prefcli.export(folder / "neural", onnx=folder / "onnx", **common)


if __name__ == "__main__":
    if sys.argv[1] == "make-runs":
        make_runs(Path(sys.argv[2]))
    else:
        present = [name for name in ("torch", "transformers") if importlib.util.find_spec(name)]
        assert not present, f"{present} are installed here"
        main(sys.argv[1], sys.argv[2], predict_onnx=True)
