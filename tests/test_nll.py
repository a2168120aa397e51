"""What the loss tasks promise: the same targets, nested contexts, shuffled controls, curves."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import Material, Outcome, TokenDocument
from giraffe_cli.evals.measures import Value
from giraffe_cli.evals.tasks.nll import Nll
from giraffe_cli.evals.tasks.positions import Positions
from giraffe_cli.evals.windows import spelt_bytes

BOS = 7


def material(documents=2, tokens=3000, bos=(BOS,), native=0, lengths=(), **changes):
    """Documents of numbers that tell their place; a token spells a byte for each of its digits."""
    changes.setdefault("decode", lambda ids: "".join(map(str, ids)))
    return Material(
        encode=lambda text: [int(word) for word in text.split()],
        bos_token_ids=bos,
        documents=[
            TokenDocument(f"doc-{d}", np.arange(tokens, dtype=np.int32) + 10_000 * d)
            for d in range(documents)
        ],
        native_length=native,
        lengths=lengths,
        **changes,
    )


def ids(example):
    return example.token_ids.tolist()


class TestNll:
    def test_the_worked_example(self):
        task, given = Nll(targets=2, anchors=1), material(1, 8, (), lengths=(4, 6))
        assert [ids(task.examples(n, 0, given)[0]) for n in (4, 6)] == [
            [2, 3, 4, 5],
            [0, 1, 2, 3, 4, 5],
        ]

    def test_bos_takes_the_place_of_the_first_context_token(self):
        (example,) = Nll(targets=2, anchors=1).examples(6, 0, material(1, 8))
        assert ids(example) == [BOS, 1, 2, 3, 4, 5]

    def test_targets_are_the_same_and_contexts_nested_at_every_length(self):
        given = material(lengths=(1024, 2048))
        short, long = (Nll().examples(n, 0, given) for n in (1024, 2048))
        for a, b in zip(short, long, strict=True):
            assert a.key == b.key
            assert a.num_targets == b.num_targets == 256
            assert ids(a)[1:] == ids(b)[-1023:]

    def test_anchors_span_the_document_from_the_longest_length(self):
        examples = Nll(anchors=3).examples(1024, 0, material(1, lengths=(1024, 2000)))
        assert [e.details["anchor"] for e in examples] == [2000, 2500, 3000]
        assert {e.cluster for e in examples} == {"doc-0"}

    def test_blocks_of_targets_never_overlap(self):
        task = Nll(anchors=9, targets=400)
        examples = task.examples(1024, 0, material(1, lengths=(2000,)))
        assert [e.details["anchor"] for e in examples] == [2000, 2500, 3000]

    def test_a_document_shorter_than_the_longest_length_is_not_used(self):
        given = material(2, lengths=(2048,))
        short = TokenDocument("short", np.arange(2047, dtype=np.int32))
        given = dataclasses.replace(given, documents=[*given.documents, short])
        assert {e.cluster for e in Nll().examples(1024, 0, given)} == {"doc-0", "doc-1"}

    def test_no_document_long_enough_is_an_error_with_the_numbers(self):
        with pytest.raises(InvalidInput, match="none of 2 documents has 4096 .* has 3000"):
            Nll().examples(1024, 0, material(lengths=(4096,)))

    def test_no_room_for_context_is_an_error(self):
        with pytest.raises(InvalidInput, match="length 257 leaves no context before 256 targets"):
            Nll().examples(257, 0, material())

    def test_the_score_is_the_mean_over_targets_and_bits_over_their_bytes(self):
        task = Nll(targets=2)
        example = task.examples(1024, 0, material(1, 1500))[0]  # the targets spell 1022 and 1023
        scores = task.scores(example, Outcome(np.array([1.0, 4.0]), ""), {})
        assert scores == {
            "": Value(2.5),
            "bits-per-byte": Value(pytest.approx(5.0 / math.log(2) / 8), 8),
        }


class TestBytes:
    @given(
        st.text(alphabet="aé日😀 ", min_size=4, max_size=40),
        st.lists(st.integers(0, 10**6), min_size=1, max_size=6),
    )
    def test_blocks_share_the_bytes_of_a_text_wherever_it_is_cut(self, text, places):
        """Tokens are bytes: of `é` two, of an emoji four."""
        tokens = [*text.encode()]
        cuts = sorted({0, len(tokens), *(place % len(tokens) for place in places)})
        given_bytes = material(decode=lambda ids: bytes(ids).decode(errors="replace"))
        found = [spelt_bytes(tokens[:b], b - a, given_bytes) for a, b in itertools.pairwise(cuts)]
        assert sum(found) == len(tokens)
        ends = [len(bytes(tokens[:cut]).decode(errors="ignore").encode()) for cut in cuts]
        assert found == [after - before for before, after in itertools.pairwise(ends)]

    def test_a_cut_character_is_not_counted_as_three_bytes(self):
        tokens = [*"日本".encode()]
        given_bytes = material(decode=lambda ids: bytes(ids).decode(errors="replace"))
        assert spelt_bytes(tokens[:5], 4, given_bytes) == 3  # it ends 日; 本 is the next one's

    def test_the_blank_before_a_word_counts_though_a_decoder_takes_it(self):
        """Llama 2's decoder strips the first blank of whatever it is given."""
        words = ["▁the", "▁sky", "▁is", "▁blue"]
        strips = material(decode=lambda ids: "".join(words[i] for i in ids).replace("▁", " ")[1:])
        found = [spelt_bytes(range(end), 1, strips) for end in (1, 2, 3, 4)]
        assert found == [3, 4, 3, 5]


