"""Which tasks run, and options that would have no effect on any of them."""

from __future__ import annotations

import pytest

from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.chosen import check_asked, runnable
from giraffe_cli.evals.suites import SUITES


class TestChosen:
    def test_a_suite_leaves_out_what_has_no_file_and_says_so(self):
        config = EvalConfig(suite="standard", files={"lambada": "x"})
        names, left_out = runnable(config)
        assert names == [n for n in SUITES["standard"].tasks if n != "hellaswag"]
        assert left_out == ["left out: task `hellaswag` needs a data file, --file hellaswag=PATH"]

    def test_a_task_by_name_must_have_its_file(self):
        with pytest.raises(InvalidInput, match="task `hellaswag` needs the data file") as caught:
            runnable(EvalConfig(tasks=["nll", "hellaswag"]))
        assert caught.value.hint == "--file hellaswag=PATH"

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"files": {"lambada": "x"}}, "data file `lambada`: no evaluated task reads it"),
            ({"other_data": ["x"]}, "--other-data has no effect"),
            ({"haystack": ["x"]}, "--haystack has no effect"),
            ({"knobs": {"kv": {}}}, "knobs of tasks that are not evaluated: kv"),
        ],
    )
    def test_what_no_task_reads_is_an_error(self, settings, message):
        with pytest.raises(InvalidInput, match=message):
            runnable(EvalConfig(tasks=["nll"], **settings))

    def test_an_evaluator_and_a_template_need_something_to_do(self):
        with pytest.raises(InvalidInput, match="2 problems"):
            check_asked(EvalConfig(evaluator="x", chat=True), [])

    def test_a_template_has_something_to_do_for_lm_evals_tasks(self):
        check_asked(EvalConfig(chat=True, harness=["ruler"]), [])
        with pytest.raises(InvalidInput, match="a chat template has no effect"):
            check_asked(EvalConfig(chat=True), [])
