"""Every command in the documents is run, or says why not.

A block of shell commands is run line by line, page by page, in a folder that holds the demo's files and a stand-in for
every name that the pages use (``RUN``, ``my-encoder``, the default encoder). A block that cannot be run here has the
reason in a comment before it: ``<!-- not run: needs the network -->``. Where the reason is that another page runs the
same (``<!-- not run: README.md runs the same -->``), that is checked.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Result, make_language_model

from prefcli import pipeline
from prefcli.cli.main import VERBS
from prefcli.data import synthetic
from prefcli.models.neural import NeuralModel
from prefcli.options import TrainOptions
from prefcli.storage import files
from prefcli.storage.workspace import Workspace

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OUTPUT = ("text", "json", "toml", "python")
"""Languages of blocks that are no commands; Python is run too, that of python.md by a test of its own."""
JOURNEYS = "README.md"
"""Its commands are run by test_journeys.py."""
STARTS = re.compile(r"^(prefcli|torchrun|python3?|pip|make|tensorboard|wandb)\b(?!:)", re.MULTILINE)
BEYOND_WORDS = re.compile(r"[|<>;&$*`~]")
"""What only a shell understands."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None
    """Why it is not run."""

    @property
    def commands(self) -> list[str]:
        lines = self.text.replace("\\\n", " ").splitlines()
        return [" ".join(line.split()) for line in (re.sub(r"(^|\s)#.*", "", line) for line in lines) if line.strip()]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"(?:<!-- not run: ([^>]*?) -->\n\n?)?^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S):
        found.append(Block(page.name, text[: match.start(2)].count("\n") + 1, match[2], match[3], match[1]))
    assert len(found) * 2 == len(re.findall(r"^```", text, flags=re.M)), f"{page.name}: a block that does not end"
    return found


def run_here(page: Path) -> list[Block]:
    """Blocks of commands, and of the Python between them."""
    languages = ("sh",) if page.name == "python.md" else ("sh", "python")
    return [block for block in blocks(page) if block.language in languages and block.reason is None]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_names_its_language_and_every_reason_is_valid(page: Path) -> None:
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.language != "sh":
            assert block.language in OUTPUT, f"{where}: name the block's language, sh for commands"
            assert block.language == "python" or page.name == "cli.md" or not STARTS.search(block.text), where
        if block.reason is None:
            continue
        assert block.language in ("sh", "python"), f"{where}: nothing of this language is run"
        assert len(block.reason.split()) > 1, f"{where}: why not?"
        if named := re.match(r"(\S+\.md) runs the same", block.reason):
            elsewhere = next(other for other in PAGES if other.name == named[1])
            there = [command for other in run_here(elsewhere) for command in other.commands]
            assert set(block.commands) <= set(there), where
    leftover = re.findall(r"^<!-- not run:[^>]*-->(?!\n\n?```)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not leftover, f"{page.name}: {leftover} stands before no block"


def test_only_a_reason_right_before_a_block_keeps_it_from_being_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\nprefcli eda a.csv  # tables\n```\n\n"
        "<!-- not run: needs a GPU -->\n```sh\nprefcli train \\\n    b.csv\n```\n\n"
        "<!-- not run: far above -->\n\nText.\n\n```sh\nprefcli eda c.csv\n```\n"
    )
    assert [command for block in run_here(page) for command in block.commands] == [
        "prefcli eda a.csv",
        "prefcli eda c.csv",
    ]
    assert blocks(page)[1].commands == ["prefcli train b.csv"]
    with pytest.raises(AssertionError, match="stands before no block"):
        test_every_block_names_its_language_and_every_reason_is_valid(page)


