"""The real lm-eval on calf: nothing cut, nothing hung, the same text as our own scorer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs giraffe-cli[eval]")
pytestmark = pytest.mark.filterwarnings("ignore")  # of nltk, sqlitedict and other packages' own

from giraffe_cli.checkpoint import inspect  # noqa: E402
from giraffe_cli.errors import InvalidInput  # noqa: E402
from giraffe_cli.evals.base import Example  # noqa: E402
from giraffe_cli.evals.lm_eval_run import run_task  # noqa: E402
from giraffe_cli.evals.lm_eval_tasks import load_task  # noqa: E402
from giraffe_cli.evals.open_subject import open_subject  # noqa: E402
from giraffe_cli.evals.prompt import share_found  # noqa: E402
from giraffe_cli.evals.subject import Subject  # noqa: E402
from giraffe_cli.model.loading import load_tokenizer  # noqa: E402

CALF = Path(__file__).parent.parent / "giraffe_cli" / "calf"
COLOURS = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def calf(tmp_path_factory):
    digest = inspect("calf", tmp_path_factory.mktemp("calf")).digest
    return open_subject(Subject("checkpoint", CALF, digest, "float32"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("responses") / "calf"


@pytest.fixture(scope="module")
def single(calf, kept):
    """Two prompts of niah_single_1 at 512 tokens."""
    task = load_task("niah_single_1", 512, calf.tokenizer, CALF, 0)["niah_single_1"]
    return run_task(task, calf, kept, length=512, limit=2, chat=None, seed=0)


@pytest.fixture
def colours(tmp_path):
    """A YAML file of lm-eval with four questions, two of them long."""
    rows = [
        {"question": "the " * size + "grass is", "choices": ["green", "seven"], "answer": 0}
        for size in (1, 2, 300, 310)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = tmp_path / "colours.yaml"
    path.write_text(COLOURS.format(path=data), encoding="utf-8")
    return path


def test_our_scorer_gives_the_text_and_score_of_lm_eval(calf, single):
    for sample in single.samples:
        prompt, settings = sample.requests[0]
        assert settings["max_gen_toks"] == 128
        ids = np.asarray(calf.tokenizer(prompt).input_ids, np.int32)
        ours = calf.outcome(Example("k", "c", 512, ids, max_new_tokens=128)).text
        assert ours == sample.text
        assert share_found(sample.answers, ours) == sample.scores["512"]


def test_only_the_length_that_was_run_has_a_score(single):
    assert [*single.means] == ["512"]
    assert [[*sample.scores] for sample in single.samples] == [["512"], ["512"]]


def test_the_same_seed_makes_the_same_prompts_whatever_was_loaded_before(calf, single):
    load_task("ruler_cwe", 512, calf.tokenizer, CALF, 0)
    task = load_task("niah_single_1", 512, calf.tokenizer, CALF, 0)["niah_single_1"]
    first = task.dataset["test"][0]["input"]
    assert single.samples[0].requests[0][0].startswith(first)


def test_a_generator_that_would_not_end_is_not_started():
    with pytest.raises(InvalidInput, match="ten sentences of filler do not fit"):
        load_task("ruler_vt", 1024, load_tokenizer(CALF), CALF, 0)


def test_prompts_that_leave_most_of_the_length_empty_are_refused(calf, kept):
    task = load_task("ruler_cwe", 1024, calf.tokenizer, CALF, 0)["ruler_cwe"]
    with pytest.raises(InvalidInput, match="fill as little as 227 tokens"):
        run_task(task, calf, kept, length=1024, limit=1, chat=None, seed=0)


def test_another_task_runs_from_a_file_and_is_not_cut(calf, kept, colours):
    task = load_task(str(colours), 512, calf.tokenizer, CALF, 0)["colours"]
    found = run_task(task, calf, kept, length=512, limit=4, chat=None, seed=0)
    assert found.means.keys() == {"acc"}
    assert found.means["acc"] == np.mean([sample.scores["acc"] for sample in found.samples])
    assert 300 < found.longest < 512
    with pytest.raises(InvalidInput, match="more than 256; lm-eval would"):
        run_task(task, calf, kept, length=256, limit=4, chat=None, seed=0)


def test_requests_are_asked_through_the_template_that_is_given(calf, kept, colours):
    """Of a model that has none of its own."""
    assert not calf.tokenizer.chat_template
    task = load_task(str(colours), 512, calf.tokenizer, CALF, 0)["colours"]
    template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}"
    found = run_task(task, calf, kept, length=512, limit=1, chat=template, seed=0)
    assert found.samples[0].requests[0][0] == "<user> the grass is"
    assert not calf.tokenizer.chat_template


def test_an_unknown_task_is_named_with_its_near_misses(giraffe, tmp_path):
    done = giraffe("eval", "calf", "--harness", "niah_single", "--out", tmp_path / "e")
    assert done.code == 3
    assert "lm-eval knows no task `niah_single`" in done.stderr
    assert "hint: did you mean niah_single_" in done.stderr


def test_the_pad_token_lm_eval_needs_stays_off_our_tokenizer(calf, single):
    assert calf.tokenizer.pad_token == load_tokenizer(CALF).pad_token
