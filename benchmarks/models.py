"""Which model wins: architectures, text, both orders, blending, on one split by prompt.

    python benchmarks/models.py battles.parquet --encoder ./all-MiniLM-L6-v2 --folder models-benchmark

Draws training, validation and test battles that share no prompt, trains every row below on the same training battles
with the `prefcli` command (runs that are there are not trained again), predicts the test battles and prints one table:
log loss with its 95 % interval, and the paired difference to the first row. Both intervals resample prompts. Blending
weights and temperatures are fitted on the validation battles; nothing but the last column's score looks at the test.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefcli import metrics
from prefcli.battles import Source, labels_of
from prefcli.data import tables
from prefcli.readers import open_battles


@dataclass(frozen=True)
class Row:
    """One line of the table: the runs it predicts with, and how."""

    name: str
    runs: tuple[str, ...]
    predict: tuple[str, ...] = ()


NEURAL = ("--warmup", "0.1")
RUNS = {
    "siamese-nltk": ("--architecture", "siamese", "--text", "nltk", *NEURAL),
    "siamese-raw": ("--architecture", "siamese", "--text", "raw", *NEURAL),
    "interaction": ("--architecture", "siamese", "--text", "raw", "--combine", "interaction", *NEURAL),
    "siamese-swap": ("--architecture", "siamese", "--text", "raw", "--swap", *NEURAL),
    "interaction-swap": (
        "--architecture",
        "siamese",
        "--text",
        "raw",
        "--combine",
        "interaction",
        "--swap",
        *NEURAL,
    ),
    "cross": ("--architecture", "cross-encoder", "--text", "raw", *NEURAL),
    "cross-swap": ("--architecture", "cross-encoder", "--text", "raw", "--swap", *NEURAL),
    "cross-tail": ("--architecture", "cross-encoder", "--text", "raw", "--truncation", "head-tail", *NEURAL),
    "reward": ("--architecture", "reward", "--text", "raw", *NEURAL),
    "reward-centred": ("--architecture", "reward", "--text", "raw", "--center-rewards", "0.01", *NEURAL),
    "reward-tie": ("--architecture", "reward", "--text", "raw", "--tie", "prompt", *NEURAL),
    "features": ("--architecture", "features"),
}
SETTINGS = {
    "seed 1": ("--seed", "1"),
    "seed 2": ("--seed", "2"),
    "label smoothing 0.1": ("--label-smoothing", "0.1"),
    "label smoothing 0.2": ("--label-smoothing", "0.2"),
    "head-tail": ("--truncation", "head-tail"),
    "dropout 0": ("--dropout", "0"),
    "dropout 0, label smoothing 0.2": ("--dropout", "0", "--label-smoothing", "0.2"),
    "layer decay 0.8": ("--layer-decay", "0.8"),
    "layer decay 0.8, twice the learning rate": ("--layer-decay", "0.8", "--lr", "2e-4"),
    "pre-training of 250 steps": ("--pretrain", "250"),
    "1 new layer": ("--reinit-layers", "1"),
    "2 new layers": ("--reinit-layers", "2"),
    "pooling cls": ("--pooling", "cls"),
    "pooling attention": ("--pooling", "attention"),
    "two-layer head": ("--head", "mlp"),
}
"""What is changed one at a time in the siamese model with interaction and both orders, which `--recipe strong` sets."""
RUNS |= {f"strong {name}": (*RUNS["interaction-swap"], *flags) for name, flags in SETTINGS.items()}
SWAP = ("--swap-average",)
PLAIN = ("--no-calibration",)
ROWS = (
    Row("siamese, nltk (baseline)", ("siamese-nltk",), PLAIN),
    Row("siamese, raw", ("siamese-raw",), PLAIN),
    Row("siamese, raw, swap-averaged", ("siamese-raw",), PLAIN + SWAP),
    Row("siamese, raw, interaction", ("interaction",), PLAIN),
    Row("siamese, raw, --swap", ("siamese-swap",), PLAIN),
    Row("siamese, raw, --swap, swap-averaged", ("siamese-swap",), PLAIN + SWAP),
    Row("siamese, raw, interaction, --swap, swap-averaged", ("interaction-swap",), PLAIN + SWAP),
    Row("cross-encoder", ("cross",), PLAIN),
    Row("cross-encoder, swap-averaged", ("cross",), PLAIN + SWAP),
    Row("cross-encoder, --swap", ("cross-swap",), PLAIN),
    Row("cross-encoder, --swap, swap-averaged", ("cross-swap",), PLAIN + SWAP),
    Row("cross-encoder, --swap, swap-averaged, temperature", ("cross-swap",), SWAP),
    Row("siamese, raw, interaction, --swap, swap-averaged, temperature", ("interaction-swap",), SWAP),
    Row("cross-encoder, head-tail", ("cross-tail",), PLAIN),
    Row("reward", ("reward",), PLAIN),
    Row("reward, temperature", ("reward",)),
    Row("reward, --center-rewards 0.01", ("reward-centred",), PLAIN),
    Row("reward, --tie prompt", ("reward-tie",), PLAIN),
    Row("features", ("features",), PLAIN),
    Row("features, temperature", ("features",)),
    Row("blend: features + cross-encoder", ("features", "cross-swap"), SWAP),
    Row("blend: features + siamese with interaction", ("features", "interaction-swap"), SWAP),
    Row("blend: features + reward", ("features", "reward")),
    Row(
        "blend: features + cross-encoder + siamese with interaction",
        ("features", "cross-swap", "interaction-swap"),
        SWAP,
    ),
    Row("strong", ("interaction-swap",), PLAIN + SWAP),
    *(Row(f"strong, {name}", (f"strong {name}",), PLAIN + SWAP) for name in SETTINGS),
)


def main() -> None:
    parser = arguments(__doc__ or "", "models-benchmark")
    parser.add_argument("--rows", nargs="*", default=[], help="print only rows whose name holds one of these")
    parser.add_argument("--only", nargs="*", default=list(RUNS), help="runs to train now")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    files = draw(args)
    for name in args.only:
        train(name, args, files)
    rows = [row for row in ROWS if not args.rows or any(part in row.name for part in args.rows)]
    print_table(args, files, rows)


def arguments(description: str, folder: str) -> argparse.ArgumentParser:
    """The arguments that say which battles, which encoder and how it is trained."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("battles", type=Path)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--folder", type=Path, default=Path(folder))
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--validation", type=int, default=800)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=256, help="of a battle: one sequence, or two of half the length")
    parser.add_argument("--lr", default="1e-4")
    parser.add_argument("--precision", default="auto")
    return parser


