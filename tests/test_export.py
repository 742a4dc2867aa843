"""A run exported to ONNX predicts the same without torch, or is not kept."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from numpy.typing import NDArray

import prefcli
from prefcli import metrics, pipeline
from prefcli.battles import TEXT_FIELDS
from prefcli.data import tables
from prefcli.data.synthetic import Demo
from prefcli.errors import MissingPackage, ModelError
from prefcli.models import exported
from prefcli.options import PredictOptions, TrainOptions
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.storage import files, runs
from prefcli.storage.workspace import Workspace
from prefcli.text import normalise_text

CLI = Callable[..., Result]
pytestmark = pytest.mark.slow
Array = NDArray[np.float64]
ROUNDING = 1e-5
MIN_SPREAD = 1e-3
"""Probabilities must vary by more between battles: a model that gives all the same would be noticed."""


@dataclass(frozen=True)
class Twins:
    """A run and its export."""

    run: Path
    onnx: Path
    workspace: Workspace


@pytest.fixture(scope="session")
def twins(
    tmp_path_factory: pytest.TempPathFactory, demo_files: Demo, one_layer: dict[str, Path]
) -> Callable[..., Twins]:
    """Runs and their exports by name, each made once."""
    folder = tmp_path_factory.mktemp("exports")
    workspace = Workspace(folder / ".prefcli")
    common: dict[str, Any] = {"limit": 60, "max_length": 48, "lr": 3e-3, "validation": 0.3, "text": "raw"}
    kinds: dict[str, dict[str, Any]] = {
        "siamese-bert": {"encoder": str(one_layer["bert"]), "text": "nltk", "combine": "interaction"},
        "cross-encoder-bert": {
            "encoder": str(one_layer["bert"]), "architecture": "cross-encoder", "combine": "interaction",
            "truncation": "head-tail", "pooling": "attention", "head": "mlp",
        },
        "cross-encoder-deberta": {"encoder": str(one_layer["deberta"]), "architecture": "cross-encoder"},
        "folds": {"encoder": str(one_layer["bert"]), "folds": 2, "max_length": 24},
        "reward-bert": {
            "encoder": str(one_layer["bert"]), "architecture": "reward", "tie": "prompt", "truncation": "head-tail",
            "lr": 3e-2, "epochs": 3,
        },
        "no-validation": {"encoder": str(one_layer["bert"]), "validation": 0.0},
    }  # fmt: skip
    pairs: dict[str, Twins] = {}

    def get(name: str, *, export: bool = True) -> Twins:
        if name not in pairs:
            pairs[name] = Twins(folder / name, folder / f"{name}-onnx", workspace)
            options = TrainOptions(**{**common, **kinds[name]})
            pipeline.train(demo_files.train, workspace, options, output=pairs[name].run, remember=False)
        if export and not pairs[name].onnx.exists():
            result = prefcli.export(pairs[name].run, onnx=pairs[name].onnx, workspace=workspace.root)
            assert result.folder == pairs[name].onnx
            assert result.largest_difference < ROUNDING
        return pairs[name]

    return get


def reuse_graph(monkeypatch: pytest.MonkeyPatch, pair: Twins) -> None:
    """Export again with the graph that was made before, because making it takes the time."""
    from prefcli.exporting import onnx

    monkeypatch.setattr(onnx, "_write_graph", lambda _, path, **__: shutil.copyfile(pair.onnx / path.name, path))


def some_battles() -> list[dict[str, Any]]:
    """Empty to far longer than the budget, one and several turns, letters of other scripts."""
    texts = ["", "great", "clear and helpful " * 3, "wrong " * 40, "Ünïcode 漢字 🙂 text", "helpful, wrong. " * 200]
    rows = [
        {"prompt": [f"question {i} " * (1 + i % 4)], "response_a": [a], "response_b": [b]}
        for i, (a, b) in enumerate((a, b) for a in texts for b in texts)
    ]
    rows.append({"prompt": ["one", None, "two " * 30], "response_a": ["yes", "no", "clear"], "response_b": [None] * 3})
    return rows


@pytest.mark.parametrize(
    "kind", ["siamese-bert", "cross-encoder-bert", "cross-encoder-deberta", "folds", "reward-bert"]
)
def test_an_exported_run_predicts_what_torch_predicts(twins: Callable[..., Twins], kind: str) -> None:
    pair = twins(kind)
    rows = some_battles()
    for swap_average in (False, True):
        torch_, onnx = (
            prefcli.load(folder, swap_average=swap_average, calibrated=False) for folder in (pair.run, pair.onnx)
        )
        expected, predicted = torch_.predict(rows), onnx.predict(rows)
        assert np.abs(predicted - expected).max() < ROUNDING
        assert expected.std(axis=0).max() > MIN_SPREAD
        for row in (0, 3, len(rows) - 1):  # alone, it is a batch of one, and no longer than it is
            battle = rows[row]
            single = onnx.predict(battle["prompt"], battle["response_a"], battle["response_b"])
            assert np.abs(np.array(single) - expected[row]).max() < ROUNDING
        cuts = [[dataclasses.replace(cut, run="") for cut in judge.compare(rows[3]).cuts] for judge in (torch_, onnx)]
        assert cuts[0] == cuts[1] != []


@pytest.mark.parametrize(
    "kind", ["siamese-bert", "cross-encoder-bert", "cross-encoder-deberta", "folds", "reward-bert"]
)
def test_the_script_of_the_docs_predicts_without_prefcli(twins: Callable[..., Twins], kind: str) -> None:
    """The page's code needs onnxruntime, tokenizers and NumPy alone, and gives what ``predict`` gives."""
    pair = twins(kind)
    page = (Path(__file__).parent.parent / "docs" / "onnx.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert set(re.findall(r"^(?:import|from) (\w+)", code, flags=re.M)) == {
        "json", "pathlib", "numpy", "onnxruntime", "tokenizers"
    }  # fmt: skip
    script: dict[str, Any] = {}
    exec(compile(code, "docs/onnx.md", "exec"), script)
    rows = some_battles()
    text = runs.read_config(pair.run)["data"]["text"]
    fields = [
        tuple([turn and normalise_text(turn, text) for turn in row[name]] for name in TEXT_FIELDS) for row in rows
    ]
    expected = prefcli.load(pair.run, calibrated=False).predict(rows)
    assert np.abs(script["predict"](pair.onnx, fields) - expected).max() < ROUNDING
    if kind == "siamese-bert":  # as if no training battle had been a tie
        config = runs.read_config(pair.onnx)
        config["data"]["outcomes"] = [20.0, 22.0, 0.0]
        folder = Path(shutil.copytree(pair.onnx, "two-outcomes"))
        runs.save_config(folder, config)
        (folder / files.CHECKSUMS).unlink()
        two = script["predict"](folder, fields)
        assert np.abs(two - prefcli.load(folder, calibrated=False).predict(rows)).max() < ROUNDING
        assert np.allclose(two[:, 2], 0.01)


