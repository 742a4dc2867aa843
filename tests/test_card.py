"""A run's card, part by part, with known values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import payloads
import pytest
import yaml
from conftest import Result
from huggingface_hub import ModelCard

from prefcli.data.synthetic import Demo
from prefcli.errors import InputError
from prefcli.metrics import Score
from prefcli.options import TrainOptions
from prefcli.reporting import visible
from prefcli.storage import card, hub, runs

VALIDATION = Score(
    n=1234, prompts=987, outcomes=3, log_loss=0.98765, log_loss_ci=(0.91234, 1.05432), log_loss_ci_reason="",
    binary_log_loss=0.6, accuracy=0.5432, brier=0.6123, ece=0.0345, prior_log_loss=1.0876, uniform_log_loss=1.098612,
    clipped=0,
)  # fmt: skip


def make_card(tmp_path: Path, options: TrainOptions | None = None, validation: Any = VALIDATION, **changed: Any) -> str:
    """A card; ``changed`` goes into the run's data, except for ``name``, ``encoder_source`` and ``command``."""
    name = changed.pop("name", "my-run")
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    config = {
        "options": dataclasses.asdict(options or TrainOptions()),
        "data": {"train_battles": 11_000, "held_out_battles": 1234, "shares": [0.35, 0.25, 0.4],
                 "source_sha256": "ab" * 32, "text": "nltk",
                 "source": {"paths": changed.pop("paths", ["/home/me/votes.csv"]), "format": None, "columns": None}},
        "resolved": {"encoder_source": changed.pop("encoder_source", hub.DOWNLOADED), "max_length": 512,
                     "cut": "nothing was cut", "lr": 2e-5, "placement": "cpu, fp32", "columns": 99},
        "command": changed.pop("command", "prefcli train votes.csv --epochs 1"),
    }  # fmt: skip
    config["data"].update(changed)
    card.write(folder, options or TrainOptions(), config, validation, "temperature 0.93")
    return (folder / runs.CARD).read_text(encoding="utf-8")


def metadata(text: str) -> Any:
    return yaml.safe_load(text.removeprefix("---\n").split("\n---\n")[0])


def test_the_metadata_is_what_the_hub_reads(tmp_path: Path) -> None:
    text = make_card(tmp_path)
    fields = metadata(text)
    assert fields["library_name"] == "prefcli"
    assert fields["tags"] == ["preference-prediction", "siamese"]
    assert fields["base_model"] == "microsoft/deberta-v3-small"
    assert "license" not in fields
    read = ModelCard(text)
    assert read.data.model_name == "my-run"
    results = {result.metric_type: result for result in read.data.eval_results}
    assert results["log_loss"].metric_value == 0.9877
    assert results["log_loss"].metric_name == "log loss, 95 % interval 0.9123 to 1.0543"
    assert results["log_loss"].dataset_name == "1,234 held-out battles of 987 prompts of votes.csv"
    assert results["accuracy"].metric_value == 0.5432
    assert results["brier_score"].metric_value == 0.6123
    assert results["expected_calibration_error"].metric_value == 0.0345


@pytest.mark.parametrize(
    ("options", "source"),
    [
        (TrainOptions(encoder="tiny"), "built in, made on the spot from random weights"),
        (TrainOptions(encoder="me/folder"), "the folder me/folder"),
        (TrainOptions(encoder="../../etc"), hub.CACHED),
        (TrainOptions(encoder="a/b\nlicense: mit"), hub.CACHED),
    ],
)
def test_only_a_name_of_the_hub_is_a_base_model(tmp_path: Path, options: TrainOptions, source: str) -> None:
    fields = metadata(make_card(tmp_path, options, encoder_source=source))
    assert "base_model" not in fields
    assert "license" not in fields


def test_without_held_out_battles_there_is_no_figure_anywhere(tmp_path: Path) -> None:
    text = make_card(tmp_path, TrainOptions(validation=0.0), None, held_out_battles=0)
    assert not {"model-index", "metrics"} & set(metadata(text))
    assert "there is no honest figure" in text
    assert "No battle was held out." in text
    assert "It was not tested on any battle." in text


