"""The architecture `reward`: transformers' sequence classifier, Davidson's model, swaps that are exact."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import REWARD_RUN, Result, battle, write_csv
from scipy.optimize import minimize

import prefcli
from prefcli import encoders, metrics, models
from prefcli.compute import devices
from prefcli.compute.devices import DeviceRequest
from prefcli.data import synthetic
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError, ModelError
from prefcli.models import conversation, neural, reward, trial, weights
from prefcli.models.packing import conversation_template
from prefcli.models.reward import RewardSetup
from prefcli.options import PredictOptions, TrainOptions, resolve
from prefcli.outcomes import SWAPPED
from prefcli.prediction import inference
from prefcli.prediction.inference import Member, predict_batch
from prefcli.storage import runs
from prefcli.training import loop
from prefcli.training.fit_neural import NeuralFitter

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "faults"))
import families

Cli = Callable[..., Result]
TURNS = pa.list_(pa.string())
CPU = DeviceRequest("cpu", "fp32")
SMALL: dict[str, Any] = {"architecture": "reward", "text": "raw", "max_length": 64, "lr": 1e-2, "precision": "fp32"}
WORDS = (*synthetic.LIKED, *synthetic.DISLIKED, *synthetic.NEUTRAL)


def build(folder: Path, **options: Any) -> Any:
    """A reward model on a folder, with weights that are far from zero, so that every difference shows."""
    chosen = TrainOptions(**{"architecture": "reward", "max_length": 48, **options})
    encoder = encoders.make_encoder(encoders.locate(str(folder)), 0, seed=0, reward=True)
    tokenizer = encoders.load_tokenizer(folder)
    kind, template = conversation_template(tokenizer, "auto", "encoder")
    torch.manual_seed(0)
    model: Any = neural.build(
        replace(chosen, template=kind), encoder, conversation.reward_tokenizer(tokenizer, template), chosen.max_length,
        devices.place("cpu", "fp32"), setup=RewardSetup(template),
    )  # fmt: skip
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for matrix in (p for p in encoder.parameters() if p.ndim == 2):
            matrix.normal_(std=0.2, generator=generator)
        if model.module.tie.weight is not None:
            model.module.tie.weight.normal_(std=0.5, generator=generator)
    model.module.eval()
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    """The model as a run, by the functions that a training uses."""
    folder.mkdir()
    resolved = {"max_length": 48, "width": model.traits.width, "ignores_padding": model.traits.ignores_padding}
    resolved |= {"template": model.template, "conversation": model.packing.template.to_json()}
    config = {"resolved": resolved, **model.encoder_config()}
    runs.write_config(folder, TrainOptions(**{"architecture": "reward", "max_length": 48, **options}), config)
    weights.save(weights.trainable_state_dict(model.module), folder / neural.WEIGHTS)
    model.save_tokenizer(folder)
    return folder


def texts(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, size)) for size in random.integers(0, 30, size=count)]


def answers(count: int = 12) -> pa.RecordBatch:
    columns = {"prompt": texts(count, 1), "response": texts(count, 2)}
    return pa.record_batch({name: pa.array([[text] for text in column], TURNS) for name, column in columns.items()})


def battles(count: int = 20) -> pa.RecordBatch:
    """With a few identical answers among them."""
    columns = {"prompt": texts(count, 1), "response_a": texts(count, 2), "response_b": texts(count, 3)}
    columns["response_b"][::7] = columns["response_a"][::7]
    batch = {name: pa.array([[text] for text in column], TURNS) for name, column in columns.items()}
    return pa.record_batch({"id": pa.array(map(str, range(count))), "label": pa.nulls(count, pa.int8()), **batch})


def swap(batch: pa.RecordBatch, rows: np.ndarray) -> pa.RecordBatch:
    """The battles with A and B exchanged in some rows."""
    import pyarrow.compute as pc

    mask = pa.array(rows)
    a, b = (
        pc.if_else(mask, batch[x], batch[y]) for x, y in (("response_b", "response_a"), ("response_a", "response_b"))
    )
    return batch.set_column(batch.schema.get_field_index("response_a"), "response_a", a).set_column(
        batch.schema.get_field_index("response_b"), "response_b", b
    )


# The folder is transformers' model


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "deberta-v2", "gemma2", "llama", "modernbert", "qwen2", "roberta"])
def test_a_run_is_transformers_classifier_and_gives_the_same_rewards(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = build(families.make_folder(tmp_path / "encoder", family))
    run = save(model, tmp_path / "run")
    theirs, loading = AutoModelForSequenceClassification.from_pretrained(run, output_loading_info=True)
    assert not any(loading.values())
    assert theirs.config.num_labels == 1
    assert theirs.config.architectures == [type(theirs).__name__]
    assert theirs.config.pad_token_id == AutoTokenizer.from_pretrained(run).pad_token_id
    ours: Any = models.load(run, CPU)
    batch = answers()
    rewards, tokens = ours.rewards(batch), ours.tokenise_answers(batch)
    assert np.ptp(rewards) > 0.05
    sequences = [ours.packing.pack(tokens.fields(row)[:2]).ids.tolist() for row in range(len(rewards))]
    width = max(map(len, sequences))
    for side in ["right", "left"] if family in ("gemma2", "llama", "qwen2") else ["right"]:
        rows = [[(theirs.config.pad_token_id, 0)] * (width - len(ids)) for ids in sequences]
        rows = [
            [(t, 1) for t in ids] + pad if side == "right" else pad + [(t, 1) for t in ids]
            for ids, pad in zip(sequences, rows, strict=True)
        ]
        ids, mask = torch.tensor(rows).unbind(-1)
        with torch.inference_mode():
            expected = theirs.eval()(input_ids=ids, attention_mask=mask).logits[:, 0].numpy()
        assert np.abs(rewards - expected).max() < 1e-5, side


def test_the_rewards_of_single_answers_are_the_logits_of_their_battles(bert_folder: Path) -> None:
    model, batch = build(bert_folder), battles()
    logits, _ = model.logits(batch)
    for outcome, column in enumerate(("response_a", "response_b")):
        single = pa.record_batch({"prompt": batch["prompt"], "response": batch[column]})
        assert model.rewards(single) == pytest.approx(logits[:, outcome], abs=1e-5)
    assert logits[:, 2] == pytest.approx(logits[:, :2].mean(axis=1) + model.tie_log_nu, abs=1e-6)
    assert models.has_rewards(model)


def test_equal_weights_are_equal_files_and_hold_the_term_for_ties(bert_folder: Path, tmp_path: Path) -> None:
    model = build(bert_folder, tie="prompt")
    state = weights.trainable_state_dict(model.module)
    contents = set()
    for number in range(8):  # safetensors draws the order of metadata at random
        weights.save(state, tmp_path / str(number))
        contents.add((tmp_path / str(number)).read_bytes())
    assert len(contents) == 1
    loaded = weights.load(tmp_path / "0")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


# Swaps


@pytest.mark.parametrize("tie", ["constant", "prompt"])
@pytest.mark.parametrize("pads", [True, False])
def test_swapped_answers_have_exactly_swapped_probabilities(bert_folder: Path, tie: str, pads: bool) -> None:
    model, batch = build(bert_folder, tie=tie), battles()
    padded = model.logits(batch)[0]
    model.module.pads = pads
    member = Member((model,), "raw")
    plain = predict_batch(member, batch)
    assert model.logits(batch)[0] == pytest.approx(padded, abs=1e-5)
    assert np.array_equal(plain, predict_batch(member, batch, swap_average=True))
    random = np.random.default_rng(0)
    for rows in (np.ones(len(plain), bool), random.random(len(plain)) < 0.5, np.arange(len(plain)) == 3):
        swapped = predict_batch(member, swap(batch, rows))
        swapped[rows] = swapped[rows][:, SWAPPED]
        assert np.array_equal(plain, swapped)
    assert np.array_equal(plain[::7, 0], plain[::7, 1]), "identical answers"
    assert np.abs(plain[:, 0] - plain[:, 1]).max() > 0.05
    assert (np.ptp(plain[::7, 2]) > 1e-3) == (tie == "prompt")


def test_an_answer_is_computed_once_in_a_pass(bert_folder: Path) -> None:
    model = build(bert_folder)
    tokens = model.tokenise_answers(answers(6))
    arrays = model.arrays(tokens, np.arange(6))
    assert len(arrays["input_ids"]) == 6
    assert np.array_equal(arrays["pairs"][:, 0], arrays["pairs"][:, 1])
    assert sorted(arrays["pairs"][:, 0].tolist()) == list(range(6))
    assert "token_type_ids" not in arrays


# The loss


def davidson(rewards: np.ndarray, log_nu: Any) -> np.ndarray:
    """Davidson's (1970) equations as they stand: strengths, not logits."""
    a, b = np.exp(rewards).T
    tie = np.exp(log_nu) * np.sqrt(a * b)
    return np.stack([a, b, tie], axis=-1) / (a + b + tie)[:, None]


