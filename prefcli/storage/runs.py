"""A run's folder: one training and everything it left, able to explain itself.

``config.json`` holds every option with where it came from, what it was resolved to, the data and the versions;
``model.safetensors`` and the tokenizer make it load by itself; ``validation.parquet`` holds the probabilities of every
held-out battle; ``metrics.jsonl`` the course of the training; ``README.md`` the model card. With ``--folds`` the
folder holds one such run per fold, and ``validation.parquet`` the out-of-fold probabilities of all battles.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli import metrics
from prefcli._version import __version__
from prefcli.errors import InputError, ModelError, PrefcliError
from prefcli.options import TrainOptions
from prefcli.outcomes import OUTCOMES, WINNER_COLUMNS
from prefcli.storage import files

CONFIG = "config.json"
VALIDATION = "validation.parquet"
CARD = "README.md"
METRICS = "metrics.jsonl"
CURVES = "curves.svg"
LOGIT_COLUMNS = ("logit_a", "logit_b", "logit_tie")
UNFINISHED = "unfinished"
"""A file that stands in a run's folder from its beginning until everything about it is done."""
TRAINED = (VALIDATION, "model.safetensors")
"""Files of a run that a training makes on its way; everything else is there from the beginning."""
OWN_KEYS = (
    "format", "outcomes", "options", "versions", "origins", "resolved", "data", "command", "base", "export",
)  # fmt: skip
"""Keys of ``config.json`` that are prefcli's; all others are the encoder's, as transformers reads them."""
UNSEALED = (CARD, METRICS, CURVES, UNFINISHED, files.CHECKSUMS)
"""Files of a run that no prediction depends on."""
FORMAT = 1


def new_folder(root: Path, options: TrainOptions) -> Path:
    """A new, empty folder for a run, named by when, which architecture, which encoder; numbered where that is taken.

    Raises
    ------
    PrefcliError
        If it cannot be made.
    """
    encoder = "" if options.architecture == "features" else f"-{Path(options.encoder).name or 'encoder'}"
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{options.architecture}{encoder}"
    for number in itertools.count(1):
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise files.write_error(folder, error) from None
    raise AssertionError("unreachable")


