"""What ``prefcli eda`` prints of an LLM judge and of several people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefcli.cli import common
from prefcli.errors import one_line

if TYPE_CHECKING:
    from prefcli.eda.annotators import Annotators
    from prefcli.eda.judges import Estimate, JudgeComparison

MAX_NAME = 30


def show_judge(found: JudgeComparison, top: int) -> None:
    """Agreement, biases, and corrected win rates."""
    from prefcli.metrics import plural

    swapped = f", {found.swapped:,} with swapped answers" if found.swapped else ""
    common.print_text(
        f"The judge against people: {plural(found.joined_votes, 'vote')} of {found.people_votes:,} and "
        f"{plural(found.joined_verdicts, 'verdict')} of {found.judge_verdicts:,} joined by {found.joined_by}{swapped}"
    )
    rows = [
        ["the same outcome", *_cells(found.agreement)],
        ["  where neither is a tie", *_cells(found.decided_agreement)],
        ["Cohen's kappa (0 is chance)", *_cells(found.kappa, percent=False)],
    ]
    if found.consistency is not None:
        rows.append(["the judge, in both orders", *_cells(found.consistency)])
    common.print_table("Agreement", ["", "", "95 %", "pairs"], rows)
    common.print_table(
        "Biases, of decided battles",
        ["", "people", "judge", "difference", "95 %"],
        [
            [
                bias.what,
                _value(bias.people),
                _value(bias.judge),
                _value(bias.difference, "+.1%"),
                _interval(bias.difference),
            ]
            for bias in found.biases
        ],
    )
    if found.win_rates:
        common.print_table(
            "Win rates of the judge, corrected by people (PPI++; a tie is half a win)",
            ["", "judge", "people", "of", "corrected", "95 %"],
            [
                [
                    one_line(rate.model, MAX_NAME),
                    f"{rate.judge:.1%}",
                    f"{rate.people:.1%}",
                    rate.people_battles,
                    f"{rate.corrected:.1%}",
                    "-" if rate.ci is None else "{:.1%} to {:.1%}".format(*rate.ci),
                ]
                for rate in found.win_rates[:top]
            ],
        )
        if len(found.win_rates) > top:
            common.print_text(f"{plural(len(found.win_rates) - top, 'more model')}: --top N or --json has them.", "dim")
    if found.self_preference is not None:
        own = found.self_preference
        common.print_text(
            f"Self-preference: {_value(own.preference, '+.1%')} ({_interval(own.preference)}) is the judge's win rate "
            f"of {own.model} minus people's on the same battles."
        )
    for caution in found.cautions:
        common.print_text(caution)
    print()


def show_annotators(found: Annotators, top: int) -> None:
    """Who agrees with whom, and the battles on which votes differ."""
    from prefcli.metrics import plural

    share = "" if found.pairwise is None else f"; {found.pairwise:.1%} of pairs of votes are equal"
    alpha = "" if found.alpha is None else f", Krippendorff's alpha {found.alpha:.3f}"
    common.print_text(
        f"{plural(len(found.annotators), 'annotator')} ({found.column}): {plural(found.battles, 'battle')} with "
        f"several votes, {found.unanimous:,} unanimous{share}{alpha}"
    )
    judge = any(annotator.with_judge for annotator in found.annotators)
    common.print_table(
        "Agreement of each with the others' votes on the same battles",
        ["", "votes", "others", "95 %", *(["judge", "95 %"] if judge else [])],
        [
            [
                one_line(annotator.name, MAX_NAME),
                annotator.votes,
                *_cells(annotator.agreement)[:2],
                *(_cells(annotator.with_judge)[:2] if annotator.with_judge else []),
            ]
            for annotator in found.annotators[:top]
        ],
    )
    if found.contested:
        common.print_table(
            "Battles with the least agreement",
            ["id", "A", "B", "tie"],
            [[one_line(battle.id, 40), *battle.outcomes] for battle in found.contested[:top]],
        )


def _cells(found: Estimate, *, percent: bool = True) -> list[object]:
    return [_value(found, ".1%" if percent else ".3f"), _interval(found, ".1%" if percent else ".3f"), found.n]


def _value(found: Estimate, how: str = ".1%") -> str:
    return "-" if found.value is None else format(found.value, how)


def _interval(found: Estimate, how: str = ".1%") -> str:
    return found.reason if found.ci is None else f"{found.ci[0]:{how}} to {found.ci[1]:{how}}"
