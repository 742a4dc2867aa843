"""Predict which of two LLM answers a person prefers: the verbs of the command ``prefcli`` as functions.

``prefcli.train("train.csv", recipe="fast")`` trains a run, ``prefcli.load(RUN)`` gives one in memory, and its
``predict`` takes texts or a table. Importing this package loads none of it: a name is looked up when it is first used.

Verbs
    train, estimate                     train a model; how long that takes
    preprocess, preprocess_table        text normalised before: of files, of a batch in memory
    tune                                settings tried on folds, and whether the best is better than the default
    load, predict, rank                 predictions in memory, or from file to file
    compare                             two answers to one prompt, and what moved the probabilities
    from_table                          how a table in memory is read
    score, compare_scores, report       how good predictions or a run are
    report_scores, eda, compare_judges  pages about predictions; what votes say; an LLM judge against people
    runs, show_run, diff_runs           the runs of a workspace
    compare_runs, remove_runs, prune_runs
    export, push, ablate, demo          ONNX and merged runs; the hub; the ablation; everything on made-up battles

Classes
    Predictor, Source, Score            what load returns; files and how they are read; every metric
    TrainOptions, PredictOptions, RankOptions
    Console                             notes, warnings and progress on stderr, as the command shows them
    PrefcliError and its kinds: InputError, ModelError, NetworkError, Interrupted

``help(prefcli.train)`` describes a verb with all of its options. ``docs/python.md`` has examples.
"""

from __future__ import annotations

from prefcli._version import __version__ as __version__

TYPE_CHECKING = False
"""As in ``typing``, which is not imported: until the command can take Ctrl-C, only what it needs is loaded."""

if TYPE_CHECKING:
    from typing import Any

    from prefcli.api import (
        Console,
        InputError,
        Interrupted,
        ModelError,
        NetworkError,
        PredictOptions,
        Predictor,
        PrefcliError,
        RankOptions,
        Score,
        Source,
        TrainOptions,
        ablate,
        compare,
        compare_judges,
        compare_runs,
        compare_scores,
        demo,
        diff_runs,
        eda,
        estimate,
        export,
        from_table,
        load,
        predict,
        preprocess,
        preprocess_table,
        prune_runs,
        push,
        rank,
        remove_runs,
        report,
        report_scores,
        runs,
        score,
        show_run,
        train,
        tune,
    )

__all__ = [
    "Console",
    "InputError",
    "Interrupted",
    "ModelError",
    "NetworkError",
    "PredictOptions",
    "Predictor",
    "PrefcliError",
    "RankOptions",
    "Score",
    "Source",
    "TrainOptions",
    "ablate",
    "compare",
    "compare_judges",
    "compare_runs",
    "compare_scores",
    "demo",
    "diff_runs",
    "eda",
    "estimate",
    "export",
    "from_table",
    "load",
    "predict",
    "preprocess",
    "preprocess_table",
    "prune_runs",
    "push",
    "rank",
    "remove_runs",
    "report",
    "report_scores",
    "runs",
    "score",
    "show_run",
    "train",
    "tune",
]


if not TYPE_CHECKING:  # with it, type checkers would take any name for one of the package

    def __getattr__(name: str) -> Any:
        if name in __all__:
            from prefcli import api

            return getattr(api, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