def test_the_gradient_of_davidsons_likelihood_is_that_of_finite_differences() -> None:
    random = np.random.default_rng(0)
    rewards, log_nu = random.normal(size=(6, 2)), np.array([0.3])
    targets = random.dirichlet(np.ones(3), size=6)

    def loss(values: np.ndarray) -> float:
        return -float((targets * np.log(davidson(values[:-1].reshape(6, 2), values[-1]))).sum())

    at = np.concatenate([rewards.ravel(), log_nu])
    steps = 1e-6 * np.eye(len(at))
    expected = [(loss(at + step) - loss(at - step)) / 2e-6 for step in steps]
    a, b = (torch.tensor(column, requires_grad=True) for column in rewards.T)
    t = torch.tensor(log_nu, requires_grad=True)
    logits = torch.stack([a, b, (a + b) / 2 + t], dim=-1)
    found = loop.loss_of(logits, torch.tensor(targets), TrainOptions(architecture="reward"))
    assert found.item() == pytest.approx(loss(at))
    found.backward()
    assert torch.stack([a.grad, b.grad], dim=-1).ravel().numpy() == pytest.approx(expected[:-1], abs=1e-6)
    assert t.grad.item() == pytest.approx(expected[-1], abs=1e-6)


class Strengths(torch.nn.Module):
    """In place of a classifier: a number for each player, who is the first token of a sequence."""

    base_model_prefix = ""

    def __init__(self, players: int) -> None:
        super().__init__()
        self.base_model = self
        self.rewards = torch.nn.Embedding(players, 1)
        torch.nn.init.zeros_(self.rewards.weight)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        return SequenceClassifierOutput(logits=self.rewards(input_ids[:, 0]))


