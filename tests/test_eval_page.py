"""The page of `giraffe eval`: the numbers of the JSON, answers by interval bounds, one file."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from synthetic_report import Page
from synthetic_results import (
    EXTENDED_FOUND,
    EXTENDED_NLL,
    LENGTHS,
    between,
    by_length,
    make_results,
    only,
    score,
    share,
    with_control,
    without_base,
)

from giraffe_cli.gates import Gate
from giraffe_cli.report.axes import spread
from giraffe_cli.report.card_tables import markdown_tables
from giraffe_cli.report.evaluation import repeat_commands, subject_name, write_evaluation
from giraffe_cli.report.evaluation_facts import reach_rows, short_rows
from giraffe_cli.report.heatmap import gathered
from giraffe_cli.report.plots import depth_plots, evaluation_plots
from giraffe_cli.report.score_tables import Cell, difference, level, task_tables
from giraffe_cli.report.scored import Scored
from giraffe_cli.report.verdicts import evaluation_verdicts
from giraffe_cli.report.verdicts_retrieval import found_up_to
from giraffe_cli.units import format_length

COMMAND = ["giraffe", "eval", "runs/calf-16k/model", "--base", "calf", "--data", "my books"]


def page_of(results: dict, out: Path, command: list[str] | None = None) -> tuple[str, str]:
    """(HTML, its text without tags)."""
    html = write_evaluation(results, out, command).read_text(encoding="utf-8")
    return html, re.sub(r"<[^>]+>", " ", html).replace("\u00a0", " ")


def answers(results: dict) -> dict[str, str]:
    """Claim → answer."""
    return {v.claim: v.answer for v in evaluation_verdicts(Scored.of_evaluation(results))}


@pytest.fixture
def results() -> dict:
    return make_results()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str, str]:
    out = tmp_path_factory.mktemp("evaluations") / "calf"
    return out, *page_of(make_results(), out, COMMAND)


# ── the page ─────────────────────────────────────────────────────────────────────────────────


def test_the_page_needs_nothing_but_itself(whole):
    _, html, _ = whole
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"script", "link", "iframe", "object", "form", "base"})
    attributes = [pair for _, found in page.tags for pair in found.items()]
    assert all(v.startswith("data:image/svg+xml;") for name, v in attributes if name == "src")
    assert not [name for name, _ in attributes if name.startswith("on") or name == "style"]
    assert "http://" not in html
    assert "https://" not in html


def test_title_answers_tables_and_the_command_stand_in_reading_order(whole):
    _, html, text = whole
    assert "<title>calf-16k: evaluated up to 16k</title>" in html
    order = [
        "Uses context up to 16k : −0.050 ± 0.010 nats over 1k",
        "Far text is used, not only tolerated : −0.060 ± 0.020 nats, real − shuffled at 16k",
        "Short context kept : +0.010 ± 0.008 nats against the base within 1k",
        "Base collapses beyond its window : +1.600 ± 0.020 nats at 16k",
        "Finds a passkey at 16k : 90%, base 0%",
        "2 trials a depth, single cells say little",
        "Effective length",
        "Largest length that keeps 0.9.",
        "Task by task",
        "Far text shuffled",
        "2, 20,000 to 40,000 tokens",
        "yarn, factor 16, rope_theta 10000",
        "Wilson over samples",
        "giraffe eval runs/calf-16k/model --base calf --data &#39;my books&#39;",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "c" * 64 in text


def test_the_numbers_of_the_page_are_those_of_the_json(results):
    scored = Scored.of_evaluation(results)
    nll, positions, passkey = task_tables(scored, {})
    assert nll.headings == ["base", "checkpoint", "checkpoint − base"]
    shown = {row.length: [cell.figure for cell in row.cells] for row in nll.groups[0].rows}
    assert list(shown) == LENGTHS
    assert [cells[1] for cells in shown.values()] == [f"{nll:.2f} ± 0.06" for nll in EXTENDED_NLL]
    assert shown[16384][2] == "−1.640 ± 0.008"
    generated = passkey.groups[0]
    assert [row.cells[1].figure for row in generated.rows] == [
        f"{100 * found // 20}%" for found in EXTENDED_FOUND
    ]
    last = generated.rows[-1].cells
    assert last[1].small == ("70 to 97%", "n 20")
    assert last[2] == Cell("+90", ("+80 to +100", "n 20, p 0.031"))
    assert [group.title for group in nll.groups] == [
        "nll",
        "shuffled",
        "the same words, minus those at 1k",
        "far text in order, minus far text shuffled",
    ]
    assert nll.groups[3].rows[-1].cells[1].figure == "−0.060 ± 0.020"
    assert positions.headline == "3.10 ± 0.10 at 16k, base 3.10 ± 0.10"


def test_hostile_strings_are_text(results, tmp_path):
    evil = '<script>alert("x")</script>\' onload="y'
    results["warnings"] = [evil]
    results["versions"][evil] = evil
    results["rules"][evil] = evil
    results["settings"]["tasks"][evil] = {evil: evil}
    results["models"]["checkpoint"]["rope"]["rope_parameters"][evil] = evil
    results["measures"][evil] = {**results["measures"]["nll"], "summary": evil, "unit": evil}
    results["models"]["checkpoint"]["tasks"][evil] = by_length([score(1.0, 0.1)] * 5)
    html, _ = page_of(results, tmp_path, ["giraffe", "eval", evil])
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, found in page.tags for name in found if name == "onload"]


def test_the_same_results_are_the_same_bytes(whole, tmp_path):
    out, _, _ = whole
    page_of(make_results(), tmp_path / "calf", COMMAND)
    files = sorted(path.name for path in out.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "calf").iterdir())
    for name in files:
        here, there = (folder / name for folder in (out, tmp_path / "calf"))
        again = there.read_bytes().replace(str(tmp_path).encode(), str(out.parent).encode())
        assert again == here.read_bytes(), name


def test_gates_are_told_where_there_are_any(results, tmp_path, whole):
    assert "Quality gates" not in whole[2]
    results["gates"] = [
        asdict(Gate("nll@16k", "<", 3.0, 3.01, False)),
        asdict(Gate("effective_length.passkey", ">=", 16384, 16384.0, True)),
        asdict(Gate("nll@64k", "<", 3.0, None, False, "nll@64k was not scored")),
    ]
    text = " ".join(page_of(results, tmp_path)[1].split())
    assert "nll@16k ✗ failed +3.010 &lt; +3.000" in text
    assert "effective_length.passkey ✓ passed 16k &gt;= 16k" in text
    assert "nll@64k ✗ failed nll@64k was not scored &lt; +3.000" in text


def test_what_lm_eval_gave_has_a_table_settings_and_a_place_on_the_card(results, tmp_path, whole):
    assert "lm-eval" not in whole[2]
    right, lost = share(19, 20), share(2, 20)
    results["harness"] = {
        "base": {"niah_single_1": {"1024": right, "16384": lost}},
        "checkpoint": {
            "niah_single_1": {"1024": right, "16384": share(17, 20)},
            "wikitext.bits": {"900": score(7.25, 0.5)},
        },
    }
    results["settings"]["harness"] = {
        "lm_eval": "0.4.13",
        "tasks": ["ruler"],
        "samples": 20,
        "longest": {"niah_single_1": {"16384": 16000}},
    }
    text = " ".join(page_of(results, tmp_path)[1].split())
    assert "its own tasks on the same models, version 0.4.13" in text
    assert re.search(r"niah_single_1 .*16k 16,384 10% .* n 20 85% .* n 20", text)
    assert "7.25 ± 0.50" in text
    assert "lm-eval 0.4.13 ruler, 20 samples at most" in text
    card = "\n".join(markdown_tables(Scored.of_evaluation(results)))
    assert "lm-eval 0.4.13 on the same models" in card
    assert re.search(r"\| niah_single_1 \| checkpoint \| .*95%.* \| 85%.* \| 20 \|", card)
    assert re.search(r"\| wikitext.bits \| checkpoint \| 7.25 ± 0.50 \| – \| – \|", card)


# ── parts that may be missing ────────────────────────────────────────────────────────────────


def test_a_checkpoint_on_its_own_has_no_empty_column(results, tmp_path):
    alone = without_base(results)
    html, text = page_of(alone, tmp_path)
    assert "on its own, without its base" in text
    assert answers(alone).keys() == {
        "uses context up to 16k",
        "far text is used, not only tolerated",
        "finds a passkey at 16k",
    }
    scored = Scored.of_evaluation(alone)
    assert {tuple(table.headings) for table in task_tables(scored, {})} == {("checkpoint",)}
    assert "Length or domain" not in text
    Page(html)


def test_retrieval_alone_says_nothing_of_the_loss(results, tmp_path):
    alone = only(results, "passkey")
    _, text = page_of(alone, tmp_path)
    assert list(answers(alone)) == ["finds a passkey at 16k"]
    assert "nats per token" not in text
    assert not (tmp_path / "nll_by_context.svg").exists()
    assert (tmp_path / "passkey_ranked_by_depth.png").exists()


def test_one_unknown_task_has_table_and_answer(results, tmp_path):
    alone = only(results, "passkey")
    for part in (alone["measures"], alone["paired"], alone["models"]["checkpoint"]["tasks"]):
        part["my-task"] = part.pop("passkey")
        part["my-task.ranked"] = part.pop("passkey.ranked")
    assert list(answers(alone)) == ["finds what my-task asks for at 16k"]
    assert "my-task" in page_of(alone, tmp_path)[1]


def test_with_a_control_there_is_a_column_and_an_answer(results, tmp_path):
    _, text = page_of(with_control(results), tmp_path)
    assert answers(results)["gains from 16k of context, beyond the text’s domain"] == "yes"
    (nll, *_) = task_tables(Scored.of_evaluation(results), {})
    assert nll.headings == [
        *("base", "control", "checkpoint"),
        *("checkpoint − base", "checkpoint − control"),
    ]
    assert nll.groups[0].rows[0].cells[4].figure == "+0.020 ± 0.010"
    assert nll.groups[0].rows[1].cells[1].figure == "–"
    assert "D" * 64 not in text


def test_nothing_beyond_the_native_window_answers_nothing_about_it(results):
    results["native_length"] = 16384
    results["paired"]["nll"]["length_minus_native"] = {
        name: {"16384": score(0, 0)} for name in ("base", "checkpoint")
    }
    found = answers(results)
    assert "uses context up to 16k" not in found
    assert not any("collapses" in claim for claim in found)


# ── answers ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.08, -0.01, "yes"),
        (-0.08, 0.0, "not shown"),
        (-0.01, 0.02, "not shown"),
        (0.01, 0.1, "no"),
    ],
)
def test_far_text_is_used_when_the_whole_interval_lies_below_zero(results, low, high, expected):
    contrast = results["paired"]["nll"]["real_minus_shuffled"]["checkpoint"]
    contrast["16384"] = between(low, high)
    assert answers(results)["far text is used, not only tolerated"] == expected


@pytest.mark.parametrize(
    ("base", "found", "expected"),
    [
        (0, 18, "yes"),
        (8, 12, "not shown"),
        (19, 2, "no"),
        (0, 15, "yes"),
        (0, 14, "not shown"),
        (0, 9, "not shown"),
        (0, 5, "no"),
    ],
)
def test_more_than_half_by_the_lower_bound_is_found(results, base, found, expected):
    """Lower bounds of 14 and 15 in 20: 0.48 and 0.53; upper bounds of 5 and 9: 0.47 and 0.66."""
    results["models"]["base"]["tasks"]["passkey"]["16384"] = share(base)
    results["models"]["checkpoint"]["tasks"]["passkey"]["16384"] = share(found)
    assert answers(results)["finds a passkey at 16k"] == expected


def test_a_gap_at_a_shorter_length_is_no_finding(results):
    results["models"]["checkpoint"]["tasks"]["passkey"]["4096"] = share(3)
    verdict = evaluation_verdicts(Scored.of_evaluation(results))[-1]
    assert verdict.answer == "not shown"
    assert "More than half are shown up to 2k." in verdict.meaning


def test_models_that_never_write_the_answer_are_judged_by_ranking(results):
    for model in results["models"].values():
        model["tasks"]["passkey"] = by_length([share(0)] * 5)
    assert answers(results)["tells a passkey from wrong ones at 16k"] == "yes"
    for model in results["models"].values():
        model["tasks"]["passkey.ranked"] = by_length([share(2)] * 5)
    verdict = evaluation_verdicts(Scored.of_evaluation(results))[-1]
    assert verdict.answer == "not shown"
    assert "Even inside the native window fewer than half are right" in verdict.meaning


def test_what_was_found_ends_at_the_first_length_that_fails():
    assert found_up_to({1: share(20), 2: share(16), 4: share(10), 8: share(20)}) == 2
    assert found_up_to({1: share(10), 2: share(20)}) is None


def test_one_document_answers_nothing(results):
    alone = {"mean": -0.2, "ci_low": -0.2, "ci_high": -0.2, "n": 4, "clusters": 1, "p_value": 1.0}
    paired = results["paired"]["nll"]
    for contrast in ("length_minus_native", "real_minus_shuffled"):
        paired[contrast]["checkpoint"]["16384"] = alone
    paired["length_minus_native"]["base"]["16384"] = {**alone, "ci_low": 2.0, "ci_high": 2.0}
    results["short_context"]["delta_nll"] = alone
    verdicts = evaluation_verdicts(Scored.of_evaluation(results))
    assert [verdict.answer for verdict in verdicts[:4]] == ["not shown"] * 4
    for verdict in verdicts[:4]:
        assert verdict.meaning == "One document has no interval: nothing follows from it."
        assert "±" not in verdict.figures
    gains = paired["length_minus_native"]["checkpoint"]
    for length in gains:
        gains[length] = alone
    told = evaluation_verdicts(Scored.of_evaluation(results))[0]
    assert "A gain is shown" not in told.meaning
    assert level(alone, share=False) == Cell("−0.20", ("no interval", "n 4 from 1 text"))
    assert difference(alone, share=False) == Cell(
        "−0.20", ("no interval", "n 4 from 1 text, p 1.00")
    )


def test_text_of_another_domain_has_an_answer_of_its_own(results):
    results["short_context"] |= {
        "delta_nll_other": between(0.06, 0.1),
        "kl_mean": score(0.02, 0.01),
    }
    assert answers(results)["short context kept, on text of another domain"] == "no"
    assert short_rows(Scored.of_evaluation(results))[1:] == [
        ("loss of text of another domain, nats", "+0.080 ± 0.020", "+0.060 to +0.100, n 32"),
        ("KL(base || checkpoint), mean over tokens, nats", "0.02 ± 0.01", "0.01 to 0.03, n 32"),
    ]


def test_effective_lengths_tell_none_from_unknown(results):
    assert reach_rows(Scored.of_evaluation(results)) == [
        ("nll", ["16k", "16k", "upper bound at most 0"]),
        ("passkey", ["2k", "2k", "lower bound at least 0.900"]),
        ("passkey.ranked", ["1k", "1k", "lower bound at least 0.900"]),
    ]
    results["models"]["base"]["effective_length"]["passkey"] = None
    del results["models"]["base"]["tasks"]["passkey.ranked"]["1024"]
    rows = dict(reach_rows(Scored.of_evaluation(results)))
    assert rows["passkey"][:2] == ["none", "2k"]
    assert rows["passkey.ranked"][:2] == ["–", "1k"]


def test_too_few_samples_are_told_from_a_length_that_is_not_reached(results):
    """At 0.81 asked for: 0.90 [0.79, 0.96] may be it, 0.70 [0.6, 0.8] is not."""
    results["measures"]["passkey"]["effective_length"]["threshold"] = 0.81
    for model, mean, low, high in (("base", 0.7, 0.6, 0.8), ("checkpoint", 0.9, 0.79, 0.96)):
        found = results["models"][model]
        found["effective_length"]["passkey"] = 1024
        following = min(int(n) for n in found["tasks"]["passkey"] if int(n) > 1024)
        found["tasks"]["passkey"][str(following)] |= {"mean": mean, "ci_low": low, "ci_high": high}
    rows = dict(reach_rows(Scored.of_evaluation(results)))
    assert rows["passkey"][:2] == ["1k", f"1k, undecided at {format_length(following)}"]


# ── pictures ─────────────────────────────────────────────────────────────────────────────────


def test_alternative_texts_carry_the_numbers(results):
    scored = Scored.of_evaluation(results)
    plots = {plot.name: plot for plot in evaluation_plots(scored)}
    assert [*plots] == [
        *("nll_by_context", "nll_gain_by_context", "positions_curve"),
        *("retrieval_generated", "retrieval_ranked"),
    ]
    assert "base: 3.00 at 1k, 3.21 at 2k" in plots["nll_by_context"].alt
    assert "far text shuffled: 2.99 at 2k, 2.99 at 4k" in plots["nll_by_context"].alt
    assert "over 1k: 0.000 at 1k, −0.015 at 2k" in plots["nll_gain_by_context"].alt
    assert "over shuffled: −0.005 at 2k" in plots["nll_gain_by_context"].alt
    assert "checkpoint 100% at 1k, 100% at 2k, 95% at 4k" in plots["retrieval_generated"].alt
    generated, ranked = depth_plots(scored)["passkey"]
    assert (generated.name, ranked.name) == ("passkey_by_depth", "passkey_ranked_by_depth")
    assert generated.alt.endswith("checkpoint: 1k 100%, 2k 100%, 4k 95%, 8k 95%, 16k 90%.")


@pytest.mark.parametrize("lengths", [[16384], [1024], [4096, 16384], [1500, 1600]])
def test_any_set_of_lengths_can_be_drawn(results, lengths):
    """Matplotlib warns where a name or a line has no room, and warnings fail a test."""
    kept = {str(n) for n in lengths}

    def cut(table):
        if not isinstance(table, dict):
            return table
        if table.keys() & set(map(str, LENGTHS)):
            some = next(iter(table.values()))
            return {n: table.get(n, some) for n in sorted(kept, key=int)}
        return {key: cut(value) for key, value in table.items()}

    scored = Scored.of_evaluation({**cut(results), "lengths": lengths})
    names = {plot.name for plot in evaluation_plots(scored)}
    assert {"nll_by_context", "retrieval_generated"} <= names
    assert len(depth_plots(scored)["passkey"]) == 2


def test_pictures_do_not_change_the_numbers(results):
    before = copy.deepcopy(results)
    evaluation_plots(Scored.of_evaluation(results))
    depth_plots(Scored.of_evaluation(results))
    assert results == before


def test_many_depths_are_gathered_in_tenths():
    none_of_one, three_of_three = share(0, 1), share(3, 3)
    cells = {f"{n / 40:.2f}": (none_of_one, three_of_three)[n % 2] for n in range(41)}
    table = gathered({"1024": cells})["1024"]
    assert list(table) == [f"{tenth / 10 + 0.05:.2f}" for tenth in range(10)]
    assert [table["0.05"]["n"], table["0.95"]["n"]] == [8, 9]
    assert [table["0.05"]["mean"], table["0.95"]["mean"]] == [6 / 8, 6 / 9]
    few = {"1024": {"0.00": share(1, 2), "1.00": share(2, 2)}}
    assert gathered(few) == few


def test_names_that_would_overlap_move_apart():
    assert spread([0, 4, 50], 12) == [-4.0, 4.0, 0.0]
    assert spread([0, 40], 12) == [0.0, 0.0]
    assert spread([5, 5], 10) == [-5.0, 5.0]


# ── the commands ─────────────────────────────────────────────────────────────────────────────


def test_what_was_evaluated_is_called_as_it_was_typed():
    assert subject_name(COMMAND, Path("runs/e")) == "calf-16k"
    assert subject_name(["giraffe", "eval", "a/Llama.gguf"], Path("runs/e")) == "Llama"
    assert subject_name(["giraffe", "eval", "--base", "x"], Path("runs/e")) == "e"
    assert subject_name([], Path("runs/e")) == "e"
    assert repeat_commands([], Path("my runs")) == ["giraffe report 'my runs'"]


def test_an_evaluation_is_drawn_again_from_its_json(giraffe, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(make_results()))
    page_of(make_results(), tmp_path, COMMAND)
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    done = giraffe("report", tmp_path)
    assert done.code == 0
    assert f"page  {tmp_path}/report.html" in " ".join(done.stdout.split("\n"))
    assert (tmp_path / "report.html").read_bytes() == before
