"""``prefcli eda --report``: everything :mod:`prefcli.eda` found, as one page that needs no network and no script.

The page forbids itself both by its Content-Security-Policy, and all of its text goes through
:func:`prefcli.report.markup.element`, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefcli._version import __version__
from prefcli.eda import FEWEST_FOR_RATE, Eda, ModelWins
from prefcli.eda.effects import Share
from prefcli.eda.measures import TOKENS_EXPLAINED
from prefcli.eda.ratings import ELO_PER_LOG_ODDS, PRIOR_PRECISION, ModelRating, Ratings
from prefcli.report import plots
from prefcli.report.markup import Html, element, joined
from prefcli.report.style import STYLE

PLOTTED_RATINGS = 20
LONGEST_CELL = 120
LISTED_MODELS = 200
"""The page's table of ratings stops there: it must stay small."""
SHARE_TICKS = tuple((share / 100, f"{share}%") for share in (0, 25, 50, 75, 100))

_TO = " – "
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_HEAD = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
)


def render(eda: Eda, source: str) -> str:
    """The page.

    Parameters
    ----------
    eda:
        The numbers.
    source:
        What they are about, for the title.
    """
    title = f"Battles in {source}"
    body = element(
        "main",
        element("h1", title),
        element("p", _opening(eda)),
        _cards(eda),
        *_outcomes(eda),
        *_models(eda),
        *_rewarded(eda),
        *_problems(eda),
        _methods(eda),
    )
    head = Html(f"{_HEAD}{element('title', title)}<style>{STYLE}</style></head>")
    return joined(head, element("body", body), Html("</html>\n"))


def _opening(eda: Eda) -> str:
    told = [f"{eda.battles:,} battles between {eda.models:,} models over {eda.prompts:,} different prompts."]
    if eda.labelled < eda.battles:
        told.append(f"{eda.battles - eda.labelled:,} of them have no outcome.")
    longer = next((one for one in eda.rewarded if one.what == "length"), None)
    if longer:
        told.append(f"Where one answer won, it was the longer one in {longer.wins.value:.0%}.")
    if eda.position:
        first, low, high = eda.position.value, eda.position.low, eda.position.high
        bias = "no sign of a position bias" if low <= 0.5 <= high else "a position bias"
        told.append(f"The first answer won {first:.1%} of decided battles ({low:.1%} to {high:.1%}): {bias}.")
    return " ".join(told)


def _cards(eda: Eda) -> Html:
    p = eda.problems
    cards = [
        ("battles", f"{eda.battles:,}"),
        ("models", f"{eda.models:,}"),
        ("prompts", f"{eda.prompts:,}"),
        ("ties", f"{eda.tie_share:.1%}" if eda.labelled else "-"),
        ("several turns", f"{eda.multi_turn / eda.battles:.1%}"),
        ("repeated", f"{p.duplicates:,}"),
    ]
    return element(
        "dl", *(element("div", element("dt", name), element("dd", value)) for name, value in cards), class_="cards"
    )


# Sections


def _outcomes(eda: Eda) -> list[Html]:
    told = []
    if eda.labelled:
        a, b, tied = (count / eda.labelled for count in eda.outcomes)
        description = f"A won {a:.1%}, B won {b:.1%}, {tied:.1%} were tied, of {eda.labelled:,} battles."
        rows = [plots.Bar("all", (a, b, tied), f"{eda.labelled:,}")]
        if len(eda.turns) > 1:
            rows += [
                plots.Bar(_turns(turn.turns), (turn.a_won, turn.b_won, turn.tied), f"{turn.battles:,}")
                for turn in eda.turns
            ]
            description += " Below, by how many turns the conversation has."
        told = [
            element("h2", "Outcomes"),
            _key(("a", "A won"), ("b", "B won"), ("tie", "tie")),
            _figure(plots.bars("Outcomes", description, rows, ("a", "b", "tie")), description),
        ]
        if eda.both_bad is not None:
            told.append(element("p", f"In {eda.both_bad:,} of {eda.ties:,} ties both answers were called bad."))
    lengths = [
        [name, *(f"{value:,.0f}" for value in (d.mean, d.median, d.p90, d.longest))] for name, d in eda.lengths.items()
    ]
    return [*told, element("h3", "Characters"), _table(["", "mean", "median", "90 %", "longest"], lengths)]


