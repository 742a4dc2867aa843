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

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_command_line_reference_is_what_help_prints() -> None:
    spec = importlib.util.spec_from_file_location("make_cli_reference", ROOT / "docs" / "make_cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "stale: run make docs"


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
    for block in blocks(path):
        for line in block.text.replace("\\\n", " ").splitlines():
            match = re.search(r"\bprefcli (\w+)(.*)", line.split("#")[0])
            if not match or line.lstrip().startswith(("error", "warning")):
                continue
            verb, rest = match.groups()
            if verb not in helps:
                shown = cli(verb, "--help")
                assert shown.code == 0, f"{path.name}: prefcli {verb}"
                helps[verb] = shown.out
            for word in shlex.split(rest):
                if word.startswith("--"):
                    assert re.search(rf"{re.escape(word.split('=')[0])}\b", helps[verb]), f"{path.name}: {verb} {word}"


def test_every_room_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in (ROOT / "prefcli").iterdir():
        if path.name not in ("__init__.py", "__main__.py", "__pycache__", "py.typed"):
            assert f"`{path.name}{'/' if path.is_dir() else ''}`" in text, path.name


def test_a_room_imports_only_rooms_above_it() -> None:
    """In the order of the architecture's table; what only types need is no import."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `(\w+)(?:\.py|/)?` \|", text, flags=re.M)
    found = set()
    for path in sorted((ROOT / "prefcli").rglob("*.py")):
        room = path.relative_to(ROOT / "prefcli").with_suffix("").parts[0]
        if room not in rooms:
            continue
        for name in imported_rooms(ast.parse(path.read_text(encoding="utf-8"))):
            if name != room and name in rooms and rooms.index(name) > rooms.index(room):
                found.add((room, name))
    assert found == {("experiment", "report")}  # the one that the page names


def imported_rooms(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "prefcli":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prefcli."):
            yield str(node.module).split(".")[1]
        yield from imported_rooms(node)