def test_the_metrics_are_compared_with_prior_and_uniform_guess(tmp_path: Path) -> None:
    text = make_card(tmp_path)
    for line in (
        "| held-out battles | 1,234 |", "| their prompts | 987 |",
        "| log loss | 0.9877 (95 % interval 0.9123 to 1.0543) |",
        "| of the class prior | 1.0876 |", "| of a uniform guess | 1.0986 |", "| accuracy | 0.543 |",
        "| Brier score | 0.6123 |", "| expected calibration error | 0.0345 |",
    ):  # fmt: skip
        assert line in text
    assert "`predict` calibrates the model: temperature 0.93." in text


def test_the_data_is_named_and_counted_with_its_digest(tmp_path: Path) -> None:
    text = make_card(tmp_path)
    assert "11,000 battles of `votes.csv`: A 35.0%,\nB 25.0%, ties 40.0%." in text
    assert "SHA-256 is `" + "ab" * 32 + "`" in text
    assert "/home/me" not in text
    several = make_card(tmp_path, paths=["x/one.csv", "y/two.csv"])
    assert "\n- `one.csv`\n- `two.csv`\n" in several
    many = make_card(tmp_path, paths=[f"{number}.csv" for number in range(23)])
    assert many.count(".csv`\n") == card.MAX_LISTED_FILES
    assert "\n- 3 more\n" in many


@pytest.mark.parametrize(
    ("options", "data", "words"),
    [
        (TrainOptions(seed=7), {}, "1,234 of these battles (10%), drawn by prompt, stratified by outcome, seed 7"),
        (TrainOptions(folds=5), {}, "5 folds by prompt"),
        (TrainOptions(validation_file="v.csv"), {"validation_file": "/x/v.csv"}, "1,234 battles of `v.csv`;"),
    ],
)
def test_the_card_says_how_the_battles_were_split(tmp_path: Path, options: TrainOptions, data: Any, words: str) -> None:
    assert words in make_card(tmp_path, options, **data)


def test_few_prompts_have_no_interval_and_two_outcomes_are_named(tmp_path: Path) -> None:
    reason = "no interval: 3 prompts, 20 are needed"
    few = dataclasses.replace(VALIDATION, prompts=3, outcomes=2, log_loss_ci=None, log_loss_ci_reason=reason)
    text = make_card(tmp_path, validation=few)
    assert f"| log loss | 0.9877 ({reason}) |" in text
    assert "no ties among the labels: scored as two outcomes" in text
    assert "two outcomes" not in make_card(tmp_path)


def test_the_limits_say_what_was_not_tested(tmp_path: Path) -> None:
    text = make_card(tmp_path)
    limits = text[text.index("## Limits") : text.index("## Use")]
    assert "tested on 1,234 battles (987 prompts) of the source it was trained on, and on nothing else" in limits
    for words in ("other voters", "other languages", "position bias: it was shown one order", "`--swap-average`"):
        assert words in limits
    assert "shown both orders" in make_card(tmp_path, TrainOptions(swap=True))
    assert "order-invariant by construction" in make_card(tmp_path, TrainOptions(architecture="features"))


def test_the_card_says_how_the_run_was_made_and_how_to_use_it(tmp_path: Path) -> None:
    text = make_card(tmp_path)
    assert "prefcli predict battles.csv --model my-run" in text
    assert 'import prefcli\n\njudge = prefcli.load("my-run")\n' in text
    assert "`hf://owner/name`" in text
    assert "`prefcli train votes.csv --epochs 1`" in text


@pytest.mark.slow
@pytest.mark.parametrize("at", ["name", "paths", "command", "encoder"])
def test_names_from_outside_stay_plain_text_in_the_yaml(tmp_path: Path, at: str) -> None:
    expected = metadata(make_card(tmp_path, TrainOptions(encoder="tiny"), encoder_source="built in"))
    plain = (
        "a: b", "'", '"', '\\"', "x\n---\nlicense: mit", "- [", "{a}", "\U0001f600\u00e9", "&x", "*x",
        "!!python/name:os.system", "#x", "%", "\ud800", "\x85\u2028x", "null",
    )  # fmt: skip
    for text in (*plain, *payloads.MARKDOWN, *payloads.TERMINAL.values()):
        name = (text.replace("/", "|").replace("\x00", "")[:60] or "x").encode("utf-8", "replace").decode()
        changed: dict[str, Any] = {"encoder_source": "built in"}
        if at != "encoder":
            changed[at] = {"name": name, "paths": [text], "command": text}[at]
        fields = metadata(make_card(tmp_path, TrainOptions(encoder=text if at == "encoder" else "tiny"), **changed))
        result, wanted = fields["model-index"][0], expected["model-index"][0]
        if at == "name":
            assert result.pop("name") == visible(name)
            result["name"] = wanted["name"]
        if at == "paths":
            assert result["results"][0]["dataset"].pop("name").startswith("1,234 held-out battles of ")
            result["results"][0]["dataset"]["name"] = wanted["results"][0]["dataset"]["name"]
        assert fields == expected, text


