"""One model from a run's adapters or folds: weights are merged and averaged, not predictions.

A run of adapters becomes a run that needs no other encoder. Folds become one model that costs the time of one fold: the
mean of their adapters' updates (as the winners of Kaggle's LMSYS competition submitted), or of all their weights
(Wortsman et al., "Model soups", ICML 2022).
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefcli import metrics
from prefcli.compute import devices
from prefcli.errors import InputError
from prefcli.options import TrainOptions
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import card, files, runs

if TYPE_CHECKING:
    from torch import Tensor

    from prefcli.models.neural import NeuralModel


@dataclass(frozen=True)
class MergeResult:
    """What :func:`merge` wrote: the folder, from how many models, whether they had adapters, the number of weights."""

    output: Path
    members: int
    adapters: bool
    parameters: int


def merge(
    run: Path, output: Path, *, encoder: str | None = None, force: bool = False, reporter: Reporter = SILENT
) -> MergeResult:
    """Write a run with the merged weights of another one, in float32.

    Parameters
    ----------
    run:
        A neural run with adapters, folds or both.
    output:
        The new run's folder.
    encoder:
        Folder of the encoder that the adapters belong to, if it has moved.
    force:
        Overwrite ``output``.

    Raises
    ------
    InputError
        If there is nothing to merge.
    ModelError
        If the run is damaged or its encoder cannot be found.
    """
    _check_output(run, output, force)
    base = runs.read_config(run).get("base")
    files.refuse_to_replace(output, [Path(encoder or (base["encoder"] if isinstance(base, dict) else run))])
    options = TrainOptions(**runs.read_config(run)["options"])
    members = runs.members(run)
    if options.architecture == "features" or not (options.lora_rank or len(members) > 1):
        raise InputError(
            "there is nothing to merge: the run has neither adapters nor neural folds",
            where=str(run),
            hint="Predict with it as it is.",
        )
    runs.require_packages(run)
    from prefcli.models import neural, weights

    runs.verify(run)
    placement = dataclasses.replace(devices.place("cpu", "fp32"), reason="to merge weights")
    model = neural.load(members[0], placement, fast_attention=False, encoder=encoder)
    state = _merged_state(model, members, bool(options.lora_rank), reporter)
    averaged = len(members) > 1
    merged_options = dataclasses.replace(
        options, lora_rank=0, quantize="none", shard=False, folds=0, validation=0.0 if averaged else options.validation
    )
    with files.atomic(output, needs=weights.nbytes(state)) as temporary:
        temporary.mkdir()
        runs.write_config(temporary, merged_options, _merged_config(run, members, model))
        weights.save(state, temporary / neural.WEIGHTS)
        model.save_tokenizer(temporary)
        if (prompts := runs.training_prompts(run)) is not None:
            runs.write_training_prompts(temporary, prompts)
        validation = None
        if not averaged and (run / runs.VALIDATION).is_file():
            shutil.copyfile(run / runs.VALIDATION, temporary / runs.VALIDATION)
            held_out = runs.read_validation(run)
            outcomes = metrics.validation_outcomes(held_out.labels, runs.unseen_outcomes(runs.read_config(run)))
            validation = metrics.score(
                held_out.probabilities(swap_average=False), held_out.labels, groups=held_out.keys, outcomes=outcomes
            )
        card.write(temporary, merged_options, runs.read_config(temporary), validation, name=output.name)
        runs.seal(temporary, trained=True)
    return MergeResult(output, len(members), bool(options.lora_rank), sum(tensor.numel() for tensor in state.values()))


def _check_output(run: Path, output: Path, force: bool) -> None:
    """Refuse to overwrite what is not a run, or the run itself."""
    files.refuse_to_overwrite(output, force)
    if output.exists() and not runs.is_run(output):
        raise InputError(f"{output} is not a run, so --force does not replace it", hint="Choose another folder.")
    source, target = run.resolve(), output.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise InputError(f"{output} and the run must not contain one another", hint="Choose another folder.")


def _merged_state(model: NeuralModel, members: Sequence[Path], adapted: bool, reporter: Reporter) -> dict[str, Tensor]:
    """The mean of the members' weights, adapters added to the encoder's; ``model`` is one of them and is changed."""
    from prefcli.encoders import adapters
    from prefcli.models import neural, weights

    module = model.module
    mean = {
        name: 0 * tensor if tensor.is_floating_point() else tensor
        for name, tensor in weights.trainable_state_dict(module).items()
    }
    for number, member in enumerate(members, start=1):
        weights.load_state_dict(module, weights.load(member / neural.WEIGHTS))
        if adapted:
            adapters.add_to_weights(module.encoder, 1 / len(members))
        for name, tensor in weights.trainable_state_dict(module).items():
            if tensor.is_floating_point():
                mean[name] += tensor / len(members)
        reporter.note(f"{number} of {len(members)}: {member.name}")
    weights.load_state_dict(module, mean)
    if adapted:
        adapters.remove(module.encoder)
    return weights.trainable_state_dict(module)


def _merged_config(run: Path, members: Sequence[Path], model: NeuralModel) -> dict[str, Any]:
    """The rest of ``config.json``: the first member's, without its base encoder."""
    config = {name: value for name, value in runs.read_config(members[0]).items() if name != "base"}
    description = f"the adapters of {run.name}, merged"
    if len(members) > 1:
        description = f"{len(members)} folds of {run.name}, averaged"
        data = config["data"]  # each battle was in the training data of some member
        battles = data["train_battles"] + data["held_out_battles"]
        config["data"] = {**data, "train_battles": battles, "held_out_battles": 0}
        counts = [runs.read_config(member)["data"].get("outcomes") for member in members]
        if all(counts):  # each battle is in the training data of all members but one
            config["data"]["outcomes"] = (np.sum(counts, axis=0) / (len(members) - 1)).tolist()
        if (sources := runs.sources_of(runs.read_config(run))) is not None:
            config["data"]["sources"] = sources.to_json()
    config["resolved"] = {**config["resolved"], "merged": description}
    return config | model.encoder_config()
