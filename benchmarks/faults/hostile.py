"""Attack prefcli through every file that it reads, and check that no attack works.

``python benchmarks/faults/hostile.py [--only PART,...]`` prints, for each part, what was tried, how often, and what
happened; it exits with 1 if anything was run, requested, opened or shown that must not be. The parts:

- ``pickles``: weights, checkpoints and arrays that run code when unpickled; each is first loaded carelessly, which must run it
- ``models``: model folders with code, kernels, adapters, quantisers, and names that lead elsewhere (see hostile_models.py);
  with ``strace`` also what native code opens and connects to
- ``runs``: a run's folder in which one file is something else
- ``paths``: archives, workspaces and files whose names lead elsewhere
- ``pages``: markup in every text of a report, opened in Chromium while a server records its requests
- ``cards``: Markdown, HTML and YAML in everything a model card names
- ``terminal``: escape sequences in data and names, on a real terminal (a pty) and in pipes
- ``secrets``: tokens and passwords in the environment, searched for in all output and files
- ``temporary``: what lies in the temporary folder during every verb, and who may read it

Some parts need ``chromium`` or ``strace``, and report it if these are missing. With peft and kernels installed,
``models`` tests more.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import pty
import re
import select
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tests")]

import hostile_models
import payloads

from prefcli import encoders
from prefcli.cli.main import run as prefcli_run
from prefcli.data import synthetic
from prefcli.errors import PrefcliError

COLUMNS = [
    "id",
    "model_a",
    "model_b",
    "prompt",
    "response_a",
    "response_b",
    "winner_model_a",
    "winner_model_b",
    "winner_tie",
]
SECRETS = {
    "HF_TOKEN": "hf_SECRETtokenONE",
    "HUGGING_FACE_HUB_TOKEN": "hf_SECRETtokenTWO",
    "HTTP_PROXY": "http://user:SECRETproxyONE@127.0.0.1:9",
    "HTTPS_PROXY": "http://user:SECRETproxyTWO@127.0.0.1:9",
    "ALL_PROXY": "http://user:SECRETproxyTHREE@127.0.0.1:9",
    "AWS_SECRET_ACCESS_KEY": "SECRETcloud",
    "WANDB_API_KEY": "SECRETwandb",
}


@dataclass
class Part:
    """What one part tried, and the outcomes."""

    what: str
    attempts: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def count(self, outcome: str, failure: str = "") -> None:
        """One more attempt; ``failure`` says what must not have happened."""
        self.attempts += 1
        self.outcomes["HARM" if failure else outcome] += 1
        if failure:
            self.failures.append(failure)


# Helpers


def command(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``prefcli`` in a process of its own; its standard input says yes to everything."""
    return subprocess.run(
        [sys.executable, "-m", "prefcli", *map(str, arguments)],
        cwd=cwd, env={**os.environ, **environment}, input="y\n" * 20, capture_output=True, text=True, errors="replace",
        timeout=300, check=False,
    )  # fmt: skip


def quietly(arguments: Iterable[object]) -> tuple[int, str]:
    """``prefcli`` in this process: exit code, and what it wrote to stdout and stderr."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = prefcli_run([str(argument) for argument in arguments])
    return code, said.getvalue()


def unclear_error(code: int, said: str) -> str:
    """Why an error message is not one to three lines without a traceback; empty when it is."""
    if code == 0:
        return ""
    lines = said.rstrip("\n").split("\n")
    errors = lines[next((i for i, line in enumerate(lines) if line.startswith("error: ")), len(lines)) :]
    if "Traceback" in said or not 1 <= len(errors) <= 3 or code not in (1, 2) or "unexpected" in errors[0]:
        return f"exit {code}: {said[-300:]!r}"
    return ""


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    import csv

    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    return path


def battle(number: int, **fields: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": str(number), "model_a": "left", "model_b": "right", "prompt": [f"question {number}"],
        "response_a": ["one answer"], "response_b": ["another " + "answer " * (number % 5)],
    }  # fmt: skip
    row |= {name: int(number % 3 == i) for i, name in enumerate(COLUMNS[6:])}
    return row | fields


def make_folders(at: Path) -> tuple[Path, Path]:
    """The tests' two small pretrained folders: safetensors with a fast tokenizer, and float16 .bin with spm.model."""
    import conftest

    class Folders:
        def mktemp(self, name: str) -> Path:
            (at / name).mkdir(parents=True)
            return at / name

    return conftest.bert_folder.__wrapped__(Folders()), conftest.deberta_folder.__wrapped__(Folders())