def test_a_license_is_set_only_on_request_and_replaces_the_last_one(tmp_path: Path) -> None:
    before = make_card(tmp_path)
    folder = tmp_path / "my-run"
    card.set_license(folder, "cc-by-4.0")
    card.set_license(folder, "apache-2.0")
    after = (folder / runs.CARD).read_text()
    assert metadata(after) == metadata(before) | {"license": "apache-2.0"}
    assert after.split("\n---\n", 1)[1] == before.split("\n---\n", 1)[1]
    for wrong in ("", "a\nb: c", "MIT License", "[x]", "x" * 100):
        with pytest.raises(InputError, match="not a license"):
            card.set_license(folder, wrong)


@pytest.mark.parametrize("content", ["---\na: [\n---\n", "---\n- a\n---\n", "---\nmodel-index: [1]\n---\n", None])
def test_a_card_that_cannot_be_read_gets_no_license(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / runs.CARD).write_text(content)
    with pytest.raises(InputError, match="cannot read the run's card"):
        card.set_license(tmp_path, "mit")


@pytest.mark.slow
def test_a_trained_runs_card_has_the_runs_own_figures(cli: Callable[..., Result], demo_files: Demo) -> None:
    done = cli("train", demo_files.train, "--recipe", "fast", "-o", "run", "--json")
    assert done.code == 0, done.err
    read = ModelCard(Path("run/README.md").read_text())
    loss = next(result for result in read.data.eval_results if result.metric_type == "log_loss")
    assert loss.metric_value == round(done.json()["validation"]["log_loss"], 4)
    assert read.data.tags[-1] == "features"
    assert TrainOptions().encoder_name not in read.content


@pytest.mark.parametrize(
    ("options", "library", "code"),
    [
        ({}, "transformers", ['RewardTrainer("my-run"', 'ForSequenceClassification.from_pretrained("my-run").eval()']),
        ({"lora_rank": 8}, "peft", ['AutoPeftModelForSequenceClassification.from_pretrained("my-run", num_labels=1)']),
        ({"folds": 3}, "prefcli", []),
    ],
)
def test_the_card_of_a_reward_model_says_what_the_number_means_and_what_loads_it(
    options: dict[str, Any], library: str, code: list[str], tmp_path: Path
) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    (tmp_path / "my-run").mkdir()
    term = {"prefcli_tie": '{"tie.bias": [-0.6931471805599453]}'}
    if not options.get("folds"):
        save_file({"score.weight": np.zeros(1)}, tmp_path / "my-run" / "model.safetensors", term)
    text = make_card(tmp_path, TrainOptions(architecture="reward", **options))
    assert metadata(text)["library_name"] == "prefcli"  # whose text is normalised
    assert "A reward model" in text
    assert "units of log-odds" in text
    assert "Only differences between answers to the same prompt mean something" in text
    # nu = 1/2, so P(tie) = nu / (2 + nu) = 0.2
    assert ("log(nu) = -0.6931: votes between equally good answers are ties in 20.0%" in text) == (library != "prefcli")
    # Of several sources the pooled base is added: nu = 1/2 * 0.6 / 0.2 (both smoothed by 3 battles).
    sources = [{"name": "a", "outcomes": [0, 0, 0]}, {"name": "b", "outcomes": [2e5, 2e5, 6e5]}]
    mixed = make_card(tmp_path, TrainOptions(architecture="reward", **options), sources=sources)
    assert ("log(nu) = 0.4055: votes between equally good answers are ties in 42.9%" in mixed) == (library != "prefcli")
    assert "normalise it first" in text
    assert all(part in text for part in code)
    assert ("RewardTrainer" in text) == (library == "transformers")
    assert ("prefcli export --merged" in text) == (library != "transformers")
    assert "order-invariant by construction" in text
    raw = make_card(tmp_path, TrainOptions(architecture="reward", **options), text="raw")
    assert "normalise it first" not in raw
    fields = metadata(raw)
    assert fields["library_name"] == library
    assert fields["tags"] == ["preference-prediction", "reward-model", "reward", *["prefcli"] * (library != "prefcli")]


