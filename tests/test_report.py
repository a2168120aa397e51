"""The report: verdicts by interval bounds, a page that needs nothing, one table everywhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from synthetic_results import between, by_length, make_results, score, share, with_control

from giraffe_cli.errors import InvalidInput
from giraffe_cli.report import facts, numbers
from giraffe_cli.report.plots import training_plots
from giraffe_cli.report.serve import serve_lines
from giraffe_cli.report.tables import summary_table
from giraffe_cli.report.verdicts import run_verdicts
from giraffe_cli.report.write import write_report

YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 1024}


def make_report(run_dir: Path, results: dict) -> dict:
    def checked(found: object, expected: object) -> dict:
        return {"ok": True, "found": found, "expected": expected}

    return {
        "run_dir": str(run_dir),
        "model_dir": str(run_dir / "model"),
        "model": "calf",
        "strategy": "yarn",
        "native_length": 1024,
        "target_length": 16384,
        "steps": 60,
        "trained_tokens": 1966080,
        "final_loss": 2.913,
        "peak_memory_bytes": 1_430_000_000,
        "seed": 0,
        "dtype": "float32",
        "data": ["python-stdlib"],
        "window": 16384,
        "positions": "plain",
        "rope": {"strategy": "yarn", "knobs": {"beta_fast": 32.0, "beta_slow": 1.0}},
        "train": {
            "learning_rate": 2e-4,
            "schedule": "cosine",
            "lora": {"rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
        },
        "verify": {
            "ok": True,
            "checks": {
                "weights": checked("39 tensors equal", "39 tensors equal"),
                "inv_freq": checked(0.0, 1e-6),
                "attention_factor": checked(1.2773, 1.2773),
                "logits_at_end": checked(3.1e-6, 1e-4),
            },
            "runtimes": {"transformers": "exact", "llama.cpp": "exact after conversion"},
        },
        **{
            task: {
                "base": results["models"]["base"]["tasks"][task],
                "extended": results["models"]["checkpoint"]["tasks"][task],
            }
            for task in ("nll", "passkey")
        },
        "short_context": results["short_context"],
        "evaluation": results,
        "gates": [
            {
                "name": "nll@16384-nll@1024",
                "op": "<=",
                "bound": -0.04,
                "threshold": 0.05,
                "ok": True,
            },
            {
                "name": "short_context.delta_nll",
                "op": "<=",
                "bound": 0.018,
                "threshold": 0.05,
                "ok": True,
            },
        ],
        "seconds": {"pack": 4.1, "train": 148.2, "merge": 1.3, "verify": 9.8, "eval": 71.0},
        "warnings": [],
    }


def make_run(run_dir: Path) -> dict:
    """A run folder with what the stages before the report leave; the report."""
    from giraffe_cli.rope.base import Head

    (run_dir / "model").mkdir(parents=True)
    config = {"max_position_embeddings": 16384, "rope_parameters": YARN, "dtype": "bfloat16"}
    (run_dir / "model" / "config.json").write_text(json.dumps(config))
    head = Head(32, 1e4, 1024, 16384)
    # The first 6 of 16 pairs as they were, the last 6 slowed by 16.
    slowed = [1] * 6 + [2, 4, 8, 12] + [16] * 6
    inv_freq = [w / s for w, s in zip(head.unscaled_inv_freq().tolist(), slowed, strict=True)]
    rope = {"head_dim": 32, "rope_theta": 1e4, "inv_freq": inv_freq, "attention_factor": 1.2773}
    (run_dir / "rope.json").write_text(json.dumps({**rope, "rope_parameters": YARN}))
    steps = [{"step": n, "loss": 3.1 + 0.4 / n + 0.05 * (n % 3)} for n in range(1, 61)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in steps))
    (run_dir / "run.yaml").write_text("target_length: 16384\n")
    (run_dir / "base").mkdir()
    (run_dir / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# calf\n")
    plan = {"model": {"path": str(run_dir / "base")}}
    (run_dir / "plan.json").write_text(json.dumps(plan))
    return make_report(run_dir, make_results())


def answer(claim_start: str, report: dict) -> tuple[str, str]:
    """(answer, figures and meaning) of the one verdict whose claim starts so."""
    (verdict,) = [v for v in run_verdicts(report) if v.claim.startswith(claim_start)]
    return verdict.answer, f"{verdict.figures} | {verdict.meaning}"


@pytest.fixture
def report() -> dict:
    return make_report(Path("run"), make_results())


def set_paired(report: dict, low: float, high: float, *path: str) -> None:
    target = report["evaluation"]["paired"]["nll"]
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = between(low, high)


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.06, -0.04, "yes"),
        (-0.09, 0.01, "not shown"),
        (0.01, 0.2, "no"),
        (-0.01, 0.0, "not shown"),
    ],
)
def test_long_context_is_used_only_when_the_whole_interval_lies_below_zero(
    report, low, high, expected
):
    set_paired(report, low, high, "length_minus_native", "checkpoint", "16384")
    assert answer("uses context", report)[0] == expected


@given(low=st.floats(-2, 2), width=st.floats(0, 1), share_below=st.floats(0, 1))
def test_the_mean_never_decides(low, width, share_below):
    report = make_report(Path("run"), make_results())
    path = ("length_minus_native", "checkpoint", "16384")
    set_paired(report, low, low + width, *path)
    nested = report["evaluation"]["paired"]["nll"]["length_minus_native"]["checkpoint"]
    nested["16384"]["mean"] = low + share_below * width
    expected = "yes" if low + width < 0 else "no" if low > 0 else "not shown"
    assert answer("uses context", report)[0] == expected


def test_the_yes_states_size_interval_and_perplexity(report):
    found, text = answer("uses context up to 16k", report)
    assert found == "yes"
    assert text.startswith("−0.050 ± 0.010 nats over 1k | ")
    assert "5% lower perplexity (95% interval −0.060 to −0.040 nats, n = 32)" in text


def test_an_open_answer_names_the_longest_length_with_a_shown_gain(report):
    set_paired(report, -0.02, 0.01, "length_minus_native", "checkpoint", "16384")
    set_paired(report, -0.02, 0.01, "length_minus_native", "checkpoint", "8192")
    assert answer("uses context", report)[1].endswith("A gain is shown up to 4k.")


@pytest.mark.parametrize(
    ("low", "high", "expected", "says_domain"),
    [
        (0.00, 0.05, "yes", False),
        (-0.30, -0.20, "yes", True),
        (-0.04, 0.02, "yes", True),
        (-0.10, 0.06, "not shown", True),
        (0.02, 0.06, "not shown", False),
        (0.06, 0.09, "no", False),
    ],
)
def test_short_context_is_judged_by_the_upper_bound_and_gains_are_called_domain(
    report, low, high, expected, says_domain
):
    report["evaluation"]["short_context"] = {"delta_nll": between(low, high)}
    found, text = answer("short context kept", report)
    assert found == expected
    assert ("domain" in text) == says_domain


@pytest.mark.parametrize(
    ("low", "high", "claim", "expected"),
    [
        (1.4, 1.6, "base collapses", "yes"),
        (0.9, 1.6, "base gets worse", "yes"),
        (-0.1, 0.1, "base gets worse", "not shown"),
        (-0.2, -0.1, "base gets worse", "no"),
    ],
)
def test_a_base_is_called_collapsed_only_beyond_one_nat(report, low, high, claim, expected):
    set_paired(report, low, high, "length_minus_native", "base", "16384")
    assert answer(claim, report)[0] == expected


def test_nothing_is_claimed_that_was_not_measured(report):
    report["evaluation"] = report["verify"] = {}
    assert {v.answer for v in run_verdicts(report)} == {"not measured"}


def test_a_failed_check_is_a_no(report):
    report["verify"]["ok"] = report["verify"]["checks"]["weights"]["ok"] = False
    found, text = answer("loads in stock transformers", report)
    assert (found, text.split(" | ")[0]) == ("no", "3 of 4 checks passed")


# ── numbers ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mean", "half", "shown"),
    [
        (-0.043, 0.011, "−0.043 ± 0.011"),
        (-0.05, 0.05, "−0.05 ± 0.05"),
        (0.0, 0.01, "0.000 ± 0.010"),
        (-0.0001, 0.02, "0.000 ± 0.020"),
        (0.0123, 0.0004, "+0.0123 ± 0.0004"),
        (1.6, 0.31, "+1.60 ± 0.31"),
    ],
)
def test_digits_follow_the_interval_and_zero_has_no_sign(mean, half, shown):
    assert numbers.with_half_width(score(mean, half), sign=True) == shown


@pytest.mark.parametrize(
    ("nats", "text"),
    [
        (-0.05, "5% lower perplexity"),
        (0.005, "0.5% higher perplexity"),
        (1.5, "4.5 times the perplexity"),
    ],
)
def test_nats_in_plain_words(nats, text):
    assert numbers.perplexity_change(nats) == text


def test_the_table_of_pairs_is_counted():
    # theta 16, 4 pairs: 1, 1/2, 1/4, 1/8; the first kept, the second halved, two slowed by 4.
    rope = {"head_dim": 8, "rope_theta": 16.0, "inv_freq": [1, 1 / 4, 1 / 16, 1 / 32]}
    assert facts.describe_table(rope) == "4 pairs: 1 unchanged, 2 slowed by 4, 1 by 2"
    # by more than target over native window, as YaRN's own factor may be
    rope["inv_freq"] = [1, 1 / 2, 1 / 96, 1 / 192]
    assert facts.describe_table(rope) == "4 pairs: 2 unchanged, 2 slowed by 24"
    rope["inv_freq"] = [1, 1 / 2, 1 / 4, 1 / 8]
    assert facts.describe_table(rope) == "4 pairs: 4 unchanged"


def test_commands_quote_what_a_shell_would_split(report):
    report["run_dir"], report["model_dir"] = "my run", "my run/model"
    run = {"seed": 3, "eval": {"tasks": ["nll"], "documents": 8, "knobs": {"nll": {"anchors": 4}}}}
    extend, verify, evaluate = facts.repeat_commands(report, run)
    assert extend == "giraffe extend --config 'my run'/run.yaml --out 'my run-again'"
    assert verify == "giraffe verify 'my run/model'"
    assert evaluate == (
        "giraffe eval 'my run/model' --base calf --lengths 1k,2k,4k,8k,16k --tasks nll "
        "--documents 8 --set nll.anchors=4 --seed 3"
    )


# ── console ──────────────────────────────────────────────────────────────────────────────────


def rendered(report: dict) -> str:
    console = Console(file=StringIO(), width=80)
    for part in summary_table(report):
        console.print(part)
    return console.file.getvalue()


def test_the_console_shows_a_row_a_length_the_verdicts_and_the_paths(report):
    text = rendered(report)
    rows = [line.split() for line in text.splitlines() if line.count("±") == 3]
    assert [row[0] for row in rows] == ["1k", "2k*", "4k*", "8k*", "16k*"]
    assert "…" not in text
    assert "2.95 ± 0.06" in text
    assert re.search(r"passkey +base +100 \(84-100\) .* 0 \(0-16\) +20 *\n", text)
    assert "90 (70-97)" in text
    assert "uses context up to 16k: yes, −0.050 ± 0.010 nats over 1k" in text
    assert "report  run/report.html" in text


@pytest.mark.parametrize("more", [(), ("niah-multikey-1", "niah-multivalue", "lines")])
def test_tables_stay_within_80_columns_whatever_was_scored(report, more):
    results = report["evaluation"]
    lengths = [512 * 2**n for n in range(9)]
    for task in ("passkey", *more):
        results["measures"][task] = results["measures"]["passkey"]
        for model in results["models"].values():
            model["tasks"][task] = by_length([share(20)] * 9, lengths)
    with_control(results)
    text = rendered(report)
    tables = text[: text.index("uses context up to")].splitlines()
    assert max(map(len, tables)) <= 80
    assert "…" not in text
    assert "other lengths: report.html" in " ".join(text.split())


def test_without_an_evaluation_the_console_shows_no_empty_table(report):
    report["evaluation"] = {}
    text = rendered(report)
    assert text.startswith("uses context up to 16k: not measured\n")
    assert "% right" not in text


def test_brackets_in_a_name_are_text_not_markup(report):
    report["model"] = "[bold]x[/bold]"
    assert "[bold]x[/bold]" in rendered(report)


# ── the page ─────────────────────────────────────────────────────────────────────────────────

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Every tag with its attributes; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict]:
    run_dir = tmp_path_factory.mktemp("runs") / "calf-16k"
    report = make_run(run_dir)
    write_report(report, run_dir, run_dir / "model")
    return run_dir, report


def test_the_page_needs_no_network_and_no_script(written):
    html = (written[0] / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"script", "link", "iframe", "object", "form", "base"})
    attributes = [(name, value) for _, found in page.tags for name, value in found.items()]
    assert all(
        value.startswith("data:image/svg+xml;") for name, value in attributes if name == "src"
    )
    assert not [name for name, _ in attributes if name.startswith("on") or name == "style"]
    assert "http://" not in html
    assert "https://" not in html
    # loss, gain, positions, retrieval twice, training; heat maps of the passkey twice
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 8


def test_the_policy_allows_exactly_the_pages_own_stylesheet(written):
    import base64
    import hashlib

    html = (written[0] / "report.html").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"
    assert policy in html
    assert "prefers-color-scheme: dark" in style
    assert 'name="viewport"' in html


def test_the_page_says_title_verdicts_table_and_how_to_repeat(written):
    html = (written[0] / "report.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    text = re.sub(r"<[^>]+>", "", html)
    assert "<title>calf: 1k → 16k</title>" in html
    order = [
        "Uses context up to 16k: −0.050 ± 0.010 nats over 1k",
        "Base collapses beyond its window: +1.600 ± 0.020 nats at 16k compared with 1k",
        "2 trials a depth, single cells say little",
        "4.54 to 4.66",
        "logits at end",
        "short_context.delta_nll",
        "16 pairs: 6 unchanged, 6 slowed by 16, 4 by ",
        "2 min 28 s",
        "run.yaml --out",
        "metrics.jsonl",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_hostile_names_and_values_are_escaped(tmp_path):
    report = make_run(tmp_path / "run")
    results = report["evaluation"]
    evil = '<script>alert("x")</script>\' onload="y'
    report["model"] = report["data"][0] = evil
    report["warnings"] = [evil]
    report["verify"]["checks"]["weights"]["found"] = evil
    report["verify"]["runtimes"][evil] = evil
    results["versions"][evil] = evil
    write_report(report, tmp_path / "run", tmp_path / "run" / "model")
    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, found in page.tags for name in found if name == "onload"]


def test_a_run_without_training_or_evaluation_has_a_page_too(tmp_path):
    report = make_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    for key in ("nll", "passkey"):
        del report[key]
    report |= {"steps": 0, "trained_tokens": 0, "short_context": {}, "evaluation": {}}
    write_report(report, tmp_path / "run", tmp_path / "run" / "model")
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "without training" in html
    assert "not measured" in html
    assert "<img" not in html


def test_report_json_keeps_the_promised_keys_and_adds_the_verdicts(written):
    run_dir, report = written
    found = json.loads((run_dir / "report.json").read_text())
    assert {key: found[key] for key in report} == json.loads(json.dumps(report))
    assert [verdict["answer"] for verdict in found["verdicts"]] == ["yes"] * 6


# ── plots ────────────────────────────────────────────────────────────────────────────────────


def test_plots_are_written_in_both_formats(written):
    for name in ("nll_by_context", "passkey_ranked_by_depth", "training_loss"):
        assert (written[0] / "eval" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (written[0] / "eval" / f"{name}.svg").read_bytes()[:600]


def test_the_loss_curve_shows_held_out_points_and_marks_skipped_steps():
    metrics = [{"step": n, "loss": 3.0 - n / 10} for n in range(1, 6)]
    plain = training_plots(metrics)[-1]
    assert plain.name == "training_loss"
    assert "Held-out" not in plain.alt
    metrics[1] |= {"held_out_nll": 3.21}
    metrics[3] |= {"loss": None, "skipped": True, "held_out_nll": 2.87}
    full = training_plots(metrics)[-1]
    assert "over 4 steps, from 2.90 to 2.50" in full.alt
    assert "Held-out loss from 3.21 to 2.87" in full.alt
    assert "Skipped steps: 4" in full.alt
    for name in (b"held out", b"skipped"):
        assert (name in full.svg, name in plain.svg) == (True, False)


def test_a_line_cut_off_by_a_kill_does_not_lose_the_curve(tmp_path):
    from giraffe_cli.report.write import read_metrics

    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 3.0}]


# ── model card ───────────────────────────────────────────────────────────────────────────────


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_the_card_has_the_same_numbers_and_says_how_to_load_and_serve(written):
    run_dir, _ = written
    card = (run_dir / "model" / "README.md").read_text(encoding="utf-8")
    assert front_matter(card) == {
        "base_model": "calf",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama", "long-context", "rope", "yarn", "giraffe"],
    }
    assert "| 16k | 4.60 ± 0.06 | 2.95 ± 0.06 | 3.01 ± 0.06 | 32 |" in card
    assert "| passkey | extended | 100% (84 to 100%) |" in card
    assert "| 90% (70 to 97%) | 20 |" in card
    assert "- passkey: copy a five-digit number hidden in filler (Mohtashami & Jaggi 2023" in card
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "--max-model-len 16384" in card


@pytest.mark.parametrize(
    ("base_card", "license_name"),
    [
        ("---\nlicense: llama2\n---\n# Base\n", "llama2"),
        ("# Base\n", None),
        ("---\n: [\n---\n", None),
    ],
)
def test_a_license_is_inherited_never_invented(tmp_path, base_card, license_name):
    from giraffe_cli.report.card import write_card

    report = make_run(tmp_path / "run")
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text(base_card)
    report["model"] = str(base)
    write_card(report, tmp_path / "run" / "model", {"model": {"path": str(base)}})
    front = front_matter((tmp_path / "run" / "model" / "README.md").read_text())
    assert front.get("license") == license_name
    assert "base_model" not in front


# ── serving ──────────────────────────────────────────────────────────────────────────────────


def lines_for(tmp_path: Path, rope: dict) -> list[str]:
    config = {"max_position_embeddings": 16384, "rope_parameters": rope, "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return [line.replace(str(tmp_path), "DIR") for line in serve_lines(tmp_path)]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 4e5},
        {"rope_type": "llama3", "factor": 8.0},
        {**YARN, "attention_factor": 1.0},
        {"rope_type": "longrope", "long_mscale": 1.0},
    ],
)
def test_a_table_that_stays_gets_all_lines(tmp_path, rope):
    assert lines_for(tmp_path, rope) == [
        "vllm serve DIR --max-model-len 16384",
        "giraffe export DIR --to gguf --out DIR.gguf",
        "llama-server -m DIR.gguf -c 16384",
    ]


def test_no_llama_cpp_line_is_printed_for_a_table_that_changes(tmp_path):
    vllm, llama_cpp = lines_for(tmp_path, {"rope_type": "dynamic", "factor": 4.0})
    assert vllm == "vllm serve DIR --max-model-len 16384"
    assert llama_cpp.startswith("# llama.cpp: not served, dynamic here changes its table")


def test_linear_warns_that_vllm_multiplies_the_length(tmp_path):
    caution, vllm, *llama_cpp = lines_for(tmp_path, {"rope_type": "linear", "factor": 16.0})
    assert caution.startswith("# vLLM multiplies")
    assert vllm == "vllm serve DIR --max-model-len 16384"
    assert len(llama_cpp) == 2


def test_longrope_without_its_vllm_keys_is_named(tmp_path):
    assert "long_mscale is missing" in lines_for(tmp_path, {"rope_type": "longrope"})[0]


def test_a_directory_without_a_usable_length_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 16384.0}')
    with pytest.raises(InvalidInput, match="needs an integer"):
        serve_lines(tmp_path)
