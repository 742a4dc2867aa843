"""What is published: a wheel that holds the package and nothing else, a source release that holds everything."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import prefcli
from prefcli.data import synthetic

ROOT = Path(__file__).parent.parent
NOT_SOURCE = shutil.ignore_patterns(
    ".git",
    ".venv*",
    ".prefcli",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
    "*.egg-info",
    "build",
    "dist",
    "demo",
    "site",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, so that building leaves nothing in it."""
    folder = tmp_path_factory.mktemp("release") / "source"
    shutil.copytree(ROOT, folder, ignore=NOT_SOURCE, symlinks=True)
    return folder


@pytest.fixture(scope="module")
def built(source: Path) -> Path:
    """The folder with the source release, and the wheel made from it; without a network."""
    folder = source.parent / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def files_below(folder: Path, root: Path) -> set[str]:
    kept = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix() for path in kept}


def test_the_wheel_holds_the_package_its_licences_and_nothing_else(wheel: Path) -> None:
    version = prefcli.__version__
    assert wheel.name == f"prefcli-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = f"prefcli-{version}.dist-info/"
    package = {name for name in names if not name.startswith(information)}
    assert package == files_below(ROOT / "prefcli", ROOT)
    assert {"prefcli/py.typed", "prefcli/assets/wordnet-lemmas.txt.gz", "prefcli/assets/WORDNET-LICENSE"} <= package
    assert {name.removeprefix(information) for name in names - package} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt",
        "licenses/LICENSE", "licenses/prefcli/assets/WORDNET-LICENSE",
    }  # fmt: skip
    assert wheel.stat().st_size < 2_000_000


def test_the_wheel_says_what_it_is_and_what_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        information = f"prefcli-{prefcli.__version__}.dist-info/"
        metadata = email.message_from_bytes(archive.read(information + "METADATA"))
        assert b"prefcli = prefcli.__main__:main" in archive.read(information + "entry_points.txt")
    assert metadata["Version"] == prefcli.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert set(metadata.get_all("License-File")) == {"LICENSE", "prefcli/assets/WORDNET-LICENSE"}
    assert {"test", "track", "docs"} <= set(metadata.get_all("Provides-Extra"))
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert any(line.startswith("torch>=") for line in needed)
    assert not any(line.startswith(("pytest", "wandb", "mkdocs")) for line in needed), "heavy ones are extras"
    assert "from raw votes to calibrated probabilities" in str(metadata.get_payload())


def test_the_source_release_holds_what_testing_and_documenting_need(built: Path, source: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    top = f"prefcli-{prefcli.__version__}/"
    with tarfile.open(path) as archive:
        names = {member.name.removeprefix(top) for member in archive.getmembers() if member.isfile()}
    expected = files_below(source, source) - {".gitignore"}
    made_by_building = {"PKG-INFO", "setup.cfg"} | {name for name in names if name.startswith("prefcli.egg-info/")}
    assert names - made_by_building == {name for name in expected if not name.startswith("prefcli.egg-info/")}


@pytest.mark.slow
def test_the_installed_wheel_normalises_text_with_its_own_files(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(place)]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    made = synthetic.write(tmp_path / "demo", train=20, test=5)
    done = subprocess.run(
        [sys.executable, "-m", "prefcli", "preprocess", str(made.train), "--preview", "1"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(place)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    where = [sys.executable, "-c", "import prefcli; print(prefcli.__file__)"]
    found = subprocess.run(
        where, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(place)}
    )
    assert found.stdout.startswith(str(place)), "another prefcli was run"