def versions() -> dict[str, str]:
    """Versions of what computes the result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"prefcli": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "tokenizers", "numpy", "pyarrow", "nltk", "lightgbm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def write_config(folder: Path, options: TrainOptions, more: Mapping[str, Any]) -> None:
    """Write ``config.json``: the options and everything else that explains the run.

    An encoder's own configuration stands beside them, so that transformers finds the encoder in the run.
    """
    config = {
        **more,
        "format": FORMAT,
        "outcomes": list(OUTCOMES),
        "options": asdict(options),
        "versions": versions(),
    }
    files.write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """A run's ``config.json``.

    Raises
    ------
    ModelError
        If it is missing, damaged, or written by a newer release.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if config["format"] > FORMAT:
            raise ModelError(
                "the run was written by a newer prefcli",
                where=str(folder),
                hint="Upgrade: pip install -U prefcli.",
            )
        TrainOptions(**config["options"]).check()
    except OSError:
        raise ModelError("the run has no config.json", where=str(folder), hint="Name a run's folder.") from None
    except InputError as error:
        raise ModelError(f"the run's config.json is damaged: {error.what}", where=str(folder)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the run's config.json is damaged: {error}", where=str(folder)) from None
    return dict(config)


def encoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's part of a run's ``config.json``."""
    return {name: value for name, value in config.items() if name not in OWN_KEYS}


def runtime_of(config: Mapping[str, Any]) -> str:
    """What computes a run's model: ``torch``, ``onnx`` (an exported run) or ``features`` (neither)."""
    if config["options"]["architecture"] == "features":
        return "features"
    return "onnx" if "export" in config else "torch"


def members(folder: Path) -> list[Path]:
    """The folders that hold models: the folds of a run trained with ``--folds``, else the run itself."""
    folds = read_config(folder)["options"].get("folds") or 0
    return [folder / f"fold-{fold}" for fold in range(1, folds + 1)] if folds else [folder]


def begin(folder: Path, *, force: bool, same: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Make room for a run. What a killed call of the same command left in the folder is continued, not thrown away.

    Parameters
    ----------
    folder:
        Of the run.
    force:
        Throw away a run that is there.
    same:
        Whether a run with this ``config.json`` is what is about to be trained.

    Returns
    -------
    Whether the folder holds the beginning of that very run.

    Raises
    ------
    InputError
        If the folder holds something else.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        pass
    elif not folder.is_dir():
        raise InputError(f"{folder} already exists", hint="Choose another --output.")
    elif not force and not is_unfinished(folder):
        raise InputError(f"{folder} already exists", hint="Choose another --output, or overwrite it with --force.")
    elif not force and (folder / CONFIG).is_file():
        if same(read_config(folder)):
            return True
        raise InputError(
            f"{folder} holds an unfinished run of other battles or options",
            hint=f"Continue it with --resume {folder}, choose another --output, or throw it away with --force.",
        )
    elif not is_run(folder):
        raise InputError(f"{folder} is not a run, so --force does not remove it", hint="Choose another --output.")
    else:
        files.remove(folder)
    files.write_text(folder / UNFINISHED, "Continue this run with prefcli train --resume, or delete its folder.\n")
    return False


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run of prefcli, whole or not: models of others have a ``config.json`` too."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return isinstance(config, dict) and "options" in config and "outcomes" in config
    except (OSError, ValueError):
        return is_unfinished(folder)


def is_unfinished(folder: Path) -> bool:
    """Whether a run was begun here and not brought to its end."""
    return (folder / UNFINISHED).is_file()


def finish(folder: Path) -> None:
    """Everything about the run is done."""
    (folder / UNFINISHED).unlink(missing_ok=True)


def forget_if_empty(folder: Path) -> None:
    """Remove the folder of a run that failed before there was anything to continue."""
    if is_unfinished(folder) and not (folder / CONFIG).is_file():
        files.remove(folder)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from training into the same folder.

    Raises
    ------
    PrefcliError
        If one is at it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(files.locked(_lock_of(folder)))
        except BlockingIOError:
            raise PrefcliError(
                "another prefcli is training into this folder",
                where=str(folder),
                hint="Wait until it is done, or choose another --output.",
            ) from None
        yield


def _lock_of(folder: Path) -> Path:
    """Beside the folder, which may be thrown away; short, whatever its name; one, whichever link leads there."""
    place = Path(os.path.realpath(folder))
    return place.parent / f".prefcli-{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]}.lock"


def seal(folder: Path, *, trained: bool) -> None:
    """Keep the checksums of the run's files in ``SHA256SUMS``: of all, or of those that training does not change."""
    left_out = UNSEALED if trained else (*UNSEALED, *TRAINED)
    names = (path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    files.write_checksums(folder, (name for name in names if name not in left_out))


def published(folder: Path) -> list[str]:
    """Files of a finished run for others: what is sealed, its checksums, card, curves and log; no checkpoints.

    Raises
    ------
    ModelError
        If the run is not whole, or keeps no checksums.
    """
    verify_all(folder)
    names = []
    for member in dict.fromkeys((folder, *members(folder))):
        sealed = list(files.read_checksums(member))
        if not sealed:
            raise ModelError(f"the run keeps no {files.CHECKSUMS}", where=str(member), hint="Train it again.")
        more = [name for name in (files.CHECKSUMS, CARD, CURVES, METRICS) if (member / name).is_file()]
        names += [(member / name).relative_to(folder).as_posix() for name in (*sealed, *more)]
    return names


def verify(folder: Path, *, going_on: bool = False) -> None:
    """Check that the run is whole: finished, its files those of the checksums it keeps; one without any passes.

    Parameters
    ----------
    folder:
        Of the run.
    going_on:
        Its training is about to be continued: what is gone will be made again, and so will the validation file.

    Raises
    ------
    ModelError
        If a file is not what it was, or the training is not finished.
    """
    if is_unfinished(folder) and not going_on:
        raise ModelError(
            "the run's training did not finish, or is still under way",
            where=str(folder),
            hint=f"Wait for it, or continue it with prefcli train --resume {folder}.",
        )
    try:
        wrong = files.checksum_mismatches(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"the run's checksums cannot be read: {error}", where=str(folder / files.CHECKSUMS)) from None
    if going_on:
        wrong = {name: how for name, how in wrong.items() if how == "changed" and name != VALIDATION}
    if wrong:
        raise ModelError(
            f"the run is damaged: {', '.join(f'{name} is {how}' for name, how in wrong.items())}",
            where=str(folder),
            hint=f"Copy the run again, or train anew. If you changed it on purpose, delete {files.CHECKSUMS}.",
        )


def verify_all(folder: Path, *, going_on: bool = False) -> None:
    """:func:`verify` a run and each of its folds."""
    for member in dict.fromkeys((folder, *members(folder))):
        verify(member, going_on=going_on)


@dataclass(frozen=True)
class HeldOut:
    """What a run predicted of battles it did not learn from.

    Attributes
    ----------
    ids, keys, labels:
        Of the battles; keys of their prompts.
    logits:
        Shape ``[n, 3]``.
    """

    ids: list[str]
    keys: NDArray[np.int64]
    logits: NDArray[np.float64]
    labels: NDArray[np.int64]


def write_validation(
    folder: Path,
    ids: list[str],
    logits: NDArray[np.float64],
    labels: NDArray[np.integer],
    keys: NDArray[np.int64],
) -> None:
    """``validation.parquet``: per held-out battle its id, label, prompt key, three probabilities and three logits."""
    import pyarrow.parquet as pq

    probabilities = metrics.softmax(logits)
    columns: dict[str, Any] = {"id": pa.array(ids, pa.string()), "label": pa.array(labels, pa.int8())}
    columns["prompt_key"] = pa.array(keys, pa.int64())
    columns |= {name: pa.array(probabilities[:, i]) for i, name in enumerate(WINNER_COLUMNS)}
    columns |= {name: pa.array(logits[:, i]) for i, name in enumerate(LOGIT_COLUMNS)}
    with files.atomic(folder / VALIDATION) as temporary, temporary.open("wb") as stream:
        pq.write_table(pa.table(columns), stream)  # not by its name, which need not be text


def read_validation(folder: Path) -> HeldOut:
    """The held-out battles of a run and what it made of them.

    Raises
    ------
    ModelError
        If the run held nothing out or did not finish.
    """
    import pyarrow.parquet as pq

    try:
        # Into memory of Arrow's own: its threads let go of a Python file's whenever they come to it, which aborts a
        # process that is ending. And not by its name, which need not be text.
        with (folder / VALIDATION).open("rb") as stream:
            content = pa.allocate_buffer(os.fstat(stream.fileno()).st_size)
            stream.readinto(memoryview(content))
        table = pq.read_table(pa.BufferReader(content))
        logits = np.stack([table[name].to_numpy() for name in LOGIT_COLUMNS], axis=1)
        labels = table["label"].to_numpy().astype(np.int64)
        return HeldOut(table["id"].to_pylist(), table["prompt_key"].to_numpy(), logits, labels)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise ModelError(f"the run has no usable {VALIDATION}: {error}", where=str(folder)) from None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` that are whole: a log, in which a crash or damage may have left half a line."""
    found = []
    for line in (folder / METRICS).read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                found.append(record)
    return found
