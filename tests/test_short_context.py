"""What changed within the native window: which scores tell it, and the percentile of KL."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_text_tasks import material, read

from giraffe_cli.evals.short_context import clustered_percentile, short_context
from giraffe_cli.evals.tasks.short import Short


class TestShortContext:
    def test_the_percentile_is_of_the_longest_length_within_the_native_window(self):
        def compared(length, nats):
            example = Short(targets=2, anchors=1).examples(length, 0, material((16,), (4, 8)))[0]
            return example, read(example, divergence=np.full(2, nats))

        moved = [compared(4, 9.0), compared(8, 1.0)]
        scores = {"short.kl": {"8": "kl@8"}}
        found = short_context({}, scores, moved, 8, 0)["kl_p99"]
        assert (found["mean"], found["ci_high"], found["n"]) == (1.0, 1.0, 1)

    def test_the_percentile_is_the_least_value_that_enough_do_not_exceed(self):
        values = [np.arange(1, 51) / 1.0, np.arange(51, 101) / 1.0]
        score = clustered_percentile(values, ["a", "b"], 0.99, 0)
        assert (score["mean"], score["n"]) == (99.0, 2)
        # ln 99.5 and ln 49.5 have a standard error of 0.35, 1.25 of it and t 12.7 at one degree
        half = 12.706 * 1.25 * np.log(99.51 / 49.51) / 2
        assert score["ci_high"] == pytest.approx(99 * np.exp(half), rel=0.02)
        assert score["ci_low"] == pytest.approx(99 * np.exp(-half), rel=0.02)

    def test_one_document_has_no_interval_and_more_documents_a_narrower_one(self):
        values = [np.linspace(0.001, 0.01 * (1 + n % 3), 200) for n in range(40)]
        scores = [
            clustered_percentile(values[:count], [str(n) for n in range(count)], 0.99, 0)
            for count in (1, 3, 9, 39)
        ]
        widths = [np.log(score["ci_high"] / score["ci_low"]) for score in scores]
        assert widths[0] == 0
        assert widths[1] > widths[2] > widths[3] > 0

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.lists(st.floats(0, 9), min_size=1, max_size=9), min_size=1, max_size=6),
        st.sampled_from([0.5, 0.9, 0.99]),
    )
    def test_it_is_numpys(self, parts, share):
        score = clustered_percentile(
            [np.array(p) for p in parts], [str(i) for i in range(len(parts))], share, 0, 200
        )
        every = np.concatenate(parts)
        assert score["mean"] == np.quantile(every, share, method="inverted_cdf")
        assert 0 <= score["ci_low"] <= score["mean"] <= score["ci_high"]

    def test_short_comes_first_and_nll_counts_at_the_native_length_alone(self):
        paired = {
            "nll": {"checkpoint_minus_base": {"8": "nll@8", "16": "nll@16"}},
            "short": {"checkpoint_minus_base": {"4": "short@4", "8": "short@8"}},
        }
        assert short_context(paired, {}, [], 8, 0) == {"delta_nll": "short@8"}
        assert short_context(paired, {}, [], 7, 0) == {}, "at 4 it may keep what it loses at 7"
        del paired["short"]
        assert short_context(paired, {}, [], 8, 0) == {"delta_nll": "nll@8"}
        paired["nll"] = {"checkpoint_minus_base": {"4": "nll@4", "16": "nll@16"}}
        assert short_context(paired, {}, [], 8, 0) == {}
