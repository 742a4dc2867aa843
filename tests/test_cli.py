"""The command line's contract: exit codes, one to three lines, what starts quickly, what is never imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Result, battle, write_csv

import prefcli
from prefcli import __main__
from prefcli.cli import main
from prefcli.data.synthetic import Demo

CLI = Callable[..., Result]
VERBS = ["eda", "preprocess", "train", "predict", "score", "ablate", "demo"]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def check_error(done: Result, code: int = 2) -> None:
    assert done.code == code, done.err
    lines = done.err.splitlines()
    errors = lines[next(i for i, line in enumerate(lines) if line.startswith("error: ")) :]
    assert 1 <= len(errors) <= 3, done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_few_matrix_products_are_kept_unless_the_user_says_otherwise() -> None:
    names = ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"]
    code = f"import os; from prefcli.cli.main import run; run(['--version']); print([os.environ[n] for n in {names}])"
    assert python(code, LRU_CACHE_CAPACITY="7").stdout.splitlines()[-1] == "['64', '7']"


def test_help_shows_every_verb_and_each_has_examples(cli: CLI) -> None:
    top = cli("--help")
    assert top.code == 0
    for verb in VERBS:
        assert verb in top.out
        shown = cli(verb, "--help")
        assert shown.code == 0
        assert f"prefcli {verb}" in shown.out.split("Examples:")[1]


def test_version(cli: CLI) -> None:
    assert cli("--version").out == cli("-V").out == f"prefcli {prefcli.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["eda"], ["eda", "--no-such-flag"], ["no-such-verb"], ["train", "--epochs", "many"], ["score", "one.csv"]],
)
def test_wrong_usage_points_to_help(cli: CLI, arguments: list[str]) -> None:
    done = cli(*arguments)
    check_error(done)
    assert "--help" in done.err


def test_an_input_error_names_file_and_place_and_leaves_no_cache(cli: CLI, tmp_path: Path) -> None:
    rows = [battle(i) for i in range(1, 31)]
    good = rows[16].copy()
    wrong = {
        "column": (rows, ["id", "prompt", "response_a"]),
        "json": (rows[:16] + [good | {"response_a": '["broken'}] + rows[17:], None),
        "winners": (rows[:16] + [good | {"winner_tie": 1}] + rows[17:], None),
        "none": ([], None),
    }
    said = {"column": "response_b", "json": "row 17, column response_a", "winners": "row 17", "none": "no battles"}
    for name, (content, columns) in wrong.items():
        path = write_csv(tmp_path / f"{name}.csv", content, *([columns] if columns else []))
        for verb in (["eda"], ["preprocess"], ["train", "--encoder", "tiny"]):
            done = cli(verb[0], path, *verb[1:])
            check_error(done)
            assert said[name] in done.err
            assert path.name in done.err
    (tmp_path / "empty.csv").write_text("")
    check_error(cli("eda", tmp_path / "empty.csv"))
    check_error(cli("eda", tmp_path / "missing.csv"))
    stages = tmp_path / ".prefcli" / "stages"
    assert not stages.exists() or list(stages.iterdir()) == []


@pytest.mark.slow
def test_a_missing_network_is_exit_1_and_quick(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [battle(i, i % 3) for i in range(20)])
    for name in ("no/such-model", "microsoft/deberta-v3-small"):
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "prefcli", "train", str(path), "--encoder", name],
            capture_output=True, text=True, check=False,
            env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")},
        )  # fmt: skip
        assert done.returncode == 1
        assert "no network" in done.stderr
        assert name in done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - started < 30


@pytest.mark.slow
def test_score_names_wrong_rows(cli: CLI, tmp_path: Path) -> None:
    truth = write_csv(tmp_path / "truth.csv", [battle(i, i % 3) for i in range(1, 6)])
    head = "id,winner_model_a,winner_model_b,winner_tie\n"
    good = [f"{i},0.2,0.3,0.5" for i in range(1, 6)]
    cases = {
        "sum": (good[:2] + ["3,0.2,0.3,0.6"] + good[3:], "row 3 (id 3)"),
        "nan": (good[:2] + ["3,nan,0.3,0.7"] + good[3:], "row 3 (id 3)"),
        "word": (good[:2] + ["3,much,0.3,0.7"] + good[3:], "row 3, column winner_model_a"),
        "blank": (good[:2] + ["3,,0.3,0.7"] + good[3:], "row 3, column winner_model_a"),
        "missing": (good[:4], "no prediction for 1 of 5 battles: id '5'"),
        "extra": ([*good, "6,0.2,0.3,0.5"], "no label for 1 prediction: id '6'"),
        "twice": ([*good, "3,0.2,0.3,0.5"], "rows 3 and 6"),
        "nothing": ([], "no predictions"),
    }
    for name, (lines, said) in cases.items():
        path = tmp_path / f"{name}.csv"
        path.write_text(head + "".join(line + "\n" for line in lines))
        done = cli("score", path, truth)
        check_error(done)
        assert said in done.err, name
    path = tmp_path / "good.csv"
    path.write_text(head + "".join(line + "\n" for line in reversed(good)))
    found = cli("score", path, truth, "--json").json()
    assert found["n"] == 5
    assert set(found) >= {
        "n", "log_loss", "log_loss_ci", "binary_log_loss", "accuracy", "brier", "ece", "prior_log_loss",
    }  # fmt: skip
    assert cli("score", path, truth).code == 0


def test_a_probability_of_zero_for_the_truth_is_scored_with_a_warning(cli: CLI, tmp_path: Path) -> None:
    truth = write_csv(tmp_path / "truth.csv", [battle(1, 0), battle(2, 1)])
    preds = tmp_path / "p.csv"
    preds.write_text("id,winner_model_a,winner_model_b,winner_tie\n1,0,1,0\n2,0.2,0.3,0.5\n")
    done = cli("score", preds, truth)
    assert done.code == 0
    assert "1 battle gave the true outcome a probability of (nearly) 0" in done.err


def test_with_json_stdout_holds_nothing_else(cli: CLI, demo_files: Demo) -> None:
    for arguments in (["eda", demo_files.train], ["preprocess", demo_files.train]):
        done = cli(*arguments, "--json")
        assert isinstance(done.json(), dict)
        assert done.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_preprocess_leaves_no_partial_cache(tmp_path: Path, number: signal.Signals) -> None:
    rows = [battle(i, 0, response_a=["The rivers were flooding again. " * 200]) for i in range(3000)]
    path = write_csv(tmp_path / "a.csv", rows)
    process = subprocess.Popen(
        [sys.executable, "-m", "prefcli", "preprocess", str(path)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    stages = tmp_path / ".prefcli" / "stages"
    while not list(stages.glob("preprocess-*.lock")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert {p.name.split("-")[0] for p in stages.iterdir()} == {"battles"}


def test_an_interrupt_while_modules_are_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting:
        def find_spec(self, *arguments: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "prefcli.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit, match="130"):
        __main__.main()
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), main._Stopped(143)])
def test_a_signal_that_comes_in_a_destructor_comes_again(error: BaseException) -> None:
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            main._raise_again(SimpleNamespace(exc_value=error))
            time.sleep(10)
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_quiet_prints_only_warnings(cli: CLI, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [battle(1, response_a=["?!"]), battle(2)])
    done = cli("preprocess", path, "--quiet")
    assert (
        done.err
        == "warning: 1 answer without text after nltk normalisation (1 turn): only stop words, symbols or code\n"
    )
    assert cli("--quiet", "preprocess", path).err == done.err


def test_flag_and_environment_set_the_workspace(cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(tmp_path / "a.csv", [battle(1)])
    assert cli("eda", path, "--workspace", "by-flag").code == 0
    assert cli("--workspace", "before-verb", "eda", path).code == 0
    monkeypatch.setenv("PREFCLI_WORKSPACE", "by-environment")
    assert cli("eda", path).code == 0
    for name in ("by-flag", "before-verb", "by-environment"):
        assert (tmp_path / name / "stages").is_dir()
    assert not (tmp_path / ".prefcli").exists()


def test_debug_raises_the_error(cli: CLI) -> None:
    from prefcli.errors import InputError

    with pytest.raises(InputError):
        cli("eda", "missing.csv", "--debug")


def test_terminal_escapes_in_names_are_escaped(cli: CLI, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [battle(i, 0, model_a="\x1b[31mred\x07") for i in range(3)])
    done = cli("eda", path)
    assert "\x1b[31mred" not in done.out
    assert "\\x1b[31mred\\x07" in done.out


def test_unexpected_errors_print_no_traceback(cli: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefcli import pipeline

    def burst(*_: object, **__: object) -> None:
        raise RuntimeError("something\ninside")

    monkeypatch.setattr(pipeline, "eda", burst)
    done = cli("eda", "a.csv")
    check_error(done, 1)
    assert "--debug" in done.err

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "eda", interrupted)
    check_error(cli("eda", "a.csv"), 130)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/some/file")

    monkeypatch.setattr(pipeline, "eda", full)
    check_error(cli("eda", "a.csv"), 1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
        RuntimeError("could not create a primitive"),
        RuntimeError("std::bad_alloc"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_out_of_memory_names_an_option_that_helps(cli: CLI, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from prefcli import pipeline

    def fails(*_: object, **__: object) -> None:
        raise error

    for verb, option in (("train", "--micro-batch"), ("preprocess", "--workers"), ("predict", "--workers")):
        monkeypatch.setattr(pipeline, verb, fails)
        done = cli(verb, "a.csv")
        check_error(done, 1)
        assert "out of memory" in done.err
        assert option in done.err


def test_help_and_the_package_import_no_heavy_library() -> None:
    heavy = "torch transformers nltk pandas numpy pyarrow sklearn scipy matplotlib rich pydantic".split()
    listing = f"; import sys; print([m for m in {heavy!r} if m in sys.modules])"
    assert python("import prefcli" + listing).stdout == "[]\n"
    code = "from prefcli.cli.main import run; run(['train', '--help'])" + listing
    assert python(code).stdout.splitlines()[-1] == "[]"


def test_in_the_command_lightgbm_loads_no_scikit_learn() -> None:
    code = (
        "from prefcli.cli import main; main._start_sooner(); from prefcli.models.features import booster; import sys;"
        "booster.import_lightgbm(); print([m for m in ('sklearn.base', 'scipy.stats') if m in sys.modules])"
    )
    assert python(code).stdout == "[]\n"


@pytest.mark.slow
def test_a_closed_output_pipe_prints_no_traceback(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [battle(1)])
    command = f"{sys.executable} -m prefcli eda {path} --quiet | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