def make_runs(at: Path) -> dict[str, Path]:
    """A small neural run and one of features, trained here."""
    files = synthetic.write(at / "data", train=240, test=20)
    made = {}
    for name, flags in {
        "neural": ["--encoder", "tiny", "--max-length", "64", "--limit", "100", "--text", "raw", "--keep-checkpoints"],
        "features": ["--recipe", "fast"],
    }.items():
        made[name] = at / name
        code, said = quietly(["train", files.train, "--output", made[name], "--workspace", at / "w", *flags])
        if code:
            raise SystemExit(said)
    return made


@contextmanager
def beacons() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine, and the paths it has been asked for."""
    asked: list[str] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()


def reseal(run: Path) -> None:
    """Make a changed run's checksums match, or remove them, as an attacker would."""
    import hashlib

    (run / "SHA256SUMS").unlink(missing_ok=True)
    try:
        manifest = json.loads((run / "features.json").read_text())
        manifest["sha256"] = {
            name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in manifest["sha256"]
        }
        (run / "features.json").write_text(json.dumps(manifest))
    except (OSError, ValueError, TypeError, KeyError):
        pass  # another architecture, or the manifest itself is what was changed


# Parts


def pickles(at: Path) -> Iterator[Part]:
    import torch

    _, deberta = make_folders(at)
    marker = at / "ran"
    tensors = dict(torch.load(deberta / "pytorch_model.bin", weights_only=True))
    control = Part("control: the same pickles, loaded carelessly")
    part = Part("pickles as pytorch_model.bin, as a shard, as safetensors, as a shard called safetensors")
    original = (deberta / "pytorch_model.bin").read_bytes()
    for name, data in payloads.pickles(marker, tensors).items():
        loose = at / "loose"
        loose.write_bytes(data)
        payloads.load_carelessly(name, loose)
        control.count("run" if marker.exists() else "not run", "" if marker.exists() else f"{name} is no payload")
        marker.unlink(missing_ok=True)
        for place in (
            "pytorch_model.bin",
            "shard of bin",
            "model.safetensors",
            "shard of safetensors",
            "safetensors names a .pkl",
        ):
            folder = at / "attacked"
            shutil.copytree(deberta, folder)
            (folder / "pytorch_model.bin").unlink()
            weights = {"shard of bin": "pytorch_model-2.bin", "shard of safetensors": "model-2.safetensors"}.get(
                place, place
            )
            weights = "weights.pkl" if place == "safetensors names a .pkl" else weights
            (folder / weights).write_bytes(data)
            if place not in ("pytorch_model.bin", "model.safetensors"):
                index = "pytorch_model.bin.index.json" if place == "shard of bin" else "model.safetensors.index.json"
                (folder / "pytorch_model-1.bin").write_bytes(original)
                names = dict.fromkeys(list(tensors)[1:], "pytorch_model-1.bin") | {next(iter(tensors)): weights}
                (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": names}))
            try:
                encoders.make_encoder(encoders.locate(str(folder)), 0, seed=0)
                part.count("loaded", f"{name} as {place} was loaded")
            except PrefcliError as error:
                clear = "not run" in error.what and error.exit_code == 1 and "safetensors" in error.hint
                ran = marker.exists()
                part.count("refused, not run", f"{name} as {place}: ran={ran}, {error}" if ran or not clear else "")
            marker.unlink(missing_ok=True)
            shutil.rmtree(folder)
    yield control
    yield part
    harmless = Part("a harmless float16 pytorch_model.bin")
    encoders.make_encoder(encoders.locate(str(deberta)), 0, seed=0)
    harmless.count("loaded")
    yield harmless


def models(at: Path) -> Iterator[Part]:
    bert, deberta = make_folders(at / "originals")
    outside = at / "all"
    outside.mkdir()
    folders = list(hostile_models.folders(bert, deberta, outside))
    trace = at / "trace"
    tracer = (
        ["strace", "-f", "-qq", "-e", "trace=connect,open,openat,execve", "-o", str(trace)]
        if shutil.which("strace")
        else []
    )
    done = subprocess.run(
        [*tracer, sys.executable, str(HERE / "hostile_models.py"), *map(str, folders)],
        env={**os.environ, "HF_HOME": str(at / "hub")}, input="y\n" * 1000, capture_output=True, text=True, check=False,
    )  # fmt: skip
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    part = Part("model folders: code, kernels, adapters, quantisers, names that lead elsewhere")
    for report in reports:
        harm = "; ".join(report["did"]) + (report["said"] if "UNFORESEEN" in report["said"] else "")
        part.count(
            "loaded as the library's own" if report["said"].startswith("loaded | loaded") else "refused",
            harm and f"{report['folder']}: {harm}",
        )
    if len(reports) != len(folders) or (outside / "ran").exists() or list(outside.glob("*-written*")):
        part.failures.append(
            f"{len(reports)} of {len(folders)} folders survived; {[p.name for p in outside.iterdir() if p.is_file()]}"
        )
    yield part
    native = Part("the same, as the kernel saw it (strace)")
    if tracer:
        for line in trace.read_text(errors="replace").splitlines():
            opened = hostile_models.CANARY in line and "ENOENT" not in line
            asked = "connect(" in line and ("AF_INET" in line)
            if opened or asked:
                native.failures.append(line[:200])
        native.attempts, native.outcomes = (
            len(reports),
            Counter({"nothing opened or asked": len(reports)} if not native.failures else {}),
        )
    else:
        native.outcomes["strace is not installed"] = 0
    yield native


def runs(at: Path) -> Iterator[Part]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    made, marker = make_runs(at), at / "ran"
    test = at / "data" / "test.csv"
    part = Part("runs in which one file is a pickle, an object array, nonsense, or names something elsewhere")
    evil = payloads.pickles(marker, {"w": torch.zeros(2)})
    objects = at / "objects.npy"
    np.save(objects, np.array([payloads.calls_that_mark(marker)["exec"]], dtype=object), allow_pickle=True)
    contents = {name: data for name, data in evil.items() if "exec" in name or "os.system" in name}
    contents |= {
        "object array": objects.read_bytes(),
        "nothing": b"",
        "nonsense": bytes(range(256)) * 20,
        "list": b"[1]",
        "null": b"null",
    }
    files = {
        "neural": ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "validation.parquet",
                   "metrics.jsonl", "pytorch_model.bin", "checkpoints/kept.json"],
        "features": ["booster.txt", "model.safetensors", "features.json", "config.json", "validation.parquet"],
    }  # fmt: skip
    checkpoint = next((made["neural"] / "checkpoints").glob("step-*")).name
    files["neural"] += [
        f"checkpoints/{checkpoint}/{name}"
        for name in ("model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")
    ]
    for kind, names in files.items():
        for name in names:
            for label, data in contents.items():
                attacked = at / "attacked"
                shutil.copytree(made[kind], attacked)
                (attacked / name).write_bytes(data)
                reseal(attacked)
                resumes = "checkpoints" in name or name == "metrics.jsonl"
                verb = (
                    ["train", "--resume", attacked]
                    if resumes
                    else ["predict", test, "-m", attacked, "-o", at / "p.csv", "--force"]
                )
                code, said = quietly([*verb, "--workspace", at / "w"])
                wrong = unclear_error(code, said)
                if marker.exists():
                    wrong = "it was run"
                part.count(
                    "refused" if code else "not read, or made anew", wrong and f"{kind}, {name} = {label}: {wrong}"
                )
                marker.unlink(missing_ok=True)
                shutil.rmtree(attacked)
    yield part
    settings = Part("runs whose own config names kernels, code, other models, files elsewhere")
    hostile: list[dict[str, Any]] = [
        {"attn_implementation": kernel} for kernel in (*hostile_models.KERNELS, {"": "evil/kernel"})
    ]  # fmt: skip
    hostile += [{"quantization_config": {"quant_method": method}} for method in hostile_models.QUANTISERS]
    hostile += [
        {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}, "model_type": kind}
        for kind in ("bert", "evil", "encoder-decoder")
    ]
    hostile += list(hostile_models.OTHER_TYPES)
    hostile += [{"hidden_size": value} for value in (-1, 0, 10**12, "128", None, 1.5, [])] + [
        {"num_hidden_layers": -1},
        {"hidden_act": "evil"},
    ]
    for change in hostile:
        attacked = at / "attacked"
        shutil.copytree(made["neural"], attacked)
        config = json.loads((attacked / "config.json").read_text())
        config |= change
        (attacked / "config.json").write_text(json.dumps(config))
        reseal(attacked)
        (attacked / "evil.py").write_text(hostile_models.CODE.format(marker=str(marker)))
        code, said = quietly(["predict", test, "-m", attacked, "-o", at / "p.csv", "--force", "--workspace", at / "w"])
        wrong = "it was run" if marker.exists() else unclear_error(code, said)
        settings.count("refused" if code else "not obeyed", wrong and f"{change}: {wrong}")
        shutil.rmtree(attacked)
    yield settings
    boosters = Part("boosters with trees that point elsewhere (in processes of their own)")
    yield _boosters(at, made["features"], test, boosters)
    table = pq.read_table(made["features"] / "validation.parquet")
    extension = Part("Parquet with an extension type made of a pickle")
    evil_schema = table.schema.with_metadata(
        {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": evil["pickle 2, exec"]}
    )
    field_ = pa.field(
        "id",
        pa.string(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": evil["pickle 2, exec"],
        },
    )
    fields = [field_, *list(evil_schema)[1:]]
    pq.write_table(table.cast(pa.schema(fields)), made["features"] / "validation.parquet")
    reseal(made["features"])
    code, said = quietly(
        ["predict", test, "-m", made["features"], "-o", at / "p.csv", "--force", "--workspace", at / "w"]
    )
    extension.count("not run", "it was run" if marker.exists() else unclear_error(code, said))
    yield extension


def _boosters(at: Path, run: Path, test: Path, part: Part) -> Part:
    """Change one number of the trees at a time, with a right checksum, and look whether the process survives."""
    import random

    text = (run / "booster.txt").read_text()
    chosen = random.Random(0)
    for key in (
        "split_feature",
        "left_child",
        "right_child",
        "threshold",
        "num_leaves",
        "leaf_value",
        "decision_type",
        "num_cat",
        "max_feature_idx",
        "num_class",
        "num_tree_per_iteration",
        "tree_sizes",
    ):
        for value in ("99999999", "-99999999", "0", "nan", "", "5 5 5 5 5 5 5"):
            lines = text.split("\n")
            places = [i for i, line in enumerate(lines) if line.startswith(f"{key}=")]
            if not places:
                continue
            place = chosen.choice(places)
            numbers = lines[place].partition("=")[2].split()
            numbers[chosen.randrange(len(numbers))] = value
            lines[place] = f"{key}=" + " ".join(numbers)
            attacked = at / "attacked"
            shutil.copytree(run, attacked)
            changed = "\n".join(lines)
            (attacked / "booster.txt").write_text(changed)
            reseal(attacked)
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "prefcli", "predict", test, "-m", attacked, "-o", at / "p.csv", "--force", "--workspace", at / "w"],
                    capture_output=True, text=True, timeout=60, check=False,
                )  # fmt: skip
                wrong = unclear_error(done.returncode, done.stderr)
                part.count("refused" if done.returncode else "predicted", wrong and f"{key}={value!r}: {wrong}")
            except subprocess.TimeoutExpired:
                part.count("", f"{key}={value!r}: never ends")
            shutil.rmtree(attacked)
    return part


