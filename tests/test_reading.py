"""The most probable token without wide logits."""

from __future__ import annotations

import pytest
import torch

from giraffe_cli.model.reading import most_probable, pieces, wide_logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_the_largest_wide_logit_where_16_bits_cannot_tell(dtype):
    """Rows that differ from the best by less than bfloat16 resolves."""
    torch.manual_seed(0)
    weight = torch.randn(500, 64).to(dtype)
    told_apart = 0
    for row in range(100):
        state = torch.randn(1, 64).to(dtype)
        state[0] = weight[row] / 3
        weight[300] = weight[row]
        weight[300, 5] *= 1 + 2**-6  # the larger of the two by less than a 16-bit logit shows
        wide = wide_logits(state, weight)[0]
        assert most_probable(state, weight) == int(wide.argmax())
        told_apart += int((state @ weight.T)[0].argmax()) != int(wide.argmax())
    if dtype == torch.bfloat16:
        assert told_apart > 10


def test_negative_logits_and_no_numbers():
    weight = -torch.rand(50, 8).bfloat16() - 1
    state = torch.ones(1, 8).bfloat16()
    assert most_probable(state, weight) == int(wide_logits(state, weight)[0].argmax())
    weight[3, 3] = float("nan")
    assert most_probable(state, weight) == -1


@pytest.mark.parametrize(
    ("start", "found"), [(0, [[0, 1, 2], [3, 4, 5], [6]]), (5, [[5, 6]]), (7, [])]
)
def test_pieces_start_anywhere_and_end_at_the_end(start, found):
    assert [list(piece) for piece in pieces(range(7), 3, start)] == found
