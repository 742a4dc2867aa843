"""One battle judged: ``Predictor.compare``, ``prefcli.compare`` and ``prefcli compare``."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Result

import prefcli
from prefcli.cli import compare as verb
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError
from prefcli.exploration.shares import Share
from prefcli.models import features
from prefcli.models.features import names
from prefcli.models.features.statistics import extract
from prefcli.outcomes import A, B, Probabilities
from prefcli.prediction import comparison
from prefcli.prediction.comparison import Comparison, Contribution, Cut
from prefcli.prediction.predictor import Predictor, _battle

CLI = Callable[..., Result]
PROMPT = "Name a red fruit."
SHORT = "A cherry."
LONG = "Sorry, I cannot say that.\n\n- **Cherries** are red\n- bananas are yellow\n\nDoes that help?"
TEXTS = ("--prompt", PROMPT, "--a", SHORT, "--b", LONG)


@pytest.fixture(scope="module")
def predictor(features_run: Path) -> Predictor:
    return prefcli.load(features_run)


@pytest.fixture(scope="module")
def cross_run(tmp_path_factory: pytest.TempPathFactory, one_layer: dict[str, Path], demo_files: Demo) -> Path:
    """A run that reads both answers in one text of at most 32 tokens, so that their order matters."""
    folder = tmp_path_factory.mktemp("cross")
    return prefcli.train(
        demo_files.train, architecture="cross-encoder", encoder=one_layer["bert"], max_length=32, text="raw", limit=60,
        output=folder / "cross", workspace=folder / "ws",
    ).run  # fmt: skip


def test_its_probabilities_are_those_of_predict(predictor: Predictor) -> None:
    compared = predictor.compare(PROMPT, SHORT, LONG)
    assert compared.probabilities == predictor.predict(PROMPT, SHORT, LONG)
    assert compared.orders == (compared.probabilities, compared.probabilities)
    assert (compared.agree, compared.cuts, compared.rewards) == (True, (), None)


def test_contributions_add_up_to_the_log_odds_of_lightgbms_raw_scores(features_run: Path) -> None:
    compared = prefcli.load(features_run, calibrated=False).compare(PROMPT, SHORT, LONG)
    model = features.load(features_run)
    assert model.booster is not None
    battles = extract(_battle(PROMPT, SHORT, LONG))
    expected = []
    for rows, first, second in zip(model._tables(battles), (A, B), (B, A), strict=True):
        scores = np.asarray(model.booster.predict(rows, raw_score=True))[0]
        expected.append(scores[first] - scores[second])
    assert model.networks is None  # whose contributions are approximate, see test_networks.py
    assert sum(each.log_odds for each in compared.contributions) == pytest.approx(np.mean(expected), abs=1e-9)
    assert abs(np.mean(expected)) > 0.01
    sizes = [abs(each.log_odds) for each in compared.contributions]
    assert sizes == sorted(sizes, reverse=True)


def test_swapped_answers_negate_every_contribution_exactly_and_swap_its_values(predictor: Predictor) -> None:
    given, swapped = predictor.compare(PROMPT, SHORT, LONG), predictor.compare(PROMPT, LONG, SHORT)
    assert len(given.contributions) > 5
    assert {c.name: c.log_odds for c in given.contributions} == {c.name: -c.log_odds for c in swapped.contributions}
    of_answers = {c.name: (c.a, c.b) for c in given.contributions if c.b is not None}
    assert {c.name: (c.b, c.a) for c in swapped.contributions if c.b is not None} == of_answers


def test_contributions_have_the_values_that_a_reader_would_count(features_run: Path) -> None:
    found = features.load(features_run).contributions(_battle("a b", SHORT, LONG))
    values = dict(zip(found.names, found.values[0].tolist(), strict=True))
    assert values["list items"] == [0, 2]
    assert values["bold"] == [0, 1]
    assert values["characters"] == [len(SHORT), len(LONG)]
    assert values["ends as a question"] == [0, 1]
    assert values["prompt: words"][0] == 2
    assert np.isnan(values["prompt: words"][1])


def test_contributions_of_folds_are_their_mean_and_have_the_weight_of_their_run(features_run: Path) -> None:
    loaded = prefcli.load(features_run, features_run, calibrated=False)
    alone = prefcli.load(features_run, calibrated=False).compare(PROMPT, SHORT, LONG).contributions
    # Of two folds one knows only the prior; the other run has them both, at half the weight.
    member = loaded._members[0]
    model = member.models[0]
    assert isinstance(model, features.FeaturesModel)
    prior = dataclasses.replace(model, booster=None)
    loaded._members = [dataclasses.replace(member, models=(model, prior)), member]
    both = loaded.compare(PROMPT, SHORT, LONG).contributions
    assert [each.name for each in both] == [each.name for each in alone]
    assert [each.log_odds for each in both] == pytest.approx([each.log_odds * (0.25 + 0.5) for each in alone])


def test_every_statistic_has_words_and_a_unit() -> None:
    statistics = {names.statistic_of(column) for column in (*names.COLUMNS, *names.AUTHOR_COLUMNS)}
    assert set(names.DESCRIPTIONS) <= statistics
    described = [names.describe(statistic) for statistic in statistics]
    assert len(set(described)) == len(described)
    assert (names.describe("prompt: bold"), names.unit_of("prompt: bold")) == ("prompt: bold passages", "count")
    units = {"words per sentence": "number", "share of digits": "share", "empty": "yes/no", "commas": "count"}
    assert {name: names.unit_of(name) for name in units} == units
    assert {names.unit_of(names.statistic_of(column)) for column in names.AUTHOR_COLUMNS} == {"number"}


@pytest.mark.slow
def test_both_orders_are_those_of_predict_and_are_averaged_on_request(cross_run: Path) -> None:
    judge = prefcli.load(cross_run, calibrated=False)
    compared, reverse = judge.compare(PROMPT, SHORT, LONG), judge.predict(PROMPT, LONG, SHORT)
    first, second = compared.orders
    assert compared.probabilities == first == judge.predict(PROMPT, SHORT, LONG)
    assert second == pytest.approx((reverse.b, reverse.a, reverse.tie), abs=1e-6)
    assert first != pytest.approx(second, abs=1e-6)
    averaging = prefcli.load(cross_run, calibrated=False, swap_average=True)
    mean = averaging.compare(PROMPT, SHORT, LONG)
    assert mean.probabilities == averaging.predict(PROMPT, SHORT, LONG)
    assert mean.probabilities == pytest.approx(np.mean([first, second], axis=0), abs=1e-9)
    assert mean.orders == compared.orders


@pytest.mark.slow
def test_what_was_cut_is_counted_in_the_tokenizers_tokens(cross_run: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cross_run)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    judge = prefcli.load(cross_run)
    long, longer = "good " * 30, "bad " * 50
    prompt, a, b = count("good"), count(longer), count(long)
    # 32 tokens less 4 special ones: the prompt is read whole, and the answers share the rest equally.
    rest = 32 - 4 - prompt
    assert judge.compare("good", longer, long).cuts == (
        Cut("cross", "response_a", a, rest - rest // 2),
        Cut("cross", "response_b", b, rest // 2),
    )
    assert judge.compare("good", "bad", "good").cuts == ()


@pytest.mark.slow
def test_a_blend_is_judged_as_predict_does(cross_run: Path, features_run: Path) -> None:
    judge = prefcli.load(features_run, cross_run)
    compared = judge.compare(PROMPT, SHORT, LONG)
    assert compared.probabilities == judge.predict(PROMPT, SHORT, LONG)
    assert {cut.run for cut in compared.cuts} == {"cross"}
    alone = prefcli.load(features_run, calibrated=False).compare(PROMPT, SHORT, LONG).contributions
    weight = judge._calibration(frozenset()).weights[0]
    assert compared.contributions[0].log_odds == pytest.approx(weight * alone[0].log_odds)


@pytest.mark.slow
def test_of_a_reward_model_both_rewards_are_shown(
    cli: CLI, tmp_path: Path, one_layer: dict[str, Path], demo_files: Demo
) -> None:
    run = prefcli.train(
        demo_files.train, architecture="reward", encoder=one_layer["bert"], max_length=32, limit=60, output="rewards"
    ).run
    judge = prefcli.load(run)
    compared = judge.compare(PROMPT, SHORT, LONG)
    assert compared.rewards == tuple(judge.score(PROMPT, [SHORT, LONG]))
    assert compared.to_json()["rewards"] == list(compared.rewards)
    conversation = judge.compare(["Hi!", "And?"], ["Hello.", "So."], ["Hey."])  # with answers of unequal turns
    assert conversation.probabilities == judge.predict(["Hi!", "And?"], ["Hello.", "So."], ["Hey."])
    shown = cli("compare", *TEXTS, "--model", run)
    assert "Rewards: A {:.4f}, B {:.4f}".format(*compared.rewards) in shown.out


@pytest.mark.parametrize(
    ("orders", "verdict"),
    [
        ([(0.5, 0.3, 0.2), (0.4, 0.3, 0.3)], "A"),
        ([(0.3, 0.45, 0.25), (0.3, 0.45, 0.25)], "B"),
        ([(0.2, 0.3, 0.5), (0.2, 0.3, 0.5)], "tie"),
        ([(0.5, 0.3, 0.2), (0.3, 0.4, 0.3)], "too close to call"),  # the orders disagree
        ([(0.4, 0.31, 0.29), (0.4, 0.31, 0.29)], "too close to call"),  # the lead is 0.09
        ([(0.4, 0.299, 0.301), (0.35, 0.33, 0.32)], "too close to call"),
    ],
)
def test_the_verdict_needs_a_lead_of_ten_points_and_both_orders(orders: list[Any], verdict: str) -> None:
    first, second = (Probabilities(*order) for order in orders)
    assert Comparison(first, (first, second)).verdict == verdict


def test_the_record_is_that_of_held_out_battles_with_a_like_lead(
    predictor: Predictor, features_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predictor.compare(PROMPT, SHORT, LONG).record is None  # 24 were held out
    monkeypatch.setattr(comparison, "MIN_RECORD", 3)
    monkeypatch.setattr(comparison, "RECORD_WINDOW", 0.2)
    held_out = pd.read_parquet(features_run / "validation.parquet")
    known = held_out[["winner_model_a", "winner_model_b", "winner_tie"]].to_numpy()
    ordered = np.sort(known, axis=1)
    compared = predictor.compare(PROMPT, SHORT, LONG)
    alike = np.abs(ordered[:, 2] - ordered[:, 1] - compared.lead) <= 0.2
    right = known.argmax(axis=1) == held_out["label"].to_numpy()
    assert 3 <= alike.sum() < len(alike)
    assert compared.record is not None
    assert (compared.record.n, compared.record.value) == (alike.sum(), pytest.approx(right[alike].mean()))
    assert compared.to_json()["record"]["battles"] == alike.sum()


def test_the_function_of_the_package_loads_the_run(features_run: Path, predictor: Predictor) -> None:
    compared = prefcli.compare(PROMPT, SHORT, LONG, models=[str(features_run)])
    assert compared == predictor.compare(PROMPT, SHORT, LONG)
    text = '["a text that looks like turns"]'
    assert prefcli.compare(text, SHORT, LONG, models=[str(features_run)]) == predictor.compare(text, SHORT, LONG)


def test_json_has_the_keys_that_the_documents_name(cli: CLI, features_run: Path, predictor: Predictor) -> None:
    value = cli("compare", *TEXTS, "--model", features_run, "--json").json()
    assert list(value) == [
        "winner_model_a", "winner_model_b", "winner_tie", "verdict", "orders", "orders_agree", "cuts", "contributions",
    ]  # fmt: skip
    assert value == json.loads(json.dumps(predictor.compare(PROMPT, SHORT, LONG).to_json()))
    assert list(value["contributions"][0]) == ["name", "description", "unit", "a", "b", "log_odds"]


def test_texts_come_from_flags_files_and_standard_input(
    cli: CLI, features_run: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = predictor.compare(PROMPT, SHORT, LONG).to_json()

    def judged(*arguments: object, standard_input: str = "") -> Any:
        stdin = io.TextIOWrapper(io.BytesIO(standard_input.encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        return cli("compare", *arguments, "--model", features_run, "--json").json()

    Path("prompt").write_text(PROMPT + "\n")
    Path("b").write_bytes(b"\xef\xbb\xbf" + LONG.encode() + b"\r\n")
    assert judged("--prompt-file", "prompt", "--a", SHORT, "--b-file", "b") == expected
    assert judged("--prompt", PROMPT, "--a-file", "-", "--b", LONG, standard_input=SHORT) == expected
    row = {"prompt": PROMPT, "response_a": SHORT, "response_b": LONG}
    assert judged(standard_input=json.dumps(row)) == expected
    other = {"q": PROMPT, "x": [{"t": SHORT}], "y": LONG}
    columns = ("--columns", "prompt=q,response_a=x.0.t,response_b=y")
    assert judged(*columns, standard_input=json.dumps(other)) == expected
    turns = ('["Hi!", null]', '["Hello.", "So."]', '["Hey.", ""]')
    several = predictor.compare(["Hi!", None], ["Hello.", "So."], ["Hey.", ""]).to_json()
    assert judged("--prompt", turns[0], "--a", turns[1], "--b", turns[2]) == several
    assert judged("--prompt", turns[0], "--a", SHORT, "--b", LONG) == predictor.compare(turns[0], SHORT, LONG).to_json()


def test_of_a_chosen_answer_it_says_which_one_it_is(
    cli: CLI, features_run: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"prompt": PROMPT, "chosen": SHORT, "rejected": LONG}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(row).encode())))
    shown = cli("compare", "--model", features_run, "--json")
    side = re.search("([AB]) is the answer that is called chosen", shown.err)
    assert side is not None
    answers = (SHORT, LONG) if side[1] == "A" else (LONG, SHORT)
    assert shown.json() == predictor.compare(PROMPT, *answers).to_json()


def test_it_warns_of_a_prompt_that_the_run_was_trained_on(cli: CLI, features_run: Path, demo_files: Demo) -> None:
    battles, held_out = pd.read_csv(demo_files.train, dtype=str), pd.read_parquet(features_run / "validation.parquet")
    prompts_held_out = battles["prompt"][battles["id"].isin(held_out["id"])]
    prompt = json.loads(battles["prompt"][~battles["prompt"].isin(prompts_held_out)].iloc[0])[0]
    shown = cli("compare", "--prompt", prompt, "--a", SHORT, "--b", LONG, "--model", features_run)
    assert "1 of 1 battles have a prompt that run was trained on: it is probably too sure of it" in shown.err
    assert "trained on" not in cli("compare", *TEXTS, "--model", features_run).err


@pytest.mark.parametrize(
    ("arguments", "standard_input", "said"),
    [
        (["--prompt", "x", "--b", "y"], "", ["no --a", "a battle is a prompt and two answers"]),
        (["--prompt", "x", "--a", "y", "--a-file", "z", "--b", "u"], "", ["both --a and --a-file are given"]),
        (["--prompt-file", "-", "--a-file", "-", "--b", "u"], "", ["standard input can be only one of the files"]),
        (
            ["--prompt-file", "nowhere", "--a", "y", "--b", "u"],
            "",
            ["cannot read the file", "in nowhere"],
        ),
        (["--prompt-file", "latin", "--a", "y", "--b", "u"], "", ["not UTF-8 text: byte 1", "in latin"]),
        (["--prompt", "", "--a", "", "--b", ""], "", ["neither a prompt nor answers"]),
        ([], "", ["no battle: ", "in standard input", "--prompt, --a and --b"]),
        ([], "[1]", ["expected a JSON object", "in standard input"]),
        ([], '{"prompt": "x"}', ["missing columns response_a, response_b", "in the battle"]),
        ([], '{"prompt": "x", "responses": ["a", "b", "c"]}', ["the battle"]),
        (["--columns", "prompt=q", "--prompt", "x", "--a", "y", "--b", "z"], "", ["q"]),
    ],
)
def test_wrong_input_is_an_error_of_up_to_three_lines(
    cli: CLI, features_run: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], standard_input: str,
    said: list[str],
) -> None:  # fmt: skip
    Path("latin").write_bytes(b"h\xe9")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(standard_input.encode())))
    done = cli("compare", *arguments, "--model", features_run, "--quiet")
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) <= 3
    assert all(part.lower() in done.err.lower() for part in said), done.err


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_run_nobody_writes_in_vain(cli: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard())
    monkeypatch.setenv("EDITOR", "touch started")
    done = cli("compare")
    assert done.code == 2
    assert done.err == (
        "error: no run in .prefcli yet\n  Train one first (prefcli train FILE), or name one with --model.\n"
    )
    assert not Path("started").exists()


def test_in_a_terminal_an_editor_takes_the_texts(
    cli: CLI, features_run: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard())
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    markers = list(verb.MARKERS.values())

    def edited(editor: str) -> tuple[Result, list[Path]]:
        """The result, and the files that are left."""
        monkeypatch.setenv("EDITOR", editor)
        done = cli("compare", "--model", features_run, "--json", "--quiet")
        return done, list(tmp_path.glob("prefcli-compare-*/*"))

    Path("texts").write_text("\n".join([markers[0], PROMPT, "", markers[1], SHORT, markers[2], "", LONG, ""]))
    done, left = edited("cp texts")
    assert (done.json(), left) == (predictor.compare(PROMPT, SHORT, LONG).to_json(), [])
    done, left = edited("no-such-editor -w")
    assert (done.code, left) == (2, [])
    assert done.err == (
        "error: the editor no-such-editor -w cannot be started: [Errno 2] No such file or directory: 'no-such-editor'\n"
        "  Set EDITOR, or give --prompt, --a and --b.\n"
    )
    done, left = edited("true")  # which writes nothing
    assert ("nothing was written" in done.err, "kept" in done.err, left) == (True, False, [])
    Path("broken").write_text(f"{PROMPT}\n{markers[2]}\n{markers[1]}\n")
    done, left = edited("cp broken")
    assert "the three lines with ===== are not all there, once and in order" in done.err
    assert [path.read_text() for path in left if str(path) in done.err] == [Path("broken").read_text()]
    monkeypatch.setattr("prefcli.pipeline.compare", lambda *_, **__: (_ for _ in ()).throw(InputError("no")))
    done, left = edited("cp texts")
    kept = re.search("what was written is kept in (.*)", done.err)
    assert kept is not None
    assert Path(kept[1]).read_text() == Path("texts").read_text()


EXAMPLE = Comparison(
    Probabilities(0.52, 0.21, 0.27),
    (Probabilities(0.52, 0.21, 0.27), Probabilities(0.25, 0.45, 0.3)),
    (Cut("[red]run\x1b[31m", "response_a", 3310, 1204),),
    (
        Contribution("list items", "list items with bullets", "count", 12.0, 0.0, 0.31),
        Contribution("share of digits", "share of digits", "share", 0.015, 0.2, -0.155),
        Contribution("prompt: begins with a capital", "prompt: begins with a capital", "yes/no", 1.0, None, 0.01),
    ),
    Share(0.61, 0.55, 0.67, 1234),
)
SHOWN = """\
Too close to call: the two orders of the answers disagree
A    52.0%  █████████████████████
B    21.0%  ████████
tie  27.0%  ███████████

