"""Malicious model folders, and a process that loads them and records what that does.

``python benchmarks/faults/hostile_models.py FOLDER...`` loads each folder as prefcli does and prints a line of JSON for
each: the messages, and every use of the network, opened canary file, or started program.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from payloads import changed

CANARY = "outside-canary"
CODE = "import pathlib\npathlib.Path({marker!r}).touch()\nclass Evil:\n    pass\n"

QUANTISERS = (
    "aqlm", "auto-round", "awq", "bitnet", "bitsandbytes", "bitsandbytes_4bit", "compressed-tensors", "eetq", "fbgemm_fp8",
    "fp8", "fp_quant", "gptq", "higgs", "hqq", "metal", "mxfp4", "quanto", "quark", "spqr", "torchao", "vptq",
)  # fmt: skip
KERNELS = (
    "kernels-community/flash-attn2",
    "evil/kernel@main:run",
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
)
TOKENIZERS = (
    "EvilTokenizer", "os.system", f"../../{CANARY}", "BertJapaneseTokenizer", "RagTokenizer", "MistralCommonBackend",
    "MistralCommonTokenizer", "AutoModel", "PreTrainedModel", "LlamaTokenizer", "SiglipTokenizer", "CamembertTokenizer",
    "MarianTokenizer", "M2M100Tokenizer", "SpeechT5Tokenizer", "BartphoTokenizer", "CpmTokenizer", "FSMTTokenizer",
    "XLMTokenizer", "TapasTokenizer", "EsmTokenizer", "Wav2Vec2CTCTokenizer", "ByT5Tokenizer", "CanineTokenizer", "",
    5, None, ["EvilTokenizer", None],
)  # fmt: skip
FILES_NAMED = (
    "vocab_file", "spm_file", "merges_file", "tokenizer_file", "special_tokens_map_file", "added_tokens_file",
    "gguf_file", "source_spm", "target_spm", "monolingual_vocab_file", "normalizer_file", "emoji_file", "dict_file",
    "entity_vocab_file", "subword_file", "vocab", "merges", "cache_dir", "name_or_path", "init_inputs",
)  # fmt: skip
OTHER_TYPES: tuple[dict[str, Any], ...] = (
    {"model_type": "evil"},
    {"model_type": "timm_backbone", "backbone": "evil/backbone", "use_pretrained_backbone": True},
    {"model_type": "timm_wrapper", "architecture": "evil/timm", "model_args": {"pretrained": True}},
    {"model_type": "detr", "use_timm_backbone": True, "backbone": "evil/backbone", "use_pretrained_backbone": True},
    {"model_type": "dpt", "backbone": "evil/backbone", "use_pretrained_backbone": True},
    {"model_type": "rag", "question_encoder": {"model_type": "dpr"}, "generator": {"model_type": "bart"}, "index_path": CANARY},
    {"model_type": "encoder-decoder", "encoder": {"model_type": "bert"}, "decoder": {"model_type": "bert"}},
    {"model_type": "speech-encoder-decoder", "encoder": {"model_type": "wav2vec2"}, "decoder": {"model_type": "bert"}},
    {"model_type": "musicgen"},
    {"model_type": ["bert"]},
    {"model_type": f"../../{CANARY}"},
    {"model_type": None},
)  # fmt: skip
CHAT = "{{ cycler.__init__.__globals__.os.popen('touch MARKER').read() }}"


def folders(bert: Path, deberta: Path, at: Path) -> Iterator[Path]:
    """Every hostile folder, below ``at``. Code in them would leave the file ``at/ran``; ``at/canary*`` lie outside."""
    marker = at / "ran"
    numbers = iter(range(10_000))

    def place(label: str) -> Path:
        return at / f"{next(numbers):03d} {label}"

    def with_code(label: str, name: str, **settings: Any) -> Path:
        made = changed(bert, place(label), name, **settings)
        for file in (
            "evil.py",
            "modeling_evil.py",
            "__init__.py",
            "bert.py",
            "transformers.py",
            "tokenization_evil.py",
        ):
            (made / file).write_text(CODE.format(marker=str(marker)))
        return made

    shutil.copyfile(bert / "model.safetensors", at / f"{CANARY}.safetensors")
    shutil.copyfile(bert / "tokenizer.json", at / f"{CANARY}-tokenizer.4.0.0.json")
    shutil.copyfile(bert / "tokenizer.json", at / CANARY)
    for prefix in ("evil", "elsewhere/evil--evil"):
        every = dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), f"{prefix}.Evil")
        yield with_code("code, known type", "config.json", auto_map=every)
        yield with_code("code, unknown type", "config.json", auto_map=every, model_type="evil")
        yield with_code(
            "code, trusted by itself", "config.json", auto_map=every, model_type="evil", trust_remote_code=True
        )
        yield with_code("code, no base model", "config.json", auto_map=every, model_type="encoder-decoder")
        yield with_code("code, tokenizer", "tokenizer_config.json", auto_map=every)
        yield with_code("code, own tokenizer", "tokenizer_config.json", auto_map=every, tokenizer_class="Evil")
        yield with_code(
            "code, old style", "tokenizer_config.json", auto_map=[f"{prefix}.Evil", None], tokenizer_class="Evil"
        )
    yield with_code("code, architectures", "config.json", architectures=["Evil", "evil.Evil"])
    for setting in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        for kernel in (*KERNELS, {"": "evil/kernel"}):
            yield changed(bert, place(f"kernel, {setting}"), "config.json", **{setting: kernel})
    yield changed(bert, place("kernel, experts"), "config.json", experts_implementation="evil/kernel", use_kernels=True)
    yield changed(
        bert, place("kernel, config"), "config.json", use_kernels=True, kernel_config={"Linear": "evil/kernel:Linear"}
    )
    for method in QUANTISERS:
        quantised = {
            "quant_method": method,
            "bits": 4,
            "load_in_4bit": True,
            "tokenizer": "evil/tokenizer",
            "dataset": "c4",
        }
        yield changed(bert, place(f"quantised, {method}"), "config.json", quantization_config=quantised)
    yield changed(bert, place("quantised, compression"), "config.json", compression_config={"quant_method": "gptq"})
    for other in OTHER_TYPES:
        yield changed(bert, place("another type"), "config.json", **other)
    adapter = {
        "peft_type": "LORA", "base_model_name_or_path": "evil/base", "target_modules": ["query"], "r": 4,
        "auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"},
    }  # fmt: skip
    yield changed(bert, place("adapter"), "adapter_config.json", **adapter)
    for setting in (
        "transformers_weights",
        "_name_or_path",
        "name_or_path",
        "base_model_name_or_path",
        "dtype",
        "torch_dtype",
    ):
        for value in (f"../{CANARY}.safetensors", str(at / f"{CANARY}.safetensors"), "evil/model"):
            yield changed(bert, place(f"name, {setting}"), "config.json", **{setting: value})
    for tokenizer in TOKENIZERS:
        yield changed(bert, place("tokenizer class"), "tokenizer_config.json", tokenizer_class=tokenizer)
        yield changed(deberta, place("tokenizer class"), "tokenizer_config.json", tokenizer_class=tokenizer)
    for original in (bert, deberta):
        for setting in FILES_NAMED:
            for value in (f"../{CANARY}", str(at / CANARY)):
                named: Any = [value] if setting == "init_inputs" else value
                yield changed(original, place(f"file, {setting}"), "tokenizer_config.json", **{setting: named})
        for name in (f"../{CANARY}-tokenizer.4.0.0.json", str(at / f"{CANARY}-tokenizer.4.0.0.json")):
            yield changed(original, place("file, versions"), "tokenizer_config.json", fast_tokenizer_files=[name])
        settings = {"model_file": str(at / CANARY)}
        for tokenizer in (None, "SiglipTokenizer", "SpeechT5Tokenizer", "MarianTokenizer"):
            yield changed(
                original, place("file, sentencepiece"), "tokenizer_config.json",
                sp_model_kwargs=settings, tokenizer_class=tokenizer, token="hf_x", local_files_only=False,
            )  # fmt: skip
        template = CHAT.replace("MARKER", str(marker))
        yield changed(original, place("chat template"), "tokenizer_config.json", chat_template=template)
        for name in (f"../../{CANARY}-written", str(at / f"{CANARY}-written"), "a/b", "a\x00b"):
            many = [{"name": name, "template": template}, {"name": "default", "template": template}]
            yield changed(original, place("chat templates"), "tokenizer_config.json", chat_template=many)
    shards = {"embeddings.word_embeddings.weight": f"../{CANARY}.safetensors"}
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        for name in (f"../{CANARY}.safetensors", str(at / f"{CANARY}.safetensors"), f"x/../../{CANARY}.safetensors"):
            shards = dict.fromkeys(shards, name)
            made = changed(bert, place("shards"), index, weight_map=shards, metadata={"total_size": 1})
            (made / "model.safetensors").unlink()
            yield made


def watched() -> Callable[[], list[str]]:
    """Start to watch this process; the returned function returns what it did that loading must not do, and forgets it."""
    seen: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
            seen.append(f"network: {arguments!r:.80}")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
            seen.append(f"program: {arguments!r:.80}")
        elif event == "open" and CANARY in str(arguments[0]).rsplit("/", 1)[-1]:
            seen.append(f"opened: {arguments[0]!r:.80}")

    sys.addaudithook(hook)

    def take_events() -> list[str]:
        events = list(seen)
        seen.clear()
        return events

    return take_events


def load(folder: Path) -> str:
    """Load a folder as prefcli does, tokenizer and encoder, and save the tokenizer as a run does."""
    import tempfile

    from prefcli import encoders
    from prefcli.errors import PrefcliError

    messages = []
    for step in ("tokenizer", "encoder", "run"):
        try:
            if step == "tokenizer":
                with tempfile.TemporaryDirectory(dir=folder.parent) as inner:
                    encoders.load_tokenizer(folder).save_pretrained(Path(inner) / "a" / "b")
            elif step == "encoder":
                encoders.make_encoder(encoders.ResolvedModel(folder, "test"), 0, seed=0)
            else:
                encoders.from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
            messages.append("loaded")
        except PrefcliError as error:
            messages.append(error.what)
        except Exception as error:
            messages.append(f"UNFORESEEN {type(error).__name__}: {error}"[:200])
    return " | ".join(messages)


def main() -> None:
    import torch  # noqa: F401  (imported before watching: what it starts does not come from a model)
    import transformers  # noqa: F401

    take_events = watched()
    for name in sys.argv[1:]:
        messages = load(Path(name))
        print(json.dumps({"folder": Path(name).name, "said": messages, "did": take_events()}), flush=True)


if __name__ == "__main__":
    main()
