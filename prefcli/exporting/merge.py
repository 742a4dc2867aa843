"""One model out of a run's adapters, or out of its folds: weights added and averaged, no longer predictions.

A run of adapters becomes a run that needs no other encoder. Of a run with folds the adapters are averaged first, or the
weights where all were trained: one model that costs a fold's time (the mean of what adapters do, which is what the
winners of Kaggle's LMSYS competition submitted; Wortsman et al., "Model soups", ICML 2022, for whole weights).
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from prefcli import metrics
from prefcli.compute import devices
from prefcli.errors import InputError
from prefcli.options import TrainOptions
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import card, files, runs


@dataclass(frozen=True)
class MergeResult:
    """What :func:`merge` wrote."""

    output: Path
    members: int
    adapters: bool
    parameters: int


def merge(
    run: Path, output: Path, *, encoder: str | None = None, force: bool = False, reporter: Reporter = SILENT
) -> MergeResult:
    """Write a run that holds the merged weights of another, in float32.

    Parameters
    ----------
    run:
        A neural run: of adapters, or with folds, or both.
    output:
        The new run's folder.
    encoder:
        Where the encoder lies to which the adapters belong, if it is no longer where it was.
    force:
        Overwrite ``output``.

    Raises
    ------
    InputError
        If there is nothing to merge.
    ModelError
        If the run is damaged or its encoder is not to be had.
    """
    from prefcli.encoders import adapters
    from prefcli.models import neural, weights

    files.refuse_to_overwrite(output, force)
    if output.exists() and not runs.is_run(output):
        raise InputError(f"{output} is not a run, so --force does not replace it", hint="Choose another folder.")
    here, there = run.resolve(), output.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise InputError(f"{output} and the run lie in one another", hint="Choose another folder.")
    config = runs.read_config(run)
    options = TrainOptions(**config["options"])
    members = runs.members(run)
    if options.architecture == "features" or not (options.lora_rank or len(members) > 1):
        raise InputError(
            "there is nothing to merge: the run has neither adapters nor neural folds",
            where=str(run),
            hint="Predict with it as it is.",
        )
    runs.verify(run)
    placement = dataclasses.replace(devices.place("cpu", "fp32"), reason="to merge weights")
    model = neural.load(members[0], placement, fast_attention=False, encoder=encoder)
    module = model.module
    total = {
        name: 0 * tensor if tensor.is_floating_point() else tensor
        for name, tensor in weights.trainable_state_dict(module).items()
    }
    for number, member in enumerate(members, start=1):
        weights.load_state_dict(module, weights.load(member / neural.WEIGHTS))
        if options.lora_rank:
            adapters.add_to_weights(module.encoder, 1 / len(members))
        for name, tensor in weights.trainable_state_dict(module).items():
            if tensor.is_floating_point():
                total[name] += tensor / len(members)
        reporter.note(f"{number} of {len(members)}: {member.name}")
    weights.load_state_dict(module, total)
    if options.lora_rank:
        adapters.remove(module.encoder)
    state = weights.trainable_state_dict(module)
    several = len(members) > 1
    alone = dataclasses.replace(
        options, lora_rank=0, quantize="none", shard=False, folds=0, validation=0.0 if several else options.validation
    )
    words = f"{len(members)} folds of {run.name}, averaged" if several else f"the adapters of {run.name}, merged"
    theirs = runs.read_config(members[0])
    kept = {name: value for name, value in theirs.items() if name != "base"}
    kept |= model.encoder_config()
    if several:  # every battle was learnt from by one of them
        told = theirs["data"]
        kept["data"] = {
            **told, "train_battles": told["train_battles"] + told["held_out_battles"], "held_out_battles": 0
        }  # fmt: skip
    kept["resolved"] = {**theirs["resolved"], "merged": words}
    with files.atomic(output, needs=weights.nbytes(state)) as temporary:
        temporary.mkdir()
        runs.write_config(temporary, alone, kept)
        weights.save(state, temporary / neural.WEIGHTS)
        model.save_tokenizer(temporary)
        validation = None
        if not several and (run / runs.VALIDATION).is_file():
            shutil.copyfile(run / runs.VALIDATION, temporary / runs.VALIDATION)
            held = runs.read_validation(run)
            validation = dataclasses.asdict(metrics.score(metrics.softmax(held.logits), held.labels, groups=held.keys))
        card.write(temporary, alone, runs.read_config(temporary), validation, name=output.name)
        runs.seal(temporary, trained=True)
    return MergeResult(output, len(members), bool(options.lora_rank), sum(t.numel() for t in state.values()))
