"""What a GPU makes of prefcli, as Markdown for docs/benchmarks.md: ``make bench-gpu``, ``python benchmarks/gpu.py``.

It needs no network: weights are random, of true shapes, and battles synthetic unless ``--data`` names some. Each case
is a process with a time limit. One that fails becomes a row with its reason, and the others go on; the file that is
written is complete after each case. ``--only`` measures some sections again and keeps the others of that file. The
whole takes at most ``--minutes``; cases that do not fit are rows, too. ``--size toy`` shows on a CPU, in a minute, that
everything works; its figures mean nothing.

1. *equality*: outputs, gradients and the first 20 losses of every fast path beside transformers' own modules in a plain
   loop, in fp32, fp16 and bf16;
2. *speed*: training and prediction beside Hugging Face's Trainer and sentence-transformers' CrossEncoder, at 64 battles
   a step, alternating, medians;
3. *lora*: Gemma 2's shape of 2 billion weights beside Trainer with peft and TRL's RewardTrainer, and in 4 bits;
4. *features*: an overflow in float16, a kill and a resumption, torch.compile, CUDA graphs;
5. *profile*: the three largest costs of a training step.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


def set_environment() -> None:
    """Of this process and those that it starts; before torch and the hub's library are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] = "0"  # some containers set it: float32 would not be float32
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # of several cards the Trainer would use all


@dataclass(frozen=True)
class Section:
    title: str
    columns: tuple[str, ...]
    reading: str
    cases: tuple[tuple[str, ...], ...]
    """Names of functions in ``gpu_cases``, each with its argument, if it has one."""
    seconds: float
    """A case's limit."""


MIN_BATTLES = 256
MODELS = ("DeBERTa-v3-small", "DeBERTa-v3-base", "DeBERTa-v3-large", "ModernBERT-base", "MiniLM")
SECTIONS = {
    "equality": Section(
        "On a GPU: equality with transformers",
        ("model", "precision", "outputs", "gradients", "first 20 losses", "within the bounds"),
        "Largest differences to transformers' own modules in float32, relative to the largest value; bounds in "
        "brackets, in half precision twice what transformers' own modules differ by.",
        tuple(("equality", precision) for precision in ("fp32", "fp16", "bf16")),
        120,
    ),
    "speed": Section(
        "On a GPU: training and prediction",
        (
            "model", "what", "way", "battles/s (lowest to highest)", "times the first way",
            "share of the matmul rate", "peak GB", "battles in a pass",
        ),
        "Siamese, 64 battles a step; *joint*: one sequence a battle, from text to probabilities.",
        tuple(("speed", model) for model in MODELS),
        150,
    ),
    "lora": Section(
        "On a GPU: Gemma 2 with LoRA",
        ("sequences", "way", "battles/s (lowest to highest)", "peak MB", "share of the matmul rate"),
        "2 billion random weights, rank 16 in every linear layer, recomputed activations, 16 battles a step.",
        (("lora", "joint sequence"), ("lora", "joint sequence, 4 bit"), ("lora", "reward")),
        180,
    ),
    "features": Section(
        "On a GPU: what is promised",
        ("what", "how", "measured", "verdict"),
        "Compiled and replayed passes have a repeated shape.",
        (
            ("overflow",), ("resume",), ("compiled", "DeBERTa-v3-small"), ("compiled", "MiniLM"),
            ("graphs", "DeBERTa-v3-small"), ("graphs", "MiniLM"),
        ),
        120,
    ),
    "profile": Section(
        "On a GPU: what a training step costs",
        ("model", "operation", "ms a step of 64 battles", "share"),
        "The three operations that take the most, with the time of the kernels that they start.",
        (("profile",),),
        90,
    ),
}  # fmt: skip


def machine(device: str) -> str:
    """Card, driver, versions, date."""
    import torch

    gpu = device != "cpu" and torch.cuda.is_available()
    card = torch.cuda.get_device_name() if gpu else f"no GPU: a CPU of {os.cpu_count()} cores"
    driver = "none"
    if gpu:
        try:
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
        except (OSError, subprocess.SubprocessError, IndexError):
            driver = "unknown"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "prefcli")]
    return (
        f"{card}; driver {driver}; CUDA {torch.version.cuda or 'none'}; {', '.join(versions)}; {datetime.date.today()}"
    )