@pytest.mark.parametrize("ties", [True, False])
def test_the_fit_is_scipys_maximum_likelihood(ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    random, players, true = np.random.default_rng(1), 5, np.array([-1.0, -0.5, 0.0, 0.6, 0.9])
    pairs = np.array([(i, j) for i in range(players) for j in range(players) if i != j] * 60)
    truth = davidson(true[pairs], 0.4)
    truth = truth if ties else metrics.two_outcome(truth)
    outcomes = np.array([random.choice(3, p=p) for p in truth])

    def negative_log_likelihood(values: np.ndarray) -> float:
        p = davidson(values[:players][pairs], values[-1])
        p = p if ties else metrics.two_outcome(p)
        return -float(np.log(p[np.arange(len(p)), outcomes]).sum())

    best = minimize(negative_log_likelihood, np.zeros(players + 1)).x
    monkeypatch.setattr("prefcli.models.architectures.is_causal", lambda encoder: False)
    module = reward.Reward(Strengths(players), reward.Tie(0.2))
    start = module.tie.bias.item()
    options = TrainOptions(architecture="reward")
    inputs = {"input_ids": torch.arange(players)[:, None], "attention_mask": torch.ones(players, 1)}
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")
    targets = torch.eye(3)[outcomes]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = module(pairs=torch.tensor(pairs), spans=torch.zeros(players, 2, 2), **inputs)
        loss = loop.loss_of(logits, targets, options, ties=ties) / len(pairs)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = module.encoder.rewards.weight[:, 0].detach().numpy()
    assert found - found.mean() == pytest.approx(best[:players] - best[:players].mean(), abs=2e-3)
    assert module.tie.bias.item() == pytest.approx(best[-1] if ties else start, abs=2e-3)
    assert found - found.mean() == pytest.approx(true - true.mean(), abs=0.25)


def test_margin_and_centring_are_trls() -> None:
    """``-logsigmoid(chosen - rejected - margin)`` and ``coefficient * (chosen + rejected) ** 2``, as in TRL 1.16."""
    logits = torch.tensor([[1.5, 0.5, 9.0], [-1.0, 2.0, 9.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # A is chosen, then B
    chosen, rejected = np.array([1.5, 2.0]), np.array([0.5, -1.0])
    options = TrainOptions(architecture="reward", margin=0.7, center_rewards=0.1)
    expected = np.log1p(np.exp(-(chosen - rejected - 0.7))).sum() + 0.1 * ((chosen + rejected) ** 2).sum()
    assert loop.loss_of(logits, targets, options, ties=False).item() == pytest.approx(expected, abs=1e-6)
    assert expected == pytest.approx(0.554355 + 0.095546 + 0.1 * (4 + 1), abs=1e-5)
    # With ties a margin moves the two rewards apart and leaves the middle: that of a soft label is in proportion.
    soft = torch.tensor([[0.6, 0.2, 0.2]])
    moved = torch.tensor([[1.5 - 0.14, 0.5 + 0.14, 9.0]])
    found = loop.loss_of(logits[:1], soft, replace(options, center_rewards=0.0))
    assert found.item() == pytest.approx(torch.nn.functional.cross_entropy(moved, soft).item(), abs=1e-6)
    siamese = replace(options, architecture="siamese")  # recorded by a run, perhaps, but not its own
    assert loop.loss_of(logits, targets, siamese).item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    )


def test_the_share_of_ties_is_where_the_term_begins() -> None:
    for share in (0.05, 1 / 3, 0.9):
        log_nu = reward.Tie(share).bias.item()
        assert davidson(np.zeros((1, 2)), log_nu)[0, 2] == pytest.approx(share, abs=1e-6)
    assert davidson(np.zeros((1, 2)), reward.Tie(0.0).bias.item())[0, 2] == pytest.approx(metrics.UNSEEN_PROBABILITY)
    assert np.isfinite(reward.Tie(1.0).bias.item())


def test_the_last_layer_is_float32_in_half_precision(bert_folder: Path) -> None:
    model, batch = build(bert_folder), answers(40)
    exact = model.rewards(batch)
    model.placement = replace(model.placement, precision="bf16")
    rounded = torch.tensor(model.rewards(batch))
    assert rounded.numpy() == pytest.approx(exact, abs=0.2)
    assert not torch.equal(rounded.bfloat16().double(), rounded)


# Training


def test_a_run_trains_predicts_scores_and_swaps_exactly(reward_run: Path, demo_files: Demo, cli: Cli) -> None:
    from transformers import AutoModelForSequenceClassification

    classifier, loading = AutoModelForSequenceClassification.from_pretrained(reward_run, output_loading_info=True)
    assert not any(loading.values())
    assert type(classifier).__name__ == "BertForSequenceClassification"
    state = weights.load(reward_run / neural.WEIGHTS)
    assert float(state["tie.weight"].abs().max()) > 0, "the prompt's weights were learnt"
    done = cli("predict", demo_files.test, "--model", reward_run, "--output", "plain.csv", "--precision", "fp32")
    assert done.code == 0, done.err
    done = cli("predict", demo_files.test, "--model", reward_run, "--output", "both.csv", "--precision", "fp32", "--swap-average")  # fmt: skip  # noqa: E501
    assert "--swap-average changes nothing" in done.err
    assert Path("plain.csv").read_bytes() == Path("both.csv").read_bytes()
    with demo_files.test.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["response_a"], row["response_b"] = row["response_b"], row["response_a"]
    swapped = write_csv(Path("swapped.csv"), rows, list(rows[0]))
    prefcli.predict(swapped, "back.csv", models=[reward_run], precision="fp32")
    plain, back = (np.loadtxt(name, delimiter=",", skiprows=1, usecols=(1, 2, 3)) for name in ("plain.csv", "back.csv"))
    assert np.array_equal(plain, back[:, SWAPPED])
    held_out = runs.read_validation(reward_run)
    assert held_out.swapped is not None
    assert np.array_equal(held_out.logits, held_out.swapped)  # kept in the order of the original outcomes
    assert cli("score", "plain.csv", demo_files.truth, "--json").json()["log_loss"] < 1.2


def test_stopped_at_any_step_it_resumes_to_the_same_bytes(
    reward_run: Path, demo_files: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(state: loop.TrainState) -> None:
        if state.steps == 5:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(NeuralFitter, "_first_steps", lambda self, spec: stop)
        prefcli.train(demo_files.train, output="cut", workspace=reward_run.parent / "w", **REWARD_RUN)
    prefcli.train(resume="cut", workspace=reward_run.parent / "w")
    for name in (neural.WEIGHTS, runs.VALIDATION):
        assert Path("cut", name).read_bytes() == (reward_run / name).read_bytes()


def test_a_configuration_that_swaps_trains_what_it_trains_without(
    demo_files: Demo, bert_folder: Path, cli: Cli
) -> None:
    options = resolve({"recipe": "strong", "architecture": "reward"})[0]
    assert options.swap
    assert not options.computes_both_orders
    Path("swap.toml").write_text('swap = true\ncombine = "interaction"\narchitecture = "reward"')
    Path("plain.toml").write_text('architecture = "reward"')
    few = ["--encoder", bert_folder, "--text", "raw", "--limit", 30, "--max-length", 64, "--lr", 1e-2]
    for name in ("swap", "plain"):
        done = cli("train", demo_files.train, *few, "--config", f"{name}.toml", "--output", name)
        assert done.code == 0, done.err
    assert Path("plain", neural.WEIGHTS).read_bytes() == Path("swap", neural.WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"architecture": "reward", "swap": True}, "--swap: changes nothing for --architecture reward"),
        ({"architecture": "reward", "combine": "concat", "pooling": "mean"}, "--combine, --pooling: changes nothing"),
        ({"architecture": "siamese", "margin": 1.0}, "--margin: not used by --architecture siamese"),
        ({"architecture": "features", "tie": "prompt"}, "--tie: not used by --architecture features"),
        ({"architecture": "reward", "center_rewards": -1.0}, "--center-rewards is -1.0, at least 0.0 is needed"),
    ],
)
def test_options_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(given)


def test_without_ties_only_the_two_rewards_are_learnt(demo_files: Demo, bert_folder: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        battle(n, int(b > a), prompt=[f"question {n}"], response_a=["clear " * int(a)], response_b=["clear " * int(b)])
        for n, (a, b) in enumerate(random.integers(1, 20, size=(80, 2)))
    ]
    prefcli.train(write_csv(tmp_path / "two.csv", rows), output="run", encoder=str(bert_folder), **SMALL)
    model = models.load(Path("run"), CPU)
    assert models.has_rewards(model)
    assert model.tie_log_nu == pytest.approx(reward.Tie(0.0).bias.item()), "untouched by training"
    logits = model.logits(battles())[0]
    assert metrics.softmax(logits)[:, 2] == pytest.approx(metrics.UNSEEN_PROBABILITY)
    assert logits[:, 0] == pytest.approx(model.rewards(
        pa.record_batch({"prompt": battles()["prompt"], "response": battles()["response_a"]})
    ), abs=1e-5)  # fmt: skip


def test_the_term_for_ties_moves_at_a_rate_of_its_own(bert_folder: Path) -> None:
    model = build(bert_folder)
    optimizer = loop.make_optimizer(model.module, TrainOptions(architecture="reward", lr=2e-5))
    loop.update(model.module, optimizer, loop.make_scaler(model.placement), 1e-5, 0.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(1 for _ in model.module.parameters())
    assert rates.pop(id(model.module.tie.bias)) == pytest.approx(loop.TIE_LR / 2)
    assert set(rates.values()) == {1e-5}


# Pretrained folders


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    warn = note


def test_a_head_is_read_if_the_folder_holds_one_and_otherwise_new(bert_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification

    def load(folder: Path, seed: int = 0) -> tuple[Any, str]:
        notes = Notes()
        encoder = encoders.make_encoder(
            encoders.locate(str(folder)), 0, seed=seed, reward=True, reporter=notes  # type: ignore[arg-type]
        )  # fmt: skip
        return encoder, "; ".join(notes.notes)

    one, said = load(bert_folder)
    assert "the encoder's head is new: classifier.bias, classifier.weight drawn at random" in said
    assert torch.equal(one.classifier.weight, load(bert_folder)[0].classifier.weight)
    assert not torch.equal(one.classifier.weight, load(bert_folder, seed=1)[0].classifier.weight)
    state = load_file(bert_folder / "model.safetensors")
    without = shutil.copytree(bert_folder, tmp_path / "without")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("pooler.")}
    save_file(kept, without / "model.safetensors", {"format": "pt"})
    assert "head is new: bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias" in load(without)[1]
    one_label = "holds a classifier with one label: its head (classifier) is read"
    for labels, words in ((1, one_label), (3, "the encoder's head is new")):
        folder = shutil.copytree(bert_folder, tmp_path / str(labels))
        torch.manual_seed(5)
        theirs = AutoModelForSequenceClassification.from_pretrained(bert_folder, num_labels=labels)
        theirs.save_pretrained(folder)
        encoder, said = load(folder)
        assert words in said
        assert torch.equal(encoder.bert.pooler.dense.weight, theirs.bert.pooler.dense.weight)
        assert torch.equal(encoder.classifier.weight, theirs.classifier.weight) == (labels == 1)
        assert encoder.config.num_labels == 1


def test_a_layer_that_is_missing_is_refused_for_a_classifier_too(bert_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(bert_folder, tmp_path / "broken")
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing tensors bert\.encoder\.layer\.1\.output\.dense\.weight"):
        encoders.make_encoder(encoders.locate(str(folder)), 0, seed=0, reward=True)


def test_a_family_without_a_classifier_is_refused(tmp_path: Path) -> None:
    folder = families.make_folder(tmp_path / "mamba", "mamba")
    with pytest.raises(ModelError, match="transformers has no sequence classifier for mamba"):
        encoders.make_encoder(encoders.locate(str(folder)), 0, seed=0, reward=True)


def test_a_reward_run_is_an_encoder_to_start_others_from(reward_run: Path, demo_files: Demo) -> None:
    siamese = prefcli.train(
        demo_files.train, output="siamese", encoder=str(reward_run), text="raw", max_length=64, limit=30, max_steps=1
    )
    assert siamese.validation is not None
    encoder: Any = encoders.make_encoder(encoders.locate(str(reward_run)), 0, seed=0, reward=True)
    assert torch.equal(
        encoder.classifier.weight, weights.load(reward_run / neural.WEIGHTS)["encoder.classifier.weight"]
    )


def test_a_head_that_reads_padding_is_noticed(bert_folder: Path) -> None:
    encoder: Any = encoders.make_encoder(encoders.locate(str(bert_folder)), 0, seed=0, reward=True).eval()
    assert trial.reward_ignores_padding(encoder, 48, 0)
    pooled = encoder.bert.pooler.forward
    encoder.bert.pooler.forward = lambda hidden: pooled(hidden.mean(dim=1, keepdim=True))  # with the padding's
    assert not trial.reward_ignores_padding(encoder, 48, 0)


# Adapters and folds


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_peft_loads_the_adapters_with_their_head(family: str, tmp_path: Path, demo_files: Demo) -> None:
    from peft import AutoPeftModelForSequenceClassification

    folder = families.make_folder(tmp_path / "encoder", family)
    options = {**SMALL, "lora_rank": 2, "limit": 60, "max_steps": 6, "encoder": str(folder)}
    prefcli.train(demo_files.train, output="run", **options)
    kept = weights.load(Path("run", neural.WEIGHTS))
    head = {"llama": ["score"], "bert": ["bert.pooler", "classifier"]}[family]
    settings = json.loads(Path("run/adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS"
    assert settings["modules_to_save"] == head
    assert all(".lora_" in name or name == "tie.bias" or name.removeprefix("encoder.").startswith(tuple(head)) for name in kept)  # fmt: skip  # noqa: E501
    ours: Any = models.load(Path("run"), CPU)
    batch = answers()
    rewards, tokens = ours.rewards(batch), ours.tokenise_answers(batch)
    theirs = AutoPeftModelForSequenceClassification.from_pretrained("run", num_labels=1).eval()
    with torch.inference_mode():
        expected = [
            theirs(input_ids=torch.tensor(ours.packing.pack(tokens.fields(row)[:2]).ids[None].astype(np.int64))).logits
            for row in range(len(rewards))
        ]
    assert np.abs(rewards - [float(value) for value in expected]).max() < 1e-5
    assert np.ptp(rewards) > 1e-4
    (code,) = re.findall(r"```python\n(import torch\n.*?)```", Path("run/README.md").read_text(), flags=re.S)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    probabilities = prefcli.load("run", calibrated=False, precision="fp32").predict("What is 2 + 2?", "4", "5")
    assert np.abs(names["probabilities"].numpy() - probabilities).max() < 1e-5
    assert prefcli.export("run", merged="merged").adapters
    merged: Any = models.load(Path("merged"), CPU)
    assert merged.rewards(batch) == pytest.approx(rewards, abs=1e-5)
    assert merged.tie_log_nu == ours.tie_log_nu


def test_folds_give_the_mean_of_their_rewards(demo_files: Demo, bert_folder: Path) -> None:
    options = {**SMALL, "encoder": str(bert_folder), "limit": 40, "max_steps": 2, "folds": 2}
    prefcli.train(demo_files.train, output="run", **options)
    [member] = inference.open_runs([Path("run")], PredictOptions(), CPU)
    scores = inference.answer_scores(member, answers())[0]
    single: list[Any] = [models.load(Path("run", fold), CPU).rewards(answers()) for fold in ("fold-1", "fold-2")]  # type: ignore[attr-defined]
    assert scores == pytest.approx(np.mean(single, axis=0), abs=1e-6)
    assert np.abs(single[0] - single[1]).max() > 1e-4
