"""Rebuild the embedded lemma index and its licence from WordNet's database files (Debian: ``wordnet-base``)::

    python benchmarks/build_wordnet_index.py /usr/share/wordnet

The result is the same bytes every time. ``prefcli/text/wordnet.py`` reads the index and describes its format.
"""

from __future__ import annotations

import argparse
import gzip
import io
from pathlib import Path

from prefcli.text.wordnet import INDEX_ASSET, SECTIONS

ASSETS = Path(__file__).parents[1] / "prefcli" / "assets"


def build_index(wordnet: Path) -> tuple[bytes, str]:
    """Build the embedded index from WordNet's database files.

    Parameters
    ----------
    wordnet:
        Folder with ``index.noun``, ``noun.exc`` and their siblings (Debian: ``/usr/share/wordnet``).

    Returns
    -------
    index, notice:
        The gzipped index (the same bytes for the same folder; the gzip header carries no time) and the text of
        Princeton's licence, taken from the head of ``index.noun``.
    """
    sections: list[str] = []
    notice = ""
    for name in dict.fromkeys(SECTIONS.values()):
        head, lemmas = _read_index(wordnet / f"index.{name}")
        notice = notice or head
        irregular: dict[str, list[str]] = {}
        for line in (wordnet / f"{name}.exc").read_text(encoding="ascii").splitlines():
            form, *its_lemmas = line.split()
            irregular[form] = its_lemmas  # the last of two lines for one form wins, as in NLTK
        sections += [f"[{name}]", *sorted(lemmas)]
        sections += [f"[{name}.exc]", *sorted(" ".join([form, *its_lemmas]) for form, its_lemmas in irregular.items())]
    comment = [f"# {line}".rstrip() for line in notice.splitlines()]
    text = "\n".join([*comment, *sections, "[end]", ""])
    packed = io.BytesIO()  # GzipFile, because gzip.compress writes another header on Python 3.10
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as file:
        file.write(text.encode("ascii"))
    return packed.getvalue(), notice


def _read_index(path: Path) -> tuple[str, set[str]]:
    """The notice at the head of one of WordNet's index files, and its lemmas."""
    notice: list[str] = []
    lemmas: set[str] = set()
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("  "):  # the notice: two spaces, a line number, a space, the text
            notice.append(line.lstrip().partition(" ")[2].rstrip())
        else:
            lemmas.add(line.split(" ", 1)[0])
    return "\n".join(notice).strip() + "\n", lemmas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wordnet", type=Path, metavar="FOLDER", help="WordNet's database files")
    try:
        index, notice = build_index(parser.parse_args().wordnet)
    except FileNotFoundError as error:
        raise SystemExit(f"{error.filename} does not exist (Debian: install wordnet-base)") from None
    (ASSETS / INDEX_ASSET).write_bytes(index)
    (ASSETS / "WORDNET-LICENSE").write_text(notice, encoding="ascii", newline="\n")
    print(f"{ASSETS / INDEX_ASSET}: {len(index):,} bytes")


if __name__ == "__main__":
    main()