def draw(args: argparse.Namespace) -> dict[str, Path]:
    """Training, validation and test battles that share no prompt, as files."""
    files = {name: args.folder / f"{name}.parquet" for name in ("train", "validation", "test")}
    if all(path.exists() for path in files.values()):
        return files
    table = pa.Table.from_batches([batch for batch, _ in open_battles(Source.of(args.battles)).batches()])
    keys = table["prompt_key"].to_numpy()
    random = np.random.default_rng(0)
    prompts = random.permutation(np.unique(keys))
    cut = (int(len(prompts) * 0.69), int(len(prompts) * 0.81))
    for (name, path), prompts_of_part in zip(files.items(), np.split(prompts, cut), strict=True):
        rows = np.flatnonzero(np.isin(keys, prompts_of_part) & (labels_of(table) >= 0))
        chosen = np.sort(random.permutation(rows)[: getattr(args, name)])
        pq.write_table(table.take(chosen), path)
        print(f"{name}: {len(chosen):,} battles, {len(np.unique(keys[chosen])):,} prompts", flush=True)
    return files


def prefcli(args: argparse.Namespace, *arguments: object) -> str:
    command = [sys.executable, "-m", "prefcli", "--workspace", str(args.folder / ".prefcli"), *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def train(name: str, args: argparse.Namespace, files: dict[str, Path]) -> None:
    train_run(args.folder / name, RUNS[name], args, files["train"], "--validation-file", files["validation"])


def train_run(run: Path, flags: Sequence[str], args: argparse.Namespace, *inputs: object) -> None:
    """Train into a folder, unless the run is there."""
    if (run / "validation.parquet").exists():
        return
    flags = list(flags)
    if "features" not in flags:
        tokens = args.tokens if "cross-encoder" in flags else args.tokens // 2
        given = ["--encoder", args.encoder, "--max-length", str(tokens), "--lr", args.lr, "--precision", args.precision]
        flags = [*given, *flags]  # of a flag that is given twice the last one counts
    started = time.monotonic()
    result = json.loads(prefcli(args, "train", *inputs, *flags, "--output", run, "--force", "--json"))
    (run / "seconds.json").write_text(json.dumps([time.monotonic() - started, result["battles_per_second"]]))


def print_table(args: argparse.Namespace, files: dict[str, Path], rows: Sequence[Row]) -> None:
    truth = pq.read_table(files["test"])
    labels, keys = labels_of(truth), truth["prompt_key"].to_numpy()
    prior = np.bincount(labels, minlength=3) / len(labels)
    entropy = -(prior * np.log(prior)).sum()
    print(f"\n{len(labels):,} test battles, {len(np.unique(keys)):,} prompts; prior {entropy:.4f}\n")
    print("| model | log loss | 95 % interval | difference to the first row | to the best single model | calibration |")
    print("|---|---|---|---|---|---|")
    scored: list[tuple[Row, np.ndarray, str]] = []
    for row in rows:
        if not all((args.folder / run / "validation.parquet").exists() for run in row.runs):
            continue
        models = [part for run in row.runs for part in ("--model", args.folder / run)]
        output = args.folder / f"predictions of {row.name.replace(':', '')}.parquet"
        if not output.with_suffix(".json").exists():
            said = prefcli(
                args, "predict", files["test"], *models, *row.predict, "--output", output, "--force", "--json"
            )
            output.with_suffix(".json").write_text(said)
        result = json.loads(output.with_suffix(".json").read_text())
        _, probabilities = tables.read_probabilities(output)
        fitted = (
            ", ".join(f"{weight:.2f}" for weight in result["weights"]) if "--no-calibration" not in row.predict else ""
        )
        scored.append((row, metrics.losses(probabilities, labels), fitted))
    best = min((losses for row, losses, _ in scored if len(row.runs) == 1), key=lambda losses: float(losses.mean()))
    for row, losses, fitted in scored:
        interval = "{:.4f} to {:.4f}".format(*metrics.bootstrap_interval(losses, groups=keys))
        differences = [_difference(losses - other, keys) for other in (scored[0][1], best)]
        print(f"| {row.name} | {losses.mean():.4f} | {interval} | {differences[0]} | {differences[1]} | {fitted} |")


def _difference(differences: np.ndarray, keys: np.ndarray) -> str:
    if not differences.any():
        return ""
    low, high = metrics.bootstrap_interval(differences, groups=keys)
    return f"{differences.mean():+.4f} ({low:+.4f} to {high:+.4f})"


if __name__ == "__main__":
    main()
