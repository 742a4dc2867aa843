"""What somebody might put into files to do harm: pickles that run code, markup that runs scripts, terminal commands.

Nothing here does harm: what is run leaves a marker file, so that tests can see whether it was.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Calls:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def calls_that_mark(marker: Path) -> dict[str, Calls]:
    """Ways in which a pickle may run code; each of them makes the marker file."""
    program = f"open({str(marker)!r}, 'w').close()"
    return {
        "exec": Calls(exec, program),
        "eval": Calls(eval, program),
        "os.system": Calls(os.system, f"touch '{marker}'"),
        "subprocess": Calls(subprocess.check_call, ["touch", str(marker)]),
        "a method": Calls(pathlib.Path.touch, Calls(pathlib.PosixPath, str(marker))),
        "a pickle inside": Calls(pickle.loads, pickle.dumps(Calls(exec, program))),
    }


def pickles(marker: Path, tensors: dict[str, Any]) -> dict[str, bytes]:
    """Files that run code when they are loaded carelessly, see :func:`load_carelessly`."""
    import torch

    def saved(value: Any, **how: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(value, stream, **how)
        return stream.getvalue()

    made: dict[str, bytes] = {}
    for name, call in calls_that_mark(marker).items():
        for protocol in (0, 2, pickle.HIGHEST_PROTOCOL):
            made[f"pickle {protocol}, {name}"] = pickle.dumps(call, protocol)
        made[f"torch zip, {name}"] = saved(call)
        made[f"torch zip beside tensors, {name}"] = saved({**tensors, "position_ids": call})
        legacy = {"_use_new_zipfile_serialization": False}
        made[f"torch legacy beside tensors, {name}"] = saved({**tensors, "extra": call}, **legacy)
        hidden = collections.OrderedDict(tensors)
        hidden._metadata = call  # type: ignore[attr-defined]
        made[f"torch zip, in a state dict's attribute, {name}"] = saved(hidden)
        made[f"torch tar, {name}"] = _tar(call)
    return made


def load_carelessly(name: str, path: Path) -> None:
    """Load a file of :func:`pickles` as one must not, to see that it does run code."""
    import torch

    with contextlib.suppress(Exception):  # some fail behind the call, which has been made by then
        if name.startswith("torch"):
            torch.load(path, weights_only=False)
        else:
            pickle.loads(path.read_bytes())


def _tar(call: Calls) -> bytes:
    """PyTorch's oldest format: a tar of pickles."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(call, 2)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def markup(beacon: str) -> list[str]:
    """Text that runs a script or asks ``beacon`` for something where it is taken for HTML, SVG, CSS or a template."""
    run = f"document.title='ran';new Image().src='{beacon}?js'"
    return [
        f"<script>{run}</script>",
        f"</title><script>{run}</script>",
        f"</style><script>{run}</script>",
        f"</textarea></noscript></template><script>{run}</script>",
        f"--><script>{run}</script><!--",
        f"]]><script>{run}</script>",
        f'"><script>{run}</script>',
        f"'><script>{run}</script>",
        f"<img src={beacon}?img>",
        f'<img src=x onerror="{run}">',
        f'"><img src=x onerror="{run}">',
        f'" onmouseover="{run}" autofocus onfocus="{run}" x="',
        f"' onfocus='{run}' autofocus tabindex=0 x='",
        f"<svg onload=\"{run}\"></svg>",
        f"<svg><script>{run}</script></svg>",
        f"</svg><img src={beacon}?svg>",
        f'<svg><image href="{beacon}?image"/></svg>',
        f'<svg><use href="{beacon}?use#a"/></svg>',
        f'<svg><a href="javascript:{run}"><text>press</text></a></svg>',
        f'<svg><animate onbegin="{run}" attributeName=x dur=1s></svg>',
        f"<svg><foreignObject><img src=x onerror=\"{run}\"></foreignObject></svg>",
        f"</foreignObject></svg><script>{run}</script>",
        f"</desc></svg><script>{run}</script>",
        f'<iframe src="javascript:parent.{run}"></iframe>',
        f'<iframe srcdoc="<img src={beacon}?srcdoc>"></iframe>',
        f'<object data="{beacon}?object"></object>',
        f'<embed src="{beacon}?embed">',
        f'<link rel=stylesheet href="{beacon}?link">',
        f'<link rel=prefetch href="{beacon}?prefetch">',
        f'<style>@import url("{beacon}?import");</style>',
        f"<style>body{{background:url({beacon}?css)}}</style>",
        f'</style><style>@import "{beacon}?style";',
        f'<div style="background:url({beacon}?inline)">x</div>',
        f'" style="background:url({beacon}?attribute)" x="',
        f'<base href="{beacon}?base/">',
        f'<meta http-equiv=refresh content="0;url={beacon}?refresh">',
        f'<form action="{beacon}?form"><button autofocus>x</button></form>',
        f'<video><source onerror="{run}"></video>',
        f'<audio src="{beacon}?audio" autoplay></audio>',
        f'<body onload="{run}">',
        f'<details open ontoggle="{run}"><summary>x</summary></details>',
        f'<input autofocus onfocus="{run}">',
        f'<math><mtext></mtext><script>{run}</script></math>',
        f'<template shadowrootmode=open><img src={beacon}?shadow></template>',
        "javascript:document.title='ran'",
        f"&lt;script&gt;{run}&lt;/script&gt;",
        f"&#60;script&#62;{run}&#60;/script&#62;",
        f"\\u003cscript\\u003e{run}\\u003c/script\\u003e",
        f"\x00<script>{run}</script>",
        f"<scr\x00ipt>{run}</script>",
        f"<script\x0c>{run}</script>",
        f"＜script＞{run}＜/script＞",
        "{{constructor.constructor('document.title=1')()}}",
        "{% raw %}{{7*7}}${7*7}#{7*7}<%= 7*7 %>",
        f"`${{{run}}}`",
        f"<!--#include virtual='{beacon}?ssi' --><?php {run} ?>",
    ]  # fmt: skip