@pytest.mark.parametrize("text", ["```\nprefcli eda a.csv\n```\n", "```text\nprefcli eda a.csv\n```\n"])
def test_commands_in_blocks_of_other_languages_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(AssertionError, match="line 1"):
        test_every_block_names_its_language_and_every_reason_is_valid(tmp_path / "page.md")


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory, one_layer: dict[str, Path]) -> Path:
    """A folder with everything that commands in the documents name."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("stand-ins")
    synthetic.write(folder, train=40, test=20)
    synthetic.write(folder / "other", train=60, test=20, seed=1)
    for name, source in {
        "truth.csv": "test_truth.csv",
        "labels.csv": "test_truth.csv",
        "votes.csv": "train.csv",
        "ours.csv": "test.csv",
        "our-votes.csv": "other/train.csv",
        "people.csv": "train.csv",
        "judge.csv": "train.csv",
    }.items():
        shutil.copy(folder / source, folder / name)
    header, *rows = (folder / "test_truth.csv").read_text().splitlines()
    guesses = [f"{row.split(',')[0]},0.333,0.333,0.333" for row in rows]
    (folder / "sample_submission.csv").write_text("\n".join([header, *guesses]) + "\n")
    competition = folder / "kaggle" / "input" / "llm-classification-finetuning"
    competition.mkdir(parents=True)
    with zipfile.ZipFile(folder / "llm-classification-finetuning.zip", "w") as archive:
        for name in ("train.csv", "test.csv", "sample_submission.csv"):
            archive.write(folder / name, name)
            shutil.copy(folder / name, competition)
    (folder / "kaggle" / "working").mkdir()
    (folder / "needed.json").write_text('{"install": [{"metadata": {"name": "nltk", "version": "3.10.4"}}]}')
    (folder / "battles.jsonl").write_text('{"id": "1", "prompt": "2 + 2?", "response_a": "4", "response_b": "5"}\n')
    shutil.copytree(one_layer["bert"], folder / "my-encoder")
    shutil.copytree(one_layer["bert"], folder / "SMALL")
    shutil.copytree(one_layer["bert"], folder / "minilm")
    shutil.copytree(one_layer["deberta"], folder / "kaggle" / "input" / "deberta-v3-small")
    # A folder of that name comes before the hub: the default encoder, without a network.
    shutil.copytree(one_layer["deberta"], folder / "microsoft" / "deberta-v3-small")
    make_language_model(folder / "google" / "gemma-2-2b", "gemma2")
    policy = make_language_model(folder / "my-policy", "llama")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(policy)).save_pretrained(policy)
    chat = "{% for m in messages %}{{ '[CLS]' + m['role'] + m['content'] + '[SEP]' }}{% endfor %}"
    config = json.loads((policy / "tokenizer_config.json").read_text())
    (policy / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": chat}))
    make_runs(folder, one_layer["bert"])
    return folder


def make_runs(folder: Path, encoder: Path) -> None:
    """``RUN`` and its like; ``unfinished`` is a training that was killed."""
    workspace = Workspace(folder / "elsewhere")
    train, fast = folder / "train.csv", TrainOptions(architecture="features")
    pipeline.train(train, workspace, fast, output=folder / "RUN1")
    for name in ("RUN", "TEACHER", "my-run"):
        shutil.copytree(folder / "RUN1", folder / name)
    small = TrainOptions(encoder=str(encoder), max_length=64, log_every=1)
    pipeline.train(train, workspace, small, output=folder / "RUN2")

    append, lines = files.append_line, []

    def stopping(path: Path, line: str) -> None:
        append(path, line)
        lines.append(line)
        if len(lines) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files, "append_line", stopping)
        pipeline.train(train, workspace, small, output=folder / "unfinished")


def lay_out(page: Path, stand_ins: Path, folder: Path) -> None:
    """What this page's commands find in their folder."""
    shutil.copytree(stand_ins, folder, dirs_exist_ok=True)
    text = "\n".join(command for block in run_here(page) for command in block.commands)
    if "--resume RUN" in text:
        shutil.rmtree(folder / "RUN")
        (folder / "unfinished").rename(folder / "RUN")
    if page.name == "onnx.md":  # whose run is a neural one
        shutil.rmtree(folder / "my-run")
        (folder / "RUN2").rename(folder / "my-run")
    for name, content in excerpts(page):
        (folder / name).write_text(content, encoding="utf-8")


