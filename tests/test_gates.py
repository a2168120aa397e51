"""Gates: what may be written, what end of the interval is tested, what is refused and when."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.errors import GateFailed, InvalidInput
from giraffe_cli.evals.base import Example
from giraffe_cli.evals.coming import Coming
from giraffe_cli.evals.gating import check_gates, check_tests_something
from giraffe_cli.evals.measures import Value
from giraffe_cli.evals.samples import Batch
from giraffe_cli.evals.scoreboard import Entry, Scoreboard
from giraffe_cli.evals.settling import settle
from giraffe_cli.evals.subject import Subject
from giraffe_cli.evals.tasks.longppl import Longppl
from giraffe_cli.evals.tasks.nll import Nll
from giraffe_cli.evals.tasks.passkey import Passkey
from giraffe_cli.evals.tasks.short import Short as ShortTask
from giraffe_cli.gates import (
    OPERATORS,
    Difference,
    Gate,
    Reach,
    Short,
    Side,
    default_gates,
    judged,
    parse_gate,
)
from giraffe_cli.progress import SilentReporter
from giraffe_cli.report.templates import gate_number
from giraffe_cli.report.verdicts_gates import in_words
from giraffe_cli.telling import settle_gates

LONG, SHORT = Side("checkpoint", "nll", 16384), Side("checkpoint", "nll", 8192)


@pytest.mark.parametrize(
    ("text", "quantity", "op", "threshold"),
    [
        ("nll@16k-nll@8k<0", Difference(LONG, SHORT), "<", 0.0),
        (" nll@16k - nll@8192 <= -1e-2 ", Difference(LONG, SHORT), "<=", -0.01),
        ("passkey@16k>=0.9", Side("checkpoint", "passkey", 16384), ">=", 0.9),
        ("niah-multikey-2.ranked@4k>.5", Side("checkpoint", "niah-multikey-2.ranked", 4096), ">",
         0.5),
        ("niah-vt@4k-base:niah-vt@4k>0",
         Difference(Side("checkpoint", "niah-vt", 4096), Side("base", "niah-vt", 4096)), ">", 0.0),
        ("nll@16k-nll.shuffled@16k<0",
         Difference(LONG, Side("checkpoint", "nll.shuffled", 16384)), "<", 0.0),
        ("control:nll@8k<3", Side("control", "nll", 8192), "<", 3.0),
        ("short_context.delta_nll<=0.02", Short("delta_nll"), "<=", 0.02),
        ("effective_length.passkey.ranked>=16k", Reach("checkpoint", "passkey.ranked"), ">=",
         16384),
        ("base:effective_length.nll<8192", Reach("base", "nll"), "<", 8192),
    ],
)  # fmt: skip
def test_a_gate_is_read_as_it_is_written(text, quantity, op, threshold):
    claim = parse_gate(text)
    assert (claim.quantity, claim.op, claim.threshold) == (quantity, op, threshold)
    assert parse_gate(claim.text) == claim


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nll@16k", "is no comparison with a number"),
        ("nll@16k==1", "is no comparison"),
        ("0<nll@16k", "`0` names no score"),
        ("nll@16k<low", "`low` is no number"),
        ("nll@16k<nan", "`nan` is no number"),
        ("nll@16q<1", "`16q` is not a length"),
        ("nll<1", "`nll` names no score"),
        ("nll@16k+nll@8k<1", "names no score"),
        ("effective_length.nll>=far", "`far` is not a length"),
        ("", "is no comparison"),
    ],
)
def test_what_is_no_gate_is_named(text, message):
    with pytest.raises(InvalidInput, match="gate `") as caught:
        parse_gate(text)
    assert message in caught.value.message
    assert caught.value.hint


@given(st.text(alphabet="nl@16k-<>=.: e9", max_size=20))
def test_any_text_is_a_gate_or_a_clear_error(text):
    with contextlib.suppress(InvalidInput):
        assert parse_gate(text).op in OPERATORS


class TestBounds:
    SCORE = {"mean": 0.0, "ci_low": -0.1, "ci_high": 0.2, "n": 9, "clusters": 9}

    @pytest.mark.parametrize(
        ("op", "threshold", "bound", "ok"),
        [
            ("<", 0.2, 0.2, False),
            ("<=", 0.2, 0.2, True),
            ("<", 0.1, 0.2, False),  # the mean would pass
            (">", -0.1, -0.1, False),
            (">=", -0.1, -0.1, True),
            (">", -0.05, -0.1, False),  # the mean would pass
        ],
    )
    def test_the_end_that_is_harder_to_pass_is_tested(self, op, threshold, bound, ok):
        gate = judged("x", self.SCORE, op, threshold)
        assert (gate.bound, gate.ok) == (bound, ok)

    def test_one_document_passes_no_gate(self):
        one = {"mean": -1.0, "ci_low": -1.0, "ci_high": -1.0, "n": 4, "clusters": 1}
        gate = judged("x", one, "<", 0.0)
        assert not gate.ok
        assert gate.sentence == "x: one document has no interval (needs < +0.000)"

    @given(st.floats(-1, 1), st.floats(-1, 1))
    def test_a_looser_threshold_never_fails_what_a_tighter_one_passes(self, one, other):
        low, high = sorted((one, other))
        assert judged("x", self.SCORE, "<", high).ok >= judged("x", self.SCORE, "<", low).ok
        assert judged("x", self.SCORE, ">", low).ok >= judged("x", self.SCORE, ">", high).ok

    @pytest.mark.parametrize(
        ("threshold", "bound", "words"),
        [
            (0.0, 0.0004, "upper bound +0.0004 (needs <= +0.0000)"),
            (0.0125, 0.0125, "upper bound +0.0125 (needs <= +0.0125)"),
            (0.05, 0.2, "upper bound +0.200 (needs <= +0.050)"),
            (1 / 3, 0.2, "upper bound +0.2 (needs <= +0.333333)"),
        ],
    )
    def test_a_sentence_shows_as_many_digits_as_tell_them_apart(self, threshold, bound, words):
        """A failed gate read `+0.000 (needs <= +0.000)`."""
        score = {**self.SCORE, "ci_high": bound}
        assert words in judged("x", score, "<=", threshold).sentence

    def test_a_sentence_tells_bound_and_need(self):
        assert judged("nll@16k", self.SCORE, "<=", 0.05).sentence == (
            "nll@16k: upper bound +0.200 (needs <= +0.050)"
        )
        assert judged("nll@16k", self.SCORE, ">", 0.05).sentence == (
            "nll@16k: lower bound -0.100 (needs > +0.050)"
        )


# ── tested on samples ────────────────────────────────────────────────────────────────────────


def board_of(name, measure, rows):
    """`{("base", 8): [1.0, 2.0]}`: a value per document."""
    entries = [
        Entry(subject, Example(f"d{d}", f"d{d}", length, np.zeros(1, np.int32)), Value(value))
        for (subject, length), row in rows.items()
        for d, value in enumerate(row)
    ]
    return Scoreboard(name, measure, entries, native_length=8, seed=0)


@pytest.fixture(scope="module")
def boards():
    hard = np.linspace(1.0, 8.0, 8)
    return {
        "nll": board_of(
            "nll",
            Nll.measures[""],
            {
                ("base", 8): hard,
                ("base", 32): hard + 5,
                ("checkpoint", 8): hard + 0.01,
                ("checkpoint", 32): hard - 0.2,  # lengths come in any order
                ("checkpoint", 16): hard - 0.1,
            },
        ),
        "nll.shuffled": board_of(
            "nll.shuffled", Nll.measures["shuffled"], {("checkpoint", 32): hard + 0.3}
        ),
        "passkey": board_of(
            "passkey",
            Passkey.measures[""],
            {("base", 8): [1.0] * 15 + [0.0] * 5, ("checkpoint", 8): [1.0] * 20,
             ("checkpoint", 16): [1.0] * 20, ("checkpoint", 32): [1.0] * 4 + [0.0] * 16},
        ),
    }  # fmt: skip


def gate(text, boards, short=None):
    (found,) = settle([text], boards, short or {})
    return found


@pytest.mark.parametrize(
    ("text", "bound", "ok"),
    [
        # documents differ by nats, the pairs by hundredths: two means would have no interval here
        ("nll@32-nll@16<0", -0.1, True),
        ("nll@32-nll@16<-0.1001", -0.1, False),
        ("nll@16-nll@8<0", -0.11, True),
        ("nll@32-base:nll@32<-5", -5.2, True),
        ("nll@32-base:nll@8<0", -0.2, True),
        ("nll@32-nll.shuffled@32<0", -0.5, True),
        ("passkey@16>=0.8", 0.8389, True),  # 20 of 20
        ("passkey@16>=0.9", 0.8389, False),
        ("passkey@16-passkey@8<=0.1", 0.1611, False),  # 20 pairs alike are no proof
        ("effective_length.passkey>=16", 16, True),
        ("effective_length.passkey>=32", 16, False),
        ("base:effective_length.nll>=8", 8, True),
    ],
)
def test_a_claim_is_held_against_its_samples(boards, text, bound, ok):
    found = gate(text, boards)
    assert found.bound == pytest.approx(bound, abs=1e-3)
    assert found.ok == ok
    assert not found.note


def test_short_context_is_taken_as_it_was_scored(boards):
    score = {"mean": 0.01, "ci_low": 0.0, "ci_high": 0.03, "n": 8, "clusters": 8, "p_value": 0.2}
    assert not gate("short_context.delta_nll<=0.02", boards, {"delta_nll": score}).ok
    assert gate("short_context.delta_nll<=0.03", boards, {"delta_nll": score}).ok


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("nll@64<9", "nll@64 was not scored; nll was at 8, 16, 32"),
        ("nll@32-base:nll@16<9", "base:nll@16 was not scored; nll was at 8, 32"),
        ("nll.shuffled@8<9", "nll.shuffled@8 was not scored; nll.shuffled was at 32"),
        ("kv@8>0", "kv@8 was not scored; kv was at no length"),
        ("short_context.delta_nll<1", "short context has no delta_nll, it has nothing"),
        ("base:effective_length.passkey>=8", "no effective length is shown"),
        ("effective_length.kv>=8", "no effective length is shown"),
    ],
)
def test_what_was_not_scored_after_all_fails_and_says_why(boards, text, note):
    found = gate(text, boards)
    assert (found.ok, found.bound, found.note) == (False, None, note)
    assert note in found.sentence


# ── refused before a model is opened ─────────────────────────────────────────────────────────


def batch(name, task, lengths, **changes):
    made = [Example("a", "a", n, np.zeros(1, np.int32), **changes) for n in lengths]
    return Batch(name, task, made)


def losses(*lengths):
    """Of `nll`, beyond 8 tokens with its shuffled control."""
    plain, beyond = (batch("nll", Nll(), n) for n in (lengths, [n for n in lengths if n > 8]))
    shuffled = [dataclasses.replace(e, details={"far": "shuffled"}) for e in beyond.examples]
    return Batch("nll", plain.task, [*plain.examples, *shuffled])


@pytest.fixture
def evaluated(tmp_path):
    subjects = [Subject(name, tmp_path, "", "float32") for name in ("base", "checkpoint")]
    control = Subject("control", tmp_path, "", "float32", longest=8)
    batches = [losses(8, 16, 32), batch("passkey", Passkey(), (8, 32))]
    return batches, [*subjects, control], 8


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("nl@8<1", "no measure `nl` is evaluated", "did you mean `nll`?"),
        ("passkey.rank@8>0", "no measure `passkey.rank`", "`passkey.ranked`"),
        ("effective_length.kv>=8", "no measure `kv`", "known: nll, nll.bits-per-byte"),
        ("short_context.delta_nl<1", "short_context has no `delta_nl`", "`delta_nll`"),
        ("bse:nll@8<1", "no model `bse` is evaluated", "did you mean `base`?"),
        ("nll@64<1", "`checkpoint` is not scored on `nll` at 64", "scored at 8, 16, 32"),
        ("passkey@16>0", "is not scored on `passkey` at 16", "scored at 8, 32"),
        ("control:nll@16<1", "`control` is not scored on `nll` at 16", "scored at 8"),
        ("nll@8-passkey@8<0", "nll@8 and passkey@8 have no paired difference",
         "or nll and nll.shuffled"),
        ("nll@8-nll@8<0", "nll@8 and nll@8 have no paired difference", "at two lengths"),
        ("nll@8-nll.bits-per-byte@8<0", "have no paired difference", "or nll and nll.shuffled"),
        ("nll.shuffled@8<1", "`checkpoint` is not scored on `nll.shuffled` at 8",
         "scored at 16, 32"),
        ("effective_length.nll.shuffled>=16",
         "`nll.shuffled` is held against the native window of 8, at which `checkpoint` is not",
         "scored at 16, 32"),
        ("short_context.lambada>0", "is given by lambada within the native window of 8",
         "add lambada to --tasks"),
        ("short_context.hellaswag>0", "is given by hellaswag", "add hellaswag to --tasks"),
        ("short_context.delta_nll_other<1", "is given by short", "add short to --tasks"),
        ("short_context.kl_mean<1", "is given by short", "add short to --tasks"),
        ("short_context.kl_p99<1", "is given by short", "and 8 to --lengths"),
    ],
)  # fmt: skip
def test_names_are_checked_against_what_will_be_evaluated(evaluated, text, message, hint):
    with pytest.raises(InvalidInput) as caught:
        check_gates(EvalConfig(gates=[text]), *evaluated)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_what_will_be_evaluated_passes_the_check(evaluated):
    texts = ["nll@32-nll@16<0", "nll@32-base:nll@8<0", "passkey.exact@32>0.2", "control:nll@8<9",
             "nll@32-nll.shuffled@32<0", "short_context.delta_nll<1",
             "effective_length.nll>=16"]  # fmt: skip
    check_gates(EvalConfig(gates=texts, threshold=0.8), *evaluated)


def test_short_context_needs_a_base(evaluated):
    batches, subjects, native = evaluated
    with pytest.raises(InvalidInput, match="held against the base") as caught:
        check_gates(EvalConfig(gates=["short_context.delta_nll<1"]), batches, subjects[1:2], native)
    assert caught.value.hint == "pass --base"


def refusal(gate, batches, subjects, **settings):
    """Message and hint; None where the gate passes the check."""
    try:
        check_gates(EvalConfig(gates=[gate], **settings), batches, subjects, 8)
    except InvalidInput as found:
        return f"{found.message} ({found.hint})"
    return None


def test_what_short_context_is_taken_from_must_lie_within_the_native_window(evaluated):
    _, subjects, _ = evaluated
    delta, kl, compared = "short_context.delta_nll<1", "short_context.kl_mean<1", {"compared": True}
    assert refusal(delta, [losses(8, 16)], subjects) is None
    told = refusal(delta, [losses(16, 32)], subjects)
    assert "given by short or nll within the native window of 8" in told
    assert told.endswith("(add short to --tasks, and 8 to --lengths)")
    # at another length than the native one nll scores other tokens than it does there
    assert "given by short or nll" in refusal(delta, [losses(4, 16)], subjects)
    # a model may keep all of 4 tokens and lose at 8
    assert "given by short or nll" in refusal(
        delta, [batch("short", ShortTask(), [4], **compared)], subjects
    )
    assert refusal(delta, [batch("short", ShortTask(), [8], **compared)], subjects) is None
    assert refusal(kl, [batch("short", ShortTask(), [4, 8], **compared)], subjects) is None
    other = batch("short", ShortTask(), [8])
    assert "given by short" in refusal(kl, [other], subjects)
    assert refusal("short_context.delta_nll_other<1", [other], subjects) is None


def several(task, name, samples, clusters, **changes):
    made = [
        Example(str(n), str(n % clusters), 8, np.zeros(1, np.int32), **changes)
        for n in range(samples)
    ]
    return Batch(name, task, made)


def test_a_gate_that_as_many_right_answers_cannot_pass_is_refused(evaluated):
    """10 of 10 right: 0.722. 35 are the fewest that show 0.9."""
    _, subjects, _ = evaluated
    ten = [several(Passkey(), "passkey", 10, 10)]
    told = refusal("passkey@8>=0.9", ten, subjects)
    assert "`passkey@8>=0.9` cannot be passed: 10 samples, all right, have the lower" in told
    assert "bound 0.722 (take more samples of passkey" in told
    assert refusal("passkey@8>=0.7", ten, subjects) is None
    assert refusal("passkey@8>=0.9", [several(Passkey(), "passkey", 35, 35)], subjects) is None
    assert "34 samples" in refusal(
        "passkey@8>=0.9", [several(Passkey(), "passkey", 34, 34)], subjects
    )
    few = refusal("passkey@8>=0.9", [several(Passkey(), "passkey", 110, 10)], subjects)
    assert "110 samples of 10 haystacks, all right" in few
    none_wrong = refusal("passkey@8<=0.1", ten, subjects)
    assert "10 samples, all wrong, have the upper bound 0.278" in none_wrong
    assert refusal("passkey@8<=0.3", ten, subjects) is None
    # before packing a few samples stand for all
    check_gates(EvalConfig(gates=["passkey@8>=0.9"]), ten, subjects, 8, all_samples=False)


def test_what_a_script_goes_by_tests_something(evaluated):
    batches, subjects, native = evaluated
    by_name = {subject.name: subject for subject in subjects}
    check_tests_something(Coming(batches, by_name, native), [])
    beyond = Coming([losses(16, 32)], by_name, native)
    check_tests_something(beyond, ["nll@16<9"])
    with pytest.raises(InvalidInput, match="--strict: no gate would be tested") as caught:
        check_tests_something(beyond, [])
    assert "8 to eval.lengths" in caught.value.hint


def test_a_divergence_needs_a_base_and_another_model(evaluated):
    _, subjects, _ = evaluated
    batches = [batch("short", ShortTask(), [8], compared=True)]
    assert refusal("short.kl@8<1", batches, subjects) is None
    assert refusal("control:short.kl@8<1", batches, subjects) is None
    assert "`short.kl` holds a model against the base, and none is given (pass --base)" in refusal(
        "short.kl@8<1", batches, subjects[1:]
    )
    assert "`base` is not scored on `short.kl`" in refusal("base:short.kl@8<1", batches, subjects)


def test_an_effective_length_needs_what_it_is_held_against(evaluated):
    _, subjects, _ = evaluated
    reach, found = "effective_length.nll>=16", "effective_length.passkey>=16"
    assert refusal(reach, [losses(8, 16)], subjects) is None
    assert "`nll` is held against the native window of 8, at which `checkpoint` is not" in refusal(
        reach, [losses(4, 16)], subjects
    )
    beyond = [batch("passkey", Passkey(), [16])]
    assert "held against the base's score within the native window of 8" in refusal(
        found, beyond, subjects
    )
    assert "held against the checkpoint's score" in refusal(found, beyond, subjects[1:])
    assert refusal(found, beyond, subjects, threshold=0.1) is None
    assert "1 samples, all right, have the lower bound" in refusal(
        found, beyond, subjects, threshold=0.5
    )
    assert refusal(found, [batch("passkey", Passkey(), [4, 16])], subjects) is None


def test_the_share_of_key_tokens_is_no_merit_of_a_model(evaluated):
    _, subjects, _ = evaluated
    batches = [batch("longppl", Longppl(), [8, 16])]
    assert "tells nothing of how it reads long texts" in refusal(
        "effective_length.longppl.key-tokens>=8", batches, subjects
    )
    with pytest.raises(InvalidInput, match=r"threshold 0\.8 has no effect"):
        check_gates(EvalConfig(threshold=0.8), batches, subjects, 8)
    shares = {("base", 8): [0.5] * 9, ("checkpoint", 8): [0.5] * 9}
    board = board_of("longppl.key-tokens", Longppl.measures["key-tokens"], shares)
    assert board.requirement == (None, "none: it tells nothing of how the model reads long texts")
    assert board.warnings() == []
    unreached = dataclasses.replace(Nll.measures[""], reaches=False)
    board = board_of("x", unreached, {("checkpoint", 8): [3.0] * 9})
    assert board.effective_length("checkpoint") is None


def test_a_threshold_that_bears_on_no_measure_is_refused(evaluated):
    batches, subjects, native = evaluated
    with pytest.raises(InvalidInput, match=r"threshold 0\.8 has no effect"):
        check_gates(EvalConfig(threshold=0.8), batches[:1], subjects, native)


# ── defaults, config, command ────────────────────────────────────────────────────────────────


def test_default_gates_are_those_whose_scores_exist():
    score = {"mean": 0.0, "ci_low": -0.1, "ci_high": 0.2, "n": 9, "clusters": 9}
    results = {
        "paired": {"nll": {"length_minus_native": {"checkpoint": {"16384": score}}}},
        "short_context": {"delta_nll": {**score, "ci_high": 0.01}},
    }
    long, short = default_gates(results, 1024, 16384)
    assert long.name == "nll@16k-nll@1k"
    assert (long.op, long.bound, long.ok) == ("<=", 0.2, False)
    assert (short.name, short.ok) == ("short_context.delta_nll", True)
    assert default_gates({}, 1024, 16384) == []
    assert [*dataclasses.asdict(long)] == ["name", "op", "threshold", "bound", "ok", "note"]


EVALUATION = ("--lengths", "128,384", "--set", "nll.targets=16", "--tasks", "nll,passkey",
              "--set", "passkey.depths=2", "--set", "passkey.trials=1")  # fmt: skip


def test_the_command_prints_gates_and_fails_with_5(giraffe, tiny_llama, corpus, tmp_path):
    arguments = ("eval", tiny_llama, "--base", tiny_llama, "--data", corpus, *EVALUATION)
    passes = ("--gate", "nll@384-base:nll@384<=0", "--gate", "nll@128<100")
    done = giraffe(*arguments, "--out", tmp_path, *passes)
    assert done.code == 0, done.stderr
    assert "gate passed  nll@384-base:nll@384: upper bound +0.000 (needs <= +0.000)" in done.stdout
    failed = giraffe(*arguments, "--out", tmp_path, *passes, "--gate", "passkey@384>=0.1", "--json")
    assert failed.code == 5
    assert "1 of 3 gates failed: passkey@384: lower bound +0.000 (needs >= +0.100)" in failed.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [gate["ok"] for gate in results["gates"]] == [True, True, False]
    assert json.loads(failed.stdout)["gates"] == results["gates"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gate", "nll@128"), "gate `nll@128` is no comparison with a number"),
        (("--gate", "nll@64k<9"), "is not scored on `nll` at 64k"),
        (("--gate", "nli@128<9"), "did you mean `nll`"),
        (("--gate", "short_context.delta_nll<1"), "held against the base"),
        (("--gate", "nll.shuffled@128<9"), "is not scored on `nll.shuffled` at 128"),
        (("--gate", "effective_length.passkey>=384"), "score within the native window of 128"),
        (("--gate", "passkey@384>=0.9"), "cannot be passed: 2 samples, all right, have the lower"),
        (("--threshold", "85.6"), "threshold"),
    ],
)
def test_a_gate_that_cannot_be_tested_ends_with_3_before_a_model_runs(
    giraffe, tiny_llama, corpus, tmp_path, options, message
):
    done = giraffe("eval", tiny_llama, "--data", corpus, *EVALUATION, "--out", tmp_path, *options)
    assert done.code == 3
    assert message in done.stderr
    assert "evaluating" not in done.stderr
    assert not (tmp_path / "results.json").exists()


@pytest.fixture
def extension(tiny_llama, corpus, tmp_path):
    return (
        *("extend", "--model", tiny_llama, "--data", corpus, "--target-len", "512"),
        *("--steps", "0", "--out", tmp_path / "run", "--set", "pack.hold_out=0.3"),
        *("--set", "eval.lengths=[128,512]", "--set", "eval.tasks=[nll]"),
        *("--set", "eval.knobs={nll: {anchors: 1, targets: 32}}"),
    )


def test_gates_of_a_config_stand_beside_those_of_extend(giraffe, extension, tmp_path):
    gates = ("--set", "eval.gates=['nll@512<0', 'nll@512<100']")
    done = giraffe(*extension, *gates)
    assert done.code == 0, done.stderr  # a failed gate warns
    assert "gate failed: nll@512: upper bound" in done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    names = [gate["name"] for gate in report["gates"]]
    assert names == ["nll@512-nll@128", "short_context.delta_nll", "nll@512", "nll@512"]
    assert [gate["ok"] for gate in report["gates"]][2:] == [False, True]
    strict = giraffe(*extension, *gates, "--strict")
    assert strict.code == 5
    assert "nll@512: upper bound" in strict.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--set", "eval.lengths=[512]"), 3, "--strict: no gate would be tested, as no loss"),
        (("--no-eval",), 2, "--strict has nothing to test: --no-eval skips the evaluation"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_strict_without_a_gate_is_refused_before_it_works(
    giraffe, extension, tmp_path, options, code, message, dry
):
    done = giraffe(*extension, *options, "--strict", *dry)
    assert done.code == code
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_strict_fails_where_nothing_was_tested_after_all():
    settle_gates([], False, SilentReporter())
    with pytest.raises(GateFailed, match="no gate was tested"):
        settle_gates([], True, SilentReporter())


@pytest.mark.parametrize("gate", ["nll@256<9", "nll@512", "passkey@512>0"])
def test_extend_refuses_a_gate_that_cannot_be_tested_before_it_works(
    giraffe, extension, tmp_path, gate
):
    done = giraffe(*extension, "--set", f"eval.gates=['{gate}']")
    assert done.code == 3
    assert f"gate `{gate}`" in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("bound", "threshold", "digits", "shown"),
    [
        (0.062, 0.05, 3, ("+0.062", "+0.050")),
        (0.0502, 0.05, 4, ("+0.0502", "+0.0500")),  # three digits showed a failure as a pass
        (0.0, 0.0004, 4, ("0.0000", "+0.0004")),
        (0.05, 0.05, 3, ("+0.050", "+0.050")),
    ],
)
def test_pages_show_digits_that_tell_bound_and_threshold_apart(bound, threshold, digits, shown):
    gate = Gate("nll@16k-nll@1k", "<=", threshold, bound, bound <= threshold)
    assert gate.digits == digits
    told = tuple(gate_number(dataclasses.asdict(gate), key) for key in ("bound", "threshold"))
    assert told == shown
    assert f"reaches up to {bound:.{digits}f}" in in_words(gate)
