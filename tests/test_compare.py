"""`giraffe report`: runs, unfinished ones and evaluations side by side."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import build_tiny_llama
from synthetic_results import make_results, only, score, share, without_base
from test_stages import staged

from giraffe_cli.pipeline import Options, extend
from giraffe_cli.progress import SilentReporter
from giraffe_cli.report.compare import caution, read_entries
from giraffe_cli.report.compare_page import write_comparison
from giraffe_cli.report.compare_plots import compare_plots
from giraffe_cli.report.compare_rows import rows
from giraffe_cli.report.protocol import differing, protocol
from giraffe_cli.rundir import read_json, write_sealed


@pytest.fixture(scope="module")
def runs(tiny_llama, corpus, tmp_path_factory):
    """`staged` (256 in 4 steps, 512 in 3), the same cut off after step 2 of its last stage, and
    the first one's evaluation."""
    folder = tmp_path_factory.mktemp("compare")
    stages = [{"target_length": 256, "steps": 4}, 512]
    extend(staged(tiny_llama, corpus, stages), folder / "staged", Options(), SilentReporter())
    cut = folder / "cut"
    shutil.copytree(folder / "staged", cut)
    for name in ("report.json", "training.json"):
        (cut / name).unlink()
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    shutil.copytree(folder / "staged" / "eval", folder / "scores")
    return folder


def test_a_finished_run_tells_its_report(runs):
    (entry,) = read_entries([runs / "staged"])
    report = json.loads((runs / "staged" / "report.json").read_text())
    assert entry.finished
    expected = {int(n): score for n, score in report["nll"]["extended"].items()}
    assert entry.scores["nll"]["checkpoint"] == expected
    assert (entry.steps, entry.trained_tokens) == (7, report["trained_tokens"])
    assert [line["step"] for line in entry.metrics] == [1, 2, 3, 4, 5, 6, 7]
    assert [tuple(border) for border in entry.borders] == [(0, "256"), (4, "512")]


@pytest.mark.parametrize("text", ["{}", "[]", '{"model": "m", "target_length": 512}'])
def test_a_report_that_somebody_else_wrote_is_named(runs, tmp_path, giraffe, text):
    foreign = shutil.copytree(runs / "staged", tmp_path / "foreign")
    (foreign / "report.json").write_text(text)
    for others in ([], [runs / "staged"]):
        done = giraffe("report", foreign, *others)
        assert done.code == 3
        assert f"{foreign / 'report.json'} is no report of a run: it has no" in done.stderr


def test_an_unfinished_run_tells_what_it_has(runs):
    (entry,) = read_entries([runs / "cut"])
    first = read_json(runs / "cut" / "stages" / "1-256" / "training.json")
    last = json.loads((runs / "cut" / "metrics.jsonl").read_text().splitlines()[1])
    assert not entry.finished
    assert (entry.steps, entry.planned_steps) == (6, 7)
    assert entry.trained_tokens == first["trained_tokens"] + last["tokens"]
    assert entry.final_loss == last["loss"]
    assert ("status", ["unfinished: 6 of 7 steps"]) in rows([entry])


def test_an_unfinished_run_names_the_table_that_it_chose(runs, tmp_path):
    cut = shutil.copytree(runs / "cut", tmp_path / "cut")
    (cut / "rope_choice.json").unlink()
    assert read_entries([cut])[0].strategy == "auto"
    write_sealed(cut / "rope_choice.json", {"chosen": {"strategy": "ntk"}})
    assert read_entries([cut])[0].strategy == "ntk"


def test_columns_stand_side_by_side_and_what_none_knows_is_left_out(runs):
    entries = read_entries([runs / "staged", runs / "cut", runs / "scores"])
    table = dict(rows(entries))
    assert table["status"] == ["finished", "unfinished: 6 of 7 steps", "evaluation"]
    assert table["context"][:2] == ["128 → 256 → 512"] * 2
    score = table["nll checkpoint 128"]
    assert score[0] == score[2] != "–"
    assert score[1] == "–"
    assert not any(what.startswith("passkey") for what in table)
    assert "held-out loss" not in table
    assert caution(entries) is None, "the same samples"


def test_other_samples_are_called_out(runs, tmp_path):
    shutil.copytree(runs / "scores", tmp_path / "other")
    path = tmp_path / "other" / "results.json"
    results = read_json(path)
    results["settings"]["tasks"]["nll"]["targets"] = 16
    path.write_text(json.dumps(results))
    told = caution(read_entries([runs / "scores", tmp_path / "other"]))
    assert "what differs: the settings of nll;" in told


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("seed",), 1, "seed"),
        (("suite",), "full", "suite"),
        (("settings", "documents"), {"other": 9}, "documents"),
        (("settings", "chat"), True, "chat template"),
        (("models", "checkpoint", "dtype"), "bfloat16", "dtype"),
    ],
)
def test_whatever_bears_on_a_score_is_called_out(path, value, named):
    first, second = make_results(), make_results()
    part = second
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert differing([protocol(first), protocol(second), {}]) == [named]
    assert differing([protocol(first), protocol(first)]) == []


