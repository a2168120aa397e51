"""The bake-off: who is read on what, what a budget leaves out, and what is recommended."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from tuning import HEAD, LENGTHS, PlantedReader, planted_evidence

from giraffe_cli.evals.measures import Value
from giraffe_cli.progress import SilentReporter
from giraffe_cli.tune.compare import BakeOff, Budget, compare, rounds
from giraffe_cli.tune.evidence import nested_lengths
from giraffe_cli.tune.settings import settings
from giraffe_cli.tune.standing import Standing, led_by_the_best, recommend

FOUND = settings(HEAD)[0]
RANKS = {setting.table.inv_freq + (setting.table.attention_factor,): n
         for n, setting in enumerate(reversed(FOUND))}  # fmt: skip


def planted(table, example):
    """The likeliest setting is the worst; documents differ by more than settings do."""
    document = int(example.key[4])
    return 3.0 + 0.1 * RANKS.get(table.inv_freq + (table.attention_factor,), 0) + document


def run(reader, **changes):
    reporter = SilentReporter()
    evidence = changes.pop("evidence", planted_evidence())
    found = changes.pop("found", FOUND)
    return compare(reader, found, HEAD, evidence, reporter, **changes), reporter


def test_rounds_double_the_documents():
    assert rounds(8, halves=True) == [1, 2, 4, 8]
    assert rounds(6, halves=True) == [1, 2, 4, 6]
    assert rounds(1, halves=True) == [1]
    assert rounds(8, halves=False) == [8]


def test_lengths_double_up_to_the_target():
    assert nested_lengths(1024, 16384) == [1024, 2048, 4096, 8192, 16384]
    assert nested_lengths(1024, 3072) == [1024, 2048, 3072]
    assert nested_lengths(1024, 2048) == [1024, 2048]


def test_the_worse_half_is_dropped_and_the_best_wins():
    result, _ = run(PlantedReader(planted))
    rows = result["settings"]
    assert rows[0]["label"] == FOUND[-1].label == result["recommendation"]["label"]
    assert [row["samples"] for row in rows[:3]] == [8, 8, 8]
    first = len(FOUND)
    assert Counter(row["samples"] for row in rows) == {
        1: first - -(-first // 2), 2: 5, 4: 3, 8: 3
    } or sum(row["samples"] >= 1 for row in rows) == first  # fmt: skip
    assert [row["samples"] for row in rows] == sorted((r["samples"] for r in rows), reverse=True)
    assert {*rows[0]["nll"]} == {str(length) for length in LENGTHS}
    assert {*rows[-1]["nll"]} == {"512"}


def test_halving_reads_a_fraction_and_all_reads_everything():
    halved, whole = PlantedReader(planted), PlantedReader(planted)
    run(halved)
    result, _ = run(whole, halves=False)
    assert {row["samples"] for row in result["settings"]} == {8}
    assert whole.read_tokens == len(FOUND) * 8 * sum(LENGTHS)
    assert halved.read_tokens < 0.4 * whole.read_tokens


def test_differences_are_paired_so_that_documents_cancel():
    result, _ = run(PlantedReader(planted), halves=False)
    for place, row in enumerate(result["settings"]):
        minus = row["minus_best"]
        assert minus["mean"] == pytest.approx(0.1 * place)
        assert (minus["ci_low"], minus["ci_high"]) == pytest.approx((0.1 * place, 0.1 * place))
    assert result["recommendation"]["tied"] == []


def test_what_cannot_be_told_apart_is_named():
    def close(table, example):
        sign = -1 if int(example.key[4]) % 2 else 1
        return 3.0 + (0.5 * sign + 0.01 if table == FOUND[0].table else 0.0)

    result, _ = run(PlantedReader(close), found=FOUND[:2], halves=False)
    assert result["recommendation"]["label"] == FOUND[1].label
    assert result["recommendation"]["tied"] == [FOUND[0].label]
    assert f"not told apart from it: {FOUND[0].label}" in result["recommendation"]["reason"]


def test_the_cost_within_the_native_window_is_told_against_the_base():
    def costly(table, example):
        is_base = table.strategy == "none"
        return 2.0 if is_base and example.length == 128 else 2.25 if example.length == 128 else 3.0

    result, reporter = run(PlantedReader(costly), found=FOUND[:3])
    assert result["settings"][0]["short_context"]["mean"] == pytest.approx(0.25)
    assert any("costs +0.250 nats within the native window" in w for w in reporter.warnings)


class TestBudget:
    def timed(self, seconds, pace=0.001, **changes):
        reader = PlantedReader(planted, pace)
        budget = Budget(seconds, clock=lambda: reader.now)
        result, reporter = run(reader, budget=budget, **changes)
        return result, reader, reporter

    @pytest.mark.parametrize("seconds", [1.1, 2.0, 5.0, 12.0, 40.0, 1000.0])
    def test_is_never_exceeded(self, seconds):
        result, reader, _ = self.timed(seconds)
        assert reader.now <= seconds
        assert result["budget_seconds"] == seconds
        assert result["recommendation"] is not None

    def test_time_that_would_not_pay_for_the_next_round_is_spent_in_this_one(self):
        result, reader, _ = self.timed(1.6)  # 0.512 s a table: two thirds would be two of them
        assert [row["samples"] for row in result["settings"]] == [1, 1, 1]
        assert reader.now == pytest.approx(3 * 0.512)

    def test_leaves_out_the_unlikeliest_and_names_them(self):
        result, _, reporter = self.timed(5.0)
        read = {row["label"] for row in result["settings"]}
        assert read == {setting.label for setting in FOUND[: len(read)]}
        assert result["not_read"] == [setting.label for setting in FOUND[len(read) :]]
        assert any(FOUND[-1].label in warning for warning in reporter.warnings)

    def test_too_little_for_two_recommends_none(self):
        result, reader, reporter = self.timed(0.9)
        assert (result["recommendation"], reader.read_tokens) == (None, 0)
        assert "for want of time no two settings were read on 1 sample" in reporter.warnings

    def test_a_second_call_goes_on_where_the_first_stopped(self):
        reader = PlantedReader(planted, 0.001)
        for _ in range(60):
            begun = reader.now
            run(reader, budget=Budget(6.0, clock=lambda: reader.now))
            if reader.now == begun:
                break
        result, _ = run(reader, budget=Budget(6.0, clock=lambda: reader.now))
        assert result["settings"][0]["label"] == FOUND[-1].label
        assert result["settings"][0]["samples"] == 8


def test_the_file_is_what_is_returned(tmp_path):
    result, _ = run(PlantedReader(planted), out=tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text()) == json.loads(json.dumps(result))


def test_one_setting_alone_is_measured_all_the_same():
    result, _ = run(PlantedReader(planted), found=FOUND[:1])
    assert result["recommendation"]["label"] == FOUND[0].label
    assert result["settings"][0]["samples"] == 8


def row(label, clusters, low, samples=8, short=None):
    return {"label": label, "strategy": label, "knobs": {}, "samples": samples,
            "short_context": None if short is None else {"mean": short},
            "nll": {"512": {"mean": 3.0, "n": samples}},
            "minus_best": {"ci_low": low, "ci_high": 1.0, "clusters": clusters}}  # fmt: skip


def test_a_loss_of_one_document_tells_nothing_apart():
    found = recommend([row("a", 1, 0.0, 1), row("b", 1, 0.2, 1)], planted_evidence(1))
    assert found["tied"] == []
    assert found["reason"].endswith("; 1 read on one document, which tells no two apart")


def test_what_was_dropped_early_and_may_be_as_good_is_named():
    """By an interval of four documents that holds 0, beside a best that was read on eight."""
    rows = [row("best", 8, 0.0), row("close", 8, -0.1), row("dropped", 4, -0.4, 4),
            row("worse", 4, 0.1, 4), row("one", 1, 0.5, 1)]  # fmt: skip
    found = recommend(rows, planted_evidence(8))
    assert found["tied"] == ["close", "dropped"]
    assert "not told apart from it: close, dropped; 1 read on one document" in found["reason"]
    many = recommend([row("best", 8, 0.0), *(row(f"s{n}", 3, -1) for n in range(9))],
                     planted_evidence(8))  # fmt: skip
    assert len(many["tied"]) == 9
    assert many["reason"].endswith("not told apart from it: s0, s1, s2, s3, s4 and 4 more")


def test_the_one_that_costs_least_of_those_that_may_be_as_good_is_named():
    """By more than the 0.02 nats that short context may lose."""
    rows = [row("best", 8, 0.0, short=0.12), row("near", 8, -0.1, short=0.11),
            row("cheap", 8, -0.1, short=0.01), row("worse", 8, 0.1, short=0.0)]  # fmt: skip
    reason = recommend(rows, planted_evidence(8))["reason"]
    assert "; of these cheap costs least within the native window (+0.010 nats against" in reason
    for others in (rows[:2], [rows[0], rows[3]], [row("best", 8, 0.0), *rows[1:]]):
        assert "costs least" not in recommend(others, planted_evidence(8))["reason"]


@pytest.mark.parametrize("seconds", [1e9, 60.0])
def test_a_hopeless_setting_that_was_read_on_more_before_does_not_win(seconds):
    """It was recommended, for it alone had eight documents; the budget pays for two or for all."""
    reader, worst = PlantedReader(planted, pace=1 / 512), FOUND[0]
    run(reader, found=[worst, FOUND[1]], halves=False)
    begun = reader.now
    budget = Budget(seconds, lambda: reader.now - begun)
    result, _ = run(reader, budget=budget)
    best = result["settings"][0]
    assert best["label"] == result["recommendation"]["label"] != worst.label
    row = next(row for row in result["settings"] if row["label"] == worst.label)
    assert (row["samples"], row["minus_best"]["ci_low"] > 0) == (8, True)
    assert worst.label not in result["recommendation"]["tied"]


def test_what_is_better_on_what_both_were_read_on_leads():
    """Of four documents against eight; one document shows nothing."""
    evidence = planted_evidence()
    values = {pair: Value(3.0 + n) for n, pair in enumerate(evidence.clusters())}

    def standing(setting, count, loss):
        few = {pair: Value(v.value + loss + 0.001 * n)
               for n, (pair, v) in enumerate([*values.items()][:count])}  # fmt: skip
        return Standing(setting, {"nll": {512: few}})

    eight, four, one = (
        standing(s, n, loss) for s, n, loss in zip(FOUND, (8, 4, 1), (1.0, 0.0, -1.0), strict=False)
    )
    found = led_by_the_best([eight, four, one], evidence, evidence.clusters(), 0)
    assert found == [four, eight, one]
    assert led_by_the_best([four, one], evidence, evidence.clusters(), 0) == [four, one]


def test_nothing_is_read_twice():
    reader = PlantedReader(planted)
    run(reader)
    once = reader.read_tokens
    run(reader)
    assert reader.read_tokens == once
    bake_off = BakeOff(reader, planted_evidence(), lambda: 0.0, SilentReporter())
    assert bake_off.read(FOUND[:1], planted_evidence().deciding(1), "nothing", 0.0) == FOUND[:1]


def test_a_prediction_that_is_far_off_is_mended_by_what_the_first_takes():
    class Pessimist(PlantedReader):
        """Predicts ten times what it takes until it has read something."""

        def seconds(self, table, entries):
            real = super().seconds(table, entries)
            return real if self.read_tokens else 10 * real

        def read(self, table, entries, bar):
            self.now += PlantedReader.seconds(self, table, entries)
            pace, self.pace = self.pace, 0.0
            super().read(table, entries, bar)
            self.pace = pace

    reader = Pessimist(planted, 0.001)
    result, _ = run(reader, budget=Budget(12.0, clock=lambda: reader.now))
    assert len(result["settings"]) > 10
    assert reader.now <= 12.0
