"""The programs and scripts of docs/scale.md: what can be run here without Ray, Spark, Slurm and Kubernetes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import Result

import prefcli
from prefcli.data.synthetic import Demo

PAGE = (Path(__file__).parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")


def shown(name: str) -> str:
    """A file that the page shows under its name."""
    [content] = re.findall(rf"^`{re.escape(name)}`:\n\n(?:<!--[^>]*-->\n)?```\w+\n(.*?)^```$", PAGE, flags=re.M | re.S)
    return content


@pytest.fixture
def shards(demo_files: Demo, features_run: Path) -> dict[str, pa.Table]:
    """Three shards in ``battles/``, and what ``predict`` writes of each."""
    from prefcli.readers import open_battles

    [(batch, _)] = open_battles(demo_files.test).batches()
    Path("battles").mkdir()
    for number in range(3):
        pq.write_table(pa.Table.from_batches([batch.slice(20 * number, 20)]), f"battles/{number}.parquet")
    prefcli.predict(demo_files.test, "expected.parquet", models=[features_run])
    expected = pq.read_table("expected.parquet")
    return {f"{number}.parquet": expected.slice(20 * number, 20) for number in range(3)}


class FakeRows:
    """What ``ray.data.from_items`` returns, as far as the page uses it; like Ray, it starts a worker by its class."""

    def __init__(self, rows: list[dict[str, Any]], override_num_blocks: int) -> None:
        self.rows, self.results = rows, []
        assert override_num_blocks == len(rows)

    def map(self, function: Callable[..., Any], *, fn_constructor_args: list[Any], concurrency: int, **_: Any) -> Any:
        worker = function(*fn_constructor_args)
        self.results = [worker(row) for row in self.rows]
        return self

    def take_all(self) -> list[Any]:
        return self.results


def test_the_program_for_ray_predicts_the_missing_shards(
    shards: dict[str, pa.Table], features_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = SimpleNamespace(data=SimpleNamespace(from_items=FakeRows))
    monkeypatch.setitem(sys.modules, "ray", fake)
    program: dict[str, Any] = {"__name__": "predict_shards"}
    exec(shown("predict_shards.py"), program)
    pq.write_table(pq.read_table("battles/0.parquet").slice(0, 0), "battles/3.parquet")
    program["main"](features_run, "battles", "preds", "2")
    assert pq.read_table("preds/3.parquet").equals(shards["0.parquet"].slice(0, 0))
    for name in ("0.parquet", "2.parquet"):
        Path("preds", name).unlink()
    Path("preds/1.parquet").write_bytes(b"there already")
    program["main"](features_run, "battles", "preds", "2")
    assert capsys.readouterr().out == "4 of 4 shards to predict\n2 of 4 shards to predict\n"
    assert sorted(path.name for path in Path("preds").iterdir()) == [*shards, "3.parquet"]
    assert Path("preds/1.parquet").read_bytes() == b"there already"
    for name in ("0.parquet", "2.parquet"):
        assert pq.read_table(f"preds/{name}").equals(shards[name])


def test_the_function_for_spark_maps_batches(shards: dict[str, pa.Table], features_run: Path) -> None:
    code = shown("predict_spark.py")
    compile(code, "predict_spark.py", "exec")
    [function] = re.findall(r"^    def predict\(batches\):\n.*?\n(?=\n)", code, flags=re.M | re.S)
    program: dict[str, Any] = {"prefcli": prefcli, "run": features_run}
    exec("if True:\n" + function, program)
    batches = [batch for name in shards for batch in pq.read_table(f"battles/{name}").to_batches()]
    predicted = pa.Table.from_batches(program["predict"](iter([*batches, batches[0].slice(0, 0)])))
    assert predicted.equals(pa.concat_tables(shards.values()))
    names, types = zip(*(column.split() for column in re.search(r'COLUMNS = "(.*)"', code)[1].split(", ")), strict=True)
    assert (list(names), list(types)) == (predicted.schema.names, [str(t) for t in predicted.schema.types])


@pytest.mark.slow
def test_a_command_for_each_shard_does_what_is_missing(shards: dict[str, pa.Table], features_run: Path) -> None:
    [line] = re.findall(r"^ls battles/\*\.parquet \| xargs .*?[^\\]\n", PAGE, flags=re.M | re.S)
    Path("RUN").symlink_to(features_run)
    Path("preds").mkdir()
    for name in ("0.parquet", "1.parquet"):
        Path("preds", name).write_bytes(b"there already")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(["bash", "-c", line], env={**os.environ, "PATH": path}, check=True)
    assert pq.read_table("preds/2.parquet").equals(shards["2.parquet"])
    assert Path("preds/0.parquet").read_bytes() == b"there already"


def command_of(words: list[str]) -> list[str]:
    """The arguments of ``prefcli`` that a command line of torchrun starts."""
    from torch.distributed.run import get_args_parser

    assert words[0] == "torchrun"
    launched = get_args_parser().parse_args(words[1:])
    assert (launched.module, launched.training_script) == (True, "prefcli")
    return launched.training_script_args


@pytest.mark.slow
def test_the_commands_for_slurm_and_kubernetes_train(
    demo_files: Demo, one_layer: dict[str, Path], cli: Callable[..., Result]
) -> None:
    script = shown("train.sbatch").replace("\\\n", " ")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    [srun] = re.findall(r"^srun (.*)$", script, flags=re.M)
    job = yaml.safe_load(shown("train.yaml"))["spec"]
    replicas = job["pytorchReplicaSpecs"]
    assert replicas["Master"]["template"] == replicas["Worker"]["template"]
    [container] = replicas["Master"]["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"  # the operator knows it by that name
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(job["nprocPerNode"])
    with_values = srun.replace('"$SLURM_NNODES"', "2").replace('"$SLURM_GPUS_ON_NODE"', "8")
    for words in (shlex.split(with_values), [*container["command"], *container["args"]]):
        arguments = [
            {"/shared/votes.csv": str(demo_files.train), "/shared/deberta-v3-base": str(one_layer["deberta"])}.get(
                word, word.replace("/shared/", f"{Path.cwd()}/shared/")
            )
            for word in command_of(words)
        ]
        done = cli(*arguments, "--limit", 20, "--max-length", 64, "--max-steps", 1, "--force")
        assert done.code == 0, done.err
        assert Path("shared/run/model.safetensors").is_file()
