"""Three users go from README.md to a result, on each page in a folder that holds nothing but their own files.

Each runs the commands of README's section on what they want, follows its link, and runs commands of that page, in the
page's order. The commands are read out of the pages; the user's file names replace those of the examples. What is
needed beyond the pages is at most one command, and is named here.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result
from test_docs_commands import ROOT, blocks, execute, here

from prefcli.data import synthetic

README = ROOT / "README.md"
KAGGLE, VOTES, REWARDS = "**For a Kaggle competition", "**To decide between two models", "**To train a reward model"
SECTION_ENDS = ("**", "## ")
pytestmark = pytest.mark.slow
CLI = Callable[..., Result]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A fresh machine without a network: no encoder in the hub's cache, none installed."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))


def lines_of(page: Path, beginning: str, ending: str | tuple[str, ...] = SECTION_ENDS) -> tuple[int, int]:
    """Lines of a page from the first that starts with ``beginning`` to the next that starts with ``ending``."""
    lines = page.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines, 1) if line.startswith(beginning))
    rest = (number for number, line in enumerate(lines, 1) if number > first and line.startswith(ending))
    return first, next(rest, len(lines) + 1)


class Journey:
    """A user with a page before him."""

    def __init__(self, cli: CLI, monkeypatch: pytest.MonkeyPatch, names: dict[str, str]) -> None:
        self.cli, self.monkeypatch, self.names = cli, monkeypatch, names
        self.page = README

    def follow(self, beginning: str) -> None:
        """Open the page that README's section links to, and an empty folder beside this one."""
        first, last = lines_of(README, beginning)
        section = "\n".join(README.read_text(encoding="utf-8").splitlines()[first - 1 : last - 1])
        (target,) = re.findall(r"\]\((docs/[\w-]+\.md)\)", section)
        self.page = ROOT / target
        Path("page").mkdir()
        self.monkeypatch.chdir("page")

    def run(
        self, beginning: str, ending: str | tuple[str, ...] = SECTION_ENDS, *, words: str = "", python: bool = False
    ) -> list[str]:
        """Run the commands of a section in order, or those with certain ``words``, and return what each printed."""
        first, last = lines_of(self.page, beginning, ending)
        printed = []
        for block in blocks(self.page):
            if not first <= block.line < last or block.reason is not None:
                continue
            if block.language == "python" and python:
                exec(here(block.text, Path.cwd()), {})
            for command in block.commands if block.language == "sh" else []:
                if words not in command:
                    continue
                for example, own in self.names.items():
                    command = command.replace(example, own)
                code, output = execute(here(command, Path.cwd()), self.cli, self.monkeypatch)
                assert code == 0, f"{self.page.name}, line {block.line}: {command}\n{output}"
                printed.append(output)
        return printed

    def excerpt(self, name: str) -> str:
        """A file that the page shows."""
        text = self.page.read_text(encoding="utf-8")
        match = re.search(rf"^`{re.escape(name)}`:\n\n```\w+\n(.*?)^```$", text, flags=re.M | re.S)
        assert match is not None, name
        return match[1]