def _models(eda: Eda) -> list[Html]:
    if not eda.top_winners and not eda.top_pairs:
        return []
    told = [element("h2", "Models")]
    if eda.ratings:
        told += _ratings(eda.ratings)
    if eda.head_to_head and len(eda.head_to_head.models) > 1:
        told += _head_to_head(eda)
    for title, models, note in (
        ("Most wins", eda.top_winners, "Wins count popularity: a model that is shown more often wins more often."),
        ("Highest win rates", eda.top_rates, f"Of models with at least {FEWEST_FOR_RATE} battles; ties are no wins."),
    ):
        if models:
            told += [element("h3", title), element("p", note, class_="note"), _wins(models)]
    if eda.top_pairs:
        rows = [[f"{pair.model_1} vs {pair.model_2}", f"{pair.battles:,}"] for pair in eda.top_pairs]
        told += [element("h3", "Most frequent pairs"), _table(["pair", "battles"], rows)]
    return told


def _wins(models: Sequence[ModelWins]) -> Html:
    return _table(
        ["model", "wins", "ties", "battles", "win rate", "95 %"],
        [
            [m.model, f"{m.wins:,}", f"{m.ties:,}", f"{m.battles:,}", f"{m.win_rate:.1%}", _range(*m.win_rate_ci)]
            for m in models
        ],
    )


def _ratings(ratings: Ratings) -> list[Html]:
    shown = ratings.models[:PLOTTED_RATINGS]
    low, high = min(one.low for one in shown), max(one.high for one in shown)
    step = next(step for step in (25, 50, 100, 200, 500, 1000, 2500, 5000, 1e9) if (high - low) / step <= 5)
    span = (math.floor(low / step) * step, math.ceil(high / step) * step)
    ticks = [(value, f"{value:,.0f}") for value in _steps(span, step)]
    best = shown[0]
    description = (
        f"{best.model} is rated highest, {best.rating:.0f} ({best.low:.0f} to {best.high:.0f}); "
        f"{len(shown)} of {len(ratings.models)} models."
    )
    rows = [plots.Dot(_rated(one, ratings), one.rating, one.low, one.high, f"{one.rating:.0f}") for one in shown]
    table = [
        [str(rank), _rated(one, ratings), f"{one.rating:.0f}", f"{one.low:.0f}{_TO}{one.high:.0f}", f"{one.battles:,}"]
        for rank, one in enumerate(ratings.models[:LISTED_MODELS], start=1)
    ]
    return [
        element("h3", "Ratings"),
        element(
            "p",
            "Bradley-Terry with ties, on the Elo scale: 400 points are odds of ten to one, the mean model has 1000. "
            f"Bars are 95 % intervals of {ratings.rounds} bootstrap rounds.",
            class_="note",
        ),
        *(element("p", caution, class_="caution") for caution in ratings.cautions()),
        _figure(plots.dots("Ratings", description, rows, span=span, ticks=ticks), description),
        element(
            "details",
            element("summary", "All ratings"),
            _table(["", "model", "rating", "95 %", "battles"], table),
        ),
    ]


def _rated(one: ModelRating, ratings: Ratings) -> str:
    """A model's name, with its group where there are several."""
    return f"{one.model} (group {one.group + 1})" if ratings.groups > 1 else one.model


def _head_to_head(eda: Eda) -> list[Html]:
    h = eda.head_to_head
    assert h is not None
    told = [
        [
            f"{first} scored {value:.0%} in {h.battles[i][j]:,} battles against {second}" if value is not None else ""
            for j, (second, value) in enumerate(zip(h.models, row, strict=True))
        ]
        for i, (first, row) in enumerate(zip(h.models, h.score, strict=True))
    ]
    description = (
        f"Each row's share of wins, ties counting half, against each column, for the {len(h.models)} models with most "
        "battles, best rated first. Blue: the row wins more often; orange: the column does; pale: close to even."
    )
    return [
        element("h3", "Head to head"),
        _figure(plots.heat_map("Head to head", description, h.models, h.score, told), description),
    ]


