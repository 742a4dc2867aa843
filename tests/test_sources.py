"""Several sources in one training: how they are read, fitted, kept in a run, and chosen at prediction."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Result, battle, write_csv
from scipy.optimize import minimize

import prefcli
from prefcli import groups, metrics, models
from prefcli.battles import BATTLE_SCHEMA, Source
from prefcli.data import selection
from prefcli.errors import InputError, ModelError
from prefcli.exploration import contradictions
from prefcli.models import features
from prefcli.models.features import booster as boosting
from prefcli.models.features import by_source
from prefcli.models.features.statistics import extract
from prefcli.options import TrainOptions
from prefcli.pipeline.stages import preprocess_stage, read_stage
from prefcli.pipeline.train import _with_named_files
from prefcli.prediction import blending
from prefcli.reporting import Silent
from prefcli.storage import card, runs
from prefcli.storage.sources import NEVER, Sources
from prefcli.storage.workspace import Workspace


class Recorder(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    warn = note


def sources_of(source: Source, workspace: Workspace) -> list[str]:
    return [str(name) for name in read_stage(source, workspace).table(["source"])["source"].to_pylist()]


def write_pairs(path: Path, count: int, *, first: int = 1) -> Path:
    """Chosen and rejected answers, which cannot be ties."""
    rows = [{"prompt": f"pair {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(first, first + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_of_several_files_is_a_source_and_one_file_is_read_as_before(tmp_path: Path, workspace: Workspace) -> None:
    one = write_csv(tmp_path / "judge.csv", [battle(1), battle(2)])
    other = write_csv(tmp_path / "people.v2.csv", [battle(3)])
    both = read_stage(Source((one, other)), workspace)
    assert both.table(["source"])["source"].to_pylist() == ["judge", "judge", "people.v2"]
    assert preprocess_stage(both, workspace, "raw").table(["source"])["source"].to_pylist()[-1] == "people.v2"
    alone = read_stage(one, workspace)
    assert alone.table().schema.remove_metadata() == BATTLE_SCHEMA.remove_metadata()
    assert not {"source", "by"} & alone.metadata["options"].keys()


def test_a_validation_file_of_other_voters_needs_no_column_of_sources(tmp_path: Path, workspace: Workspace) -> None:
    def write(name: str, votes: str) -> Path:
        (tmp_path / name).write_text(votes)
        return tmp_path / name

    votes = write("votes.csv", "prompt,response_a,response_b,winner,who\nq,a,b,a,x\nr,a,b,b,y\n")
    source = Source.of(votes, source="who")
    data = selection.RunData(preprocess_stage(read_stage(source, workspace), workspace, "raw"), source, "", "raw")
    for path, has_column in (
        (write("same.csv", "prompt,response_a,response_b,winner,who\ns,a,b,a,x\n"), True),
        (write("other.csv", "prompt,response_a,response_b,winner\ns,a,b,a\n"), False),
    ):
        options, said = TrainOptions(validation_file=str(path)), Recorder()
        held_out = _with_named_files(data, options, workspace, said).validation
        assert held_out is not None
        assert ("source" in held_out.columns) == has_column
        assert any("has no column who" in line for line in said.lines) != has_column


def test_files_of_one_name_in_two_folders_are_two_sources() -> None:
    assert Source((Path("a/votes.csv"), Path("b/votes.csv.gz"))).file_sources == ("votes.csv", "votes.csv.gz")
    assert Source((Path("a/votes.csv"), Path("b/votes.csv"))).file_sources == ("a/votes.csv", "b/votes.csv")
    assert Source((Path("a.csv"), Path("b.csv")), source="who").file_sources == ()
    parts = [Path(f"train-0000{number}-of-00002.parquet") for number in (0, 1)]
    assert Source(tuple(parts)).file_sources == ()
    assert Source((*parts, Path("ours.csv"))).file_sources == ("train", "train", "ours")


def test_a_column_says_whose_votes_battles_are_and_an_empty_cell_is_a_source_too(
    tmp_path: Path, workspace: Workspace
) -> None:
    rows = [{**battle(i), "who": name} for i, name in enumerate(["judge", "", " people "])]
    path = write_csv(tmp_path / "votes.csv", rows, columns=list(rows[0]))
    assert sources_of(Source.of(path, source="who"), workspace) == ["judge", "(no source)", "people"]
    two = write_csv(tmp_path / "more.csv", [{**battle(9), "who": "judge"}], columns=list(rows[0]))
    assert sources_of(Source((path, two), source="who"), workspace)[-1] == "judge"  # the column, not the files
    with pytest.raises(InputError, match="(?s)missing column whom.*Did you mean who"):
        read_stage(Source.of(path, source="whom"), workspace)


def test_files_of_different_layouts_are_read_together(tmp_path: Path, workspace: Workspace) -> None:
    votes = write_csv(tmp_path / "votes.csv", [battle(i, winner=i % 3) for i in range(6)])
    soft = [{"prompt": "p", "response_a": "a", "response_b": "b", "p_a": 0.2, "p_b": 0.3, "p_tie": 0.5}]
    (tmp_path / "soft.jsonl").write_text("".join(json.dumps({**row, "id": "s1"}) + "\n" for row in soft))
    stage = read_stage(Source((votes, write_pairs(tmp_path / "pairs.jsonl", 3), tmp_path / "soft.jsonl")), workspace)
    table = stage.table()
    assert table["source"].to_pylist() == ["votes"] * 6 + ["pairs"] * 3 + ["soft"]
    assert table["label"].to_pylist()[:6] == [0, 1, 2, 0, 1, 2]
    assert 2 not in table["label"].to_pylist()[6:9]
    assert table["p_tie"].to_pylist() == [None] * 9 + [0.5]
    assert len(set(table["id"].to_pylist())) == 10
    assert stage.metadata["counts"]["invented_ids"] == 3
    assert stage.metadata["options"]["chosen"] is False  # votes say which answer is A


def test_battles_are_grouped_by_their_source(tmp_path: Path, workspace: Workspace, cli: Callable[..., Result]) -> None:
    one = write_csv(tmp_path / "judge.csv", [battle(i, winner=i % 3) for i in range(6)])
    other = write_csv(tmp_path / "people.csv", [battle(i, winner=0) for i in range(6, 9)])
    (batch, *_) = read_stage(Source((one, other), by="source"), workspace).batches()
    assert groups.of(batch, "source").to_pylist() == ["judge"] * 6
    result = cli("eda", one, other, "--by", "source", "--json")
    assert [(group["name"], group["battles"]) for group in result.json()["by"]] == [("judge", 6), ("people", 3)]
    assert cli("eda", one, "--by", "source").code == 2  # one file is one source
    labels = write_csv(
        tmp_path / "labels.csv", [{**battle(i, winner=i % 2), "who": "xy"[i % 2]} for i in range(4)],
        columns=[*battle(1), "who"],
    )  # fmt: skip
    preds = write_csv(
        tmp_path / "preds.csv",
        [{"id": i, "winner_model_a": 0.5, "winner_model_b": 0.25, "winner_tie": 0.25} for i in range(4)],
        columns=["id", "winner_model_a", "winner_model_b", "winner_tie"],
    )
    scores: Any = cli("score", preds, labels, "--source", "who", "--by", "source", "--json").json()["by"]
    assert {group["group"]: round(group["log_loss"], 4) for group in scores["groups"]} == {"x": 0.6931, "y": 1.3863}


# The base of a source


def test_a_base_is_the_logarithm_of_smoothed_shares_the_same_for_a_and_b() -> None:
    names = ["judge"] * 6 + ["people"] * 4 + ["pairs"] * 30
    labels = np.array([0, 0, 1, 2, 2, 2, 1, 1, 1, 2, *[0] * 20, *[1] * 10])
    sources = Sources.of(names, np.eye(3)[labels])
    assert sources.names == ("pairs", "judge", "people")
    # Of the two that can tie, 6 wins and 4 ties, and three battles of equal shares.
    pooled = np.array([(6 + 2) / 2, (6 + 2) / 2, 4 + 1]) / 13
    np.testing.assert_allclose(np.exp(sources.base()), pooled)
    np.testing.assert_allclose(np.exp(sources.base("unheard of")), pooled)
    judge = (np.array([1.5, 1.5, 3]) + 30 * pooled) / 36
    np.testing.assert_allclose(np.exp(sources.base("judge")), judge)
    np.testing.assert_allclose(sources.base("pairs"), [np.log(0.5), np.log(0.5), NEVER])
    np.testing.assert_array_equal(sources.bases(["pairs", None]), [sources.base("pairs"), sources.base()])
    assert [sources.never_ties(name) for name in ("judge", "pairs", None)] == [False, True, False]
    assert Sources.from_json(json.loads(json.dumps(sources.to_json()))).to_json() == sources.to_json()
    assert str(sources) == "pairs 30 battles, no ties; judge 6 battles, 50% ties; people 4 battles, 25% ties"
    assert str(Sources.of(["x"], np.eye(3)[:1])) == "x 1 battle, no ties"
    with pytest.raises(InputError, match="(?s)no source peple.*Did you mean people.*pairs, judge, people"):
        sources.check("peple", "run")


def test_a_few_battles_without_a_tie_do_not_show_that_a_source_never_ties() -> None:
    """Nine votes of ten are no ties: 29 battles without one are expected once in 21 times."""
    sources = Sources.of(["few"] * 29 + ["many"] * 100, np.eye(3)[[*[0] * 29, *[0, 1] * 45, *[2] * 10]])
    pooled = (10 + 1) / (129 + 3)
    np.testing.assert_allclose(np.exp(sources.base("few"))[2], 30 * pooled / (29 + 30))
    assert str(sources) == "many 100 battles, 10% ties; few 29 battles, 0% ties"


@pytest.mark.parametrize("damaged", [[], [{"name": "a"}], [{"name": "a", "outcomes": [1, 2]}], "text", 5])
def test_damaged_sources_of_a_run_are_refused(damaged: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Sources.from_json(damaged)


def test_a_tie_held_out_of_a_source_that_never_tied_costs_what_unseen_outcomes_cost() -> None:
    sources = Sources.of(["pairs"] * 30 + ["judge"], np.eye(3)[[*[0, 1] * 15, 2]])
    labels = np.array([0, 1, 2])
    np.testing.assert_array_equal(sources.held_out_bases(["pairs", "judge", "judge"], labels)[0], sources.base("pairs"))
    bases = sources.held_out_bases(["pairs", "judge", "pairs"], labels)
    np.testing.assert_allclose(np.exp(bases[[0, 2]]), [[0.495, 0.495, 0.01]] * 2)
    np.testing.assert_array_equal(bases[1], sources.base("judge"))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_where_a_source_never_ties_the_neural_loss_is_that_of_two_outcomes(smoothing: float) -> None:
    import torch

    from prefcli.options import TrainOptions
    from prefcli.training.loop import loss_of

    logits = torch.tensor([[1.0, -0.5, 3.0], [0.2, 0.1, -1.0]], requires_grad=True)
    bases = torch.tensor([[np.log(0.5), np.log(0.5), NEVER], [-1.0, -1.0, -0.7]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.25, 0.75]])
    options = TrainOptions(label_smoothing=smoothing)
    loss = loss_of(logits, targets, options, bases=bases)
    two = torch.nn.functional.cross_entropy(logits[:1, :2], targets[:1, :2], label_smoothing=smoothing, reduction="sum")
    three = torch.nn.functional.cross_entropy(
        logits[1:] + bases[1:], targets[1:], label_smoothing=smoothing, reduction="sum"
    )
    assert loss.item() == pytest.approx((two + three).item(), abs=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert abs(logits.grad[0, 2]) < 1e-12


# Contradictions


def test_the_interval_of_a_contrast_is_walds_where_each_battle_has_its_own_prompt() -> None:
    random = np.random.default_rng(1)
    values, group = (random.random(400) < 0.3).astype(float), random.random(400) < 0.5
    estimate, low, high = contradictions.contrast(values, group, np.arange(400)) or (0, 0, 0)
    means = [values[part].mean() for part in (group, ~group)]
    variance = sum(m * (1 - m) / part.sum() for m, part in zip(means, (group, ~group), strict=True))
    assert estimate == pytest.approx(means[0] - means[1])
    assert high - low == pytest.approx(2 * 2.575829 * variance**0.5)
    # Every prompt four times over tells no more than once.
    again = contradictions.contrast(np.repeat(values, 4), np.repeat(group, 4), np.repeat(np.arange(400), 4))
    assert again is not None
    assert again[1:] == pytest.approx((low, high))
    assert contradictions.contrast(values[:40], group[:40], np.arange(40)) is None


def find_contradictions(sources: list[str | None], a_is_longer: np.ndarray, a_won: np.ndarray) -> list[str]:
    lengths = np.where(a_is_longer[:, None], [40, 10], [10, 40])
    rows = [
        {"prompt": ["question"], "response_a": ["x" * a], "response_b": ["x" * b], "label": int(not won)}
        for (a, b), won in zip(lengths.tolist(), a_won.tolist(), strict=True)
    ]
    schema = pa.schema([BATTLE_SCHEMA.field(name) for name in ("prompt", "response_a", "response_b", "label")])
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    return contradictions.find([batch], np.array(sources, dtype=object), np.arange(len(rows)))


def test_held_out_battles_without_a_source_contradict_nobody() -> None:
    a_is_longer = np.arange(120) % 2 == 0
    likes_long = np.arange(120) < 60
    a_won = a_is_longer == likes_long
    assert len(find_contradictions(["people"] * 60 + ["arena"] * 60, a_is_longer, a_won)) == 1
    assert find_contradictions(["people"] * 60 + [None] * 60, a_is_longer, a_won) == []


def test_many_sources_that_vote_at_random_contradict_nobody() -> None:
    random = np.random.default_rng(0)
    sources: list[str | None] = [f"voter {number // 60}" for number in range(200 * 60)]
    a_is_longer, a_won = random.random((2, len(sources))) < 0.5
    assert find_contradictions(sources, a_is_longer, a_won) == []


# A run of two sources: "people" prefer long answers and tie, "arena" prefers short ones and never ties


def write_votes(folder: Path) -> tuple[Path, Path]:
    random = np.random.default_rng(3)

    def rows(count: int, first: int, max_turns: int, *, likes_long: bool, ties: bool) -> list[dict[str, Any]]:
        made = []
        for number in range(first, first + count):
            longer, a_is_longer = int(random.integers(12, 40)), random.random() < 0.5
            turns = 1 + number % max_turns
            words = [longer, longer // 3] if a_is_longer else [longer // 3, longer]
            a_wins = (a_is_longer == likes_long) if random.random() < 0.85 else random.random() < 0.5
            winner = 2 if ties and random.random() < 0.4 else int(not a_wins)
            texts = [[" ".join(["word"] * count)] * turns for count in words]
            fields = {"prompt": [f"question {number}"] * turns, "response_a": texts[0], "response_b": texts[1]}
            made.append(battle(number, winner, **fields))
        return made

    people = write_csv(folder / "people.csv", rows(300, 1, 1, likes_long=True, ties=True))
    return people, write_csv(folder / "arena.csv", rows(300, 1000, 2, likes_long=False, ties=False))


@dataclass(frozen=True)
class TwoSources:
    run: Path
    workspace: Path
    files: tuple[Path, Path]
    result: Any
    said: list[str]


@pytest.fixture(scope="session")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> TwoSources:
    folder = tmp_path_factory.mktemp("sources")
    files, reporter = write_votes(folder), Recorder()
    settings = boosting.BoosterSettings(4, 0.1, 20, 0.3, 40, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boosting.BoosterSettings, "for_battles", lambda count: settings)
        trained = prefcli.train(
            files, recipe="fast", validation=0.25, output=folder / "run", workspace=folder / "ws", reporter=reporter
        )
    return TwoSources(trained.run, folder / "ws", files, trained, reporter.lines)


def test_the_sources_are_in_the_result_the_run_and_its_card(two_sources: TwoSources) -> None:
    people, arena = sorted(two_sources.result.sources, key=lambda source: source.name, reverse=True)
    assert (people.name, people.can_tie, arena.name, arena.can_tie) == ("people", True, "arena", False)
    assert people.validation.outcomes == 3
    assert arena.validation.outcomes == 2
    assert people.validation.n + arena.validation.n == two_sources.result.validation.n
    saved = runs.sources_of(runs.read_config(two_sources.run))
    assert saved is not None
    assert set(saved.names) == {"people", "arena"}
    outcomes = saved.outcomes[saved.names.index("people")]
    assert tuple(outcomes) == people.outcomes
    assert outcomes[2] > 0
    text = (two_sources.run / "README.md").read_text()
    assert f"| `arena` | {sum(arena.outcomes):.0f} | none | {arena.validation.n} |" in text
    assert runs.read_config(two_sources.run)["format"] == 2  # an earlier release would predict without the base


def test_the_card_knows_nothing_of_ties_of_a_source_without_training_battles() -> None:
    sources = Sources(("a", "b"), np.array([[4.0, 4.0, 2.0], [0.0, 0.0, 0.0]]))
    assert [row[:3] for row in card._sources(sources, {})] == [("a", 10, "20.0%"), ("b", 0, "unknown")]


def test_an_estimate_times_the_boosters_of_sources_too(
    two_sources: TwoSources, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fitted: list[dict[str, Any]] = []
    monkeypatch.setattr(features, "fit", lambda *battles, **options: fitted.append({"targets": battles[1], **options}))
    prefcli.estimate(two_sources.files, recipe="fast", workspace=tmp_path / "ws")
    (call,) = fitted
    assert len(call["sources"].names) == len(call["sources"].bases) == len(call["targets"]) > 200
    ties = call["targets"][:, 2] == 1
    assert set(call["sources"].names[ties]) == {"people"}, "each battle has its own source"
    assert (call["sources"].bases[call["sources"].names == "arena", 2] == NEVER).all()


def test_what_sources_disagree_on_is_said(two_sources: TwoSources) -> None:
    [warning] = [line for line in two_sources.said if "contradict" in line]
    assert "wins of the longer answer beyond half: people +" in warning
    assert "arena -" in warning
    assert any("2 sources, each with its own share of ties: " in line for line in two_sources.said)


def predict_two(two: TwoSources, **options: Any) -> np.ndarray:
    """Probabilities of a short conversation and a long one, with the longer answer as A."""
    predictor = prefcli.load(two.run, workspace=two.workspace, **options)
    long, short = "word " * 30, "word " * 10
    pairs = [("question", long, short), (["question"] * 2, [long] * 2, [short] * 2)]
    swapped = [predictor.predict(prompt, b, a) for prompt, a, b in pairs]
    straight = [predictor.predict(prompt, a, b) for prompt, a, b in pairs]
    np.testing.assert_array_equal(np.array(swapped)[:, [1, 0, 2]], straight)
    return np.array(straight)


def test_long_conversations_may_tie_although_the_source_of_all_of_them_never_does(two_sources: TwoSources) -> None:
    pooled = predict_two(two_sources, calibrated=False)
    assert ((pooled[:, 2] > 0.2) & (pooled[:, 2] < 0.55)).all()
    people, arena = (predict_two(two_sources, as_source=name, calibrated=False) for name in ("people", "arena"))
    assert people[0, 0] > people[0, 1] + 0.1  # as the one votes, and as the other
    assert arena[1, 0] < arena[1, 1] - 0.1
    np.testing.assert_allclose(arena[:, 2], 0.01)


def test_a_fit_on_held_out_battles_uses_those_of_the_source_that_is_predicted(two_sources: TwoSources) -> None:
    nobody, silent = np.empty(0, dtype=np.int64), Recorder()
    held_out = runs.read_validation(two_sources.run)
    names = np.array(held_out.sources)
    assert held_out.pooled is not None
    pooled = blending.held_out_run(two_sources.run, nobody, silent)
    assert pooled.held_out.ids == [i for i, name in zip(held_out.ids, names, strict=True) if name == "people"]
    np.testing.assert_allclose(pooled.logs, np.log(metrics.softmax(held_out.pooled[names == "people"])))
    arena = blending.held_out_run(two_sources.run, nobody, silent, as_source="arena")
    assert len(arena.held_out.ids) == (names == "arena").sum()
    assert arena.unseen == (2,)
    np.testing.assert_array_equal(arena.held_out.logits, held_out.logits[names == "arena"])


def test_the_command_line_predicts_as_a_source(two_sources: TwoSources, cli: Callable[..., Result]) -> None:
    where = ("--workspace", two_sources.workspace, "--model", two_sources.run, "--force")
    pooled = cli("predict", two_sources.files[0], *where, "--output", "pooled.csv")
    assert "predicts as the only one that can tie, people: " in pooled.err
    own = cli("predict", two_sources.files[0], *where, "--output", "own.csv", "--as-source", "people")
    assert own.code == 0
    assert Path("own.csv").read_bytes() != Path("pooled.csv").read_bytes()
    wrong = cli("predict", two_sources.files[0], *where, "--as-source", "peple")
    assert wrong.code == 2
    assert "the run has no source peple" in wrong.err
    assert "Did you mean people?" in wrong.err


def test_as_source_is_refused_for_a_run_of_one_source(features_run: Path, cli: Callable[..., Result]) -> None:
    refused = cli("predict", "x.csv", "--model", features_run, "--as-source", "judge")
    assert refused.code == 2
    with pytest.raises(InputError, match="--as-source is for runs of several sources"):
        prefcli.load(features_run, as_source="judge")


def test_a_run_of_one_source_says_nothing_of_sources(features_run: Path) -> None:
    config = runs.read_config(features_run)
    assert config["format"] == 1
    assert "sources" not in config["data"]
    assert json.loads((features_run / "features.json").read_text())["format"] == 1
    assert "source" not in pq.read_schema(features_run / "validation.parquet").names


def test_a_damaged_booster_of_a_source_is_refused(two_sources: TwoSources, tmp_path: Path) -> None:
    run = shutil.copytree(two_sources.run, tmp_path / "run")
    manifest = json.loads((run / "features.json").read_text())
    assert {saved["source"] for saved in manifest["deviations"].values()} <= {"people", "arena"}
    (run / "booster-1.txt").write_text("tree")
    with pytest.raises(ModelError, match="booster-1.txt is damaged"):
        features.load(run)
    manifest["deviations"] = {"../booster-1.txt": "people"}
    (run / "features.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="damaged"):
        features.load(run)


def test_a_booster_of_a_source_that_an_earlier_release_saved_is_added(two_sources: TwoSources, tmp_path: Path) -> None:
    run = shutil.copytree(two_sources.run, tmp_path / "run")
    manifest = json.loads((run / "features.json").read_text())
    saved = manifest["deviations"]
    assert any(own["common"] != 1 for own in saved.values())
    battles = extract(read_stage(Source(two_sources.files), Workspace(two_sources.workspace)).table().to_batches()[0])
    now = features.load(run)
    names = [own["source"] for own in saved.values()]

    def scores(name: str | None) -> Any:
        return now.scores(battles, [name] * len(battles))

    manifest["deviations"] = {file: own["source"] for file, own in saved.items()}
    (run / "features.json").write_text(json.dumps(manifest))
    before = features.load(run)
    for name, own in zip(names, saved.values(), strict=True):
        alone = (scores(name) - own["common"] * scores(None)) / own["own"]
        np.testing.assert_allclose(before.scores(battles, [name] * len(battles)), scores(None) + alone, atol=1e-9)
    saved["booster-1.txt"]["own"] = -1
    (run / "features.json").write_text(json.dumps({**manifest, "deviations": saved}))
    with pytest.raises(ModelError, match="booster-1.txt has factors that are never fitted"):
        features.load(run)


def test_common_and_own_scores_count_as_much_as_held_out_votes_say() -> None:
    """People who share half of what is common, and have wants of their own."""
    random = np.random.default_rng(1)
    parts, bases = random.normal(size=(2, 6_000, 3)), np.tile(np.log([0.4, 0.4, 0.2]), (6_000, 1))
    truth = metrics.softmax(bases + 0.5 * parts[0] + 1.2 * parts[1])
    (common, own), gain = by_source.stack(parts, bases, truth)
    assert (common, own) == pytest.approx((0.5, 1.2), abs=0.005)
    with_common = metrics.softmax(bases + parts[0])
    assert gain == pytest.approx((truth * (np.log(truth) - np.log(with_common))).sum(axis=1).mean(), abs=1e-6)
    labels = (random.random((6_000, 1)) > truth.cumsum(axis=1)).sum(axis=1)
    (common, own), _ = by_source.stack(parts, bases, np.eye(3)[labels])
    assert (common, own) == pytest.approx((0.5, 1.2), abs=0.1)

    few = slice(60)  # battles, on which the prior counts

    def minus_log_posterior(factors: Any) -> float:
        logits = bases[few] + factors[0] * parts[0, few] + factors[1] * parts[1, few]
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return float(-log_p[np.arange(60), labels[few]].sum() + ((factors - 0.5) ** 2).sum() / (2 * 0.5**2))

    best = minimize(minus_log_posterior, [1.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-8}).x
    factors, gain = by_source.stack(parts[:, few], bases[few], np.eye(3)[labels[few]])
    assert factors == pytest.approx(best, abs=1e-3)
    with_common = metrics.softmax(bases[few] + parts[0, few])
    stacked = metrics.softmax(bases[few] + np.tensordot(factors, parts[:, few], axes=1))
    assert gain == pytest.approx(
        metrics.log_loss(with_common, labels[few]) - metrics.log_loss(stacked, labels[few]), abs=1e-9
    )


@pytest.mark.parametrize(("own", "gains"), [(0.0, False), (1.0, True)])
def test_a_source_gets_a_booster_only_if_it_has_enough_battles_and_gains_from_one(own: float, gains: bool) -> None:
    random = np.random.default_rng(2)
    common, wants = random.normal(size=(2, 400, 3))
    bases = np.zeros((400, 3))
    labels = (random.random((400, 1)) > metrics.softmax(common + own * wants).cumsum(axis=1)).sum(axis=1)
    targets = np.eye(3, dtype=np.float32)[np.concatenate([labels, np.array([1, 0, 2])[labels]])]
    data = boosting.BoosterData(np.zeros((800, 1), dtype=np.float32), targets, np.concatenate([bases, bases]))
    names = np.array(["many"] * 351 + ["few"] * 49, dtype=object)
    folds = [(np.arange(200), np.arange(200, 400)), (np.arange(200, 400), np.arange(200))]
    trained_on = []

    def train(data: boosting.BoosterData, folds: Any, **options: Any) -> Any:
        trained_on.append(len(data.rows) // 2)
        assert sorted(np.concatenate([outside for _, outside in folds]).tolist()) == list(range(351))
        return boosting.Trained("a booster", [], None, wants[:351])  # type: ignore[arg-type]

    progress = boosting.FitProgress(400, 2, lambda *_: None)
    fitted = by_source.fit(data, common, names, folds, train, progress)
    assert trained_on == [351]
    assert set(fitted) == ({"many"} if gains else set())
    if gains:
        assert (fitted["many"].common, fitted["many"].own) == pytest.approx((1, 1), abs=0.35)


def test_a_run_that_an_earlier_release_began_does_not_tell_sources_apart(
    two_sources: TwoSources, workspace: Workspace
) -> None:
    stage = preprocess_stage(read_stage(Source(two_sources.files), workspace), workspace, "raw")
    data = selection.RunData(stage, Source(two_sources.files), "", "raw")
    for separate in (True, False):
        chosen, _ = selection.select(Path("run"), replace(data, by_source=separate), TrainOptions(), Recorder())
        assert (chosen.sources is not None) == separate


def test_a_reward_models_term_for_ties_has_the_base_of_the_source() -> None:
    class Fake:
        tie_log_nu = 0.3

        def logits(self, batch: Any, **options: Any) -> Any:
            return np.array([[1.0, 0.0, 0.5]]), None

        def rewards(self, batch: Any, *, done: Any = None) -> Any:
            return np.array([1.0])

    base = np.log([0.25, 0.25, 0.5])
    adjusted: Any = models._AdjustedReward(Fake(), base, ())
    assert adjusted.tie_log_nu == pytest.approx(0.3 + np.log(2))
    np.testing.assert_allclose(adjusted.logits(None)[0], [[1.0, 0.0, 0.5] + base])
    never: Any = models._AdjustedReward(Fake(), np.array([-0.7, -0.7, NEVER]), (2,))
    assert never.tie_log_nu == 0.3
    assert metrics.softmax(never.logits(None)[0])[0, 2] == pytest.approx(0.01)