def read_rows(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def download_competition() -> None:
    synthetic.write(Path(), train=60, test=20)
    Path("test_truth.csv").rename("labels.csv")
    sample = [f"{row['id']},0.333333,0.333333,0.333333\n" for row in read_rows("test.csv")]
    Path("sample_submission.csv").write_text("".join(["id,winner_model_a,winner_model_b,winner_tie\n", *sample]))
    competition = Path("kaggle/input/llm-classification-finetuning")
    competition.mkdir(parents=True)
    Path("kaggle/working").mkdir()
    with zipfile.ZipFile("llm-classification-finetuning.zip", "w") as archive:
        for name in ("train.csv", "test.csv", "sample_submission.csv"):
            archive.write(name)
            shutil.copy(name, competition)


def test_a_kaggler_gets_from_the_competitions_files_to_a_checked_submission(
    cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the pages: the download of the competition's files."""
    download_competition()
    user = Journey(cli, monkeypatch, {})
    _, trained, _, scored = user.run(KAGGLE)
    assert "warning: " in trained  # the default encoder cannot be had here, and another was trained
    assert "log loss" in scored
    user.follow(KAGGLE)
    download_competition()
    user.run("## 1.")
    shutil.copy("submission.csv", "kaggle/working")  # where the notebook's own command puts it
    *_, scored = user.run("## 6.", python=True)
    assert "log loss" in scored


def test_an_analyst_with_chinese_columns_learns_which_model_is_better_and_predicts_votes(
    cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the pages: nothing; the names in the page's layout are replaced by those of the table."""
    made = synthetic.write(tmp_path / "made", train=160, test=20)
    own = {"问题": "提问", "回答一": "甲的回答", "回答二": "乙的回答", "选择": "评价", "模型一": "甲", "模型二": "乙"}
    verdicts, wins = ["甲更好", "乙更好", "一样"], {"新": 0, "旧": 0}
    with open("评价表.csv", "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(own.values())
        for number, row in enumerate(read_rows(str(made.train))):
            texts = ["\n".join(json.loads(row[name])) for name in ("prompt", "response_a", "response_b")]
            models = ["新", "旧"] if number % 2 else ["旧", "新"]
            winner = [row[f"winner_{name}"] for name in ("model_a", "model_b", "tie")].index("1")
            if winner < 2:
                wins[models[winner]] += 1
            table.writerow([*texts, verdicts[winner], *models])
    user = Journey(cli, monkeypatch, {"投票.csv": "评价表.csv", "our-votes.csv": "评价表.csv --layout layout.toml"})
    Path("preferences.csv").write_text(user.excerpt("preferences.csv"), encoding="utf-8")
    (printed,) = user.run(VOTES)
    assert "new" in printed
    user.follow(VOTES)
    shutil.copy("../评价表.csv", ".")
    layout = user.excerpt("layout.toml")
    for example, name in {"一=a": "甲更好=a", "二=b": "乙更好=b", "一样=tie": "一样=tie"}.items():
        assert example in layout
        layout = layout.replace(example, name)
    for example, name in own.items():
        assert f'"{example}' in layout
        layout = layout.replace(f'"{example}', f'"{name}')
    Path("layout.toml").write_text(layout, encoding="utf-8")
    (printed,) = user.run("## Say", words="投票.csv")
    share = 100 * max(wins.values()) / sum(wins.values())
    assert f"{share:.1f}%" in printed or f"{share:.1f} %" in printed, printed
    page = Path("votes.html").read_text(encoding="utf-8")
    assert "新" in page
    trained, reported = user.run("## Predict", "A run remembers")
    assert "160 battles" in trained
    assert "our-run.html" in reported
    shutil.copy("评价表.csv", "ours.csv")
    user.names = {}
    user.run("A run remembers", "If you")
    rows = read_rows("ours-predicted.csv")
    assert len(rows) == 160
    assert all(abs(sum(float(row[name]) for name in list(row)[1:4]) - 1) < 1e-6 for row in rows)


def test_an_engineer_gets_from_votes_to_a_reward_model_and_to_the_best_answers(
    cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_layer: dict[str, Path]
) -> None:
    """Beyond the pages: the download of an encoder."""
    shutil.move(synthetic.write(tmp_path, train=60, test=5).train, "votes.csv")
    shutil.copytree(one_layer["bert"], "my-encoder")  # hf download ... --local-dir my-encoder
    user = Journey(cli, monkeypatch, {})
    Path("answers.jsonl").write_text(user.excerpt("answers.jsonl"), encoding="utf-8")
    user.run(REWARDS)
    (best,) = (json.loads(line) for line in Path("top.jsonl").read_text().splitlines())
    (ranked,) = (json.loads(line) for line in Path("order.jsonl").read_text().splitlines())
    (answers,) = (json.loads(line) for line in Path("answers.jsonl").read_text().splitlines())
    assert answers["responses"][ranked["ranking"][0]] in json.dumps(best, ensure_ascii=False)
    user.follow(REWARDS)
    shutil.copy("../votes.csv", ".")
    shutil.copytree("../my-encoder", "my-encoder")
    Path("answers.jsonl").write_text(user.excerpt("answers.jsonl"), encoding="utf-8")
    user.run("## Votes to a reward model", python=True)
    user.run("## The best of N answers")
    assert len(Path("best.jsonl").read_text().splitlines()) == 2
    assert Path("pairs.jsonl").is_file()


def test_every_command_of_the_readme_is_in_a_section_that_a_journey_begins_with() -> None:
    sections = [lines_of(README, beginning) for beginning in (KAGGLE, VOTES, REWARDS)]
    commands = [block for block in blocks(README) if block.language == "sh" and block.reason is None]
    assert all(any(first <= block.line < last for first, last in sections) for block in commands)
