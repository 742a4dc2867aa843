"""What does without torch and transformers never imports them; what needs them says which line to type."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result, battle, write_csv

from prefcli import pipeline

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_verbs_that_do_without_torch_do_not_import_it_and_the_others_say_what_to_install(
    features_run: Path, tmp_path: Path
) -> None:
    """The command of ``make light-check``, in this environment; its ONNX prediction is in test_export.py."""
    stand_ins = {"neural": {}, "onnx": {"export": {}}}
    for name, more in stand_ins.items():
        shutil.copytree(features_run, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config["options"]["architecture"] = "siamese"
        (tmp_path / name / "config.json").write_text(json.dumps(config | more))
        (tmp_path / name / "SHA256SUMS").unlink()
    code = "import sys; sys.path.insert(0, sys.argv[1]); import light_install as light; "
    code += "light.main('neural', 'onnx', predict_onnx=False)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_missing_package_of_any_verb_is_an_error_with_the_line_that_installs_it(
    cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(Path("votes.csv"), [battle(1, 0), battle(2, 1)])
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setattr(pipeline, "eda", lambda *_, **__: importlib.import_module("scipy"))
    done = cli("eda", "votes.csv")
    assert (done.code, done.err) == (
        1, "error: prefcli eda needs scipy, which is not installed\n  Install: pip install scipy\n"
    )  # fmt: skip


def test_the_light_requirements_are_the_dependencies_without_torch_and_transformers() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.findall(r'^    "(.*)",$', text.split("dependencies = [")[1].split("]\n")[0], re.M)
    lines = (ROOT / "requirements-light.txt").read_text(encoding="utf-8").splitlines()
    light = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in dependencies if not re.match(r"torch\b|transformers\b", line)] == light
    assert len(dependencies) == len(light) + 2