def _rewarded(eda: Eda) -> list[Html]:
    if not eda.position or not eda.position.n:
        return []
    rows = [_dot("first answer (A)", eda.position), *(_dot(f"more {one.what}", one.wins) for one in eda.rewarded)]
    description = "; ".join(f"{row.label} {row.value:.0%}" for row in rows)
    told = [
        element("h2", "What people reward"),
        element(
            "p",
            "How often the answer with more of something won, of the decided battles in which the two differ. "
            "These things come together: the odds below hold all others equal.",
            class_="note",
        ),
        _figure(
            plots.dots("Win rates", description, rows, span=(0, 1), ticks=SHARE_TICKS, line=0.5),
            "Dots are win rates with 95 % intervals; the dashed line is even.",
        ),
    ]
    odds = [
        [one.what, f"{one.odds:.2f}", f"{one.odds_ci[0]:.2f}{_TO}{one.odds_ci[1]:.2f}", f"{one.wins.n:,}"]
        for one in eda.rewarded
        if one.odds is not None and one.odds_ci is not None
    ]
    if odds:
        told.append(_table(["one standard deviation more", "odds of winning ×", "95 %", "battles that differ"], odds))
    if eda.length_curve:
        curve = [
            plots.Bar(_times(bin_.low, bin_.high), (bin_.longer_won, bin_.tied, bin_.shorter_won), f"{bin_.battles:,}")
            for bin_ in eda.length_curve
        ]
        told_by = [bin_ for bin_ in eda.length_curve if bin_.battles >= FEWEST_FOR_RATE] or eda.length_curve
        description = "; ".join(f"{_times(one.low, one.high)}: {one.longer_won:.0%}" for one in told_by)
        description = f"The longer answer won, by how many times longer it is: {description}."
        told += [
            element("h3", "By how much longer the longer answer is"),
            _key(("a", "the longer one won"), ("tie", "tie"), ("b", "the shorter one won")),
            _figure(
                plots.bars("Outcome by length", description, curve, ("a", "tie", "b")),
                "By how many times longer the longer answer is, in characters.",
            ),
        ]
    if eda.tie_closeness:
        gaps = [
            plots.Dot(
                _points(one.low, one.high),
                one.tied.value,
                one.tied.low,
                one.tied.high,
                f"{one.tied.value:.0%}",
                one.expected,
            )
            for one in eda.tie_closeness
        ]
        description = "; ".join(f"{row.label}: {row.shown}" for row in gaps)
        told += [
            element("h3", "Ties by how close the ratings are"),
            _figure(
                plots.dots("Tie share", description, gaps, span=(0, 1), ticks=SHARE_TICKS),
                "Dots: share of ties with 95 % interval, by points between two models. Rings: what the model expects.",
            ),
        ]
    return told


