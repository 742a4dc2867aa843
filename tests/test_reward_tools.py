"""What other tools make of a reward run: transformers' pipeline, TRL's trainer, what rewardbench does, the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_language_model
from numpy.typing import NDArray

import prefcli
from prefcli import encoders, models
from prefcli.compute.devices import DeviceRequest
from prefcli.data.synthetic import Demo
from prefcli.encoders import chat_templates

pytestmark = pytest.mark.slow
TURNS = pa.list_(pa.string())
CHAT = "{% for m in messages %}{{ '[CLS]' + m['role'] + '\n' + m['content'] + '[SEP]\n' }}{% endfor %}"
SMALL: dict[str, Any] = {"architecture": "reward", "max_length": 192, "lr": 3e-2, "limit": 40, "precision": "fp32"}


@pytest.fixture(scope="session")
def reward_runs(
    tmp_path_factory: pytest.TempPathFactory, demo_files: Demo, bert_folder: Path, deberta_folder: Path
) -> dict[str, Path]:
    """Runs by the family of their encoder; that of Qwen has a chat template of its own."""
    from transformers.utils.chat_template_utils import render_jinja_template

    folder = tmp_path_factory.mktemp("rewards")
    qwen = make_language_model(folder / "qwen-encoder", "qwen2")
    config = json.loads((qwen / "tokenizer_config.json").read_text())
    (qwen / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": CHAT}))
    folders = {"bert": bert_folder, "deberta": deberta_folder, "qwen": qwen}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(  # in this process, which saves a second
            chat_templates, "render", lambda text, chats, special, _: render_jinja_template(
                chats, chat_template=text, **special)[0],
        )  # fmt: skip
        for name, encoder in folders.items():
            prefcli.train(demo_files.train, encoder=str(encoder), output=folder / name, workspace=folder / "w", **SMALL)
    return {name: folder / name for name in folders}


CONVERSATIONS: list[tuple[list[str], list[str]]] = [
    (["clear river"], ["precise answer.\n"]),
    (["a question", " more? "], ["one", "two precise"]),
    ([""], [""]),
    (["[SEP] 你好"], ["नमस्ते [CLS] 🙂"]),
    (["vague"], ["clear " * 9]),
]


def rewards(run: Path, conversations: Sequence[tuple[list[str], list[str]]]) -> NDArray[np.float64]:
    model: Any = models.load(run, DeviceRequest("cpu", "fp32"))
    prompts, answers = zip(*conversations, strict=True)
    result: NDArray[np.float64] = model.rewards(
        pa.record_batch({"prompt": pa.array(prompts, TURNS), "response": pa.array(answers, TURNS)})
    )
    return result


def chat(prompt: Sequence[str], answer: Sequence[str]) -> list[dict[str, str]]:
    pairs = zip(prompt, answer, strict=True)
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


@pytest.mark.parametrize("family", ["bert", "deberta", "qwen"])
def test_transformers_pipeline_gives_the_reward_of_the_rendered_text(family: str, reward_runs: dict[str, Path]) -> None:
    from transformers import pipeline

    run = reward_runs[family]
    expected = rewards(run, CONVERSATIONS)
    assert np.ptp(expected) > 1e-3
    classify = pipeline("text-classification", model=str(run))
    rendered = [classify.tokenizer.apply_chat_template(chat(*pair), tokenize=False) for pair in CONVERSATIONS]
    for batch_size in (1, len(rendered)):
        scores = classify(rendered, function_to_apply="none", batch_size=batch_size)
        assert np.abs([score["score"] for score in scores] - expected).max() < 1e-5
    named = json.loads((run / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert named == "PreTrainedTokenizerFast"  # which transformers 4 knows, too
    kind = json.loads((run / "config.json").read_text())["resolved"]["template"]
    assert kind == ("chat" if family == "qwen" else "tokens")


@pytest.mark.parametrize("family", ["bert", "qwen"])
def test_the_code_of_the_card_gives_the_probabilities_of_predict(
    family: str, reward_runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = reward_runs[family]
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in card
    (code,) = re.findall(r"```python\n(import torch\n.*?)```", card, flags=re.S)
    monkeypatch.chdir(run.parent)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    expected = prefcli.load(run, calibrated=False, precision="fp32").predict("What is 2 + 2?", "4", "5")
    assert np.abs(names["probabilities"].numpy() - expected).max() < 1e-5
    assert [float(names["a"]), float(names["b"])] == pytest.approx(
        prefcli.load(run, precision="fp32").score("What is 2 + 2?", ["4", "5"]), abs=1e-5
    )


def pairs_of(demo_files: Demo, run: Path) -> list[dict[str, Any]]:
    """Decided battles of the demo as preference pairs, those of which no tool cuts anything."""
    import csv

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run)
    longest = json.loads((run / "config.json").read_text())["resolved"]["max_length"]
    with demo_files.train.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["winner_tie"] == "0"]
    result = []
    for row in rows:
        prompt, a, b = (json.loads(row[name]) for name in ("prompt", "response_a", "response_b"))
        chosen, rejected = (a, b) if row["winner_model_a"] == "1" else (b, a)
        pair = {"chosen": chat(prompt, chosen), "rejected": chat(prompt, rejected)}
        if max(len(tokenizer.apply_chat_template(side, return_dict=False)) for side in pair.values()) <= longest:
            result.append(pair)
    assert len(result) > 23
    return result[-24:]


def answers_of(pairs: Sequence[dict[str, Any]], side: str) -> list[tuple[list[str], list[str]]]:
    texts = [[message["content"] for message in pair[side]] for pair in pairs]
    return [(text[::2], text[1::2]) for text in texts]


@pytest.mark.parametrize("family", ["bert", "qwen"])
def test_trls_reward_trainer_gives_the_same_rewards_and_trains_on(
    family: str, reward_runs: dict[str, Path], demo_files: Demo, tmp_path: Path
) -> None:
    pytest.importorskip("trl", reason="trl needs Python 3.11")
    import torch
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    run = reward_runs[family]
    pairs = pairs_of(demo_files, run)
    config = RewardConfig(
        str(tmp_path / "trl"), per_device_train_batch_size=8, per_device_eval_batch_size=24, num_train_epochs=1,
        learning_rate=1e-3, use_cpu=True, report_to="none", save_strategy="no", bf16=False, disable_tqdm=True,
        max_length=192
    )  # fmt: skip
    data = Dataset.from_list(pairs)
    trainer = RewardTrainer(str(run), config, train_dataset=data, eval_dataset=data)
    chosen, rejected = (rewards(run, answers_of(pairs, side)) for side in ("chosen", "rejected"))
    batch = next(iter(trainer.get_eval_dataloader()))  # all of them, padded
    model: Any = trainer.model
    with torch.inference_mode():
        theirs = model.eval()(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[:, 0].numpy()
    assert np.abs(theirs - np.concatenate([chosen, rejected])).max() < 1e-5
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(np.mean(chosen > rejected))
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    with torch.inference_mode():
        after = model.eval()(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[:, 0].numpy()
    assert np.abs(after - theirs).max() > 1e-4  # it did train
    read: Any = encoders.make_encoder(encoders.locate(str(tmp_path / "trained")), 0, seed=0, reward=True)
    with torch.inference_mode():
        ours = read.eval()(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[:, 0].numpy()
    assert np.abs(ours - after).max() < 1e-6  # encoder and head
    again = prefcli.train(
        demo_files.train, encoder=str(tmp_path / "trained"), output="again", **(SMALL | {"max_steps": 1, "lr": 1e-9})
    )
    assert again.validation is not None
    continued = rewards(Path("again"), answers_of(pairs, "chosen"))
    assert np.abs(continued - after[: len(pairs)]).max() < 1e-3  # its head is not a new one
    first, second = (json.loads((folder / "config.json").read_text())["resolved"] for folder in (run, Path("again")))
    assert second["template"] == "chat"
    assert second["conversation"] == first["conversation"]


def test_what_rewardbench_does_with_a_local_file_is_the_accuracy_of_predict(
    reward_runs: dict[str, Path], demo_files: Demo
) -> None:
    """rewardbench itself needs another transformers and a GPU: these are the steps of its default pipeline."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    for family, batch_size in (("qwen", 8), ("bert", 1)):  # it pads on the left, where BERT expects its first token
        pairs = pairs_of(demo_files, reward_runs[family])
        tokenizer = AutoTokenizer.from_pretrained(reward_runs[family])
        tokenizer.padding_side = "left"
        model = AutoModelForSequenceClassification.from_pretrained(reward_runs[family]).eval()
        scores: dict[str, list[float]] = {}
        for side in ("chosen", "rejected"):
            texts = [tokenizer.apply_chat_template(pair[side], tokenize=False) for pair in pairs]
            with torch.inference_mode():
                scores[side] = [
                    score
                    for start in range(0, len(texts), batch_size)
                    for score in model(
                        **tokenizer(texts[start : start + batch_size], padding=True, return_tensors="pt")
                    ).logits[:, 0].tolist()
                ]  # fmt: skip
        accuracy = np.mean(np.array(scores["chosen"]) > np.array(scores["rejected"]))
        probabilities = prefcli.load(reward_runs[family], precision="fp32").predict([
            {"prompt": prompt, "response_a": a, "response_b": b}
            for (prompt, a), (_, b) in zip(answers_of(pairs, "chosen"), answers_of(pairs, "rejected"), strict=True)
        ])  # fmt: skip
        assert accuracy == np.mean(probabilities[:, 0] > probabilities[:, 1])
        assert 0 < accuracy <= 1
