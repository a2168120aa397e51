"""A bake-off as rows, pictures and a part of the page: what was dropped early is told as such, and
no label reaches the page unescaped."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from synthetic_report import Page, make_run

from giraffe_cli.report.axes import readable_end
from giraffe_cli.report.comparison import comparison_table, write_comparison, write_search
from giraffe_cli.report.comparison_curves import comparison_curves_plot
from giraffe_cli.report.comparison_plot import comparison_plot, kind_of
from giraffe_cli.report.search_plot import search_plot
from giraffe_cli.report.write import write_report

EVIL = "<script>alert(1)</script> $\\frac{ $ _x"


def score(mean: float, half: float = 0.0, n: int = 8) -> dict:
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, "n": n, "clusters": n}


def setting(label: str, behind: dict | None, loss: dict, **more: dict) -> dict:
    nll = {"16384": loss, **more.pop("nll", {})}
    return {
        "label": label,
        "strategy": label.split()[0],
        "knobs": {},
        "samples": loss["n"],
        "nll": nll,
        "minus_best": behind,
        "short_context": None,
        **more,
    }


@pytest.fixture
def comparison() -> dict:
    """Five settings: two to the end and level, one to the end and worse, one dropped after two
    samples on which it was better, one after a single sample and far off."""
    finalist = {"needle-nll": {"16384": score(1.25, 0.1)}}
    return {
        "model": "calf",
        "native_length": 1024,
        "target_length": 16384,
        "fitness": "nll",
        "documents": {f"book {k}": 20000 for k in range(8)},
        "settings": [
            setting(
                "yarn beta_fast=128",
                score(0.0),
                score(3.0, 0.3),
                nll={"1024": score(2.8, 0.3)},
                short_context=score(-0.012, 0.004),
                **finalist,
            ),
            setting(
                EVIL,
                score(0.044, 0.06),
                score(3.044, 0.3),
                nll={"1024": score(2.9, 0.3), "4096": score(2.7, 0.2, n=5)},
                short_context=score(0.184, 0.08),
                **finalist,
            ),
            setting("ntk", score(0.3, 0.05), score(3.3, 0.3)),
            setting("llama3", score(-0.02, 0.01, n=2), score(2.6, 0.2, n=2)),
            setting("linear", score(4.25, n=1), score(7.1, n=1)),
        ],
        "not_read": [],
        "recommendation": {"label": "yarn beta_fast=128", "tied": [EVIL]},
        "warnings": [f"not read on 4 samples: {EVIL}"],
        "seconds": 66.0,
        "budget_seconds": 100.0,
    }


@pytest.fixture
def search() -> dict:
    def trial(number: int, loss: float, origin: str, *factors: float, stopped: bool = False):
        return {
            "number": number,
            "loss": loss,
            "stopped": stopped,
            "origin": origin,
            "factors": list(factors),
            "attention_factor": 1.25,
        }

    trials = [
        trial(0, 2.9, "yarn", 1.0, 4.0, 16.0),
        trial(1, 3.9, "ntk", 1.0, 5.0, 15.0),
        trial(2, 2.85, "mutation of 0", 1.0, 4.5, 16.0),
        trial(3, 2.1, "crossing of 0 and 2", 1.0, 3.0, 16.0, stopped=True),
    ]
    return {
        "native_length": 1024,
        "target_length": 16384,
        "fitness": "nll",
        "trials": trials,
        "best": trials[2],
        "best_seed": trials[0],
        "held_out": {"best": 2.87, "seed": 2.9, "minus_seed": score(-0.03, 0.04), "samples": 8},
        "improved": False,
    }


# ── rows ─────────────────────────────────────────────────────────────────────────────────────


def test_rows_hold_differences_losses_and_costs_with_their_intervals(comparison):
    best, level, worse, better, far = comparison_table(comparison).rows
    assert best.label == "yarn beta_fast=128"
    figures = [cell.figure for cell in level.cells]
    assert figures == [
        "+0.04 ± 0.06",  # minus the best
        "+0.18 ± 0.08",  # cost at 1k
        "2.90 ± 0.30",  # loss at 1k, 4k, 16k
        "2.70 ± 0.20",
        "3.04 ± 0.30",
        "1.25 ± 0.10",  # look-up loss at 16k
    ]
    assert level.cells[0].small == ("−0.02 to +0.10", "n 8")
    assert best.cells[0].figure == "the best"
    assert best.cells[3].figure == "–"
    assert "".join(cell.figure for cell in worse.cells) == "+0.300 ± 0.050–––3.30 ± 0.30–"
    assert better.cells[0].figure == "−0.020 ± 0.010"
    assert better.cells[0].small[-1] == "n 2"
    assert far.label == "linear"


def test_a_single_sample_has_no_interval(comparison):
    far = comparison_table(comparison).rows[-1]
    assert (far.cells[0].figure, far.cells[0].small) == ("+4.250", ("n 1",))
    assert (far.cells[4].figure, far.cells[4].small) == ("7.100", ("n 1",))


# ── pictures ─────────────────────────────────────────────────────────────────────────────────


def test_the_alt_text_tells_every_number(comparison):
    assert comparison_plot(comparison).alt == (
        "Loss at 16k in nats per token, minus that of the best, yarn beta_fast=128: "
        f"{EVIL} +0.044 (−0.016 to +0.104), n=8; ntk +0.300 (+0.250 to +0.350), n=8; "
        "llama3 −0.020 (−0.030 to −0.010), n=2, dropped early; linear +4.250, n=1, dropped early. "
        "Cost at 1k against the unscaled base: yarn beta_fast=128 −0.012 (−0.016 to −0.008), n=8; "
        f"{EVIL} +0.184 (+0.104 to +0.264), n=8."
    )


def test_the_interval_and_the_samples_decide_how_a_setting_is_drawn(comparison):
    settings = comparison["settings"]
    kinds = [kind_of(one, settings[0]) for one in settings]
    assert kinds == ["level", "level", "worse", "fewer", "fewer"]
    settings[2]["minus_best"]["ci_low"] = 0.0
    assert kind_of(settings[2], settings[0]) == "level"


def test_the_axis_says_where_it_ends(comparison):
    assert b"beyond +" in comparison_plot(comparison).svg
    comparison["settings"].pop()
    assert b"beyond +" not in comparison_plot(comparison).svg


@pytest.mark.parametrize(
    ("values", "shown", "end"),
    [
        ([0.0, 0.1, 0.2, 0.3, 5.0], [], 0.3),
        ([0.0, 0.1, 0.2, 0.3, 5.0], [0.5], 0.5),
        ([0.0, 0.1, 0.2, 0.61, 0.7], [], 0.2),
        ([0.0, 0.1, 0.2, 0.59, 0.7], [], 0.59),
        ([0.0, 0.1], [0.4], 0.4),
        ([0.0], [], 0.0),
    ],
)
def test_an_axis_leaves_far_values_beyond_and_never_what_must_be_shown(values, shown, end):
    assert readable_end(values, shown) == end


def test_one_setting_is_no_comparison(comparison):
    del comparison["settings"][1:]
    assert comparison_plot(comparison) is None


def test_a_setting_that_shares_no_sample_with_the_best_is_named_without_a_number(comparison):
    comparison["settings"][4]["minus_best"] = None
    assert "linear not read, dropped early" in comparison_plot(comparison).alt
    assert comparison_table(comparison).rows[4].cells[0].figure == "–"


def test_curves_join_lengths_of_the_same_samples_only(comparison):
    told = comparison_curves_plot(comparison).alt
    assert "yarn beta_fast=128: 2.800 at 1k, 3.000 at 16k; " in told
    assert f"{EVIL}: 2.900 at 1k, 3.044 at 16k." in told  # 4k was read on five samples
    assert "ntk" not in told
    for one in comparison["settings"]:
        one["nll"]["1024"] = score(2.8, 0.3, n=7)
    assert comparison_curves_plot(comparison) is None


def test_a_search_says_that_nothing_is_proven(search):
    alt = search_plot(search).alt
    assert "4 tables in the order tried, 1 of them given up half-way. Seeds: yarn 2.900" in alt
    assert "Best: 2.850 nats, trial 2, mutation of 0." in alt
    proven = "Best minus best seed (yarn) on 8 other samples: −0.030 nats (−0.070 to +0.010)"
    assert f"{proven}, not shown to be better." in alt
    assert "best 1, 4.5, 16; best seed 1, 4, 16." in alt


def test_a_search_that_found_nothing_says_so(search):
    search["best"] = search["best_seed"]
    assert "Nothing better than yarn was found." in search_plot(search).alt
    search["trials"] = []
    assert search_plot(search) is None


def test_the_same_numbers_give_the_same_files(comparison, search, tmp_path):
    found = []
    for name in ("once", "twice"):
        folder = tmp_path / name
        folder.mkdir()
        written = [*write_comparison(comparison, folder), *write_search(search, folder)]
        assert [path.stem for path in written] == [
            "rope_comparison",
            "rope_comparison_curves",
            "rope_search",
        ]
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(found[0]) == 6
    assert found[0] == found[1]


# ── page and card ────────────────────────────────────────────────────────────────────────────


def written(run_dir: Path, choice: dict) -> tuple[str, str]:
    """The page and the card of a run with this `rope_choice` and no other picture."""
    report = {**make_run(run_dir), "rope_choice": choice}
    report |= {"steps": 0, "trained_tokens": 0, "short_context": {}, "evaluation": {}}
    (run_dir / "metrics.jsonl").unlink()
    write_report(report, run_dir, run_dir / "model")
    assert json.loads((run_dir / "report.json").read_text())["rope_choice"] == choice
    return (run_dir / "report.html").read_text(), (run_dir / "model" / "README.md").read_text()


def chosen(comparison: dict, reason: str) -> dict:
    return {**comparison, "asked": "auto", "chosen": {"strategy": "yarn"}, "reason": reason}


def test_the_page_says_why_and_escapes_every_label(comparison, tmp_path):
    html, card = written(tmp_path / "run", chosen(comparison, f"the lowest loss; level: {EVIL}"))
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    text = re.sub(r"<[^>]+>", "", html)
    said = "The lowest loss; level: &lt;script&gt;alert(1)&lt;/script&gt; $\\frac{ $ _x."
    order = ["attention factor", "Why this table", said, "up to 8 documents of the training text",
             "1 min 06 s of 1 min 40 s allowed", "minus the best at 16k", "+0.04 ± 0.06",
             "not read on 4 samples: &lt;script&gt;", "Time and memory"]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "Loss at 16k in nats per token, minus that of the best" in html
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2
    assert (tmp_path / "run" / "eval" / "rope_comparison.svg").exists()
    sentence = "The table was chosen by measurement on 8 documents of the training text: the lowest"
    assert sentence in card


def test_more_settings_than_twelve_stand_behind_a_click(comparison, tmp_path):
    far = comparison["settings"][-1]
    comparison["settings"] += [{**far, "label": f"linear factor={k}"} for k in range(10)]
    html, _ = written(tmp_path / "run", chosen(comparison, "the lowest loss"))
    section = html[html.index("Why this table") : html.index("Time and memory")]
    shown, hidden = section.split("<details")
    assert "<b>3 more</b>" in hidden
    assert (shown.count('<th scope="row">'), hidden.count('<th scope="row">')) == (12, 3)


def test_a_choice_without_measurement_is_a_sentence(tmp_path):
    reason = "no document of 16k tokens: yarn by rule of thumb"
    choice = {"asked": "auto", "settings": [], "chosen": {"strategy": "yarn"}, "reason": reason}
    html, card = written(tmp_path / "run", choice)
    section = html[html.index("Why this table") : html.index("Time and memory")]
    assert "<p>No document of 16k tokens: yarn by rule of thumb.</p>" in section
    assert "<table" not in section
    assert "<img" not in section
    assert "measurement on" not in card


def test_a_single_setting_that_was_read_is_no_measurement(comparison, tmp_path):
    del comparison["settings"][1:]
    comparison["recommendation"] = None
    reason = "20 s were too little to compare two; yarn by rule of thumb"
    html, card = written(tmp_path / "run", chosen(comparison, reason))
    assert "20 s were too little to compare two" in html
    assert "were compared on the base" not in html
    assert "measurement on" not in card


def test_a_table_that_was_named_needs_no_reason(tmp_path):
    html, card = written(tmp_path / "run", {})
    assert "Why this table" not in html
    assert "was chosen" not in card