@pytest.mark.parametrize("text", ["raw", "nltk"])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"architecture": "cross-encoder"}, {"architecture": "features"}, {"lora_rank": 4}, {"folds": 3},
        {"architecture": "reward"}, {"architecture": "reward", "lora_rank": 4}, {"architecture": "reward", "folds": 3},
    ],
)  # fmt: skip
def test_only_what_transformers_computes_is_a_text_classification_model(
    options: dict[str, Any], text: str, tmp_path: Path
) -> None:
    """And every card says how the run is used with prefcli."""
    content = make_card(tmp_path, TrainOptions(**options), text=text)
    fields = metadata(content)
    is_classifier = options == {"architecture": "reward"} and text == "raw"
    assert fields.get("pipeline_tag") == ("text-classification" if is_classifier else None)
    assert (fields["library_name"] == "transformers") == is_classifier
    assert ("text-classification" in content) == is_classifier
    use = content[content.index("## Use") :]
    assert "prefcli predict battles.csv --model my-run\n" in use
    assert 'judge = prefcli.load("my-run")' in use
    assert ("AutoTokenizer" in use) == (options.get("architecture") == "reward" and "folds" not in options)
    says_not = "prefcli computes its probabilities; transformers' pipelines and" in use
    assert says_not == (options.get("architecture") != "reward")


@pytest.mark.parametrize(
    ("options", "outcomes", "three"),
    [({}, [6, 5, 3], True), ({}, [6, 5, 0], False), ({"tie": "prompt"}, [6, 5, 3], False)],
)
def test_the_code_for_transformers_gives_ties_only_where_a_constant_does(
    options: dict[str, Any], outcomes: list[int], three: bool, tmp_path: Path
) -> None:
    """A run that saw no ties gives them 1 %, whatever its constant is."""
    import numpy as np
    from safetensors.numpy import save_file

    (tmp_path / "my-run").mkdir()
    name = "tie.weight" if options else "tie.bias"
    term = {"prefcli_tie": f'{{"{name}": [-0.5]}}'}
    save_file({"score.weight": np.zeros(1)}, tmp_path / "my-run" / "model.safetensors", term)
    text = make_card(tmp_path, TrainOptions(architecture="reward", **options), text="raw", outcomes=outcomes)
    assert ("(a + b) / 2 + (-0.500000)]).softmax(dim=0)  # A, B, tie" in text) == three
    assert ("softmax(dim=0)  # A and B, given that there is no tie" in text) == (not three)


def test_the_card_of_an_export_is_of_onnx_and_names_the_export(tmp_path: Path) -> None:
    reward = make_card(tmp_path, TrainOptions(architecture="reward"), text="raw")
    card.add_export(tmp_path / "my-run", "ONNX Runtime computes it.", "my-run-onnx")
    text = (tmp_path / "my-run" / runs.CARD).read_text(encoding="utf-8")
    fields = metadata(text)
    assert "pipeline_tag" not in fields
    assert fields["library_name"] == "prefcli"
    assert fields["tags"] == ["preference-prediction", "reward-model", "reward", "onnx"]
    assert fields["model-index"] == metadata(reward)["model-index"]
    assert "## Exported to ONNX\n\nONNX Runtime computes it.\n\n## Use\n\n```\nprefcli predict" in text
    assert "--model my-run-onnx\n" in text
    assert "AutoModel" not in text
    assert text.endswith(reward[reward.index("\nMade with prefcli") :])
    (tmp_path / "my-run" / runs.CARD).write_text("---\n[broken\n---\nMine.\n", encoding="utf-8")
    card.add_export(tmp_path / "my-run", "ONNX Runtime computes it.", "my-run-onnx")
    edited = (tmp_path / "my-run" / runs.CARD).read_text(encoding="utf-8")
    assert edited.startswith("---\n[broken\n---\nMine.\n\n## Exported")