def paths(at: Path) -> Iterator[Part]:
    import zipfile

    part = Part("archives, workspaces and names that lead elsewhere: nothing is written outside")
    inside = at / "inside"
    inside.mkdir()
    secret = at / "secret.txt"
    secret.write_text("outside\n")
    content = write_csv(at / "good.csv", [battle(i) for i in range(40)]).read_text()
    before = {path for path in at.rglob("*") if inside not in path.parents}

    def outside(label: str, code: int, said: str) -> None:
        now = {path for path in at.rglob("*") if inside not in path.parents}
        wrong = (
            f"wrote {now - before}" if now != before or secret.read_text() != "outside\n" else unclear_error(code, said)
        )
        part.count("refused" if code else "read, nothing outside", wrong and f"{label}: {wrong}")

    for member in (
        "../../x.csv",
        "/tmp/prefcli-hostile.csv",
        "..\\..\\x.csv",
        "a/../../x.csv",
        "x.csv/../../y.csv",
        "a\nb.csv",
        "\x1b[31m.csv",
        "~/x.csv",
        "C:\\x.csv",
        ".",
    ):
        archive = inside / "a.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr(member, content)
        for verb in ("eda", "preprocess"):
            outside(f"zip member {member!r}", *quietly([verb, archive, "--workspace", inside / "w"]))
    link = inside / "link.zip"
    with zipfile.ZipFile(link, "w") as packed:
        member_info = zipfile.ZipInfo("train.csv")
        member_info.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(member_info, str(secret))
    outside("zip member that is a symbolic link", *quietly(["eda", link, "--workspace", inside / "w"]))
    for name in (
        "../../up",
        "/abs/olute",
        "a/b",
        "nul\x00l",
        "..",
        ".",
        "~",
        "-",
        "--help",
        "con",
        "x" * 5000,
        "\ud800",
        "a\nb",
    ):
        rows = [battle(i, id=f"{name}{i}", model_a=name, model_b=name + "2") for i in range(40)]
        text = [
            {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in row.items()}
            for row in rows
        ]
        source = write_csv(inside / "names.csv", text)
        for verb in (["eda", source, "--report", inside / "r.html", "--force"], ["preprocess", source]):
            outside(f"id and model {name[:20]!r}", *quietly([*verb, "--workspace", inside / "w"]))
    for name in (
        "../secret.txt",
        "/etc/passwd",
        "..",
        "a/../../b",
        "\x00",
        "nul\x00l/model",
        "~nobody-here/model",
        "~",
        "a\nb/c",
        "\ud800/x",
        "-",
        "owner/name@rev",
        "owner/../../etc",
        "https://host/x",
    ):
        outside(
            f"encoder {name!r}",
            *quietly(["train", inside / "names.csv", "--encoder", name, "--workspace", inside / "w"]),
        )
        outside(
            f"run {name!r}",
            *quietly(
                ["predict", inside / "names.csv", "-m", name, "-o", inside / "p.csv", "--workspace", inside / "w"]
            ),
        )
    for label in ("stages", "runs", "latest-train.json", "latest-preprocess.json"):
        space = inside / "linked"
        space.mkdir()
        elsewhere = at / "secret.txt"
        (space / label).symlink_to(elsewhere)
        outside(f"workspace with {label} -> elsewhere", *quietly(["preprocess", at / "good.csv", "--workspace", space]))
        shutil.rmtree(space)
    stage = {"stage": "../../../secret.txt", "source_sha256": "x", "text": "raw"}
    outside_file = {"paths": ["/etc/passwd"], "format": None, "columns": None}
    for what, value in (
        ("train", {"run": "../../secret.txt"}),
        ("train", {"run": 5}),
        ("train", []),
        ("preprocess", {**stage, "source": outside_file}),
        ("preprocess", []),
    ):
        space = inside / "linked"
        space.mkdir()
        (space / f"latest-{what}.json").write_text(json.dumps(value))
        label = f"latest-{what}.json {json.dumps(value)[:40]}"
        predict = ["predict", at / "good.csv", "-o", inside / "p.csv", "--force", "--workspace", space]
        outside(label, *quietly(predict))
        outside(label, *quietly(["train", "--encoder", "tiny", "--text", "raw", "--workspace", space]))
        shutil.rmtree(space)
    yield part


