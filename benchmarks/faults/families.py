"""Families of encoders, each made at its smallest: train, predict, load again, export; or one sentence that refuses.

``python benchmarks/faults/families.py [FAMILY...] [--lora] [--architecture reward]`` prints a line for each family and
a summary. It ends with 1 if any family ends in something else: a library's traceback, predictions that depend on the
batch or differ when the run is loaded again, an export that differs, a reward run that is not transformers' classifier.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import prefcli
from prefcli.data import synthetic
from prefcli.errors import PrefcliError, one_line

VOCABULARY = 600
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 80, "pad_token_id": 0, "num_key_value_heads": 2, "head_dim": 16,
    "type_vocab_size": 2,
}  # fmt: skip
FUNNEL = {"block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "num_hidden_layers": None,
          "num_decoder_layers": 1, "architectures": ["FunnelModel"]}  # fmt: skip
NO_HEAD_DIM = {"head_dim": None}
FAMILIES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "bert": {},
    "big_bird": {"block_size": 4, "num_random_blocks": 1},
    "bloom": {"n_layer": 2, "n_head": 2},
    "camembert": {"pad_token_id": 1},
    "canine": {"num_hash_buckets": 64, "num_hash_functions": 4, "local_transformer_stride": 4, "downsampling_rate": 2},
    "convbert": {"embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3},
    "data2vec-text": {"pad_token_id": 1},
    "deberta": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    "distilbert": {},
    "electra": {"embedding_size": 16},
    "ernie": {},
    "esm": {"pad_token_id": 1, "mask_token_id": 4, "position_embedding_type": "absolute"},
    "eurobert": {},
    "falcon": NO_HEAD_DIM,
    "flaubert": {"emb_dim": 32, "n_layers": 2, "n_heads": 2},
    "fnet": {},
    "funnel": FUNNEL,
    "gemma2": {},
    "gemma3_text": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 80},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 2},
    "gpt_neox": {},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8},
    "ibert": {"pad_token_id": 1},
    "llama": {},
    "longformer": {"attention_window": 8, "pad_token_id": 1},
    "luke": {"entity_vocab_size": 20},
    "mamba": {"state_size": 4},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 4, "n_groups": 1},
    "megatron-bert": {},
    "mistral": {},
    "mobilebert": {"embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
    "mpnet": {"pad_token_id": 1},
    "mra": {},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": 4},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "phi": {},
    "qwen2": {},
    "qwen3": {},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": {"pad_token_id": 1},
    "roberta-prelayernorm": {"pad_token_id": 1},
    "roformer": {"embedding_size": 32},
    "rwkv": {"attention_hidden_size": 32},
    "squeezebert": {"embedding_size": 32},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 2},
    "xlm-roberta": {"pad_token_id": 1},
    "xlm-roberta-xl": {"pad_token_id": 1},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "max_position_embeddings": None},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX", "pad_token_id": 1},
    "yoso": {},
}  # fmt: skip
"""By ``model_type``, what its configuration needs beside :data:`SHAPE`; None leaves an entry out."""
PRINTED = 110


def make_folder(folder: Path, family: str, **config: Any) -> Path:
    """A family's smallest encoder with random weights and a tokenizer whose padding has the family's id."""
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    from prefcli import encoders

    entries = {**SHAPE, **FAMILIES[family], **config}
    entries = {name: value for name, value in entries.items() if value is not None}
    words = " ".join((*synthetic.LIKED, *synthetic.DISLIKED, *synthetic.NEUTRAL))
    tokenizer = encoders.train_tokenizer([words] * 3, VOCABULARY - 40)
    if entries["pad_token_id"] == 1:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    parsed = AutoConfig.for_model(family, **entries)
    torch.manual_seed(0)
    AutoModel.from_config(parsed).save_pretrained(folder)
    return folder


def try_family(
    family: str,
    folder: Path,
    battles: synthetic.Demo,
    *,
    lora: bool = False,
    export: bool = True,
    architecture: str = "siamese",
) -> Iterator[str]:
    """What became of it, step by step; raises AssertionError where numbers are wrong."""
    encoder = make_folder(folder / "encoder", family)
    workspace = folder / "workspace"
    run = folder / "run"
    extra = {"lora_rank": 2} if lora else {}
    result = prefcli.train(
        battles.train, encoder=str(encoder), output=run, workspace=workspace, text="raw", max_steps=4, batch_size=8,
        precision="fp32", lr=1e-3, limit=60, architecture=architecture, **extra,
    )  # fmt: skip
    assert np.isfinite(result.validation.log_loss)
    resolved = json.loads((run / "config.json").read_text())["resolved"]
    yield f"trains on {resolved['max_length']} tokens" + ("" if resolved["ignores_padding"] else " without padding")
    first, second = folder / "first.csv", folder / "second.csv"
    for output in (first, second):
        prefcli.predict(battles.test, output, models=[run], workspace=workspace, precision="fp32", calibrated=False)
    assert first.read_bytes() == second.read_bytes(), "two predictions of one run differ"
    batched = np.loadtxt(first, delimiter=",", skiprows=1, usecols=(1, 2, 3))
    assert np.ptp(batched, axis=0).max() > 0, "every battle has the same probabilities"
    predictor = prefcli.load(run, precision="fp32", calibrated=False)
    rows = list(synthetic_rows(battles.test))
    alone = np.concatenate([predictor.predict([row]) for row in rows[:6]])
    difference = np.abs(alone - batched[:6]).max()
    assert difference < 1e-4, f"a prediction depends on the battles beside it ({difference:.1g})"
    yield "predicts"
    if lora:
        merged = folder / "merged"
        prefcli.export(run, merged=merged, workspace=workspace)
        assert np.abs(prefcli.load(merged, precision="fp32", calibrated=False).predict(rows) - batched).max() < 1e-4
        yield "merges"
        run = merged
    if architecture == "reward":
        difference = difference_from_transformers(run, rows)
        assert difference < 1e-5, f"transformers gives other rewards ({difference:.1g})"
        yield "is transformers' classifier"
    if not export:
        return
    prefcli.export(run, onnx=folder / "onnx", workspace=workspace)
    exported = prefcli.load(folder / "onnx", calibrated=False).predict(rows)
    assert np.abs(exported - batched).max() < 1e-3, "the export predicts something else"
    yield "exports"


def difference_from_transformers(run: Path, rows: list[dict[str, Any]]) -> float:
    """The largest difference between a run's rewards and those of transformers' classifier from its folder."""
    import pyarrow as pa
    import torch
    from transformers import AutoModelForSequenceClassification

    from prefcli import models
    from prefcli.compute.devices import DeviceRequest

    model: Any = models.load(run, DeviceRequest("cpu", "fp32"))
    classifier, loading = AutoModelForSequenceClassification.from_pretrained(run, output_loading_info=True)
    others = {*loading["missing_keys"], *loading["unexpected_keys"]}
    assert not others, f"transformers' classifier has other tensors: {sorted(others)}"
    names = (("prompt", "prompt"), ("response", "response_a"))
    turns = pa.list_(pa.string())
    batch = pa.record_batch({name: pa.array([row[column] for row in rows], turns) for name, column in names})
    rewards = model.rewards(batch)
    assert np.ptp(rewards) > 1e-6, "every answer has the same reward"
    tokens = model.tokenise_answers(batch)
    expected = []
    for number in range(len(rows)):
        ids = model.packing.pack(tokens.fields(number)[:2]).ids
        with torch.inference_mode():
            expected.append(classifier.eval()(input_ids=torch.tensor(ids[None].astype(np.int64))).logits.item())
    return float(np.abs(rewards - expected).max())


def synthetic_rows(path: Path) -> Iterator[dict[str, Any]]:
    import csv

    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            yield {name: json.loads(row[name]) for name in ("prompt", "response_a", "response_b")}


def outcome(family: str, folder: Path, battles: synthetic.Demo, **how: Any) -> tuple[bool, str]:
    """Whether a family ended as it should, and how, in a line."""
    steps: list[str] = []
    try:
        for step in try_family(family, folder, battles, **how):
            steps.append(step)
    except PrefcliError as error:
        sentence = one_line(error.what, PRINTED)
        return True, "; ".join([*steps, f"refused: {sentence}"])
    except AssertionError as error:
        return False, "; ".join([*steps, f"WRONG: {error}"])
    except Exception as error:
        return False, "; ".join([*steps, f"DEFECT: {type(error).__name__}: {one_line(error, PRINTED)}"])
    return True, "; ".join(steps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="model types; none: all")
    parser.add_argument("--lora", action="store_true", help="train adapters, and merge them before the export")
    parser.add_argument("--architecture", default="siamese", help="siamese, cross-encoder or reward")
    parser.add_argument("--no-export", action="store_true", help="without the export, which takes most of the time")
    arguments = parser.parse_args()
    failures, refused = 0, 0
    families = arguments.families or list(FAMILIES)
    with tempfile.TemporaryDirectory() as name:
        battles = synthetic.write(Path(name) / "battles", train=80, test=24)
        for family in families:
            began = time.monotonic()
            folder = Path(name) / family
            with contextlib.redirect_stderr(sys.stdout):
                passed, line = outcome(
                    family, folder, battles, lora=arguments.lora, export=not arguments.no_export,
                    architecture=arguments.architecture,
                )  # fmt: skip
            failures += not passed
            refused += "refused" in line
            print(f"{'ok' if passed else 'FAIL':4} {family:20} {line} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{len(families)} families: {failures} failures, {refused} refused with a sentence")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
