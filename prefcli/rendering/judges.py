"""An LLM judge and several people as sentences and tables of text, for the terminal and the page."""

from __future__ import annotations

from prefcli.errors import one_line
from prefcli.exploration.annotators import Annotators
from prefcli.exploration.judges import Estimate, JudgeComparison
from prefcli.metrics import plural
from prefcli.rendering.tables import Table

MAX_NAME = 30


def judge_lead(found: JudgeComparison) -> str:
    """Which votes and verdicts are compared, as a sentence."""
    swapped = f", {found.swapped:,} with swapped answers" if found.swapped else ""
    return (
        f"The judge against people: {plural(found.joined_votes, 'vote')} of {found.people_votes:,} and "
        f"{plural(found.joined_verdicts, 'verdict')} of {found.judge_verdicts:,} joined by {found.joined_by}{swapped}"
    )


def agreement(found: JudgeComparison) -> Table:
    rows = [
        ["the same outcome", *_cells(found.agreement)],
        ["  where neither is a tie", *_cells(found.decided_agreement)],
        ["Cohen's kappa (0 is chance)", *_cells(found.kappa, ".3f")],
    ]
    if found.consistency is not None:
        rows.append(["the judge, in both orders", *_cells(found.consistency)])
    return ["", "", "95 %", "pairs"], rows


def biases(found: JudgeComparison) -> Table:
    rows = [
        [
            bias.what,
            _value(bias.people),
            _value(bias.judge),
            _value(bias.difference, "+.1%"),
            _interval(bias.difference),
        ]
        for bias in found.biases
    ]
    return ["", "people", "judge", "difference", "95 %"], rows


def win_rates(found: JudgeComparison, top: int) -> Table:
    rows = [
        [one_line(rate.model, MAX_NAME), f"{rate.judge:.1%}", f"{rate.people:.1%}", f"{rate.people_battles:,}",
         f"{rate.corrected:.1%}", "-" if rate.ci is None else "{:.1%} to {:.1%}".format(*rate.ci)]
        for rate in found.win_rates[:top]
    ]  # fmt: skip
    return ["", "judge", "people", "of", "corrected", "95 %"], rows


def self_preference(found: JudgeComparison) -> str:
    """What the judge makes of its own model, as a sentence; empty if that was not named."""
    own = found.self_preference
    if own is None:
        return ""
    return (
        f"Self-preference: {_value(own.preference, '+.1%')} ({_interval(own.preference)}) is the judge's win rate of "
        f"{own.model} minus people's on the same battles."
    )


def annotators_lead(found: Annotators) -> str:
    """How far votes on the same battle agree, as a sentence."""
    share = "" if found.pairwise is None else f"; {found.pairwise:.1%} of pairs of votes are equal"
    alpha = "" if found.alpha is None else f", Krippendorff's alpha {round(found.alpha, 3) + 0.0:.3f}"
    annotators = plural(len(found.annotators) + found.left_out, "annotator")
    return (
        f"{annotators} ({one_line(found.column, MAX_NAME)}): {plural(found.battles, 'battle')} with "
        f"several votes, {found.unanimous:,} unanimous{share}{alpha}"
    )


def annotators(found: Annotators, top: int) -> Table:
    judge = any(annotator.with_judge for annotator in found.annotators)
    rows = [
        [one_line(annotator.name, MAX_NAME), f"{annotator.votes:,}", *_cells(annotator.agreement)[:2],
         *(_cells(annotator.with_judge)[:2] if annotator.with_judge else [""] * 2 * judge)]
        for annotator in found.annotators[:top]
    ]  # fmt: skip
    return ["", "votes", "others", "95 %", *(["judge", "95 %"] if judge else [])], rows


def contested(found: Annotators, top: int) -> Table:
    rows = [[one_line(battle.id, 40), *(f"{count:,}" for count in battle.outcomes)] for battle in found.contested[:top]]
    return ["id", "A", "B", "tie"], rows


def _cells(found: Estimate, how: str = ".1%") -> list[str]:
    return [_value(found, how), _interval(found, how), f"{found.n:,}"]


def _value(found: Estimate, how: str = ".1%") -> str:
    return "-" if found.value is None else format(found.value, how)


def _interval(found: Estimate, how: str = ".1%") -> str:
    return found.reason if found.ci is None else f"{found.ci[0]:{how}} to {found.ci[1]:{how}}"