As given A, swapped B
              A      B    tie
as given  52.0%  21.0%  27.0%
swapped   25.0%  45.0%  30.0%

Of 1,234 held-out battles with such a lead, 61% had the most probable outcome
(55% to 67%)
Of answer A 1,204 of 3,310 tokens were read by [red]run\\x1b[31m

What moved it, in log-odds of A over B
statistic                             A / B  log-odds
list items with bullets              12 / 0    +0.310  A ████████
share of digits                1.5% / 20.0%    -0.155  B ████
prompt: begins with a capital           yes    +0.010  A
together                                       +0.165

"""


def screen(compared: Comparison, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a terminal shows, without its colours."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with contextlib.redirect_stdout(Keyboard()) as terminal:
        verb._print(compared)
    return re.sub(r" *$", "", re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()), flags=re.M)


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_a_terminal_of_any_width_shows_everything(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = screen(EXAMPLE, columns, monkeypatch)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= columns
    assert [line.split()[:2] for line in lines if "█" in line][:3] == [["A", "52.0%"], ["B", "21.0%"], ["tie", "27.0%"]]
    for number in ("+0.310", "-0.155", "+0.010", "+0.165", "25.0%", "1,204", "3,310"):
        assert number in shown
    words = " ".join(shown.split())
    assert "with such a lead, 61% had the most probable outcome" in words
    if columns == 80:
        assert shown == SHOWN


def test_without_unicode_bars_are_made_of_number_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "ascii")) as stdout:
        verb._print(EXAMPLE)
        stdout.flush()
        assert b"A    52.0%  #####################\n" in stdout.buffer.getvalue()  # type: ignore[attr-defined]


def test_close_calls_and_ties_are_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_line(*shares: float) -> str:
        order = Probabilities(*shares)
        return screen(Comparison(order, (order, order)), 80, monkeypatch).splitlines()[0]

    assert first_line(0.4, 0.35, 0.25) == "Too close to call: the first is 5.0 points ahead of the next, less than 10"
    assert first_line(0.2, 0.6, 0.2) == "B is preferred"
    assert first_line(0.2, 0.2, 0.6) == "Probably a tie"
