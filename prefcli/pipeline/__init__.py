"""The verbs as functions: what the command line and a Python program both call.

Every function takes plain arguments and a :class:`~prefcli.storage.workspace.Workspace`, reports what it does, and
returns plain data. Nothing here prints. Data flows ``read -> (preprocess) -> train | predict -> score``; what is read
and what is preprocessed is cached in the workspace (``stages.py``). Each verb has the file of its name.
"""

from prefcli.exporting.merge import merge
from prefcli.pipeline.ablate import ablate
from prefcli.pipeline.compare import compare
from prefcli.pipeline.demo import demo
from prefcli.pipeline.eda import eda
from prefcli.pipeline.estimate import estimate_prediction, estimate_training
from prefcli.pipeline.export import export
from prefcli.pipeline.judges import JudgeOptions, compare_judges
from prefcli.pipeline.predict import find_runs, open_predictor, predict, predict_lines
from prefcli.pipeline.preprocess import preprocess, preprocess_table, preview
from prefcli.pipeline.push import push
from prefcli.pipeline.rank import rank, rank_lines
from prefcli.pipeline.report import report
from prefcli.pipeline.runs import diff_runs, different_battles, list_runs, show_run
from prefcli.pipeline.runs_compare import Partner, best_partner, compare_runs
from prefcli.pipeline.runs_remove import plan_removal, prune, remove_runs
from prefcli.pipeline.score import ScoreComparison, ScoreOptions, compare_scores, score
from prefcli.pipeline.score_report import report_scores
from prefcli.pipeline.serve import serve
from prefcli.pipeline.stages import read_stage
from prefcli.pipeline.train import train
from prefcli.pipeline.tune import tune
from prefcli.storage.hub import check_push

__all__ = [
    "JudgeOptions",
    "Partner",
    "ScoreComparison",
    "ScoreOptions",
    "ablate",
    "best_partner",
    "check_push",
    "compare",
    "compare_judges",
    "compare_runs",
    "compare_scores",
    "demo",
    "diff_runs",
    "different_battles",
    "eda",
    "estimate_prediction",
    "estimate_training",
    "export",
    "find_runs",
    "list_runs",
    "merge",
    "open_predictor",
    "plan_removal",
    "predict",
    "predict_lines",
    "preprocess",
    "preprocess_table",
    "preview",
    "prune",
    "push",
    "rank",
    "rank_lines",
    "read_stage",
    "remove_runs",
    "report",
    "report_scores",
    "score",
    "serve",
    "show_run",
    "train",
    "tune",
]
