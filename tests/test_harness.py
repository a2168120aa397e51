"""lm-eval on the models under evaluation: what is asked of it, and how its scores are read.

No lm-eval is needed: the functions that call it are played by `Played` (tests/test_lm_eval.py runs
the real one).
"""

from __future__ import annotations

import json
import shutil
import types
from pathlib import Path

import pytest

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.evals import harness, harness_jobs
from giraffe_cli.evals.harness import check_harness, plan, run_harness
from giraffe_cli.evals.harness_runs import Logged, Run
from giraffe_cli.evals.harness_scores import metric_scores, ruler_score
from giraffe_cli.evals.lm_eval_run import check_sizes
from giraffe_cli.evals.lm_eval_tasks import RULER
from giraffe_cli.evals.subject import Subject
from giraffe_cli.progress import SilentReporter

CALF = Path(__file__).parent.parent / "giraffe_cli" / "calf"


def logged(document: int, answers: list[str], **scores: float) -> Logged:
    return Logged(document, "0" * 64, answers, "a text", scores, [["a prompt", {}]])


def run_of(metric: str, values: list[float], mean: float, longest: int = 1000) -> Run:
    samples = [logged(i, ["1234567"], **{metric: value}) for i, value in enumerate(values)]
    return Run(samples, {metric: mean}, longest)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: types.SimpleNamespace(name=name))