def run_case(command: Sequence[str], seconds: float, on_row: Callable[[list[str]], None]) -> str:
    """Hand on the rows that a process prints, as lines of ``@`` and JSON; returns why it failed, else nothing."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8", start_new_session=True
        ) as process,
    ):
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(max(seconds, 0), stop)
        timer.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("@"):
                    on_row(json.loads(line[1:]))
            code = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:  # an interrupt reaches this process alone
                stop()
        if timed_out.is_set():
            return f"not measured: not finished within {seconds:.0f} s"
        if code == 0:
            return ""
        errors.seek(0)
        lines = [line.strip() for line in errors if line.strip()]
        if code < 0:
            lines.append(f"{signal.Signals(-code).name} ended the process")
        last = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else f"exit code {code}")
        return f"not measured: {last[:200]}"


def table(section: Section, rows: Sequence[Sequence[str]], heading: str) -> str:
    """A section in Markdown."""
    cells = [[*row, *[""] * (len(section.columns) - len(row))] for row in rows]
    lines = [section.columns, ["---"] * len(section.columns), *cells]
    text = "\n".join("| " + " | ".join(re.sub(r"[|\s]+", " ", cell) for cell in line) + " |" for line in lines)
    return f"#### {section.title}\n\n- **Machine.** {heading}\n- **Reading.** {section.reading}\n\n{text}\n"


def save(path: Path, sections: dict[str, str]) -> None:
    """Write the sections, by title, and keep the file's others."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    kept = {text.partition("\n")[0].removeprefix("#### "): text for text in re.split(r"(?m)^(?=#### )", before) if text}
    kept |= sections
    order = [section.title for section in SECTIONS.values()]
    texts = [kept[title].strip() + "\n" for title in sorted(kept, key=lambda t: order.index(t) if t in order else -1)]
    temporary = path.with_name(path.name + ".part")
    temporary.write_text("\n".join(texts), encoding="utf-8")
    temporary.replace(path)


def in_a_process(setting: dict[str, Any]) -> Callable[..., str]:
    """How a case is run: by this script in a process of its own."""

    def run(case: Sequence[str], seconds: float, on_row: Callable[[list[str]], None]) -> str:
        return run_case([sys.executable, __file__, "--case", json.dumps([setting, *case])], seconds, on_row)

    return run


def add(rows: list[list[str]], row: list[str]) -> None:
    rows.append(row)
    print(*row, sep=" | ", flush=True)


def measure(
    names: Sequence[str], output: Path, heading: str, run: Callable[..., str], *, minutes: float
) -> Iterator[tuple[str, list[list[str]]]]:
    """Run the sections' cases and write the file after each; gives each section's name and rows."""
    begun = time.monotonic()
    for name in names:
        section = SECTIONS[name]
        rows: list[list[str]] = []
        on_row = functools.partial(add, rows)
        for case in section.cases:
            left = 60 * minutes - (time.monotonic() - begun)
            reason = "not measured: the time was over"
            if left > 0:
                reason = run(case, min(section.seconds, left), on_row)
            if reason:
                add(rows, [case[-1], reason])
            save(output, {section.title: table(section, rows, heading)})
        yield name, rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "toy"), default="full")
    parser.add_argument("--data", type=Path, help="battles with outcomes instead of synthetic ones")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--output", type=Path, default=Path("bench-gpu.md"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="of speed and features; by default what prefcli chooses")
    parser.add_argument("--minutes", type=float, default=19.0)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    import gpu_cases
    import peers

    if options.case:
        values, function, *rest = json.loads(options.case)
        setting = gpu_cases.Setting(**values | {"data": Path(values["data"])})
        for row in gpu_cases.run(setting, function, *rest):
            print("\n@" + json.dumps(row), flush=True)
        return
    heading = machine(options.device)
    toy = options.size == "toy"
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder, "battles.csv")
        if options.data is None:
            gpu_cases.write_battles(data, *((400, 0.5) if toy else (2048,)))
        if (found := peers.read_battles(data, MIN_BATTLES).num_rows) < MIN_BATTLES:
            parser.error(f"{data} has {found} battles with a known outcome, and {MIN_BATTLES} are needed")
        setting = gpu_cases.Setting(data.absolute(), toy, options.device, options.precision, seconds=0 if toy else 25)
        values = asdict(setting) | {"data": str(setting.data)}
        print(heading)
        for _ in measure(options.only, options.output, heading, in_a_process(values), minutes=options.minutes):
            pass
    print(f"\n{options.output.read_text(encoding='utf-8')}\n{options.output} holds this.")


if __name__ == "__main__":
    set_environment()
    main()
