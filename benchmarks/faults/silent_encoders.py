"""Encoders altered in many ways, each with a known right answer: loaded as they were, or refused.

``python benchmarks/faults/silent_encoders.py [SEED]`` prints each situation that is neither, and a summary.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import families

from prefcli import encoders
from prefcli.errors import PrefcliError

FAMILIES = ("bert", "roberta", "distilbert", "electra", "deberta-v2", "gpt2", "llama", "opt", "modernbert", "qwen2")
PREFIXES = ("encoder.", "module.", "_orig_mod.", "model.", "module._orig_mod.")
TOLERANCE = 1e-5
WEIGHTS = "model.safetensors"

State = dict[str, Any]
Alteration = Callable[[Path, random.Random], None]


def situations(folder: Path, seed: int) -> Iterator[tuple[str, Callable[[], str]]]:
    """Situations by name; called, each answers ``right``, ``refused``, or ``silent: ...``."""
    for family in FAMILIES:
        source = folder / f"{family}-{seed}"
        for name, alter in ALTERATIONS.items():
            draw = random.Random(f"{seed} {family} {name}")
            yield f"{family}: {name}", partial(_loaded, source, family, folder / "altered", alter, draw)
        for name, keep in DOWNLOADS.items():
            draw = random.Random(f"{seed} {family} {name}")
            yield f"{family}: {name}", partial(_downloaded, source, family, folder / "hub", keep, draw)


def _original(source: Path, family: str) -> Any:
    """The family's encoder, by transformers alone, from files that nothing has altered; made where it is missing."""
    from transformers import AutoModel

    if not source.exists():
        families.make_folder(source, family)
    return AutoModel.from_pretrained(source, local_files_only=True).eval()


def _vectors(encoder: Any) -> Any:
    import torch

    ids = torch.arange(5, 21)[None]
    with torch.no_grad():
        return encoder.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


def _compared(name: str, original: Any, *, network: bool = True) -> str:
    """What comes of loading an encoder, compared with the original one."""
    try:
        located = encoders.locate(name, network=network)
        vectors = [_vectors(encoders.make_encoder(located, 0, seed=seed)) for seed in (0, 1)]
    except PrefcliError:
        return "refused"
    except Exception as error:
        return f"silent: a {type(error).__name__} of a library"
    expected = _vectors(original)
    for result in vectors:
        if result.shape != expected.shape or not bool(((result - expected).abs() < TOLERANCE).all()):
            return "silent: loaded with other weights"
    return "right"


def _loaded(source: Path, family: str, folder: Path, alter: Alteration, draw: random.Random) -> str:
    original = _original(source, family)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    alter(folder, draw)
    if alter is _in_float16:
        original = original.half().float()
    return _compared(str(folder), original)


def _downloaded(
    source: Path, family: str, cache: Path, keep: Callable[[list[Path], random.Random], list[Path]], draw: random.Random
) -> str:
    """A model in the hub's cache of which only some files have come."""
    from huggingface_hub import constants

    original = _original(source, family)
    shutil.rmtree(cache, ignore_errors=True)
    repository = cache / "models--owner--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(source, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    _shard(snapshot, draw)
    shards = sorted(snapshot.glob("model-*.safetensors"))
    for path in set(shards) - set(keep(shards, draw)):
        path.unlink()
    before, constants.HF_HUB_CACHE = constants.HF_HUB_CACHE, str(cache)
    try:
        return _compared("owner/model", original, network=False)
    finally:
        constants.HF_HUB_CACHE = before


def _state(folder: Path) -> State:
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)


def _save(folder: Path, state: State) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})


def _prefix(folder: Path, draw: random.Random) -> None:
    prefix = draw.choice(PREFIXES)
    _save(folder, {prefix + name: tensor for name, tensor in _state(folder).items()})


def _unknown_prefix(folder: Path, draw: random.Random) -> None:
    _save(folder, {f"wrapped{draw.randrange(9)}.{name}": tensor for name, tensor in _state(folder).items()})


def _last_layer(state: State) -> int:
    return max(int(number) for name in state for number in re.findall(r"\.(\d+)\.", name))


def _layer_missing(folder: Path, draw: random.Random) -> None:
    state = _state(folder)
    number = draw.randint(0, _last_layer(state))
    _save(folder, {name: tensor for name, tensor in state.items() if f".{number}." not in f".{name}"})


def _layer_extra(folder: Path, draw: random.Random) -> None:
    state = _state(folder)
    last = _last_layer(state)
    extra = {
        re.sub(rf"\b{last}\.", f"{last + 1}.", name, count=1): tensor.clone()
        for name, tensor in state.items()
        if re.search(rf"\b{last}\.", name)
    }
    _save(folder, state | extra)