TERMINAL = {
    "colour": "\x1b[31mred",
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H",
    "link": "\x1b]8;;http://127.0.0.1/\x1b\\press\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;b3duZWQ=\x07",
    "answer": "\x1b[6n\x1b[c",
    "eight bits": "\x9b31mred\x9d0;owned\x9c",
    "device control": "\x1bP+q544e\x1b\\",
    "overwrite": "innocent\rerror",
    "backspace": "no\x08\x08ok",
    "bell": "\x07",
    "lines": "one\nerror: two",
    "vertical": "a\x0bb\x0cc",
    "bidi": "\u202egnp.exe\u2066x",
    "delete": "a\x7fb",
    "separator": "a\u2028b\u2029c",
}
"""Text that a terminal would obey, or that would pass for something else."""

MARKDOWN = (
    "`</code><img src=x onerror=alert(1)>`",
    "``` \n# owned",
    "a\n---\ntags: [owned]\n---\n",
    "x` [press](javascript:alert(1)) `",
    "![x](http://127.0.0.1:9/beacon)",
    "<script>alert(1)</script>",
    "\n<script>alert(1)</script>\n",
    "a|b\n|---|\n|<img src=x onerror=alert(1)>|",
    "``x`` ```y``` `z",
    "`",
    "$(touch owned)`touch owned`",
    "\r\n\r\n<iframe src=javascript:alert(1)>",
    "</details><svg onload=alert(1)>",
    "&lt;img src=x&gt;",
    "[x]: javascript:alert(1)\n[press][x]",
    "<javascript:alert(1)>",
    "\\`<b>\\`",
)
"""Text that would be more than text in a Markdown file."""


def changed(original: Path, into: Path, name: str, **settings: Any) -> Path:
    """A copy of a model's folder with other settings in one of its JSON files."""
    shutil.copytree(original, into)
    path = into / name
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**found, **settings}), encoding="utf-8")
    return into