def with_tasks(*names, **changes):
    """Synthetic results of these tasks, with `changes` among the settings."""
    results = make_results()
    results["settings"]["tasks"] = {name: {} for name in names}
    results["settings"].update(changes)
    return results


REFERENCE = {"subject": "base", "sha256": "b" * 64, "dtype": "float32", "tokens": 1024}


@pytest.mark.parametrize(
    ("task", "other", "settings", "named"),
    [
        ("longppl", "nll", {"reference": {**REFERENCE, "sha256": "e" * 64}}, "evaluator"),
        ("longppl", "nll", {"reference": {**REFERENCE, "tokens": 4096}}, "evaluator"),
        ("niah", "passkey", {"digests": {"haystack": "2"}}, "haystack"),
        ("niah-single-2", "nll", {"digests": {"haystack": "2"}}, "haystack"),
        ("nll", "passkey", {"digests": {"documents": "2"}}, "documents"),
        ("short", "nll", {"digests": {"other_text": "2"}}, "other text"),
        ("short", "nll", {"other_text": {"topic": 9}}, "other text"),
        ("lambada", "nll", {"files": {"lambada": "2"}}, "the data file of lambada"),
    ],
)
def test_what_a_shared_task_reads_is_called_out_and_only_there(task, other, settings, named):
    plain = {
        "reference": REFERENCE,
        "digests": {"documents": "1", "haystack": "1", "other_text": "1"},
        "other_text": {"topic": 8},
        "files": {"lambada": "1"},
    }
    first, second = (protocol(with_tasks(task, **given)) for given in (plain, plain | settings))
    assert differing([first, second]) == [named]
    assert differing([first, first]) == []
    assert differing([first, protocol(with_tasks(other, **plain | settings))]) == []
    older = with_tasks(task)
    for key in plain:
        older["settings"].pop(key, None)
    assert differing([first, protocol(older)]) == [], "what is not known is not held against it"


@pytest.mark.parametrize(
    ("task", "change", "named"),
    [
        ("nll", {"lengths": [1024, 4096]}, ["longest length"]),
        ("sliding", {"lengths": [1024, 4096]}, ["longest length"]),
        ("longppl", {"lengths": [1024, 4096]}, ["longest length"]),
        ("positions", {"lengths": [1024, 4096]}, ["longest length"]),
        ("passkey", {"lengths": [1024, 4096]}, []),
        ("short", {"lengths": [1024, 4096]}, []),
        ("short", {"lengths": [512, 16384]}, ["longest length within the native window"]),
        ("nll", {"native_length": 2048}, ["native window"]),
        ("passkey", {"native_length": 2048}, []),
    ],
)
def test_lengths_are_called_out_where_they_decide_what_is_scored(task, change, named):
    first, second = with_tasks(task), with_tasks(task) | change
    assert differing([protocol(first), protocol(second)]) == named


def test_the_protocol_is_what_evaluations_write(giraffe, tiny_llama, corpus, tmp_path):
    """Real results, so that no key is looked for that none has."""
    plain = ("eval", tiny_llama, "--tasks", "nll,longppl,needle-nll", "--data", corpus,
             "--set", "nll.targets=16", "--set", "longppl.targets=16", "--set",
             "needle-nll.needles=2", "--samples", "1")  # fmt: skip
    other = tmp_path / "other.txt"
    other.write_text("A giraffe sleeps for two hours a day. " * 40)
    longer, wider = ("--lengths", "128,512"), ("--lengths", "128,384")
    ways = {
        "plain": longer,
        "shorter": wider,
        "based": (*longer, "--evaluator", build_tiny_llama(tmp_path / "m", num_hidden_layers=1)),
        "hidden": (*longer, "--haystack", other),
    }
    found = {}
    for name, options in ways.items():
        done = giraffe(*plain, *options, "--out", tmp_path / name)
        assert done.code == 0, done.stderr
        found[name] = protocol(json.loads((tmp_path / name / "results.json").read_text()))
    assert None not in found["plain"]["documents"] + found["plain"]["evaluator"]
    assert [differing([found["plain"], found[name]]) for name in ways] == [
        [],
        ["longest length"],
        ["evaluator"],
        ["haystack"],
    ]
    told = giraffe("report", tmp_path / "plain", tmp_path / "shorter")
    assert "not scored alike, what differs: longest length;" in " ".join(told.stderr.split())