def _problems(eda: Eda) -> list[Html]:
    p = eda.problems
    a, b, tied = p.identical_outcomes
    rows = [
        ["identical answers", f"{p.identical_answers:,}", f"labelled A {a:,}, B {b:,}, tie {tied:,}"],
        ["repeated battles", f"{p.duplicates:,}", "same prompt, same two answers"],
        ["contradictory", f"{p.contradictory:,}", "same battle, both answers won"],
        ["a model against itself", f"{p.self_battles:,}", ""],
        ["null turns", f"{sum(p.null_turns.values()):,}", _by_field(p.null_turns)],
        ["empty texts", f"{sum(p.empty.values()):,}", _by_field(p.empty)],
    ]
    if p.overlap:
        known = f"{p.overlap.test_battles_known:,} of {p.overlap.test_battles:,} test battles have a known prompt"
        rows.append(["prompts also in the test file", f"{p.overlap.shared_prompts:,}", known])
    told = [element("h2", "What to look out for"), _table(["", "battles", ""], rows)]
    if eda.agreement:
        alpha = f" (Krippendorff's alpha {eda.agreement.alpha:.2f})" if eda.agreement.alpha is not None else ""
        told.append(
            element(
                "p",
                f"{eda.agreement.pairs:,} pairs of answers were judged more than once, "
                f"{eda.agreement.votes:,} votes in all; two votes on a pair agree in {eda.agreement.agree:.1%}{alpha}.",
            )
        )
    cuts = [[f"{c.max_length:,}", *(f"{v:.1%}" for v in (c.sides_cut, c.battles_cut, c.tokens_lost))] for c in eda.cuts]
    told += [
        element("h3", "What a length limit would cut"),
        element("p", "Of prompt and answer together; tokens are estimated, see below.", class_="note"),
        _table(["tokens", "answers cut", "battles touched", "tokens lost"], cuts),
    ]
    if len(eda.scripts) > 1:
        told += [
            element("h3", "Script of the prompt"),
            _table(["", "battles", "share"], [[s.script, f"{s.battles:,}", f"{s.share:.1%}"] for s in eda.scripts]),
        ]
    return told


def _methods(eda: Eda) -> Html:
    prior = ELO_PER_LOG_ODDS / math.sqrt(PRIOR_PRECISION)
    notes = [
        "Shares: Wilson's score interval, 95 % (Wilson 1927).",
        "Ratings: Davidson's extension of the Bradley-Terry model to ties (Davidson 1970), maximum likelihood with a "
        f"normal prior of {prior:,.0f} points' standard deviation around the mean; percentile bootstrap over battles "
        "(Efron and Tibshirani 1993).",
        "Odds: one logistic regression of who won on the standardised differences of log(1 + count), ties left out, "
        "with an intercept for the position; Wald intervals.",
        "Agreement: share of pairs of votes on the same content that are equal; alpha is Krippendorff's for nominal "
        "data (2004).",
        f"{TOKENS_EXPLAINED.capitalize()}, a rule of thumb for English-centred subword vocabularies, not a count.",
        "Lists, headings, code, bold and tables: Markdown, by regular expressions. Script: that of most letters.",
    ]
    return element(
        "footer",
        element("ul", *(element("li", note) for note in notes)),
        element("p", f"Made by prefcli {__version__}. This page needs no network and runs no script."),
    )


# Pieces


def _figure(svg: Html, caption: str) -> Html:
    return element("figure", svg, element("figcaption", caption))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    head = element("tr", *(element("th", name, scope="col") for name in columns))
    body = (element("tr", *(_cell(cell) for cell in row)) for row in rows)
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="scroll")


def _cell(text: str) -> Html:
    if len(text) > LONGEST_CELL:
        return element("td", text[: LONGEST_CELL - 1] + "…", title=text[:1000])
    return element("td", text, class_="together" if _TO in text else None)


def _key(*entries: tuple[str, str]) -> Html:
    def swatch(style: str) -> Html:
        return element(
            "svg", element("rect", width=12, height=12, rx=2, class_=style), width=12, height=12, aria_hidden="true"
        )

    return element("ul", *(element("li", swatch(style), name) for style, name in entries), class_="key")


def _dot(label: str, share: Share) -> plots.Dot:
    return plots.Dot(label, share.value, share.low, share.high, f"{share.value:.1%}")


def _turns(turns: int) -> str:
    return "1 turn" if turns == 1 else f"{turns} turns" if turns < 5 else f"{turns} or more turns"


def _times(low: float, high: float) -> str:
    return f"{low:g} – {high:g} times" if math.isfinite(high) else f"{low:g} times and more"


def _points(low: float, high: float) -> str:
    return f"{low:g} – {high:g}" if math.isfinite(high) else f"{low:g} and more"


def _range(low: float, high: float) -> str:
    return f"{low:.1%}{_TO}{high:.1%}"


def _by_field(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _steps(span: tuple[float, float], step: float) -> list[float]:
    return [span[0] + i * step for i in range(round((span[1] - span[0]) / step) + 1)]
