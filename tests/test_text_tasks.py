"""Tasks that score running text: sliding, longppl, short; and text of another domain."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from conftest import build_tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from giraffe_cli.checkpoint import inspect
from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.corpus.base import Document
from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import Material, Outcome, TokenDocument
from giraffe_cli.evals.other_text import documentation
from giraffe_cli.evals.runner import evaluate
from giraffe_cli.evals.samples import Texts
from giraffe_cli.evals.subject import Subject
from giraffe_cli.evals.tasks.longppl import Longppl
from giraffe_cli.evals.tasks.short import Short
from giraffe_cli.evals.tasks.sliding import Sliding
from giraffe_cli.progress import SilentReporter

BOS = 999


def numbered(name: str, size: int) -> TokenDocument:
    """Token `n` of the document is `n`, so that a window tells its place."""
    return TokenDocument(name, np.arange(size, dtype=np.int32))


def material(sizes=(40, 50), lengths=(8, 16), bos=(), **changes) -> Material:
    given = {
        "encode": lambda text: list(text.encode()),
        "decode": lambda ids: "x" * 2 * len(ids),
        "bos_token_ids": bos,
        "documents": [numbered(f"doc-{i}", size) for i, size in enumerate(sizes)],
        "native_length": 8,
        "lengths": lengths,
        "reference_length": 8,
        "other_text": [numbered("help", 30)],
    }
    return Material(**{**given, **changes})


def targets_of(example):
    return example.token_ids[-example.num_targets :].tolist()


def read(example, nll=1.0, **found) -> Outcome:
    return Outcome(np.broadcast_to(np.float64(nll), example.num_targets).copy(), "", **found)


class TestSliding:
    def test_the_worked_example(self):
        examples = Sliding(stride=2, tokens=10).examples(4, 0, material((10,), (4, 8)))
        assert [(e.token_ids.tolist(), targets_of(e)) for e in examples] == [
            ([0, 1, 2, 3], [1, 2, 3]),
            ([2, 3, 4, 5], [4, 5]),
            ([4, 5, 6, 7], [6, 7]),
            ([6, 7, 8, 9], [8, 9]),
        ]

    def test_bos_stands_in_every_window_in_the_place_of_its_first_token(self):
        examples = Sliding(stride=2, tokens=10).examples(5, 0, material((10,), (5, 8), (BOS,)))
        assert [e.token_ids.tolist() for e in examples[:2]] == [
            [BOS, 1, 2, 3, 4],
            [BOS, 2, 3, 4, 5],
        ]
        assert [targets_of(e) for e in examples[:2]] == [[1, 2, 3, 4], [5]]

    @settings(max_examples=40, deadline=None)
    @given(
        stride=st.integers(1, 6),
        lengths=st.tuples(st.integers(9, 20), st.integers(21, 30)),
        size=st.integers(37, 60),
        bos=st.sampled_from([(), (BOS,)]),
    )
    def test_every_length_scores_every_token_but_the_first_once(self, stride, lengths, size, bos):
        given = material((size,), lengths, bos)
        read_to = min(size, lengths[-1] + 8 * stride)
        for length in lengths:
            examples = Sliding(stride=stride).examples(length, 0, given)
            scored = [token for e in examples for token in targets_of(e)]
            assert scored == list(range(1, read_to))
            assert {len(e.token_ids) for e in examples} == {length}
            assert all(e.num_targets == stride for e in examples[2:])
            assert examples[0].num_targets == length - 1

    def test_equal_keys_are_equal_targets_at_every_length(self):
        given = material((60,), (9, 16), bos=(BOS,))
        short, long = (
            {e.key: targets_of(e) for e in Sliding(stride=4).examples(n, 0, given)} for n in (9, 16)
        )
        shared = short.keys() & long.keys()
        assert len(shared) == 8  # the windows that end beyond the longest length
        assert all(short[key] == long[key] for key in shared)

    def test_tokens_count_alike_whatever_window_they_stand_in(self):
        """Windows of 15 and 2 tokens at 1 and 4 nats: 23/17 a token, not 5/2."""
        task, given = Sliding(stride=2, tokens=18), material((18,), (8, 16))
        first, second = task.examples(16, 0, given)
        one, two = (
            task.scores(first, read(first, 1.0), {}),
            task.scores(second, read(second, 4.0), {}),
        )
        assert [(one[""]), (two[""])] == [(1.0, 15), (4.0, 2)]
        bits = one["bits-per-byte"]  # two bytes a token
        assert bits == pytest.approx((15 / math.log(2) / 30, 30))

    @pytest.mark.parametrize(
        ("task", "length", "message"),
        [
            (Sliding(stride=4), 4, "length 4 leaves no context before a stride of 4"),
            (
                Sliding(stride=4, tokens=17),
                8,
                "tokens is 17, a window of 16 and one stride take 20",
            ),
            (Sliding(stride=40), 64, "none of 2 documents has 104 tokens"),
        ],
    )
    def test_what_it_cannot_read_is_refused(self, task, length, message):
        with pytest.raises(InvalidInput, match=f"task `sliding`: {message}"):
            task.examples(length, 0, material())


class TestLongppl:
    TASK = Longppl(targets=4, anchors=1, near=2)

    def test_the_reference_reads_each_block_with_far_and_with_near_context(self):
        for length in (8, 16):
            scored, far, near = self.TASK.examples(length, 0, material((16,)))
            assert len(scored.token_ids) == length
            assert far.token_ids.tolist() == list(range(8, 16))  # its own window, not the length's
            assert near.token_ids.tolist() == list(range(10, 16))
            assert targets_of(scored) == targets_of(far) == targets_of(near) == [12, 13, 14, 15]
            assert [e.for_reference for e in (scored, far, near)] == [False, True, True]
            assert {e.length for e in (scored, far, near)} == {length}

    def test_the_default_near_context_is_a_quarter_of_what_the_reference_reads(self):
        given = material((64,), (32, 64), reference_length=32)
        _, far, near = Longppl(targets=4, anchors=1).examples(64, 0, given)
        assert (len(far.token_ids), len(near.token_ids)) == (32, 8 + 4)

    def test_an_evaluator_never_reads_more_than_the_longest_length(self):
        _, far, _ = self.TASK.examples(8, 0, material((16,), reference_length=1000))
        assert len(far.token_ids) == 16

    def test_an_evaluator_reads_what_is_for_the_reference_and_nothing_else(self, tmp_path):
        evaluator = Subject("evaluator", tmp_path, "digest", "float32")
        examples = self.TASK.examples(16, 0, material((16,)))
        assert [evaluator.takes(example) for example in examples] == [False, True, True]

    def test_key_tokens_by_hand(self):
        """Gains of 2.1, 2, 3, 9 nats and far losses of 1, 1, 2, 0.5: first and last count."""
        scored, far, near = self.TASK.examples(16, 0, material((16,)))
        reference = {
            far.key: Outcome(np.array([1.0, 1.0, 2.0, 0.5]), ""),
            near.key: Outcome(np.array([3.1, 3.0, 5.0, 9.5]), ""),
        }
        found = self.TASK.scores(scored, Outcome(np.array([1.0, 10.0, 100.0, 3.0]), ""), reference)
        assert found == {"": (2.0, 2), "key-tokens": (0.5, 4)}

    def test_without_key_tokens_only_their_share_is_said(self):
        scored, far, near = self.TASK.examples(16, 0, material((16,)))
        reference = {far.key: read(far), near.key: read(near)}
        assert self.TASK.scores(scored, read(scored), reference) == {"key-tokens": (0.0, 4)}

    @pytest.mark.parametrize(
        ("knobs", "message"),
        [
            (
                {"targets": 4, "near": 4},
                "a near context of 4 tokens before 4 targets is not shorter",
            ),
            ({"targets": 16}, "length 16 leaves no context"),
        ],
    )
    def test_a_near_context_that_is_none_is_refused(self, knobs, message):
        with pytest.raises(InvalidInput, match=message):
            Longppl(**knobs).examples(16, 0, material())

    def test_bars_must_be_numbers_above_0(self):
        with pytest.raises(InvalidInput, match="alpha is 0, must be a number above 0"):
            Longppl(alpha=0)


class TestShort:
    TASK = Short(targets=4, anchors=2)

    def test_reads_both_domains_at_lengths_within_the_native_window(self):
        given = material((16, 12), (6, 8, 16))
        assert self.TASK.examples(16, 0, given) == []
        short, native = (self.TASK.examples(n, 0, given) for n in (6, 8))
        assert [e.key for e in short] == [e.key for e in native]
        assert {len(e.token_ids) for e in short} == {6}
        assert [targets_of(e) for e in short] == [targets_of(e) for e in native]
        assert {e.cluster for e in native} == {"doc-0", "doc-1", "other help"}
        assert [e.compared for e in native] == [True] * 4 + [False] * 2

    def test_documents_need_only_reach_the_native_window(self):
        assert len(self.TASK.examples(8, 0, material((9,), (8, 16)))) == 3

    def test_no_length_within_it_is_refused_with_the_length_to_add(self):
        with pytest.raises(InvalidInput, match="shortest length 16 lies beyond") as caught:
            self.TASK.examples(16, 0, material((40,), (16, 32)))
        assert "add 8 to --lengths" in caught.value.hint

    def test_scores_by_domain_and_divergence_where_there_is_one(self):
        own, other = self.TASK.examples(8, 0, material((9,)))[::2]
        assert self.TASK.scores(own, read(own, 2.0), {}) == {"": (2.0, 1)}
        compared = read(own, 2.0, divergence=np.array([0.1, 0.2, 0.3, 0.4]))
        assert self.TASK.scores(own, compared, {})["kl"].value == pytest.approx(0.25)
        assert self.TASK.scores(other, read(other, 3.0), {}) == {"other": (3.0, 1)}


class TestOtherText:
    def test_documents_fill_a_window_and_lie_all_over_the_alphabet(self):
        found = documentation(lambda text: list(text.encode()), 8192, 5)
        assert len(found) == 5
        assert all(len(document.token_ids) >= 8192 for document in found)
        assert found[0].id.startswith("assert")
        assert len({document.id for document in found}) == 5
        assert found[-1].id[0] > "r"

    def test_it_stands_in_no_source_of_the_default_corpus(self):
        from giraffe_cli.corpus.base import BadRecords
        from giraffe_cli.corpus.sources import read_source

        sources = " ".join(
            " ".join(d.text.split()) for d in read_source("python-stdlib", BadRecords())
        )
        pieces = []
        for document in documentation(lambda text: list(text.encode()), 1024, 40):
            words = bytes(document.token_ids.tolist()).decode(errors="ignore").split()
            pieces += [" ".join(words[i : i + 13]) for i in range(0, len(words) - 13, 13)]
        held = sum(piece in sources for piece in pieces)
        assert len(pieces) > 500
        assert held / len(pieces) < 0.02  # grammar lines that docstrings quote


@pytest.fixture(scope="module")
def other_llama(tmp_path_factory):
    """The same tokenizer, another shape."""
    return build_tiny_llama(tmp_path_factory.mktemp("other"), num_hidden_layers=1, hidden_size=32)


def scored(folder, config, *subjects):
    from conftest import prose

    reporter = SilentReporter()
    results = evaluate(
        [Subject(n, p, inspect(str(p), p).digest, "float32") for n, p in subjects],
        config,
        lengths=[128, 256],
        native_length=128,
        seed=0,
        texts=Texts([Document(f"doc-{i}", prose(i, 60), "prose") for i in range(8)]),
        out=folder / "out",
        cache=folder / "cache",
        reporter=reporter,
    )
    return results, reporter


class TestRun:
    """Through the runner, with two tiny models."""

    KNOBS = {"targets": 16, "anchors": 1}

    def test_divergence_reaches_the_results_and_is_zero_for_the_base_itself(
        self, tiny_llama, other_llama, tmp_path
    ):
        config = EvalConfig(tasks=["short"], knobs={"short": self.KNOBS})
        base = ("base", tiny_llama)
        same, _ = scored(tmp_path, config, base, ("checkpoint", tiny_llama))
        moved, _ = scored(tmp_path, config, base, ("checkpoint", other_llama))
        assert same["short_context"]["kl_mean"]["mean"] == 0.0
        assert same["short_context"]["kl_p99"]["ci_high"] == 0.0
        found = moved["short_context"]
        assert 0 < found["kl_mean"]["mean"] < found["kl_p99"]["mean"]
        assert found["kl_mean"]["n"] == found["kl_p99"]["n"] == 8
        assert found["kl_mean"] == moved["models"]["checkpoint"]["tasks"]["short.kl"]["128"]
        assert "short.kl" not in moved["models"]["base"]["tasks"]
        assert found["delta_nll_other"]["mean"] != 0
        assert len(moved["settings"]["other_text"]) == 8

    def test_who_chose_the_key_tokens_decides_and_is_named(self, tiny_llama, other_llama, tmp_path):
        knobs = {**self.KNOBS, "alpha": 1e-4, "beta": 9.0}
        config = EvalConfig(tasks=["longppl"], knobs={"longppl": knobs})
        by_base, _ = scored(tmp_path, config, ("base", tiny_llama), ("checkpoint", other_llama))
        by_other, _ = scored(
            tmp_path,
            config,
            *(("base", tiny_llama), ("checkpoint", other_llama), ("evaluator", other_llama)),
        )
        references = [r["settings"]["reference"] for r in (by_base, by_other)]
        assert [r["subject"] for r in references] == ["base", "evaluator"]
        assert references[1]["sha256"] == by_other["models"]["checkpoint"]["sha256"]
        shares = [r["models"]["base"]["tasks"]["longppl.key-tokens"] for r in (by_base, by_other)]
        assert shares[0]["128"]["mean"] == shares[0]["256"]["mean"]
        assert shares[0] != shares[1]
        assert [*by_other["models"]] == ["base", "checkpoint"]

    def test_no_key_token_at_all_is_said(self, tiny_llama, tmp_path):
        config = EvalConfig(tasks=["longppl"], knobs={"longppl": {**self.KNOBS, "alpha": 50.0}})
        results, reporter = scored(tmp_path, config, ("checkpoint", tiny_llama))
        (warning,) = [w for w in reporter.warnings if "no sample gives its main measure" in w]
        assert "--set longppl.alpha=1" in warning
        assert warning in results["warnings"]
        assert [*results["models"]["checkpoint"]["tasks"]] == ["longppl.key-tokens"]

    def test_sliding_is_the_loss_of_all_tokens_in_overlapping_stock_passes(
        self, tiny_llama, tmp_path
    ):
        """Press et al.'s loop over one document, with the whole model at every step."""
        import torch
        from conftest import prose

        from giraffe_cli.model.loading import load_model, load_tokenizer

        config = EvalConfig(tasks=["sliding"], documents=1, knobs={"sliding": {"stride": 32}})
        results, _ = scored(tmp_path, config, ("checkpoint", tiny_llama))
        model, tokenizer = load_model(tiny_llama, dtype=torch.float32), load_tokenizer(tiny_llama)
        longest = max((prose(i, 60) for i in range(8)), key=len)
        ids = tokenizer(longest, add_special_tokens=False)["input_ids"]
        end = min(len(ids), 256 + 8 * 32)
        first = 128 + (end - 128) % 32
        ends = [128, *range(first if first > 128 else 160, end + 1, 32)]
        total, count = 0.0, 0
        for before, stop in pairwise([1, *ends]):
            window = torch.tensor([[0, *ids[stop - 127 : stop]]])
            with torch.inference_mode():
                logits = model(window).logits[0, :-1]
            nll = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none")
            total, count = total + float(nll[-(stop - before) :].sum()), count + stop - before
        found = results["models"]["checkpoint"]["tasks"]["sliding"]["128"]
        assert count == end - 1
        assert found["mean"] == pytest.approx(total / count, abs=1e-4)
