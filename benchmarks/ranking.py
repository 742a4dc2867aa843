"""Rate and memory of ``prefcli rank``: ``python benchmarks/ranking.py [--battles FILE] [--encoder FOLDER]``.

Trains one small run of each architecture, then ranks 1,000 prompts with 2 to 16 answers each, and prints the rate and
the peak memory of the process. A reward run reads each answer once, so its time for a prompt grows with the number of
answers; a run that compares pairs needs k (k - 1) / 2 of them for k answers. The time of loading is not in the rate
(``answers_per_second`` of the command). Answers are those of FILE, or synthetic ones of 24 words.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from prefcli.battles import Source, texts_of
from prefcli.data import synthetic
from prefcli.readers import open_battles

ARCHITECTURES = ("reward", "siamese", "cross-encoder", "features")


def answers_by_prompt(battles: Path) -> dict[str, list[str]]:
    """The different answers to every prompt."""
    table = pa.Table.from_batches([batch for batch, _ in open_battles(Source.of(battles)).batches()])
    found: dict[str, dict[str, None]] = {}
    for prompt, *answers in zip(*(texts_of(table[c]) for c in ("prompt", "response_a", "response_b")), strict=True):
        found.setdefault(prompt, {}).update(dict.fromkeys(answers))
    return {prompt: list(answers) for prompt, answers in found.items()}


def write_questions(path: Path, answers: dict[str, list[str]], prompts: int, size: int) -> Path:
    """So many prompts with so many answers each; a prompt comes again, with other answers, if there are too few."""
    random = np.random.default_rng(size)
    pool = [text for own in answers.values() for text in own]
    with path.open("w") as file:
        for number, (prompt, own) in zip(range(prompts), _forever(answers), strict=False):
            texts = own if len(own) >= size else pool
            chosen = [texts[i] for i in random.choice(len(texts), size, replace=False)]
            file.write(json.dumps({"id": str(number), "prompt": prompt, "responses": chosen}) + "\n")
    return path


def _forever(answers: dict[str, list[str]]) -> Iterator[tuple[str, list[str]]]:
    while True:
        yield from answers.items()


def prefcli(workspace: Path, *arguments: object) -> tuple[dict[str, float], float]:
    """The result of a command, and the peak megabytes of its process."""
    command = [sys.executable, "-m", "prefcli", "--workspace", str(workspace), *map(str, arguments), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return json.loads(text), usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--battles", type=Path, help="to train on and to take answers from, instead of synthetic ones")
    parser.add_argument("--encoder", default="tiny")
    parser.add_argument("--tokens", type=int, default=256, help="of a sequence")
    parser.add_argument("--train", type=int, default=500, help="battles that the runs are trained on")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="*", default=[2, 4, 8, 16], help="answers of a prompt")
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        battles = args.battles or synthetic.write(root / "data", train=3000, test=10).train
        answers = answers_by_prompt(battles)
        files = {size: write_questions(root / f"{size}.jsonl", answers, args.prompts, size) for size in args.sizes}
        print("| architecture | answers of a prompt | prompts/s | answers/s | pairs | time an answer | peak MB |")
        print("|---|---|---|---|---|---|---|")
        for architecture in args.architectures:
            flags = ["--architecture", architecture, "--text", "raw", "--validation", 0, "--limit", args.train]
            if architecture != "features":
                flags += ["--encoder", args.encoder, "--max-length", args.tokens, "--max-steps", 1]
            run = root / architecture
            prefcli(root / "workspace", "train", battles, *flags, "--output", run)
            for size, file in files.items():
                output = root / f"{architecture}-{size}.jsonl"
                result, memory = prefcli(root / "workspace", "rank", file, "--model", run, "--output", output)
                rate = result["answers_per_second"]
                print(
                    f"| {architecture} | {size} | {rate / size:,.1f} | {rate:,.1f} | {result['pairs']:,.0f} "
                    f"| {1000 / rate:.2f} ms | {memory:,.0f} MB |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