class TestAsked:
    """Names and lengths to jobs, or to a refusal."""

    def test_without_lm_eval_the_error_names_the_extra(self, giraffe, monkeypatch, tmp_path):
        monkeypatch.setattr(harness, "find_spec", lambda name: None)
        done = giraffe("eval", "calf", "--harness", "ruler", "--out", tmp_path / "e")
        assert done.code == 3
        assert (
            "--harness needs lm_eval, wonderwords, nltk, scipy: not installed\n\n"
            "hint: pip install 'giraffe-cli[eval]'"
        ) in done.stderr

    def test_nothing_is_needed_where_nothing_is_asked(self, monkeypatch):
        monkeypatch.setattr(harness, "find_spec", lambda name: None)
        check_harness([])

    def test_offline_a_task_that_downloads_is_refused_by_name(self, installed, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(InvalidInput, match="niah_single_2 downloads Paul Graham's essays"):
            check_harness(["niah_single_2"])
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        check_harness(["niah_single_2"])

    def test_ruler_is_six_tasks_offline_and_thirteen_with_network(self, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        jobs = plan(["ruler"], [2048, 1024])
        names = ["niah_single_1", "niah_multikey_2", "niah_multikey_3",
                 "ruler_vt", "ruler_cwe", "ruler_fwe"]  # fmt: skip
        assert [(j.name, j.length) for j in jobs] == [(n, x) for n in names for x in (1024, 2048)]
        assert all(job.of_ruler for job in jobs)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        assert [j.name for j in plan(["ruler"], [1024])] == list(RULER)

    def test_other_tasks_run_once_with_the_longest_length(self):
        assert plan(["hellaswag", "niah_single_1"], [1024, 4096]) == [
            ("hellaswag", 4096, False),
            ("niah_single_1", 1024, False),
            ("niah_single_1", 4096, False),
        ]

    def test_a_request_longer_than_its_room_is_refused_not_cut(self):
        check_sizes([1000, 1024], 1024, 512)
        with pytest.raises(InvalidInput, match="take 1025 tokens, more than 1024; lm-eval would"):
            check_sizes([1000, 1025], 1024, 512)
        with pytest.raises(InvalidInput, match="fill as little as 227 tokens"):
            check_sizes([1000, 227], 1024, 512)


class TestScores:
    """Logged samples to scores."""

    def test_a_ruler_score_is_the_mean_of_its_samples_with_wilsons_interval(self):
        score = ruler_score("niah_single_1", 1024, run_of("1024", [1, 1, 1, 0], 0.75))
        assert (score["mean"], score["n"]) == (0.75, 4)
        assert (score["ci_low"], score["ci_high"]) == pytest.approx((0.3006, 0.9544), abs=1e-4)

    @pytest.mark.parametrize("values", [[-1.0, -1.0], [1.0, -1.0]])
    def test_a_length_that_was_not_run_is_no_score(self, values):
        with pytest.raises(GiraffeError, match="lm-eval gives"):
            ruler_score("niah_single_1", 1024, run_of("1024", values, sum(values) / 2))

    def test_a_figure_that_is_not_the_mean_is_no_score(self):
        with pytest.raises(GiraffeError, match="lm-eval gives 0.5 for `niah_single_1` at 1024"):
            ruler_score("niah_single_1", 1024, run_of("1024", [1, 1, 1, 0], 0.5))

    def test_several_answers_of_a_sample_narrow_the_interval(self):
        found = {"1024": 0.6}
        five, one = (
            Run([logged(i, answers, **found) for i in range(4)], found, 9)
            for answers in (list("abcde"), ["a"])
        )
        narrow, wide = (ruler_score("ruler_vt", 1024, run) for run in (five, one))
        assert wide["ci_low"] < narrow["ci_low"] < 0.6 < narrow["ci_high"] < wide["ci_high"]

    def test_alternatives_of_one_question_do_not_narrow_it(self):
        found = {"1024": 0.6}
        five, one = (
            Run([logged(i, answers, **found) for i in range(4)], found, 9)
            for answers in (list("abcde"), ["a"])
        )
        assert ruler_score("ruler_qa_squad", 1024, five) == ruler_score("ruler_qa_squad", 1024, one)

    def test_a_metric_that_is_no_mean_of_samples_is_left_out(self):
        samples = [logged(i, [], acc=i % 2, ppl=3.0 + i) for i in range(4)]
        found = metric_scores(Run(samples, {"acc": 0.5, "ppl": 4.4, "f1": 0.3}, 9), seed=0)
        assert [*found] == ["acc"]


class Played:
    """Stands for lm-eval: task objects are their names, every sample of `longest` tokens."""

    def __init__(self, monkeypatch, fails=(), cut=()) -> None:
        self.loads, self.runs, self.opens, self.asked = [], [], [], []
        self.fails, self.cut = fails, cut
        for name in ("load_task", "run_task", "open_subject", "load_tokenizer"):
            monkeypatch.setattr(harness_jobs, name, getattr(self, name))
        for module in (harness, harness_jobs):
            monkeypatch.setattr(module, "installed_version", lambda: "0.4.13")

    def load_tokenizer(self, path):
        return None

    def open_subject(self, subject):
        self.opens.append(subject.name)
        return subject.name

    def load_task(self, name, length, tokenizer, path, seed):
        self.loads.append((name, length))
        if name in self.fails:
            raise InvalidInput("no file", "find it")
        return {name: name}

    def run_task(self, task, opened, kept, *, length, limit, chat, seed):
        self.asked.append((opened, chat, kept.name))
        if (task, length) in self.cut:
            raise InvalidInput("too long")
        self.runs.append((opened, task, length))
        metric = str(length) if task in RULER else "acc"
        return run_of(metric, [1.0] * limit, 1.0, longest=length // 2)


def run(subjects, names, folder, reporter=None, lengths=(1024, 2048), limit=3):
    return run_harness(
        [Subject(name, CALF, name * 8, "float32", *longest) for name, *longest in subjects],
        names,
        lengths=lengths,
        limit=limit,
        chat=False,
        seed=0,
        out=folder,
        cache=folder,
        reporter=reporter or SilentReporter(),
    )


def asked_of(subjects, name, folder, chat=False):
    """`run_harness` of one task at 1k, its scores kept in `folder`."""
    subjects = subjects if isinstance(subjects, list) else [subjects]
    folder.mkdir(exist_ok=True)
    return run_harness(
        subjects,
        [name],
        lengths=[1024],
        limit=3,
        chat=chat,
        seed=0,
        out=folder,
        cache=folder,
        reporter=SilentReporter(),
    )


class TestRun:
    """The whole of it, lm-eval played."""

    def test_scores_stand_by_subject_task_and_length(self, monkeypatch, tmp_path):
        played, reporter = Played(monkeypatch), SilentReporter()
        subjects = [("base",), ("checkpoint",), ("control", 1024), ("evaluator",)]
        found = run(subjects, ["niah_single_1", "hellaswag"], tmp_path, reporter)
        assert {who: {t: [*lengths] for t, lengths in tasks.items()} for who, tasks in
                found.scores.items()} == {
            "base": {"niah_single_1": ["1024", "2048"], "hellaswag.acc": ["1024"]},
            "checkpoint": {"niah_single_1": ["1024", "2048"], "hellaswag.acc": ["1024"]},
            "control": {"niah_single_1": ["1024"]},
        }  # fmt: skip
        assert found.scores["base"]["niah_single_1"]["1024"]["n"] == 3
        assert found.settings == {
            "lm_eval": "0.4.13",
            "tasks": ["niah_single_1", "hellaswag"],
            "samples": 3,
            "longest": {
                "niah_single_1": {"1024": 512, "2048": 1024},
                "hellaswag": {"2048": 1024},
            },
        }
        # prompts once for all models, which are opened once a length
        assert played.loads == [("niah_single_1", 1024), ("niah_single_1", 2048),
                                ("hellaswag", 2048)]  # fmt: skip
        assert played.opens == ["base", "checkpoint", "control", "base", "checkpoint"]
        assert reporter.lines[0] == (
            "lm-eval 0.4.13: 3 samples of each of niah_single_1, hellaswag, one at a time, for "
            "each of 3 models; up to 9,216 prompt tokens, after making 500 prompts of each task "
            "and length, 1,536,000 tokens"
        )
        lines = (tmp_path / "harness.jsonl").read_text().splitlines()
        assert len(lines) == 3 * (2 + 2 + 1 + 1 + 1)
        assert json.loads(lines[0])["scores"] == {"1024": 1.0}

    def test_what_was_run_is_not_run_again(self, monkeypatch, tmp_path):
        played = Played(monkeypatch)
        first = run([("base",)], ["niah_single_1"], tmp_path)
        again = run([("base",)], ["niah_single_1"], tmp_path)
        assert again == first
        assert len(played.runs) == len(played.loads) == 2
        run([("base",)], ["niah_single_1"], tmp_path, limit=4)
        assert len(played.runs) == 4

    def test_another_tokenizer_config_is_run_again(self, monkeypatch, tmp_path):
        played, model = Played(monkeypatch), shutil.copytree(CALF, tmp_path / "model")
        tested = Subject("checkpoint", model, "m" * 16, "float32")
        asked_of(tested, "niah_single_1", tmp_path)
        asked_of(tested, "niah_single_1", tmp_path)
        assert len(played.runs) == 1
        config = json.loads((model / "tokenizer_config.json").read_text())
        config["clean_up_tokenization_spaces"] = not config.get("clean_up_tokenization_spaces")
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        asked_of(tested, "niah_single_1", tmp_path)
        assert len(played.runs) == 2
        assert len({kept for _, _, kept in played.asked}) == 2, "responses are of a tokenizer"

    def test_another_chat_template_is_run_again(self, monkeypatch, tmp_path):
        played = Played(monkeypatch)
        for folder, chat in (("base", ""), ("checkpoint", "{{ 1 }}"), ("later", "{{ 2 }}")):
            shutil.copytree(CALF, tmp_path / folder)
            (tmp_path / folder / "chat_template.jinja").write_text(chat)
        base, one, other = (
            Subject(name, tmp_path / folder, name * 8, "float32")
            for name, folder in (("base", "base"), ("checkpoint", "checkpoint"),
                                 ("checkpoint", "later"))
        )  # fmt: skip
        asked_of(base, "niah_single_1", tmp_path)
        for tested in (one, one, other):
            asked_of([base, tested], "niah_single_1", tmp_path, chat=True)
        assert [(who, chat) for who, chat, _ in played.asked] == [
            ("base", None),
            # the base, which has none, is asked through the template of the other
            ("base", "{{ 1 }}"),
            ("checkpoint", "{{ 1 }}"),
            ("base", "{{ 2 }}"),
            ("checkpoint", "{{ 2 }}"),
        ]

    def test_a_file_is_run_again_when_what_it_names_changes(self, monkeypatch, tmp_path):
        played = Played(monkeypatch)
        parts = {
            "t.yaml": "include: common.yaml\ntask: t\ndataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows*.jsonl}}}}\n"
            "process_docs: !function utils.process_docs\n",
            "common.yaml": f"include: t.yaml\nfewshot: x\ndataset_kwargs: {{a: {tmp_path}/dir}}",
            "rows1.jsonl": "1",
            "utils.py": "2",
            "dir/deep/x.csv": "3",
        }
        for name, text in parts.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        tested = Subject("checkpoint", CALF, "c" * 16, "float32")
        for count, name in enumerate(parts, start=2):
            asked_of(tested, str(tmp_path / "t.yaml"), tmp_path / "cache")
            assert len(played.runs) == count - 1
            (tmp_path / name).write_text(parts[name] + "\n# changed")
            asked_of(tested, str(tmp_path / "t.yaml"), tmp_path / "cache")
            assert len(played.runs) == count, name
        (tmp_path / "elsewhere.jsonl").write_text("4")
        asked_of(tested, str(tmp_path / "t.yaml"), tmp_path / "cache")
        assert len(played.runs) == len(parts) + 1

    def test_of_ruler_what_cannot_run_is_left_out_and_named(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        Played(monkeypatch, fails=["ruler_vt"], cut=[("ruler_cwe", 1024)])
        reporter = SilentReporter()
        found = run([("base",)], ["ruler"], tmp_path, reporter)
        assert [*found.scores["base"]["ruler_cwe"]] == ["2048"]
        assert "ruler_vt" not in found.scores["base"]
        assert reporter.warnings == found.warnings
        assert [w for w in found.warnings if "downloads" not in w] == [
            "left out: lm-eval's `ruler_vt` at 1k: no file",
            "left out: lm-eval's `ruler_cwe` at 1k: too long",
            "left out: lm-eval's `ruler_vt` at 2k: no file",
        ]
        assert (
            "left out: lm-eval's `ruler_qa_squad` downloads SQuAD, and HF_HUB_OFFLINE is set"
            in found.warnings
        )
        assert sum("downloads" in warning for warning in found.warnings) == 7

    def test_what_was_asked_for_by_name_and_never_ran_is_an_error(self, monkeypatch, tmp_path):
        Played(monkeypatch, fails=["ruler_vt"])
        with pytest.raises(InvalidInput, match="--harness ruler_vt: `ruler_vt` at 2k: no file"):
            run([("base",)], ["ruler_vt", "niah_single_1"], tmp_path)


class TestCommand:
    """Options of `giraffe eval`."""

    def test_results_and_table_hold_lm_evals_scores(
        self, giraffe, installed, monkeypatch, tiny_llama, tmp_path
    ):
        Played(monkeypatch)
        options = ("--lengths", "1k", "--samples", "2", "--harness", "niah_single_1")
        passkey = ("--tasks", "passkey", "--set", "passkey.depths=1")
        done = giraffe("eval", tiny_llama, *passkey, *options, "--out", tmp_path / "e")
        assert done.code == 0, done.stderr
        results = json.loads((tmp_path / "e" / "results.json").read_text())
        score = results["harness"]["checkpoint"]["niah_single_1"]["1024"]
        assert (score["mean"], score["n"]) == (1.0, 2)
        assert results["settings"]["harness"]["samples"] == 2
        assert "lm-eval 0.4.13, 95% intervals" in done.stdout
        assert "niah_single_1       1k  100 % [34, 100]  2" in done.stdout
