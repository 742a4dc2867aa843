"""The documents say what the code does."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Result
from test_docs_commands import blocks

from prefcli.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_command_line_reference_and_the_layouts_are_what_the_code_has() -> None:
    spec = importlib.util.spec_from_file_location("make_cli_reference", ROOT / "docs" / "make_cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "stale: run make docs"
    assert module.FORMATS.read_text(encoding="utf-8") == module.formats(), "stale: run make docs"


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target, part in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        place = path.parent / target if target else path
        assert place.exists(), f"{path.name}: {target}"
        if part:
            headings = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), flags=re.M)
            names = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert part in names, f"{path.name}: {target}#{part}"


@pytest.mark.parametrize("path", [p for p in DOCS if p.name != "cli.md"], ids=lambda p: p.name)
def test_every_command_in_the_documents_has_flags_that_exist(path: Path, cli: Callable[..., Result]) -> None:
    helps: dict[str, str] = {}
    with_commands = "|".join(f"{verb} {name}" for verb, commands in COMMANDS.items() for name in commands)
    for block in blocks(path):
        for line in block.text.replace("\\\n", " ").splitlines() if block.language != "python" else ():
            match = re.search(rf"\bprefcli ({with_commands}|\w+)(.*)", line.split("#")[0])
            if not match or line.lstrip().startswith(("error", "warning")):
                continue
            verb, rest = match.groups()
            if verb not in helps:
                shown = cli(*(verb if verb != "runs" else "runs list").split(), "--help")
                assert shown.code == 0, f"{path.name}: prefcli {verb}"
                helps[verb] = shown.out
            for word in shlex.split(rest):
                if word.startswith("--"):
                    assert re.search(rf"{re.escape(word.split('=')[0])}\b", helps[verb]), f"{path.name}: {verb} {word}"


def modules_in_order() -> list[str]:
    """Names at the top of the package, in the order of the architecture's table."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(\w+)(?:\.py|/)` \|", text, flags=re.MULTILINE)


def test_blocks_of_code_begin_on_a_line_of_their_own() -> None:
    """A block that was wrapped as text is neither run nor shown as code."""
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"^.*[^\s`>].*```.*$|^ *```\w+ +\S.*$", text, flags=re.M) == [], path.name


def test_the_architecture_lists_every_module() -> None:
    hidden = {"__init__", "__main__", "__pycache__", "py"}
    names = {path.name.removesuffix(".py") for path in (ROOT / "prefcli").iterdir()}
    assert names - hidden - {"py.typed"} == set(modules_in_order())


def test_the_architecture_lists_every_file_of_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^\*\*`(\w+)/`\*\*\n\n((?:[- ] .*\n)+)", text, flags=re.MULTILINE))
    for folder, section in sections.items():
        paths = (ROOT / "prefcli" / folder).rglob("*.py")
        files = {path.relative_to(ROOT / "prefcli" / folder).as_posix() for path in paths}
        assert files - {"__init__.py"} == set(re.findall(r"`([\w/]+\.py)`[,:]", section)) - {"__init__.py"}, folder
    assert set(sections) == {path.parent.name for path in (ROOT / "prefcli").glob("*/__init__.py")} - {"assets"}


def test_few_modules_are_outside_folders() -> None:
    assert len(list((ROOT / "prefcli").glob("*.py"))) <= 16  # 14 and the package's two own


def test_a_module_imports_only_modules_above_it() -> None:
    """In the order of the architecture's table, imports inside functions and for types included."""
    order = modules_in_order()
    upward = []
    for path in sorted((ROOT / "prefcli").rglob("*.py")):
        module = path.relative_to(ROOT / "prefcli").with_suffix("").parts[0]
        if module in ("__init__", "__main__"):
            continue
        for name in imported_modules(path):
            if name != module and order.index(name) > order.index(module):
                upward.append(f"{path.relative_to(ROOT)} imports {name}")
    assert upward == []


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "prefcli":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prefcli."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("prefcli."))
