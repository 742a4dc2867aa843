"""The embedded lemma index: NLTK's lemmas, and an index that anyone can rebuild."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefcli.errors import InputError
from prefcli.text import wordnet
from prefcli.text.wordnet import lemmatize

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "build_wordnet_index.py"
sys.path.insert(0, str(SCRIPT.parent))
from build_wordnet_index import build_index  # noqa: E402

SAMPLE = json.loads((Path(__file__).parent / "data" / "nltk_tokens.json").read_text(encoding="utf-8"))["lemmas"]
ASSETS = resources.files("prefcli").joinpath("assets")

NOTICE_LINE = "  1 This software is provided to you by somebody.  \n"


@pytest.fixture
def small_wordnet(tmp_path: Path) -> Path:
    """A WordNet of six words, in WordNet's file format."""
    for name, lines in {
        "index.noun": "dog n 1 1 @ 1 1 00000001  \nhot_dog n 1 1 @ 1 0 00000002  \ncat n 1 1 @ 1 1 00000003  \n",
        "index.verb": "run v 1 1 @ 1 1 00000004  \n",
        "index.adj": "nice a 1 1 ! 1 1 00000005  \n",
        "index.adv": "fast r 1 0 1 1 00000006  \n",
        "noun.exc": "mice mouse\nfeet foot pes\nmice rat\n",
        "verb.exc": "ran run\n",
        "adj.exc": "better good well\n",
        "adv.exc": "",
    }.items():
        (tmp_path / name).write_text((NOTICE_LINE if name.startswith("index") else "") + lines, encoding="ascii")
    return tmp_path


@pytest.mark.parametrize("pos", sorted(SAMPLE))
def test_lemmas_are_those_of_nltk(pos):
    assert {word: lemmatize(word, pos) for word in SAMPLE[pos]} == SAMPLE[pos]


def test_lemmas_are_nouns_by_default():
    assert lemmatize("leaves") == lemmatize("leaves", "n") == "leaf"
    assert lemmatize("leaves", "v") == "leave"


def test_a_part_of_speech_that_does_not_exist_is_named():
    with pytest.raises(InputError, match="'noun' is not a part of speech"):
        lemmatize("dogs", "noun")


@settings(deadline=None)
@given(st.text(), st.sampled_from("nvasr"))
def test_any_string_has_a_lemma(word, pos):
    lemma = lemmatize(word, pos)
    assert lemma == word or lemma in wordnet._part_of_speech(wordnet.SECTIONS[pos])[0]


def test_the_index_holds_all_of_wordnet_3_0():
    sizes = {name: len(wordnet._part_of_speech(name)[0]) for name in ("noun", "verb", "adj", "adv")}
    assert sizes == {"noun": 117_798, "verb": 11_529, "adj": 21_479, "adv": 4_481}


def test_the_princeton_notice_travels_with_the_index():
    notice = ASSETS.joinpath("WORDNET-LICENSE").read_text(encoding="ascii")
    index = gzip.decompress(ASSETS.joinpath("wordnet-lemmas.txt.gz").read_bytes()).decode("ascii")
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in notice
    for line in filter(None, notice.splitlines()):
        assert f"# {line}\n" in index


def test_building_gives_the_same_bytes_every_time(small_wordnet, monkeypatch):
    first = build_index(small_wordnet)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    assert build_index(small_wordnet) == first


def test_the_built_index_is_as_documented(small_wordnet):
    index, notice = build_index(small_wordnet)
    assert notice == "This software is provided to you by somebody.\n"
    assert gzip.decompress(index).decode() == "\n".join(
        [
            "# This software is provided to you by somebody.",
            *("[noun]", "cat", "dog", "hot_dog", "[noun.exc]", "feet foot pes", "mice rat"),
            *("[verb]", "run", "[verb.exc]", "ran run"),
            *("[adj]", "nice", "[adj.exc]", "better good well"),
            *("[adv]", "fast", "[adv.exc]", "[end]", ""),
        ]
    )


def test_the_script_names_a_file_that_is_missing(small_wordnet):
    (small_wordnet / "verb.exc").unlink()
    command = [sys.executable, str(SCRIPT), str(small_wordnet)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{small_wordnet / 'verb.exc'} does not exist (Debian: install wordnet-base)\n"


@pytest.mark.skipif(not Path("/usr/share/wordnet/index.noun").exists(), reason="wordnet-base is not installed")
def test_the_shipped_index_is_the_one_built_from_debians_wordnet():
    index, notice = build_index(Path("/usr/share/wordnet"))
    assert gzip.decompress(index) == gzip.decompress(ASSETS.joinpath("wordnet-lemmas.txt.gz").read_bytes())
    assert notice == ASSETS.joinpath("WORDNET-LICENSE").read_text(encoding="ascii")
