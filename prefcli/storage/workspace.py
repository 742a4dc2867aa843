"""The workspace, ``.prefcli/``: cached stages, runs, and the names of the latest ones.

A *stage* is a step whose output is a Parquet file named by a fingerprint of everything that determines it: the content
of the input, the options, the stage's format version. The same call finds the same file; changed input or options never
do. Its SHA-256 is in a file beside it: a stage that cannot be read or does not match is rebuilt, with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefcli.errors import InputError, PrefcliError, did_you_mean, one_line
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files, hub, run_names
from prefcli.storage.runs import CONFIG

METADATA_KEY = "prefcli"
COMPRESSION = "lz4"
MAX_RECORDED = 200
"""Files of predictions of which the workspace remembers the runs."""


@dataclass(frozen=True)
class Stage:
    """A cached stage on disk."""

    path: Path
    """The Parquet file."""
    reused: bool
    """Whether it existed already."""
    metadata: Mapping[str, Any]
    """``stage, fingerprint, version, input, options``, and the stage's own ``counts``."""

    @property
    def fingerprint(self) -> str:
        return str(self.metadata["fingerprint"])

    @property
    def rows(self) -> int:
        return int(pq.read_metadata(self.path).num_rows)

    @property
    def columns(self) -> list[str]:
        return list(pq.read_schema(self.path).names)

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows, one row group at a time."""
        with pq.ParquetFile(self.path) as parquet:
            for group in range(parquet.num_row_groups):
                yield from parquet.read_row_group(group, columns=columns).combine_chunks().to_batches()

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """All rows at once."""
        return pq.read_table(self.path, columns=columns)


class StageWriter:
    """Writes a stage's record batches, one row group each.

    A thread compresses and writes a batch while the next one is being made.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path = path
        self._metadata = metadata
        self._writer: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefcli-write")
        self._last: Future[None] | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch as a row group."""
        self._wait()
        self._last = self._thread.submit(self._write, batch)

    def close(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Finish the file, with ``counts`` in its metadata, which is returned."""
        self._wait()
        self._thread.shutdown()
        metadata = {**self._metadata, "counts": dict(counts)}
        if self._writer is None:
            raise PrefcliError("a stage produced no rows", where=str(self._path))
        self._writer.add_key_value_metadata({METADATA_KEY: files.to_json(metadata)})
        self._writer.close()
        return metadata

    def abandon(self) -> None:
        """Close the file, whatever state it is in."""
        self._thread.shutdown(cancel_futures=True)
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._writer.close()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def _write(self, batch: pa.RecordBatch) -> None:
        if self._writer is None:
            # Long texts hardly repeat, so dictionaries would cost time and save nothing. Model names do repeat.
            self._writer = pq.ParquetWriter(
                self._path,
                batch.schema,
                compression=COMPRESSION,
                use_dictionary=["model_a", "model_b"],
                write_statistics=False,
                write_page_checksum=True,
            )
        self._writer.write_batch(batch, row_group_size=max(batch.num_rows, 1))