def test_an_exported_reward_model_gives_the_rewards_of_the_run(twins: Callable[..., Twins]) -> None:
    import pyarrow as pa

    from prefcli import models
    from prefcli.compute.devices import DeviceRequest

    pair = twins("reward-bert")
    ours, onnx = (models.load(folder, DeviceRequest("cpu", "fp32")) for folder in (pair.run, pair.onnx))
    assert models.has_rewards(ours)
    assert models.has_rewards(onnx)
    rows = some_battles()
    turns = pa.list_(pa.string())
    columns = {name: pa.array([row[key] for row in rows], turns)
               for name, key in (("prompt", "prompt"), ("response", "response_a"))}  # fmt: skip
    batch = pa.record_batch(columns)
    expected = ours.rewards(batch)
    assert np.abs(onnx.rewards(batch) - expected).max() < ROUNDING
    assert np.ptp(expected) > MIN_SPREAD
    assert onnx.tie_log_nu is None  # it depends on the prompt


def test_rewards_of_an_export_that_are_all_shifted_are_noticed(
    twins: Callable[..., Twins], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probabilities depend on differences of rewards alone, so they would not show it."""
    pair = twins("reward-bert")
    reuse_graph(monkeypatch, pair)
    compute = exported.ExportedReward.compute
    monkeypatch.setattr(exported.ExportedReward, "compute", lambda self, prepared: compute(self, prepared) + 0.01)
    with pytest.raises(ModelError, match=r"a reward differs by 0\.01"):
        prefcli.export(pair.run, onnx="shifted", workspace=pair.workspace.root)
    assert not Path("shifted").exists()


def test_text_normalisation_calibration_and_blending_are_those_of_the_run(
    twins: Callable[..., Twins], cli: CLI, demo_files: Demo
) -> None:
    pair, other = twins("siamese-bert"), twins("cross-encoder-bert")
    results: dict[str, Any] = {}
    for name, models in {
        "run": (pair.run,), "onnx": (pair.onnx,), "blend": (pair.run, other.run), "onnx-blend": (pair.onnx, other.run),
        "onnx-both": (pair.onnx, other.onnx),
    }.items():  # fmt: skip
        flags = [part for model in models for part in ("--model", model)]
        done = cli("predict", demo_files.train, *flags, "--output", f"{name}.csv", "--json", "--limit", 40)
        assert done.code == 0, done.err
        results[name] = done.json()
        assert ("on ONNX Runtime" in done.err) == ("onnx" in name)
    predictions = {name: tables.read_probabilities(Path(f"{name}.csv"))[1] for name in results}
    assert np.abs(predictions["onnx"] - predictions["run"]).max() < ROUNDING
    assert results["onnx"]["calibration"] == results["run"]["calibration"]
    for name in ("onnx-blend", "onnx-both"):
        assert np.abs(predictions[name] - predictions["blend"]).max() < ROUNDING
        assert results[name]["weights"] == results["blend"]["weights"]


def test_an_export_predicts_without_torch_or_transformers(
    twins: Callable[..., Twins], tmp_path: Path, demo_files: Demo
) -> None:
    """Files, lines and Python, in processes that never load either; the folder alone suffices."""
    pair = twins("cross-encoder-bert")
    shutil.copytree(pair.onnx, tmp_path / "elsewhere")
    row = some_battles()[9]
    (tmp_path / "battles.jsonl").write_text(json.dumps({"id": "x", **row}) + "\n", encoding="utf-8")
    program = (
        "import sys, prefcli; from prefcli.cli.main import run\n"
        "model = ['--model', 'elsewhere', '--quiet']\n"
        "code = run(['predict', sys.argv[1], *model, '--swap-average', '--output', 'p.csv'])\n"
        "code += run(['predict', 'battles.jsonl', *model, '--output', '-'])\n"
        "prefcli.load('elsewhere').predict('a', 'b', 'c')\n"
        "print(code, [m for m in ('torch', 'transformers', 'onnxscript') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(demo_files.test)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, env={**os.environ},
    )  # fmt: skip
    line, last = done.stdout.splitlines()[-2:]
    assert last == "0 []", done.stderr
    answer = json.loads(line)
    expected = prefcli.load(pair.run).predict(row["prompt"], row["response_a"], row["response_b"])
    assert np.abs(np.array([answer[name] for name in WINNER_COLUMNS]) - expected).max() < ROUNDING
    pipeline.predict(
        demo_files.test, pair.workspace, Path("torch.csv"), PredictOptions((str(pair.run),), swap_average=True)
    )
    torch_, onnx = (tables.read_probabilities(Path(name))[1] for name in ("torch.csv", "p.csv"))
    assert np.abs(torch_ - onnx).max() < ROUNDING


def test_an_exported_folder_is_complete_and_says_how_close_it_is(twins: Callable[..., Twins]) -> None:
    pair = twins("siamese-bert")
    names = {path.name for path in pair.onnx.iterdir()}
    assert {"config.json", "model.onnx", "tokenizer.json", "README.md", "validation.parquet", "SHA256SUMS"} <= names
    sums = (pair.onnx / "SHA256SUMS").read_text(encoding="utf-8")
    for name in ("config.json", "model.onnx", "tokenizer.json", "validation.parquet", "training_prompts.parquet"):
        assert name in sums
    graph = (pair.onnx / "model.onnx").read_bytes()
    for trace in (str(Path(prefcli.__file__).parent), sys.prefix, "stack_trace"):  # of the machine that exported
        assert trace.encode() not in graph
    card = (pair.onnx / "README.md").read_text(encoding="utf-8")
    of_run = (pair.run / "README.md").read_text(encoding="utf-8")
    about = slice(of_run.index("\n# "), of_run.index("\n## Use"))
    assert of_run[about] in card
    assert re.search(r"by at most \d\.\de-\d\d on \d+ held-out battles in both orders", card)
    for line in (
        "| input | `input_ids` | tensor(int64) | [2, battles, tokens] |",
        "| input | `attention_mask` | tensor(int64) | [2, battles, tokens] |",
        "| input | `token_type_ids` | tensor(int64) | [2, battles, tokens] |",
        "| output | `logits` | tensor(float) | [2, battles, 3] |",
    ):
        assert line in card
    reward = (twins("reward-bert").onnx / "README.md").read_text(encoding="utf-8")
    assert "| input | `spans` | tensor(int64) | [sequences, 2, 2] |" in reward
    assert "| output | `logits` | tensor(float) | [sequences, 2] |" in reward
    config = runs.read_config(pair.onnx)
    assert {key: value for key, value in config.items() if key != "export"} == runs.read_config(pair.run)


def test_the_loss_of_int8_is_measured_printed_and_written_into_the_card(
    twins: Callable[..., Twins], cli: CLI, demo_files: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = twins("siamese-bert")
    reuse_graph(monkeypatch, pair)
    done = cli("export", pair.run, "--onnx", "small", "--int8", "--workspace", pair.workspace.root)
    assert done.code == 0, done.err
    card = Path("small/README.md").read_text(encoding="utf-8")
    match = re.search(
        r"log loss (\S+) in fp32, (\S+) in int8 .*; largest change of a probability (\S+) \((\d+) ", done.out
    )
    assert match is not None
    assert match[0] in card
    assert Path("small/model.onnx").stat().st_size < 0.8 * (pair.onnx / "model.onnx").stat().st_size

    held_out = runs.read_validation(pair.run)
    stage = pipeline.read_stage(demo_files.train, pair.workspace)
    rows = [row for row in stage.table().to_pylist() if row["id"] in set(held_out.ids)]
    labels = np.array([row["label"] for row in rows])
    plain = [{name: row[name] for name in ("prompt", "response_a", "response_b")} for row in rows]
    fp32, int8 = (prefcli.load(f, calibrated=False).predict(plain) for f in (pair.onnx, "small"))
    assert float(match[1]) == pytest.approx(metrics.log_loss(fp32, labels), abs=6e-5)
    assert float(match[2]) == pytest.approx(metrics.log_loss(int8, labels), abs=6e-5)
    assert float(match[3]) == pytest.approx(np.abs(fp32 - int8).max(), abs=6e-5)
    assert int(match[4]) == len(rows) == len(held_out.ids)
    assert 0 < np.abs(fp32 - int8).max() < 0.1


def test_large_weights_are_a_separate_file_and_made_up_battles_are_used_if_none_were_held_out(
    twins: Callable[..., Twins], cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefcli.exporting import onnx

    pair = twins("no-validation", export=False)
    monkeypatch.setattr(onnx, "MAX_GRAPH_BYTES", 0)
    done = cli("export", pair.run, "--onnx", "big", "--int8", "--json", "--workspace", pair.workspace.root)
    assert done.code == 0, done.err
    assert done.json()["sample"] == "made-up battles"
    assert done.json()["int8"]["log_loss_int8"] is None
    assert "model.onnx.data" in Path("big/SHA256SUMS").read_text(encoding="utf-8")
    assert "log loss not measured" in Path("big/README.md").read_text(encoding="utf-8")
    expected, predicted = (prefcli.load(f).predict(some_battles()) for f in (pair.run, "big"))
    assert np.abs(predicted - expected).max() < 0.1
    Path("big/model.onnx.data").write_bytes(b"\0" * Path("big/model.onnx.data").stat().st_size)
    with pytest.raises(ModelError, match=r"model\.onnx\.data is changed"):
        prefcli.load("big")


# What is refused


def check_refused(done: Result, code: int, *words: str) -> None:
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


def test_features_and_exports_are_not_exported(twins: Callable[..., Twins], cli: CLI, demo_files: Demo) -> None:
    trained = cli("train", demo_files.train, "--architecture", "features", "--limit", 60, "--output", "f", "--quiet")
    assert trained.code == 0
    check_refused(cli("export", "f", "--onnx", "o"), 2, "features", "neither torch nor ONNX")
    check_refused(cli("export", twins("siamese-bert").onnx, "--onnx", "o"), 2, "exported run already")
    check_refused(cli("export", "no-such-run", "--onnx", "o"), 2, "no run at")
    assert not Path("o").exists()


def test_only_an_export_is_replaced_and_only_by_force(twins: Callable[..., Twins], cli: CLI) -> None:
    pair = twins("siamese-bert")
    own = shutil.copytree(pair.onnx, "own")
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear", encoding="utf-8")
    before = files.sha256(pair.run / "model.safetensors")
    check_refused(cli("export", pair.run, "--onnx", own), 2, "already exists", "--force")
    check_refused(cli("export", pair.run, "--onnx", "mine", "--force"), 2, "not an exported run")
    check_refused(cli("export", pair.run, "--onnx", pair.run, "--force"), 2, "not an exported run")
    assert Path("mine/letter.txt").read_text(encoding="utf-8") == "dear"
    assert files.sha256(pair.run / "model.safetensors") == before


def test_an_export_that_differs_from_torch_is_not_kept(
    twins: Callable[..., Twins], cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = twins("siamese-bert")
    honest = exported.ExportedModel.compute
    export = ["export", pair.run, "--onnx", "out/o", "--workspace", pair.workspace.root]
    for spoil in (lambda logits: logits + np.array([0.001, 0, 0]), lambda logits: logits * np.nan):
        with monkeypatch.context() as patch:
            reuse_graph(patch, pair)
            patch.setattr(exported.ExportedModel, "compute", lambda *a, spoil=spoil: spoil(honest(*a)))
            check_refused(cli(*export), 1, "does not predict what the run predicts", "nothing was kept")
        assert list(Path("out").iterdir()) == []
    own = shutil.copytree(pair.onnx, "out/o")
    import torch

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fails)
    check_refused(cli(*export, "--force"), 1, "cannot be exported", "no such operator")
    assert sorted(path.name for path in Path("out").iterdir()) == ["o"]
    assert prefcli.load(own)


def test_missing_packages_and_tokenizers_in_python_are_errors(
    twins: Callable[..., Twins], cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefcli import encoders

    pair = twins("siamese-bert")
    export = ["export", pair.run, "--onnx", "o", "--workspace", pair.workspace.root]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        check_refused(cli(*export), 1, "needs onnxruntime, which is not installed", "Install: pip install onnxruntime")
        with pytest.raises(MissingPackage, match="Install: pip install onnxruntime"):
            prefcli.load(pair.onnx)
    with monkeypatch.context() as patch:
        plain = encoders.load_tokenizer(pair.run)

        class Slow:
            """A tokenizer without a definition of its own."""

            pad_token_id = plain.pad_token_id

            def __call__(self, *args: Any, **options: Any) -> Any:
                return plain(*args, **options)

        patch.setattr(encoders, "load_tokenizer", lambda _, **__: Slow())
        check_refused(cli(*export), 2, "written in Python")
    assert not Path("o").exists()


def test_what_only_torch_can_do_is_refused(twins: Callable[..., Twins], cli: CLI, demo_files: Demo) -> None:
    onnx = twins("siamese-bert").onnx
    predict = ["predict", demo_files.test, "--model", onnx]
    check_refused(cli(*predict, "--device", "cuda"), 2, "--device cuda", "computes on the CPU")
    check_refused(cli(*predict, "--precision", "bf16"), 2, "--precision bf16", "exported in fp32")
    check_refused(cli("train", "--resume", onnx), 2, "exported run")
    assert cli(*predict, "--device", "cpu", "--precision", "fp32", "--no-fast-attention").code == 0


# Damage


@contextlib.contextmanager
def damaged(source: Path, *, sums: bool = False) -> Iterator[Path]:
    """A copy without checksums, as somebody who tampers would leave it."""
    folder = Path(shutil.copytree(source, "damaged"))
    if not sums:
        (folder / files.CHECKSUMS).unlink()
    yield folder
    shutil.rmtree(folder)


def test_a_damaged_export_is_refused_and_not_run(twins: Callable[..., Twins]) -> None:
    onnx = twins("siamese-bert").onnx
    data = (onnx / "model.onnx").read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    with damaged(onnx, sums=True) as folder:
        (folder / "model.onnx").write_bytes(flipped)
        with pytest.raises(ModelError, match=r"model\.onnx is changed"):
            prefcli.load(folder)
    for content in (b"", b"no model", data[: len(data) // 2], os.urandom(2000)):
        with damaged(onnx) as folder:
            (folder / "model.onnx").write_bytes(content)
            with pytest.raises(ModelError, match=r"model\.onnx is damaged|export cannot be loaded"):
                prefcli.load(folder)
    for name in ("model.onnx", "tokenizer.json"):
        with damaged(onnx) as folder:
            (folder / name).unlink()
            with pytest.raises(ModelError, match=name if name == "model.onnx" else "export cannot be loaded"):
                prefcli.load(folder)
    config = json.loads((onnx / "config.json").read_text(encoding="utf-8"))
    for broken in ([], {}, {**config["export"], "packing": {}}, {**config["export"], "format": 99}):
        with damaged(onnx) as folder:
            (folder / "config.json").write_text(json.dumps({**config, "export": broken}), encoding="utf-8")
            with pytest.raises(ModelError, match="export cannot be loaded|newer prefcli"):
                prefcli.load(folder)


def test_a_graph_that_names_other_files_or_is_not_an_export_is_refused(twins: Callable[..., Twins]) -> None:
    import onnx
    from onnx import TensorProto, helper

    source = twins("siamese-bert").onnx
    Path("secret.bin").write_bytes(b"\0" * 64)

    def outside(location: str) -> onnx.ModelProto:
        model = onnx.load(source / "model.onnx")
        first = model.graph.initializer[0]
        first.ClearField("raw_data")
        first.data_location = TensorProto.EXTERNAL
        first.external_data.add(key="location", value=location)
        return model

    def inner(location: str) -> onnx.ModelProto:
        """The same in the attribute of a node."""
        model = onnx.load(source / "model.onnx")
        tensor = TensorProto(name="t", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))
        return model

    for make in (outside, inner):
        for location in ("../secret.bin", str(Path("secret.bin").absolute()), "tokenizer.json"):
            with damaged(source) as folder:
                (folder / "model.onnx").write_bytes(make(location).SerializeToString())
                with pytest.raises(ModelError, match="names another file"):
                    prefcli.load(folder)
    with damaged(source) as folder:
        (folder / "model.onnx").write_bytes(outside("model.onnx.data").SerializeToString())
        (folder / "model.onnx.data").symlink_to(Path("secret.bin").absolute())
        with pytest.raises(ModelError, match="is a link"):
            prefcli.load(folder)
    graphs = [
        ([helper.make_node("RunThis", ["input_ids"], ["logits"], domain="somebody.else")], "damaged, or no model"),
        ([helper.make_node("Identity", ["input_ids"], ["other"])], "inputs and outputs"),
        ([helper.make_node("Identity", ["input_ids"], ["logits"])], "not logits"),
    ]
    for nodes, words in graphs:
        shape: list[int | str | None] = [2, "n", "length"]
        model = helper.make_model(
            helper.make_graph(
                nodes, "g", [helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)],
                [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.INT64, shape)],
            ),
            opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("somebody.else", 1)], ir_version=9,
        )  # fmt: skip
        with damaged(source) as folder, pytest.raises(ModelError, match=words):
            (folder / "model.onnx").write_bytes(model.SerializeToString())
            prefcli.load(folder).predict("a b c d e f", "b", "c")
