"""A run's folder: everything that one training leaves.

``config.json`` holds every option with its origin and resolved value, the data and the versions;
``model.safetensors`` and the tokenizer are all that loading needs; ``validation.parquet`` holds the probabilities of
every held-out battle, ``metrics.jsonl`` the training log, ``README.md`` the model card. With ``--folds`` the folder
holds one such run per fold, and ``validation.parquet`` the out-of-fold probabilities of all battles.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefcli import metrics
from prefcli._version import __version__
from prefcli.battles import SOURCE, Source
from prefcli.errors import InputError, ModelError, PrefcliError, one_line, require
from prefcli.options import TrainOptions
from prefcli.outcomes import OUTCOMES, TIE, WINNER_COLUMNS
from prefcli.storage import files
from prefcli.storage.sources import Sources

CONFIG = "config.json"
VALIDATION = "validation.parquet"
WEIGHTS = "model.safetensors"
TIE_METADATA = "prefcli_tie"
"""Key of the metadata of :data:`WEIGHTS` that holds a reward model's term for ties, as JSON."""
TRAINING_PROMPTS = "training_prompts.parquet"
"""Keys of the prompts of the training battles: sorted, each once."""
CARD = "README.md"
METRICS = "metrics.jsonl"
TABLES = (VALIDATION, TRAINING_PROMPTS, METRICS)
"""Files of a run that have a name that predictions could have."""
CURVES = "curves.svg"
CHECKPOINTS = "checkpoints"
LOGIT_COLUMNS = ("logit_a", "logit_b", "logit_tie")
SWAPPED_LOGIT_COLUMNS = ("swapped_logit_a", "swapped_logit_b", "swapped_logit_tie")
"""The logits of the same outcomes when the answers are shown in the other order."""
POOLED_LOGIT_COLUMNS = ("pooled_logit_a", "pooled_logit_b", "pooled_logit_tie")
"""The logits as of the sources that can tie, pooled, in a run of several."""
UNFINISHED = "unfinished"
"""A file that is in a run's folder until the run is complete."""
TRAINED = (VALIDATION, WEIGHTS)
"""Files that training changes; all others are there from the start."""
OWN_KEYS = (
    "format", "outcomes", "options", "versions", "origins", "resolved", "data", "command", "base", "export",
)  # fmt: skip
"""Keys of ``config.json`` that are prefcli's; all others are the encoder's, as transformers reads them."""
UNSEALED = (CARD, METRICS, CURVES, UNFINISHED, files.CHECKSUMS)
"""Files that prediction does not depend on."""
MODEL_SUFFIXES = (".jinja", ".json", ".safetensors", ".txt", ".model", ".parquet")
"""Of files that a model could be loaded from."""
MAX_LISTED = 5
"""Damaged files that a message names."""
FORMAT = 2
"""Of a run of several sources, which an earlier release would predict with without their base; others have 1."""


def new_folder(root: Path, options: TrainOptions) -> Path:
    """A new, empty folder for a run, named by time, architecture and encoder; numbered if the name is taken.

    Raises
    ------
    PrefcliError
        If it cannot be made.
    """
    encoder = "" if options.architecture == "features" else f"-{Path(options.encoder_name).name or 'encoder'}"
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


def package_versions() -> dict[str, str]:
    """Versions of the packages that the results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"prefcli": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "tokenizers", "numpy", "pyarrow", "nltk", "lightgbm"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def write_config(folder: Path, options: TrainOptions, more: Mapping[str, Any]) -> None:
    """Write ``config.json``: the options, and everything else that describes the run.

    The encoder's own configuration is on the same level, so that transformers can load the encoder from the run.
    """
    config = {
        **more,
        "format": FORMAT if more.get("data", {}).get("sources") else 1,
        "outcomes": list(OUTCOMES),
        "options": asdict(options),
        "versions": package_versions(),
    }
    save_config(folder, config)


NON_FINITE = "__float__"
"""Key of the object that transformers writes for a number that JSON lacks: ``{"__float__": "Infinity"}``."""


def save_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``config.json``; the encoder's configuration may hold an infinite number, which transformers spells so."""

    def spell(number: float) -> dict[str, str]:
        return {NON_FINITE: "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"}

    files.write_text(folder / CONFIG, files.to_json(config, indent=2, non_finite=spell) + "\n")