class Workspace:
    """The folder of stages and runs, created on the first write."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.expanduser(root))
        self.stages = self.root / "stages"
        self.runs = self.root / run_names.RUNS
        self.tables = self.root / "tables"
        """Tables in memory that verbs were given, as JSON lines named by their content."""

    @staticmethod
    def of(workspace: Workspace | str | Path | None) -> Workspace:
        """A workspace from its folder; None is ``$PREFCLI_WORKSPACE``, by default ``.prefcli`` here."""
        if isinstance(workspace, Workspace):
            return workspace
        return Workspace(run_names.default_root() if workspace is None else workspace)

    def stage(
        self,
        name: str,
        *,
        version: int,
        source: str,
        options: Mapping[str, Any],
        produce: Callable[[StageWriter], Mapping[str, Any]],
        needs: int | None = None,
        reporter: Reporter = SILENT,
    ) -> Stage:
        """The cached output of a stage, produced now if missing.

        If several processes need the same stage, one makes it while the others wait.

        Parameters
        ----------
        name:
            Of the stage; the first part of the file's name.
        version:
            Of the stage's format, to be raised when the same input and options would give other rows.
        source:
            Digest of the input's content (a file's SHA-256, or another stage's fingerprint).
        options:
            Everything else that determines the rows; must be JSON.
        produce:
            Writes the rows and returns its counts. Called only when there is no valid cache.
        needs:
            About how many bytes the output takes, if known.
        reporter:
            Receives a warning if the stage is rebuilt.
        """
        options = json.loads(files.to_json(dict(options)))  # compared with those of a file: no tuples, no infinity
        identity = {"stage": name, "version": version, "input": source, "options": options}
        fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        metadata = {**identity, "fingerprint": fingerprint}
        path = self.stages / f"{name}-{fingerprint}.parquet"
        files.sweep(self.stages)
        lock = path.with_suffix(".lock")
        if cached := self._cached(path, metadata, reporter):
            files.remove_stale_lock(lock)
            return cached
        with files.locked(
            lock, on_wait=lambda: reporter.note(f"another prefcli is making {path.name}: waiting for it")
        ):
            if cached := self._cached(path, metadata, SILENT):
                return cached
            with files.atomic(path, needs=needs) as temporary:
                writer = StageWriter(temporary, metadata)
                try:
                    metadata = writer.close(produce(writer))
                except BaseException:
                    writer.abandon()
                    raise
                # Written before the file: a crash between the two leaves a digest without a file, which is harmless.
                files.write_text(_digest_path(path), _digest_line(path, files.sha256(temporary)))
        return Stage(path, False, metadata)

    def _cached(self, path: Path, metadata: Mapping[str, Any], reporter: Reporter) -> Stage | None:
        """The stage at ``path`` if it is valid; a warning says why an existing file is not."""
        if not path.exists():
            return None
        try:
            return Stage(path, True, self._verified(path, metadata))
        except ValueError as error:
            reporter.warn(f"rebuilding {path}: {error}")
            return None

    def open_stage(self, file_name: str) -> Stage:
        """A stage by its file name.

        Raises
        ------
        PrefcliError
            If it is missing or damaged.
        """
        path = self.stages / Path(file_name).name
        try:
            return Stage(path, True, self._verified(path, None))
        except (ValueError, OSError) as error:
            raise PrefcliError(
                f"the cached stage cannot be used: {error}", where=str(path), hint="Run prefcli preprocess FILE again."
            ) from None

    def _verified(self, path: Path, expected: Mapping[str, Any] | None) -> dict[str, Any]:
        """The metadata of a stage file. Raises ValueError if the file does not match its checksum or ``expected``."""
        try:
            digest_line = _digest_path(path).read_bytes()
        except OSError:
            raise ValueError("its checksum file is missing") from None
        if not path.exists():
            raise ValueError("it is gone")
        if digest_line != _digest_line(path, files.sha256(path)).encode():
            raise ValueError("its content does not match its checksum")
        try:
            with pq.ParquetFile(path) as parquet:
                metadata = json.loads((parquet.metadata.metadata or {})[METADATA_KEY.encode()])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise ValueError(f"it cannot be read: {one_line(error)}") from None
        if expected is not None and any(metadata.get(key) != value for key, value in expected.items()):
            raise ValueError("it was made from other input or options")
        return dict(metadata)

    def remember(self, command: str, value: Mapping[str, Any]) -> None:
        """Record the latest result of a command (``preprocess``, ``train``), in a file of its own.

        An unchanged value is not written again, so that a read-only workspace can be used.
        """
        if self.latest(command) != value:
            files.write_text(self._latest_path(command), files.to_json(value, indent=2) + "\n")

    def latest(self, command: str) -> Mapping[str, Any] | None:
        """The last value that :meth:`remember` recorded; None if there is none or its file is damaged."""
        try:
            value = json.loads(self._latest_path(command).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def forget(self, command: str) -> None:
        """Remove what :meth:`remember` recorded."""
        self._latest_path(command).unlink(missing_ok=True)

    def _latest_path(self, command: str) -> Path:
        return self.root / f"latest-{command}.json"

    def record_run(self, folder: Path) -> None:
        """Record a run that lies outside the workspace, so that it is listed; not in a read-only workspace."""
        path = folder.resolve()
        if path.parent != self.runs.resolve():
            with contextlib.suppress(PrefcliError, OSError):
                files.write_text(self._record_of_run(path), files.to_json({"run": str(path)}) + "\n")

    def forget_run(self, folder: Path) -> None:
        """Remove what :meth:`record_run` recorded."""
        self._record_of_run(folder.resolve()).unlink(missing_ok=True)

    def _record_of_run(self, path: Path) -> Path:
        return self.root / run_names.ELSEWHERE / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.json"

    def record_predictions(
        self, output: Path, runs: Sequence[Path], source_sha256: str = "", calibration: str = ""
    ) -> None:
        """Record which runs predicted which battles, and how calibrated, under the output's SHA-256.

        The newest :data:`MAX_RECORDED` stay. It is a convenience: a workspace that cannot be written has no record.
        """
        folder = self.root / "predictions"
        with contextlib.suppress(PrefcliError, OSError):
            record = {
                "output": str(output.absolute()),
                "runs": [str(run.resolve()) for run in runs],
                "source_sha256": source_sha256,
                "calibration": calibration,
            }
            files.write_text(folder / f"{files.sha256(output)}.json", files.to_json(record, indent=2) + "\n")
            newest_first = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for old in newest_first[MAX_RECORDED:]:
                old.unlink(missing_ok=True)

    def runs_of_predictions(self, path: Path) -> list[Path]:
        """The runs that made a file of predictions, as far as :meth:`record_predictions` knows and they still exist."""
        try:
            return [run for run in map(Path, self._predictions(path)["runs"]) if (run / CONFIG).is_file()]
        except (KeyError, TypeError):
            return []

    def source_of_predictions(self, path: Path) -> str:
        """SHA-256 of the battles that a file of predictions is of, as far as it is recorded; else empty."""
        return str(self._predictions(path).get("source_sha256", ""))

    def _predictions(self, path: Path) -> dict[str, Any]:
        """What :meth:`record_predictions` recorded of a file; empty if nothing."""
        try:
            record = json.loads((self.root / "predictions" / f"{files.sha256(path)}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def find_run(self, run: str | Path) -> Path:
        """The folder of a run given by its path, its name in this workspace, or ``hf://owner/name``.

        Raises
        ------
        InputError
            If there is no such run; the hint lists some that exist.
        ModelError, NetworkError
            If it cannot be had from the hub.
        """
        name = os.path.expanduser(run)
        for candidate in (Path(name), self.runs / name):
            if (candidate / CONFIG).is_file():
                return candidate
        if name.startswith(hub.PREFIX):
            return hub.find_run(name)
        folders = run_names.run_folders(self.root)
        known = [folder.name for folder in folders if folder.parent == self.runs]
        raise InputError(
            f"no run at {name!r}",
            hint=did_you_mean(name, [run_names.run_name(self.root, folder) for folder in folders])
            or (f"Runs in {self.runs}: {', '.join(known[-5:])}." if known else "Train one first: prefcli train FILE."),
        )


def _digest_line(path: Path, digest: str) -> str:
    """The content of a checksum file, as ``sha256sum`` writes it."""
    return f"{digest}  {path.name}\n"


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")