PROBE = """<script>addEventListener('load', () => setTimeout(() => {
  const out = document.createElement('pre'); out.id = 'probe';
  out.textContent = JSON.stringify({ran: ['ran', '1'].includes(document.title), asked: window.alerted || 0,
    foreign: document.querySelectorAll('script:not(:first-of-type),img,iframe,object,embed,link,base,form,video,audio,input,a:not([href^="#"]),image,use,animate,math,template').length,
    handlers: [...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length});
  document.body.append(out); }, 300)); window.alert = () => { window.alerted = 1; };</script>"""


def browse(page: Path, profile: Path) -> str:
    """A page in headless Chromium: its DOM after it has settled."""
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
        "--disable-component-update", f"--user-data-dir={profile}", "--window-size=1280,4000", "--virtual-time-budget=3000", "--dump-dom",
    ]  # fmt: skip
    return subprocess.run(
        [CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""


def hostile_pages(at: Path, texts: list[str], name: str) -> list[Path]:
    """The pages of battles whose every text is one of ``texts``, and of a run trained on them."""
    rows = []
    for i in range(3 * len(texts)):
        a, b = texts[i % len(texts)], texts[(i + 1 + i // len(texts)) % len(texts)]
        rows.append(
            battle(
                i,
                id=f"{a}{i}",
                model_a=a,
                model_b=b + " ",
                prompt=[f"{a}{i % 50}"],
                response_a=[b],
                response_b=[a * (1 + i % 4)],
            )
        )
    folder = at / f"page-{abs(hash(name)) % 10**8}"
    folder.mkdir()
    source = write_csv(folder / (name.replace("/", "∕").replace("\x00", "")[:60] + ".csv"), rows)
    battles, run = folder / "Battles in.html", folder / "Run.html"
    for verb in (
        ["eda", source, "--report", battles, "--top", "200", "--test", source],
        ["train", source, "--recipe", "fast", "--validation", "0.4", "--output", folder / "run"],
        ["report", folder / "run", "--output", run],
    ):
        code, said = quietly([*verb, "--workspace", folder / "w"])
        if code:
            raise SystemExit(said)
    return [battles, run]


def pages(at: Path) -> Iterator[Part]:
    part = Part("markup in names, prompts, answers, ids and file names of reports, in Chromium")
    if not CHROMIUM:
        part.outcomes["chromium is not installed"] = 0
        yield part
        return
    with beacons() as (address, asked):
        texts = payloads.markup(address)
        control = Part("control: the same markup, not escaped")
        for number, text in enumerate(texts):
            raw = at / f"raw-{number}.html"
            raw.write_text(f"<!doctype html><title>still</title>{PROBE}<body><p>{text}</p>")
        ran = 0
        for number in (
            0,
            1,
            2,
            8,
            9,
            13,
            26,
            27,
            29,
            30,
        ):  # one of each kind: script, broken out, image, handler, SVG, link, style
            asked.clear()
            seen = browse(at / f"raw-{number}.html", at / "profile")
            ran += bool(asked) or '"ran":true' in seen
            control.count(
                "ran or asked" if asked or '"ran":true' in seen else "did nothing",
                "" if asked or '"ran":true' in seen else f"payload {number} does nothing",
            )
        yield control
        asked.clear()
        names = [texts[i] for i in (0, 1, 9, 10)]
        made = (
            (name, page)
            for number, name in enumerate(names)
            for page in hostile_pages(at, texts[number::2] if number % 2 else texts, name)
        )
        for name, page in made:
            text = page.read_text(encoding="utf-8")
            for label, shown in (
                ("as it is", text),
                ("policy off", re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', PROBE, text)),
            ):
                probed = page.with_name(f"{label}, {page.name}")
                probed.write_text(shown, encoding="utf-8")
                asked.clear()
                dom = browse(probed, at / "profile")
                placements = sum(text.count(shown_text) for shown_text in map(escaped, texts))
                wrong = f"asked for {asked[:3]}" if asked else ""
                if label == "policy off":
                    (probe,) = re.findall(r'<pre id="probe">(.*?)</pre>', dom) or [""]
                    if json.loads(probe or "{}") != {"ran": False, "asked": 0, "foreign": 0, "handlers": 0}:
                        wrong += f" probe {probe}"
                elif f"<title>{page.stem} " not in dom:
                    wrong += " another title"
                part.count("inert", wrong and f"{label}, {name[:30]!r}: {wrong}")
                part.attempts += placements - 1
                part.outcomes["inert"] += placements - 1
    yield part


def escaped(text: str) -> str:
    from markupsafe import escape

    from prefcli.rendering.templating import printable

    return str(escape(printable(text)))


def cards(at: Path) -> Iterator[Part]:
    from html.parser import HTMLParser

    from markdown_it import MarkdownIt

    part = Part("Markdown, HTML and YAML in everything a model card names")
    made = make_runs(at)
    render = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table").render
    from prefcli.options import TrainOptions
    from prefcli.storage import card
    from prefcli.storage import runs as runs_module

    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: Counter[str] = Counter()

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found[tag] += 1
            self.found.update(
                f"{tag} {name}" for name, value in attrs if name.startswith("on") or "javascript" in (value or "")
            )

    def tags_of(folder: Path) -> tuple[Counter[str], str]:
        text = (folder / "README.md").read_text(encoding="utf-8")
        front, body = text.split("\n---\n", 1)
        tags = Tags()
        tags.feed(render(body))
        return tags.found, front

    for kind, folder in made.items():
        config = runs_module.read_config(folder)
        options = TrainOptions(**config["options"])

        def write(where: Path, changed: dict[str, Any], options: TrainOptions = options) -> None:
            where.mkdir(exist_ok=True)
            card.write(where, options, changed, None, "", [("length", 0.5)])

        write(at / "plain-card", config)
        plain = tags_of(at / "plain-card")
        for text in (*payloads.MARKDOWN, *payloads.markup("http://127.0.0.1:9/"), *payloads.TERMINAL.values()):
            for place in (
                "source",
                "sha",
                "command",
                "placement",
                "encoder_source",
                "cut",
                "text",
                "soft",
                "encoder",
                "folder",
            ):
                changed = json.loads(json.dumps(config))
                where, chosen = at / "card", options
                if place == "source":
                    changed["data"]["source"]["paths"] = [text]
                elif place in ("sha", "soft", "text"):
                    changed["data"][{"sha": "source_sha256", "soft": "soft_labels_sha256", "text": "text"}[place]] = (
                        text
                    )
                elif place == "command":
                    changed["command"] = text
                elif place == "encoder":
                    import dataclasses

                    chosen = dataclasses.replace(options, encoder=text)
                elif place == "folder":
                    where = at / (
                        text.replace("/", "∕").replace("\x00", "")[:80].encode("utf-8", "replace").decode() or "x"
                    )
                else:
                    changed["resolved"][place] = text
                write(where, changed, chosen)
                tags, front = tags_of(where)
                extra = {name: n for name, n in (tags - plain[0]).items() if name not in ("code", "li", "br")}
                raw = (where / "README.md").read_text(encoding="utf-8")
                wrong = f"{extra}" if extra or front != plain[1] else ""
                if any(not (c.isprintable() or c == "\n") for c in raw):
                    wrong += " control characters"
                part.count("letters", wrong and f"{kind}, {place}, {text!r}: {wrong}")
                shutil.rmtree(where)
    yield part


def on_terminal(arguments: list[str], cwd: Path, timeout: float = 120) -> bytes:
    """What a command writes to a real terminal."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-m", "prefcli", *arguments])
    said, end = b"", time.monotonic() + timeout
    while time.monotonic() < end:
        ready, _, _ = select.select([descriptor], [], [], 1.0)
        if ready:
            try:
                block = os.read(descriptor, 65536)
            except OSError:
                break
            if not block:
                break
            said += block
    os.close(descriptor)
    os.waitpid(pid, 0)
    return said


def obeyed(said: bytes, text: str) -> str:
    """Which part of a payload a terminal was given as a command; empty when none."""
    shown = said.decode("utf-8", "replace")
    if text in shown and not text.isprintable():
        return f"{text!r} as it is"
    for piece in (
        "\x1b]0;owned",
        "\x1b]8;;",
        "\x1b]52",
        "\x1b[6n",
        "\x1b[c",
        "\x1bP+q",
        "\x9b",
        "\x9d",
        "\u202e",
        "\u2066",
        "\x07",
        "\x1b[31mred",
        "\x1b[2J\x1b[H",
    ):
        if piece in shown and piece[:4] in text:
            return repr(piece)
    return ""


def terminal(at: Path) -> Iterator[Part]:
    part = Part("escape sequences in data, file names and arguments, on a terminal (pty) and in pipes")
    for name, text in payloads.TERMINAL.items():
        rows = [
            battle(i, id=f"{text}{i}", model_a=text, model_b=text + "2", prompt=[text, str(i)], response_a=[text], response_b=[text * 2])
            for i in range(40)
        ]  # fmt: skip
        folder = at / name
        folder.mkdir()
        file = write_csv(folder / f"{text.replace('/', '')}.csv", rows)
        broken = folder / f"broken{text.replace('/', '')}.csv"
        broken.write_text(
            f"id,prompt,response_a,{text.replace(chr(10), '').replace(chr(13), '')}\n1,2,3,4\n", encoding="utf-8"
        )
        commands: list[list[object]] = [
            ["eda", file], ["preprocess", file, "--preview", "2"], ["preprocess", file, "--text", text.replace("\x00", "")],
            ["preprocess", file], ["eda", broken], ["eda", f"missing{text}"], ["predict", file, "-m", text],
            ["train", file, "--encoder", text], ["train", file, "--config", f"no{text}.toml"], ["eda", file, "--format", text],
            ["eda", file, "--columns", f"prompt={text}"], ["score", file, f"{text}"], [text], ["eda", file, f"--{text}"],
            ["eda", file, "--report", folder / f"r{text.replace('/', '')}.html"], ["eda", f"missing{text}", "--debug"],
        ]  # fmt: skip
        for arguments in commands:
            said = on_terminal([*map(str, arguments), "--workspace", str(folder / "w")], folder)
            wrong = obeyed(said, text)
            part.count("shown, not obeyed", wrong and f"{name}: {' '.join(map(str, arguments))[:60]!r}: {wrong}")
        piped = subprocess.run(
            [sys.executable, "-m", "prefcli", "eda", str(file), "--json", "--workspace", str(folder / "w")],
            capture_output=True, check=False,
        )  # fmt: skip
        wrong = obeyed(piped.stdout + piped.stderr, text)
        part.count("shown, not obeyed", wrong and f"{name}: --json: {wrong}")
    yield part


def secrets(at: Path) -> Iterator[Part]:
    part = Part("tokens and proxies' passwords in the environment: in output, runs, workspace, reports")
    import test_encoders

    files = synthetic.write(at / "data", train=120, test=20)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), test_encoders._Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = {
        **SECRETS,
        "HF_HOME": str(at / "hub"),
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "NO_PROXY": "127.0.0.1",
    }
    broken_token = {**base, "HF_TOKEN": "hf_SECRET with\nillegal\u00e9 characters"}
    through_proxy = {**base, "NO_PROXY": "", "HF_ENDPOINT": "http://hub.invalid"}
    train = ["train", files.train, "--text", "raw", "--max-length", "64", "--limit", "60"]
    commands: list[tuple[list[Any], dict[str, str]]] = [
        (["eda", files.train, "--report", "page.html", "--force"], base),
        (["preprocess", files.train], base),
        ([*train, "--encoder", "tiny", "--output", "run", "--force"], base),
        (["predict", files.test, "-m", "run", "-o", "preds.csv", "--force"], base),
        (["score", "preds.csv", files.truth], base),
        (["train", files.train, "--recipe", "fast", "--output", "fast", "--force"], base),
        (["predict", files.test, "-m", "nowhere"], base),
        (["eda", "missing.csv"], base),
    ]
    for environment in (base, broken_token, through_proxy):
        for name in ("no/such", "gated/model", "broken/model", "microsoft/deberta-v3-small"):
            commands += [([*train, "--encoder", name], environment)]
    commands += [
        ([*arguments, "--debug"], environment)
        for arguments, environment in commands
        if arguments[0] in ("train", "eda", "predict")
    ]
    for arguments, environment in commands:
        done = command(*arguments, cwd=at, **environment)
        said = done.stdout + done.stderr
        part.count(
            "kept secret", f"{arguments}: {said[max(0, said.find('SECRET') - 200) :][:500]}" if "SECRET" in said else ""
        )
    server.shutdown()
    left = Part("the same in every file left behind")
    for path in at.rglob("*"):
        if path.is_file():
            left.count("kept secret", str(path) if b"SECRET" in path.read_bytes() else "")
    yield part
    yield left


def temporary(at: Path) -> Iterator[Part]:
    """Every verb under strace, with a temporary folder of its own: what is made there, and with which mode."""
    part = Part("files and folders made in the temporary folder: only their owner may read them")
    if not shutil.which("strace"):
        part.outcomes["strace is not installed"] = 0
        yield part
        return
    files = synthetic.write(at / "data", train=120, test=20)
    packed = at / "data" / "train.csv.gz"
    import gzip

    packed.write_bytes(gzip.compress(files.train.read_bytes()))
    place = at / "tmp"
    place.mkdir()
    old = os.umask(0o022)
    os.umask(old)
    for label, arguments in {
        "eda": ["eda", files.train], "eda of .gz": ["eda", packed], "eda of a pipe": ["eda", "-"],
        "preprocess": ["preprocess", files.train, "--workers", "2"],
        "train tiny": ["train", files.train, "--encoder", "tiny", "--limit", "60", "--max-length", "64", "--output", "run"],
        "train fast": ["train", files.train, "--recipe", "fast", "--output", "fast"],
        "predict": ["predict", files.test, "-m", "run", "-o", "p.csv"], "predict fast": ["predict", files.test, "-m", "fast", "-o", "q.csv"],
        "score": ["score", "p.csv", files.truth],
    }.items():  # fmt: skip
        trace = at / "trace"
        with files.train.open("rb") as stream:
            subprocess.run(
                ["strace", "-f", "-qq", "-e", "trace=openat,mkdir,mkdirat,creat,mknod,mknodat", "-o", str(trace), sys.executable, "-m", "prefcli", *map(str, arguments)],
                cwd=at, env={**os.environ, "TMPDIR": str(place)}, stdin=stream, capture_output=True, check=False,
            )  # fmt: skip
        made = re.findall(
            rf'(?:openat\(\w+, "{re.escape(str(place))}([^"]*)", [^)]*O_CREAT[^)]*, (\d+)\)|mkdir\w*\((?:\w+, )?"{re.escape(str(place))}([^"]*)", (\d+)\))',
            trace.read_text(errors="replace"),
        )
        for file, mode, folder, folder_mode in made:
            name, bits = file or folder, int(mode or folder_mode, 8)
            if name.startswith("/torchinductor_"):  # PyTorch's own, empty where nothing is compiled
                continue
            part.count(f"{label}: {bits:04o}", f"{label}: {name} with mode {bits:04o}" if bits & 0o077 else "")
        if not made:
            part.count(f"{label}: nothing")
        part.failures += [
            f"{label} left {path.name}" for path in place.rglob("*") if path.is_file() or "torch" not in path.name
        ]
    yield part


PARTS: dict[str, Callable[[Path], Iterator[Part]]] = {
    "pickles": pickles, "models": models, "runs": runs, "paths": paths, "pages": pages, "cards": cards,
    "terminal": terminal, "secrets": secrets, "temporary": temporary,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PART,...", default=",".join(PARTS))
    failed = False
    for name in parser.parse_args().only.split(","):
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
            for part in PARTS[name](Path(folder)):
                outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in part.outcomes.most_common())
                print(f"{name:10} {part.attempts:6,}  {part.what}: {outcomes or 'nothing tried'}", flush=True)
                for failure in part.failures[:20]:
                    print(f"    FAILED {failure!r:.400}")
                failed |= bool(part.failures)
        print(f"{name:10} {time.monotonic() - started:6.0f} s", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