def excerpts(page: Path) -> list[tuple[str, str]]:
    """Files that the page shows: a name as code and a colon before a block."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^`([\w.-]+)`:\n\n```\w+\n(.*?)^```$", text, flags=re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if run_here(page) and page.name != JOURNEYS], ids=lambda page: page.name
)
def test_commands_in_the_documents_run(
    page: Path, stand_ins: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(page, stand_ins, tmp_path)
    variables: dict[str, object] = {}
    reuse_graphs(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # This interpreter's commands, whether or not its environment is the active one.
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    for block in run_here(page):
        if block.language == "python":
            if "trl" in block.text and importlib.util.find_spec("trl") is None:
                continue  # it needs Python 3.11
            exec(here(block.text, tmp_path), variables)
            continue
        for command in block.commands:
            if command.startswith("jq ") and shutil.which("jq") is None:
                continue
            code, said = execute(here(command, tmp_path), cli, monkeypatch)
            assert code == 0, f"{page.name}, line {block.line}: {command}\n{said}"


EXAMPLES = [line.strip() for verb in VERBS.values() for line in verb.EXAMPLES.splitlines()[1:]]


def test_every_verb_has_up_to_three_examples_of_one_line() -> None:
    for name, verb in VERBS.items():
        heading, *lines = verb.EXAMPLES.splitlines()
        assert heading == "Examples:"
        assert 1 <= len(lines) <= 3, name
        assert all(line.startswith("  prefcli ") and len(line) <= 80 for line in lines), name


@pytest.mark.slow
def test_examples_of_the_help_run(
    stand_ins: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that no page runs, one after the other in one folder, but for what needs a network or does not end soon."""
    shutil.copytree(stand_ins, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "my-run")
    (tmp_path / "RUN2").rename(tmp_path / "my-run")  # a neural one, which can be exported
    shutil.copytree(tmp_path / "RUN1", tmp_path / "RUN2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    on_pages = {command for page in PAGES for block in run_here(page) for command in block.commands}
    assert cli("predict", "test.csv", "--model", "RUN").code == 0
    shutil.copy("preds.csv", "other.csv")
    answers = dict(excerpts(ROOT / "docs" / "ranking.md"))["answers.jsonl"]
    Path("answers.jsonl").write_text(answers, encoding="utf-8")
    for command in EXAMPLES:
        Path("ranked.jsonl").unlink(missing_ok=True)  # its examples are not meant to follow one another
        if command not in on_pages and not re.match(r"prefcli (push|demo|ablate|serve)\b|.*hf://", command):
            code, said = execute(command, cli, monkeypatch)
            assert code == 0, f"{command}\n{said}"


def reuse_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the second export of a run copy the graph of the first: torch's exporter takes seconds."""
    from prefcli.exporting import onnx

    write_graph, graphs = onnx._write_graph, {}

    def write_or_copy(model: NeuralModel, path: Path, *, external: bool) -> None:
        weights = b"".join(tensor.numpy().tobytes() for _, tensor in sorted(model.module.state_dict().items()))
        if weights in graphs and not external:
            path.write_bytes(graphs[weights])
            return
        write_graph(model, path, external=external)
        graphs[weights] = path.read_bytes()

    monkeypatch.setattr(onnx, "_write_graph", write_or_copy)


def without_torchrun(words: list[str]) -> list[str]:
    """The command that ``torchrun`` starts, if it does."""
    from torch.distributed.run import get_args_parser

    if words[0] != "torchrun":
        return words
    launched = get_args_parser().parse_args(words[1:])
    return [launched.training_script, *launched.training_script_args] if launched.module else words


def here(text: str, folder: Path) -> str:
    """Kaggle's folder lies below the test's."""
    return re.sub(r"(?<![\w.])/kaggle/", f"{folder}/kaggle/", text)


def execute(command: str, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Run one command: in this process, which saves seconds of imports, where it is but words; else in a shell.

    Of ``torchrun`` the flags are checked, and what it would start in several processes is run in this one:
    test_training.py starts several.
    """
    words = without_torchrun(shlex.split(command))
    assigned = [word.partition("=") for word in words if re.match(r"[A-Z_]+=", word)]
    if words[len(assigned)] != "prefcli" or BEYOND_WORDS.search(command):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr
    with monkeypatch.context() as patched:
        for name, _, value in assigned:
            patched.setenv(name, value)
        result = cli(*words[len(assigned) + 1 :])
    return result.code, result.out + result.err
