"""What ``prefcli eda`` prints of an LLM judge and of several people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefcli.cli import common

if TYPE_CHECKING:
    from prefcli.exploration.annotators import Annotators
    from prefcli.exploration.judges import JudgeComparison


def show_judge(found: JudgeComparison, top: int) -> None:
    """Agreement, biases, and corrected win rates."""
    from prefcli.metrics import plural
    from prefcli.rendering import judges

    common.print_text(judges.judge_lead(found))
    common.print_table("Agreement", *judges.agreement(found))
    common.print_table("Biases, of decided battles", *judges.biases(found))
    if found.win_rates:
        title = "Win rates of the judge, corrected by people (PPI++; a tie is half a win)"
        common.print_table(title, *judges.win_rates(found, top))
        if len(found.win_rates) > top:
            common.print_text(f"{plural(len(found.win_rates) - top, 'more model')}: --top N or --json has them.", "dim")
    for sentence in filter(None, (judges.self_preference(found), *found.cautions)):
        common.print_text(sentence)
    print()


def show_annotators(found: Annotators, top: int) -> None:
    """Who agrees with whom, and the battles on which votes differ."""
    from prefcli.rendering import judges

    common.print_text(judges.annotators_lead(found))
    common.print_table("Agreement of each with the others' votes on the same battles", *judges.annotators(found, top))
    if found.contested:
        common.print_table("Battles with the least agreement", *judges.contested(found, top))
