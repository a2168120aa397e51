"""What a report writes: a page that needs nothing, its pictures, the model card."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from synthetic_report import Page, make_run

from giraffe_cli.report.card import card_data, public_name, write_card
from giraffe_cli.report.plots import training_plots
from giraffe_cli.report.write import write_report


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
    assert [verdict["answer"] for verdict in found["verdicts"]] == ["yes"] * 7


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
    report = make_run(tmp_path / "run")
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text(base_card)
    report["model"] = str(base)
    write_card(report, tmp_path / "run" / "model", {"model": {"path": str(base)}})
    front = front_matter((tmp_path / "run" / "model" / "README.md").read_text())
    assert front.get("license") == license_name
    assert "base_model" not in front


def test_a_card_publishes_no_path(written):
    """What is uploaded says nothing of where it was made."""
    run_dir, report = written
    write_card({**report, "data": ["/home/me/secret/books.jsonl"]}, run_dir / "model", {})
    card = (run_dir / "model" / "README.md").read_text(encoding="utf-8")
    assert str(run_dir.parent) not in card
    assert "secret" not in card
    assert "books.jsonl" in card
    assert "vllm serve PATH --max-model-len 16384" in card
    assert "llama-server -m PATH.gguf -c 16384" in card


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("a/b.jsonl", "b.jsonl"),
        ("mine=/a/b.jsonl", "mine"),
        ("epub:/a/books", "epub:books"),
        ("hf:org/set:en", "hf:org/set:en"),
        ("python-stdlib", "python-stdlib"),
        ("/a/*.jsonl", "*.jsonl"),
        ("-", "-"),
    ],
)
def test_a_corpus_has_a_name_without_its_place(source, named):
    assert public_name(source) == named


@pytest.mark.parametrize(
    ("model", "named"), [("org/Llama-7b", "org/Llama-7b"), ("calf", None), ("", None)]
)
def test_a_card_names_a_base_that_the_hub_has(model, named):
    """calf ships inside the package, and the hub's `calf` is another's."""
    front = card_data({"model": model, "strategy": "yarn"}, None).to_dict()
    assert front.get("base_model") == named