class TestShuffledControl:
    def halves(self, native, length, bos=(BOS,), seed=0, targets=4):
        """Real and shuffled examples of one document, paired."""
        given = material(1, 60, bos, native, (length,))
        found = Nll(targets=targets, anchors=2).examples(length, seed, given)
        middle = len(found) // 2
        return list(zip(found[:middle], found[middle:], strict=True))

    @pytest.mark.parametrize("length", [16, 12])
    def test_there_is_none_within_the_native_window(self, length):
        found = Nll(targets=4).examples(length, 0, material(1, 40, native=16, lengths=(16, 32)))
        assert not [e for e in found if "far" in e.details]

    def test_none_where_it_is_turned_off(self):
        found = Nll(targets=4, shuffled=False).examples(32, 0, material(1, 40, native=16))
        assert not [e for e in found if "far" in e.details]

    @given(st.integers(6, 30), st.integers(0, 9), st.sampled_from([(), (BOS,)]), st.integers(0, 99))
    def test_near_part_is_intact_and_far_part_a_permutation(self, native, beyond, bos, seed):
        length = native + 2 + beyond
        for real, control in self.halves(native, length, bos, seed):
            first, near = len(bos), length - native
            assert ids(control)[:first] == list(bos)
            assert ids(control)[near:] == ids(real)[near:]
            assert sorted(ids(control)[first:near]) == sorted(ids(real)[first:near])
            assert len(ids(control)) == len(ids(real)) == length
            assert control.num_targets == real.num_targets

    def test_the_far_part_has_another_order_that_follows_the_seed_and_the_sample(self):
        (one, control), (_, next_control) = self.halves(8, 32)
        assert ids(control)[1:24] != ids(one)[1:24]
        assert ids(control) == ids(self.halves(8, 32)[0][1])
        assert ids(control) != ids(self.halves(8, 32, seed=1)[0][1])
        offsets = [np.argsort(np.argsort(ids(e)[1:24])).tolist() for e in (control, next_control)]
        assert offsets[0] != offsets[1]

    def test_it_is_paired_with_the_real_one_and_scored_apart(self):
        real, control = self.halves(8, 32)[0]
        assert (control.pair, control.cluster) == (real.key, real.cluster)
        assert control.key != real.key
        outcome = Outcome(np.full(4, 2.0), "")
        assert Nll(targets=4).scores(control, outcome, {}) == {"shuffled": Value(2.0)}
        assert {*Nll(targets=4).scores(real, outcome, {})} == {"", "bits-per-byte"}
        assert Nll.contrasts["real_minus_shuffled"] == ("", "shuffled")


class TestPositions:
    def test_one_window_of_each_document_at_the_longest_length_alone(self):
        given = material(lengths=(1024, 2048))
        assert Positions().examples(1024, 0, given) == []
        found = Positions().examples(2048, 0, given)
        assert [e.key for e in found] == ["doc-0", "doc-1"]
        assert ids(found[0]) == [BOS, *range(1, 2048)]
        assert found[0].num_targets == 2047

    def test_its_prompt_is_that_of_the_first_anchor_of_nll(self):
        given = material(1, lengths=(1024, 2048))
        (whole,) = Positions().examples(2048, 0, given)
        assert ids(whole) == ids(Nll().examples(2048, 0, given)[0])

    def test_the_curve_has_the_mean_of_each_bucket_under_its_first_position(self):
        (example,) = Positions(bucket=4).examples(10, 0, material(1, 20))
        outcome = Outcome(np.arange(1.0, 10.0), "")  # the loss of a token is its position
        task = Positions(bucket=4)
        assert task.curve(example, outcome) == {
            "0": Value(2.0, 3),  # positions 1..3
            "4": Value(5.5, 4),
            "8": Value(8.5, 2),
        }
        assert task.scores(example, outcome, {}) == {"": Value(5.0, 9)}

    def test_no_document_long_enough_is_an_error_with_the_numbers(self):
        with pytest.raises(InvalidInput, match="none of 2 documents has 4096 tokens"):
            Positions().examples(4096, 0, material())
