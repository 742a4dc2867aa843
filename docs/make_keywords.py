"""Write ``prefcli/keywords.py``: the options as typed keyword arguments, from the classes in ``prefcli.options``.

mypy and editors cannot follow a dictionary of types that is made at run time, so it is a file; a test compares it.
"""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

from prefcli.options import PairOptions, PredictOptions, RankOptions, TrainOptions

PAGE = Path(__file__).parent.parent / "prefcli" / "keywords.py"
HEADER = '''"""The options of training and prediction as typed keyword arguments: ``prefcli.train(file, epochs=1)``.

Made by ``make docs`` from :mod:`prefcli.options`, which has their limits; mypy and editors check and complete them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict
'''
PATHS = ("encoder", "validation_file", "soft_labels")
"""Options that name a file or folder."""


def main() -> None:
    PAGE.write_text(text(), encoding="utf-8")


def text() -> str:
    """The whole file."""
    classes = [
        _class("AblateKeywords", "What ``ablate`` takes", _fields(TrainOptions, boosted=False)),
        _class(
            "TrainKeywords", "What ``train``, ``estimate`` and ``tune`` take",
            _fields(TrainOptions, boosted=True), base="AblateKeywords",
        ),
        _class("PredictKeywords", "What ``predict`` takes", _fields(PredictOptions)),
        _class(
            "RankKeywords", "What ``rank`` takes",
            [*_fields(RankOptions), *_fields(PairOptions, PairOptions.PREFIX)],
        ),
    ]  # fmt: skip
    return HEADER + "".join(classes)


def _fields(kind: Any, prefix: str = "", *, boosted: bool | None = None) -> list[tuple[str, str, str]]:
    """Name, type and help of each option; with ``boosted`` of those that ``features`` alone has, or of the others."""
    return [
        (prefix + field.name, _type(field), field.metadata["help"])
        for field in dataclasses.fields(kind)
        if boosted in (None, field.metadata.get("features_only", False))
    ]


def _type(field: Any) -> str:
    if field.name == "models":
        return "Sequence[str | Path]"
    optional = " | None" if field.type.endswith(" | None") else ""
    if choices := field.metadata.get("choices"):
        return f"Literal[{', '.join(f'{choice!r}' for choice in choices)}]{optional}".replace("'", '"')
    return f"str | Path{optional}" if field.name in PATHS else field.type


def _class(name: str, summary: str, fields: list[tuple[str, str, str]], base: str = "TypedDict") -> str:
    lines = [f"\n\nclass {name}({base}, total=False):", f'    """{summary}."""', ""]
    for option, kind, help_text in fields:
        lines += [f"    {option}: {kind}", *_docstring(help_text)]
    return "\n".join(lines) + "\n"


def _docstring(help_text: str) -> list[str]:
    ended = help_text if help_text.endswith((".", "]")) else help_text + "."
    wrapped = textwrap.wrap(f'"""{ended}"""', 116, break_long_words=False, break_on_hyphens=False)
    return [f"    {line}" for line in wrapped]


if __name__ == "__main__":
    main()