def reading_of(folder: Path) -> dict[str, Any]:
    """How the run's training files were read, as far as the command said it: fields of :class:`Source`.

    The encoding is not among them: it is a property of a file, not of its layout; nor whose votes the battles were.

    Raises
    ------
    ModelError
        If the run's ``config.json`` is damaged.
    """
    source = read_config(folder).get("data", {}).get("source", {"paths": []})
    reading = Source.from_json(source).reading
    columns = reading.get("columns", {})
    texts = [text for name, text in reading.items() if name != "columns"]
    if not isinstance(columns, dict) or not all(isinstance(text, str) for text in (*columns.values(), *texts)):
        raise ModelError("the run's config.json is damaged: how its battles were read is not text", where=str(folder))
    return {name: value for name, value in reading.items() if name not in ("encoding", SOURCE)}


def read_config(folder: Path) -> dict[str, Any]:
    """A run's ``config.json``.

    Raises
    ------
    ModelError
        If it is missing, damaged, or written by a newer release.
    """
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        config = json.loads(text, object_hook=lambda o: float(o[NON_FINITE]) if o.keys() == {NON_FINITE} else o)
        if config["format"] > FORMAT:
            what, hint = "the run was written by a newer prefcli", "Upgrade: pip install -U prefcli."
            raise ModelError(what, where=str(folder), hint=hint)
        TrainOptions(**config["options"]).check()
        unseen_outcomes(config)
        sources_of(config)
    except OSError:
        raise ModelError("the run has no config.json", where=str(folder), hint="Name a run's folder.") from None
    except InputError as error:
        raise ModelError(f"the run's config.json is damaged: {error.what}", where=str(folder)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the run's config.json is damaged: {one_line(error)}", where=str(folder)) from None
    return dict(config)


def encoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's part of a run's ``config.json``."""
    return {name: value for name, value in config.items() if name not in OWN_KEYS}


def runtime_of(config: Mapping[str, Any]) -> str:
    """What computes a run's model: ``torch``, ``onnx`` (an exported run) or ``features`` (neither)."""
    if config["options"]["architecture"] == "features":
        return "features"
    return "onnx" if "export" in config else "torch"


def require_packages(folder: Path) -> None:
    """Check that the packages are installed that predicting with a run needs.

    Raises
    ------
    MissingPackage
        With the one line that installs those which are missing.
    """
    config = read_config(folder)
    modules = {"torch": ["torch", "transformers"], "onnx": ["onnx", "onnxruntime"], "features": []}[runtime_of(config)]
    if config["options"].get("lora_rank"):
        modules.append("peft")
    require(f"the run {folder.name}", *modules)


def unseen_outcomes(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The outcomes that none of a run's training battles had; empty for a run of an earlier release, without counts.

    Raises
    ------
    ValueError, TypeError
        If the configuration is damaged.
    """
    data = config.get("data")
    counts = data.get("outcomes") if isinstance(data, dict) else None
    if counts is None:
        return ()
    mass = np.array(counts, dtype=np.float64)
    if mass.shape != (len(OUTCOMES),) or not np.isfinite(mass).all() or mass.min() < 0 or mass.max() <= 0:
        raise ValueError(f"data.outcomes is {counts!r}")
    return metrics.unseen_outcomes(mass, both_orders=TrainOptions(**config["options"]).shows_both_orders)


def sources_of(config: Mapping[str, Any]) -> Sources | None:
    """The sources that a run was trained on; None where it was one, or an earlier release did not tell them apart.

    Raises
    ------
    ValueError, TypeError, KeyError
        If the configuration is damaged.
    """
    data = config.get("data")
    saved = data.get("sources") if isinstance(data, dict) else None
    return None if saved is None else Sources.from_json(saved)


def unseen_as(config: Mapping[str, Any], source: str | None = None) -> tuple[int, ...]:
    """The outcomes of which a run knows nothing when it predicts for a source, or for those that can tie, pooled."""
    unseen, sources = unseen_outcomes(config), sources_of(config)
    if sources is None or TIE in unseen or not sources.never_ties(source):
        return unseen
    return (*unseen, TIE)


def lacks_unseen(config: Mapping[str, Any]) -> bool:
    """Whether an earlier release trained a run on battles without ties: it gives ties a probability near 0."""
    data = config.get("data")
    shares = data.get("shares") if isinstance(data, dict) and "outcomes" not in data else None
    return isinstance(shares, list) and len(shares) == len(OUTCOMES) and shares[TIE] == 0


def describe_unseen(unseen: Sequence[int], battles: int) -> str:
    """``no ties among the 1,200 training battles: a tie gets probability 0.01``."""
    names = [("wins of A", "a win of A"), ("wins of B", "a win of B"), ("ties", "a tie")]
    plural = " and no ".join(names[outcome][0] for outcome in unseen)
    single = " and ".join(names[outcome][1] for outcome in unseen)
    get = "gets" if len(unseen) == 1 else "each get"
    probability = f"{metrics.UNSEEN_PROBABILITY:g}"
    return f"no {plural} among the {battles:,} training battles: {single} {get} probability {probability}"


def members(folder: Path) -> list[Path]:
    """The folders that hold models: the folds of a run trained with ``--folds``, else the run itself."""
    folds = read_config(folder)["options"].get("folds") or 0
    return [folder / f"fold-{fold}" for fold in range(1, folds + 1)] if folds else [folder]


def all_folders(folder: Path) -> list[Path]:
    """A run's folder and those of its folds."""
    return list(dict.fromkeys((folder, *members(folder))))


def refuse_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder for a new run that holds something else: a finished run without ``force``, or no run.

    What killed processes left there is removed first.

    Raises
    ------
    InputError
        If it does.
    """
    for member in (folder, *folder.glob("fold-*")):
        files.sweep(member)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise InputError(f"{folder} already exists", hint="Choose another --output.")
    if not any(folder.iterdir()):
        return
    if not force and not is_unfinished(folder):
        raise InputError(f"{folder} already exists", hint="Choose another --output, or overwrite it with --force.")
    if force and not is_run(folder):
        raise InputError(f"{folder} is not a run, so --force does not remove it", hint="Choose another --output.")


def start(folder: Path, *, force: bool, is_same: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Prepare a run's folder: an interrupted run of the same command is continued.

    Parameters
    ----------
    folder:
        Of the run.
    force:
        Delete an existing run.
    is_same:
        Whether a run with this ``config.json`` has the battles and options of the run to start.

    Returns
    -------
    Whether the folder holds such a run, to be continued.

    Raises
    ------
    InputError
        If the folder holds something else.
    """
    refuse_folder(folder, force=force)
    if not os.path.lexists(folder) or not any(folder.iterdir()):
        pass
    elif not force and (folder / CONFIG).is_file():
        if is_same(read_config(folder)):
            return True
        raise InputError(
            f"{folder} holds an unfinished run of other battles or options",
            hint=f"Continue it with --resume {folder}, choose another --output, or delete it with --force.",
        )
    else:
        files.remove(folder)
    files.write_text(folder / UNFINISHED, "Continue this run with prefcli train --resume, or delete its folder.\n")
    return False


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run of prefcli, finished or not: other models have a ``config.json`` too."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return isinstance(config, dict) and "options" in config and "outcomes" in config
    except (OSError, ValueError):
        return is_unfinished(folder)


def is_unfinished(folder: Path) -> bool:
    """Whether a run was started here and is not finished."""
    return (folder / UNFINISHED).is_file()


def finish(folder: Path) -> None:
    """Mark a run as complete."""
    (folder / UNFINISHED).unlink(missing_ok=True)


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that failed before there was anything to continue."""
    if is_unfinished(folder) and not (folder / CONFIG).is_file():
        files.remove(folder)


@contextmanager
def locked(folder: Path, hint: str = "Wait until it is done, or choose another --output.") -> Iterator[None]:
    """Keep other processes from training into the same folder.

    Raises
    ------
    PrefcliError
        If another process does so already.
    """

    def refuse() -> None:
        raise PrefcliError(
            "another prefcli is training into this folder",
            where=str(folder),
            hint=hint,
        )

    with files.locked(_lock_of(folder), on_wait=refuse):
        yield


def _lock_of(folder: Path) -> Path:
    # Beside the folder, which may be deleted; short, whatever its name; the same, whichever link leads there.
    target = Path(os.path.realpath(folder))
    return target.parent / f".prefcli-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.lock"


def is_being_trained(folder: Path) -> bool:
    """Whether a process of prefcli trains into this folder now."""
    lock = _lock_of(folder)
    if not lock.exists():
        return False
    try:
        with files.locked(lock):
            return False
    except BlockingIOError:
        return True
    except PrefcliError:  # a folder that cannot be written, so nothing trains there
        return False


def remove_checkpoints(folder: Path) -> None:
    """Remove what a finished run needed only while it was trained, of its folds too.

    It is finished already: a run that is killed meanwhile has some left, and lacks nothing.
    """
    for member in all_folders(folder):
        files.sweep(member)
        if (member / CHECKPOINTS).is_dir():
            files.remove(member / CHECKPOINTS)


def has_checkpoints(folder: Path) -> bool:
    """Whether a run, or all its folds that are there, hold what a training continues from; ``features`` needs none."""
    if read_config(folder)["options"]["architecture"] == "features":
        return True
    return all((member / CHECKPOINTS).is_dir() for member in members(folder) if member.is_dir())


def seal(folder: Path, *, trained: bool) -> None:
    """Write ``SHA256SUMS``; before a run is ``trained``, without the files that training changes."""
    excluded = UNSEALED if trained else (*UNSEALED, *TRAINED)
    names = (path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    files.write_checksums(folder, (name for name in names if name not in excluded))


def published_files(folder: Path) -> list[str]:
    """Files of a finished run for the hub: what has a checksum, the checksums, card, curves and log; no checkpoints.

    Raises
    ------
    ModelError
        If the run is damaged or unfinished, or has no checksums.
    """
    verify(folder)
    names = []
    for member in all_folders(folder):
        sealed = list(files.read_checksums(member))
        if not sealed:
            raise ModelError(f"the run has no {files.CHECKSUMS}", where=str(member), hint="Train it again.")
        more = [name for name in (files.CHECKSUMS, CARD, CURVES, METRICS) if (member / name).is_file()]
        names += [(member / name).relative_to(folder).as_posix() for name in (*sealed, *more)]
    return names


def verify(folder: Path, *, resuming: bool = False, strict: bool = False, names: Collection[str] | None = None) -> None:
    """Check a run and its folds: finished, and every file matches its checksum. A run without checksums passes.

    Parameters
    ----------
    folder:
        Of the run.
    resuming:
        Its training is about to continue: it may be unfinished, and missing files and the validation file will be
        written again.
    strict:
        Also require checksums, and refuse files without one that a model could be loaded from.
    names:
        Of the files to check; None checks all, which takes as long as reading the weights.

    Raises
    ------
    ModelError
        If a file has changed or is missing, or the training is not finished.
    """
    for member in all_folders(folder):
        if is_unfinished(member) and not resuming:
            raise ModelError(
                "the run's training did not finish, or is still under way",
                where=str(member),
                hint=f"Wait for it, or continue it with prefcli train --resume {member}.",
            )
        try:
            mismatches = files.checksum_mismatches(member, names)
            checksums = files.read_checksums(member)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the run's checksums cannot be read: {one_line(error)}", where=str(member / files.CHECKSUMS)
            ) from None
        damaged = [
            f"{name} is {how}"
            for name, how in mismatches.items()
            if not resuming or (how == "changed" and name != VALIDATION)
        ]
        if strict and not checksums:
            damaged.append(f"it has no {files.CHECKSUMS}")
        elif strict:
            extra = (path.name for path in sorted(member.iterdir()) if path.suffix in MODEL_SUFFIXES and path.is_file())
            damaged += [f"{name} is not in {files.CHECKSUMS}" for name in extra if name not in checksums]
        if damaged:
            raise ModelError(
                f"the run is damaged: {', '.join(damaged[:MAX_LISTED])}",
                where=str(member),
                hint=f"Copy the run again, or train anew. If you changed it on purpose, delete {files.CHECKSUMS}.",
            )


@dataclass(frozen=True)
class HeldOut:
    """A run's predictions for its held-out battles."""

    ids: list[str]
    keys: NDArray[np.int64]
    """Of their prompts."""
    logits: NDArray[np.float64]
    """Shape ``[n, 3]``."""
    labels: NDArray[np.int64]
    swapped: NDArray[np.float64] | None = None
    """Logits of the same outcomes when the answers are shown in the other order, shape ``[n, 3]``; None if unknown."""
    sources: list[str | None] | None = None
    """The source of each battle, as which the logits predict it; None where the run has one source."""
    pooled: NDArray[np.float64] | None = None
    """Logits as of the sources that can tie, pooled, shape ``[n, 3]``; None where the run has one source."""

    def take(self, rows: NDArray[np.intp]) -> HeldOut:
        """Some of the battles."""
        ids, swapped = [self.ids[row] for row in rows], None if self.swapped is None else self.swapped[rows]
        sources = None if self.sources is None else [self.sources[row] for row in rows]
        pooled = None if self.pooled is None else self.pooled[rows]
        return HeldOut(ids, self.keys[rows], self.logits[rows], self.labels[rows], swapped, sources, pooled)

    def probabilities(self, *, swap_average: bool) -> NDArray[np.float64]:
        """As the run predicts them; ``swap_average`` needs the logits of both orders."""
        original = metrics.softmax(self.logits)
        if not swap_average:
            return original
        assert self.swapped is not None
        return np.asarray((original + metrics.softmax(self.swapped)) / 2)


def write_validation(folder: Path, held_out: HeldOut) -> None:
    """Write ``validation.parquet``: id, label, prompt key, probabilities and logits of every held-out battle."""
    probabilities = metrics.softmax(held_out.logits)
    columns = {
        "id": pa.array(held_out.ids, pa.string()),
        "label": pa.array(held_out.labels, pa.int8()),
        "prompt_key": pa.array(held_out.keys, pa.int64()),
        **dict(zip(WINNER_COLUMNS, probabilities.T, strict=True)),
        **dict(zip(LOGIT_COLUMNS, held_out.logits.T, strict=True)),
    }
    if held_out.swapped is not None:
        columns |= dict(zip(SWAPPED_LOGIT_COLUMNS, held_out.swapped.T, strict=True))
    if held_out.sources is not None:
        columns[SOURCE] = pa.array(held_out.sources, pa.string())
    if held_out.pooled is not None:
        columns |= dict(zip(POOLED_LOGIT_COLUMNS, held_out.pooled.T, strict=True))
    with files.atomic(folder / VALIDATION) as temporary, temporary.open("wb") as stream:
        pq.write_table(pa.table(columns), stream)  # not the path, which need not be text


def write_training_prompts(folder: Path, keys: NDArray[np.int64]) -> None:
    """Write :data:`TRAINING_PROMPTS`: what tells later which battles a run was trained on. Differences pack best."""
    table = pa.table({"prompt_key": np.unique(keys)})
    with files.atomic(folder / TRAINING_PROMPTS) as temporary, temporary.open("wb") as stream:
        pq.write_table(table, stream, use_dictionary=False, column_encoding="DELTA_BINARY_PACKED", compression="zstd")


def training_prompts(folder: Path) -> NDArray[np.int64] | None:
    """Keys of every prompt that a run was trained on, ascending; None if the run does not hold them.

    With folds they are those of all folds: a prediction is the mean over folds, of which all but one were trained on
    a prompt of the training file. A fold's own folder has those of that fold.

    Raises
    ------
    ModelError
        If a file of them is damaged.
    """
    keys = []
    for member in members(folder):
        if not (member / TRAINING_PROMPTS).is_file():
            return None
        try:
            keys.append(_read_parquet(member / TRAINING_PROMPTS)["prompt_key"].to_numpy().astype(np.int64))
        except (OSError, ValueError, pa.ArrowException, KeyError) as error:
            raise ModelError(f"{TRAINING_PROMPTS} cannot be read: {one_line(error)}", where=str(member)) from None
    return np.unique(np.concatenate(keys))


def _read_parquet(path: Path) -> pa.Table:
    """A small Parquet file, read into Arrow's own memory.

    Arrow's threads release the memory of a Python file at any time, which aborts a process that is ending. It is not
    opened by its path, which need not be text.
    """
    with path.open("rb") as stream:
        content = pa.allocate_buffer(os.fstat(stream.fileno()).st_size)
        stream.readinto(memoryview(content))
    return pq.read_table(pa.BufferReader(content))


def read_validation(folder: Path) -> HeldOut:
    """The held-out battles of a run with its predictions.

    Raises
    ------
    ModelError
        If the run held nothing out or did not finish.
    """
    try:
        table = _read_parquet(folder / VALIDATION)
        logits = np.stack([table[name].to_numpy() for name in LOGIT_COLUMNS], axis=1)
        swapped = None
        if read_config(folder)["options"]["architecture"] == "features":
            swapped = logits  # order-invariant by construction
        elif SWAPPED_LOGIT_COLUMNS[0] in table.column_names:
            swapped = np.stack([table[name].to_numpy() for name in SWAPPED_LOGIT_COLUMNS], axis=1)
        labels = table["label"].to_numpy().astype(np.int64)
        sources = table[SOURCE].to_pylist() if SOURCE in table.column_names else None
        pooled = None
        if POOLED_LOGIT_COLUMNS[0] in table.column_names:
            pooled = np.stack([table[name].to_numpy() for name in POOLED_LOGIT_COLUMNS], axis=1)
        return HeldOut(
            table["id"].to_pylist(), table["prompt_key"].to_numpy(), logits, labels, swapped, sources, pooled
        )
    except (OSError, ValueError, pa.ArrowException, KeyError) as error:
        raise ModelError(f"the run has no usable {VALIDATION}: {one_line(error)}", where=str(folder)) from None


def validation_score(held_out: HeldOut, unseen: Sequence[int]) -> metrics.Score:
    """Every metric of a run on its held-out battles; ``unseen`` are the outcomes that it never saw in training."""
    scored = metrics.held_out_probabilities(held_out.logits, held_out.labels, unseen)
    outcomes = metrics.validation_outcomes(held_out.labels, unseen)
    return metrics.score(scored, held_out.labels, groups=held_out.keys, outcomes=outcomes)


def source_scores(held_out: HeldOut, sources: Sources) -> dict[str, metrics.Score]:
    """Every metric on the held-out battles of each source that has some, each predicted as its source votes."""
    rows_of: dict[str | None, list[int]] = {}
    for row, source in enumerate(held_out.sources or ()):
        rows_of.setdefault(source, []).append(row)
    scores = {}
    for name, can_tie in zip(sources.names, sources.can_tie.tolist(), strict=True):
        if name in rows_of:
            scores[name] = validation_score(held_out.take(np.array(rows_of[name])), () if can_tie else (TIE,))
    return scores


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The valid lines of ``metrics.jsonl``, without what is not a finite number; a crash may have left part of one."""
    records = []
    for line in (folder / METRICS).read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            record = json.loads(line, parse_constant=lambda name: None)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append({name: value for name, value in record.items() if value is not None})
    return records
