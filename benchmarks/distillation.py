"""Does one kind of model learn from another's probabilities: boosted statistics from a small encoder, and back?

    python benchmarks/distillation.py battles.parquet --encoder ./all-MiniLM-L6-v2 --folder distillation-benchmark

The battles are drawn as by `models.py`. Each teacher predicts the training battles out of fold (`train --folds`), so
that it has not seen the prompt; their blend is the weighted mean of their log probabilities, with weights fitted on the
same out-of-fold predictions. Students are trained on the training battles with these predictions as soft labels
(`train --soft-labels`), beside the same model without. The table is that of `models.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefcli.battles import labels_of
from prefcli.data import tables
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.prediction import calibration

TEACHERS = ("features", "interaction-swap")
STUDENTS = {
    "features": {
        "": (),
        "from itself": ("features",),
        "from the encoder": ("interaction-swap",),
        "from the blend": TEACHERS,
    },
    "interaction-swap": {"": (), "from features": ("features",), "from the blend": TEACHERS},
}
TITLES = {"features": "features", "interaction-swap": "siamese"}


def main() -> None:
    parser = models.arguments(__doc__ or "", "distillation-benchmark")
    parser.add_argument("--folds", type=int, default=3, help="of the teachers")
    parser.add_argument("--weights", nargs="*", default=["0.5", "1"], help="of soft labels against outcomes")
    parser.add_argument("--students", nargs="*", default=list(STUDENTS), help="train these now")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    files = models.draw(args)
    rows = []
    for student in args.students:
        predict = models.SWAP if student == "interaction-swap" else ()
        for origin, teachers in STUDENTS[student].items():
            for weight in args.weights if teachers else ("",):
                name = f"{student} {origin} {weight}".replace(" ", "-").rstrip("-")
                soft = (
                    ("--soft-labels", soft_labels(teachers, args, files), "--soft-weight", weight) if teachers else ()
                )
                inputs = (files["train"], "--validation-file", files["validation"], *soft)
                models.train_run(args.folder / name, models.RUNS[student], args, *inputs)
                title = ", ".join(filter(None, (TITLES[student], origin, weight and f"weight {weight}")))
                rows.append(models.Row(title, (name,), predict))
    models.print_table(args, files, rows)


def soft_labels(teachers: tuple[str, ...], args: argparse.Namespace, files: dict[str, Path]) -> Path:
    """The file of out-of-fold probabilities of one teacher, or of the blend of several."""
    found = []
    for teacher in teachers:
        run = args.folder / f"teacher-{teacher}"
        models.train_run(run, models.RUNS[teacher], args, files["train"], "--folds", args.folds)
        found.append(run / "validation.parquet")
    if len(found) == 1:
        return found[0]
    path = args.folder / "teacher-blend.parquet"
    if not path.exists():
        blend(found, files["train"], path)
    return path


def blend(predictions: list[Path], battles: Path, path: Path) -> None:
    """Write the blend of predictions of the same battles."""
    table = pq.read_table(battles)
    labels, keys = labels_of(table), table["prompt_key"].to_numpy()
    position = {name: row for row, name in enumerate(table["id"].to_pylist())}
    parts = []
    for file in predictions:
        ids, probabilities = tables.read_probabilities(file)
        parts.append(probabilities[np.argsort([position[name] for name in ids])])
    fitted = calibration.calibrate([np.log(part) for part in parts], labels, keys)
    print(f"blend of {', '.join(TEACHERS)}: {fitted}", flush=True)
    columns = dict(zip(WINNER_COLUMNS, fitted.apply(parts).T, strict=True))
    pq.write_table(pa.table({"id": table["id"], **columns}), path)


if __name__ == "__main__":
    main()