def test_evaluations_of_any_tasks_stand_side_by_side(tmp_path):
    for name, results in (
        ("all", make_results()),
        ("alone", without_base(only(make_results(), "passkey"))),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    entries = read_entries([tmp_path / "all", tmp_path / "alone"])
    table = dict(rows(entries))
    assert table["passkey checkpoint 16k"] == ["90% (70 to 97)"] * 2
    assert table["passkey base 16k"] == ["0% (0 to 16)", "–"]
    assert table["nll checkpoint 16k"] == ["2.95 ± 0.06", "–"]
    assert [plot.name for plot in compare_plots(entries)] == [
        "nll_by_context",
        "retrieval_generated",
        "retrieval_ranked",
    ]
    page = write_comparison(entries, tmp_path / "page").read_text()
    assert "90% (70 to 97)" in page
    assert "2 evaluations side by side" in page
    assert table["evaluated"] == ["quick, seed 0, float32"] * 2


def test_the_command_tells_as_json_as_table_and_as_page(runs, giraffe, tmp_path):
    told = giraffe("report", runs / "staged", runs / "cut", "--json", "--out", tmp_path / "page")
    value = json.loads(told.stdout)
    assert [run["name"] for run in value["runs"]] == ["staged", "cut"]
    assert [run["finished"] for run in value["runs"]] == [True, False]
    page = (tmp_path / "page" / "report.html").read_text()
    assert page.count("<figure") == 2
    assert "unfinished: 6 of 7 steps" in page
    assert "http" not in page.replace("Content-Security-Policy", "").replace("http-equiv", "")
    shown = giraffe("report", runs / "staged", runs / "cut").stdout
    assert "unfinished: 6 of 7 steps" in shown


def test_one_run_shows_its_summary_again(runs, giraffe):
    shown = giraffe("report", runs / "staged").stdout
    assert "short context kept" in shown
    assert giraffe("report", runs / "cut").stdout.count("unfinished: 6 of 7 steps") == 1


def test_lm_evals_tasks_stand_side_by_side(tmp_path):
    for name, found, samples in (("one", 19, 20), ("other", 17, 20), ("third", 17, 10)):
        results = make_results()
        scores = {"niah_single_1": {"16384": share(found, 20)}}
        results["harness"] = {"checkpoint": {**scores, "wikitext.bits": {"900": score(7.25, 0.5)}}}
        results["settings"]["harness"] = {"lm_eval": "0.4.13", "samples": samples}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    entries = read_entries([tmp_path / "one", tmp_path / "other"])
    table = dict(rows(entries))
    assert table["harness.niah_single_1 checkpoint 16k"] == ["95% (76 to 99)", "85% (64 to 95)"]
    assert table["harness.wikitext.bits checkpoint 900"] == ["7.25 ± 0.50"] * 2
    assert entries[0].to_json()["scores"]["harness.niah_single_1"]["checkpoint"][16384]["n"] == 20
    assert caution(entries) is None
    assert "differs: lm-eval;" in caution(read_entries([tmp_path / "one", tmp_path / "third"]))


def test_bad_paths_are_named_together(runs, giraffe, tmp_path):
    told = giraffe("report", tmp_path / "gone", tmp_path, runs / "staged")
    assert told.code == 3
    assert "gone does not exist" in told.stderr
    assert "holds neither run.yaml nor results.json" in told.stderr
    assert "giraffe extend --out" in told.stderr
    assert giraffe("report", runs / "cut", "--out", runs / "staged").code == 3


def test_a_run_is_told_where_it_lies_and_its_pictures_stay(runs, giraffe, tmp_path):
    """From wherever it is asked for, and after it was moved."""
    moved = shutil.copytree(runs / "staged", tmp_path / "moved")
    told = giraffe("report", moved)
    assert f"model   {moved}/model" in told.stdout
    assert f"report  {moved}/report.html" in told.stdout
    before = {path.name: path.read_bytes() for path in (moved / "eval").iterdir() if path.is_file()}
    assert giraffe("report", moved / "eval").code == 0
    after = {path.name: path.read_bytes() for path in (moved / "eval").iterdir() if path.is_file()}
    assert after == before


def test_names_are_text_to_the_pictures(tmp_path):
    """`$` begins a formula for matplotlib, and a leading `_` hides an entry of a legend."""
    folders = [tmp_path / "x$\\foo$", tmp_path / "_base", tmp_path / ("long " * 20)]
    for folder in folders:
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(make_results()))
    page = write_comparison(read_entries(folders), tmp_path / "out")
    assert "_base" in page.read_text()


class TestDamaged:
    @pytest.mark.parametrize(
        "content",
        [
            "{}",
            "[]",
            "3",
            json.dumps(make_results() | {"lengths": []}),
            json.dumps(make_results() | {"models": []}),
            json.dumps(make_results() | {"models": {"checkpoint": {"tasks": {"nll": {"8": 1}}}}}),
        ],
    )
    def test_what_is_no_results_json_is_refused_by_name(self, giraffe, tmp_path, content):
        (tmp_path / "results.json").write_text(content)
        told = giraffe("report", tmp_path)
        assert told.code == 3
        assert f"{tmp_path}/results.json is no results.json of giraffe eval" in told.stderr
        assert f"hint: giraffe eval CHECKPOINT --out {tmp_path}" in told.stderr

    @pytest.mark.parametrize("content", ["[]", "{}", '{"command": "eval"}', '{"command": [1]}'])
    def test_what_is_no_command_is_refused_by_name(self, giraffe, tmp_path, content):
        (tmp_path / "results.json").write_text(json.dumps(make_results()))
        (tmp_path / "command.json").write_text(content)
        told = giraffe("report", tmp_path)
        assert told.code == 3
        assert "command.json is no command.json of giraffe eval" in told.stderr
