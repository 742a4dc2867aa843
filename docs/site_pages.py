"""Pages of the site that do not lie in ``docs/``: README as the first one, the changelog and others.

A hook of mkdocs (see ``mkdocs.yml``). The files stay where people look for them in a repository, without a copy; their
links, written from the repository's root, are rewritten to lead to the same places in the site.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "prefcli/assets/WORDNET-LICENSE": "WORDNET-LICENSE.txt",
}
"""Files of the repository and what they are called in the site."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages; mkdocs then checks their links like all others."""
    for source, place in PLACES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        content = from_the_root(text) if source.endswith(".md") else text
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, *, page: object, config: MkDocsConfig, files: Files) -> str:
    """Links of pages in ``docs/`` that lead out of it."""
    return re.sub(r"\]\(\.\./([^)#]+)", lambda link: f"]({PLACES.get(link[1], link[0][2:])}", markdown)


def on_post_page(output: str, *, page: object, config: MkDocsConfig) -> str:
    """The theme's search dialog with a name, which screen readers say."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def from_the_root(markdown: str) -> str:
    """Links as they are written in the repository's root, as they are in the site."""
    return re.sub(
        r"\]\(([^)#:]+)(?=[)#])", lambda link: f"]({PLACES.get(link[1], link[1].removeprefix('docs/'))}", markdown
    )