def _set(folder: Path, **entries: Any) -> None:
    """Change entries of the configuration under the names that all families share."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    for name, value in entries.items():
        setattr(config, name, value)
    config.save_pretrained(folder)


def _other_model_type(folder: Path, draw: random.Random) -> None:
    config = json.loads((folder / "config.json").read_text())
    other = draw.choice([family for family in FAMILIES if family != config["model_type"]])
    (folder / "config.json").write_text(json.dumps(config | {"model_type": other}))


def _more_layers(folder: Path, draw: random.Random) -> None:
    _set(folder, num_hidden_layers=2 + draw.randint(1, 2), layer_types=None)


def _fewer_layers(folder: Path, draw: random.Random) -> None:
    _set(folder, num_hidden_layers=1, layer_types=None)


def _hidden_size(folder: Path, draw: random.Random) -> None:
    _set(folder, hidden_size=draw.choice([16, 64]))


def _vocabulary(folder: Path, draw: random.Random) -> None:
    _set(folder, vocab_size=families.VOCABULARY + draw.choice([-10, 10]))


def _used(state: State) -> list[str]:
    """Names of tensors that the last hidden state depends on."""
    return sorted(name for name in state if "pooler" not in name and "relative_attention_bias" not in name)


def _shape(folder: Path, draw: random.Random) -> None:
    state = _state(folder)
    name = draw.choice(_used(state))
    _save(folder, state | {name: state[name][:-1]})


def _renamed(folder: Path, draw: random.Random) -> None:
    state = _state(folder)
    name = draw.choice(_used(state))
    parent, _, last = name.rpartition(".")
    _save(folder, {(f"{parent}.old_{last}" if each == name else each): tensor for each, tensor in state.items()})


def _absent(folder: Path, draw: random.Random) -> None:
    state = _state(folder)
    del state[draw.choice(_used(state))]
    _save(folder, state)


def _truncated(folder: Path, draw: random.Random) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: draw.randrange(1, len(data) - 1)])


def _not_a_number(folder: Path, draw: random.Random) -> None:
    state = _state(folder)
    tensor = state[draw.choice(_used(state))].view(-1)
    tensor[draw.randrange(len(tensor))] = draw.choice([float("nan"), float("inf"), -float("inf")])
    _save(folder, state)


def _in_float16(folder: Path, draw: random.Random) -> None:
    _save(folder, {name: tensor.half() for name, tensor in _state(folder).items()})


def _with_head(folder: Path, draw: random.Random) -> None:
    import torch

    head = draw.choice(["classifier.weight", "lm_head.bias", "score.weight", "cls.predictions.bias", "qa_outputs.bias"])
    _save(folder, _state(folder) | {head: torch.ones(3)})


def _unknown_tensor(folder: Path, draw: random.Random) -> None:
    import torch

    _save(folder, _state(folder) | {f"adapter.{draw.randrange(9)}.weight": torch.ones(3)})


def _shard(folder: Path, draw: random.Random) -> None:
    """Split the weights over several files with an index."""
    from safetensors.torch import save_file

    state = _state(folder)
    (folder / WEIGHTS).unlink()
    names, count = sorted(state), draw.randint(2, 4)
    places = {name: f"model-{1 + number % count:05}-of-{count:05}.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: state[name] for name in names if places[name] == file}, folder / file, {"format": "pt"})
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _shard_missing(folder: Path, draw: random.Random) -> None:
    _shard(folder, draw)
    draw.choice(sorted(folder.glob("model-*.safetensors"))).unlink()


def _shard_truncated(folder: Path, draw: random.Random) -> None:
    _shard(folder, draw)
    path = draw.choice(sorted(folder.glob("model-*.safetensors")))
    path.write_bytes(path.read_bytes()[:-8])


ALTERATIONS: dict[str, Alteration] = {
    "nothing altered": lambda folder, draw: None,
    "a wrapper's prefix": _prefix,
    "an unknown prefix": _unknown_prefix,
    "a layer missing": _layer_missing,
    "a layer more": _layer_extra,
    "another model_type": _other_model_type,
    "more layers in config.json": _more_layers,
    "fewer layers in config.json": _fewer_layers,
    "another hidden size": _hidden_size,
    "another vocabulary": _vocabulary,
    "a tensor of another shape": _shape,
    "a renamed tensor": _renamed,
    "a tensor missing": _absent,
    "an unknown tensor": _unknown_tensor,
    "a truncated file": _truncated,
    "a weight that is not a number": _not_a_number,
    "weights in float16": _in_float16,
    "an unused head": _with_head,
    "several files": _shard,
    "a file missing": _shard_missing,
    "one of several files truncated": _shard_truncated,
}
DOWNLOADS: dict[str, Callable[[list[Path], random.Random], list[Path]]] = {
    "a whole download": lambda shards, draw: shards,
    "a download that stopped": lambda shards, draw: draw.sample(shards, draw.randrange(len(shards))),
}
MUST_LOAD = ("nothing altered", "a wrapper's prefix", "weights in float16", "an unused head", "several files",
             "a whole download")  # fmt: skip
"""What is refused for no reason if it is refused."""


def main() -> int:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        for situation, result in situations(Path(name), seed):
            answer = result()
            if answer == "refused" and situation.partition(": ")[2] in MUST_LOAD:
                answer = "silent: refused without a reason"
            counts[answer.partition(":")[0]] = counts.get(answer.partition(":")[0], 0) + 1
            if answer not in ("right", "refused"):
                print(f"{situation}: {answer}")
    print(", ".join(f"{count} {answer}" for answer, count in sorted(counts.items())))
    return 1 if "silent" in counts else 0


if __name__ == "__main__":
    sys.exit(main())
