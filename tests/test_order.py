"""The order of reading, on prompts of a few tokens."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from giraffe_cli.evals.base import Example
from giraffe_cli.evals.order import Prompt, reading_plan, shared_tokens, split_plan


def entry(name, ids, targets=0, **asked):
    return "task", Example(name, name, 99, np.asarray(ids, np.int32), targets, **asked)


def names(plan):
    return [[e.key for p in step.prompts for _, e in p.entries] for step in plan]


def shared(before, after, keep=1, chunk=2):
    return shared_tokens(np.asarray(before), np.asarray(after), keep, chunk)


def test_whole_chunks_that_begin_both_are_shared():
    assert shared([1, 2, 3, 4, 5], [1, 2, 3, 9]) == 2
    assert shared([1, 2, 3, 4, 5], [1, 2, 3, 4, 9]) == 4
    assert shared([1, 2], [3, 4]) == 0
    assert shared([], [3, 4]) == 0
    # the state of the last token is asked for, and so its chunk is read
    assert shared([1, 2, 3, 4], [1, 2, 3, 4]) == 2
    assert shared([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], keep=3) == 2
    assert shared([1, 2], [1, 2], keep=3) == 0


def test_the_plan_by_eye():
    """Long prompts by their beginnings, equal ones once, short ones in rows of 4 tokens."""
    plan = reading_plan(
        [
            entry("abcde", [1, 2, 3, 4, 5]),
            entry("q", [9, 9]),
            entry("abcx", [1, 2, 3, 8]),
            entry("again", [1, 2, 3, 4, 5], targets=2),
            entry("z", [7]),
            entry("r", [8, 8]),
        ],
        batch_tokens=4,
        chunk=2,
        short=2,
    )
    assert names(plan) == [["z", "r"], ["abcde", "again"], ["abcx"], ["q"]]
    assert [step.shared for step in plan] == [0, 0, 2, 0]
    assert [step.tokens for step in plan] == [3, 5, 2, 2]
    assert [step.seen for step in plan] == [2.5, 12.5, 6, 2]
    assert plan[1].prompts[0].keep == 3


def test_without_rows_every_prompt_is_a_step():
    plan = reading_plan([entry("a", [1]), entry("b", [1, 2, 3])], batch_tokens=0, chunk=2)
    assert names(plan) == [["a"], ["b"]]


def test_room_is_for_what_is_fed_behind_a_prompt_at_one_time():
    both = entry("x", [1], max_new_tokens=3, candidates=((1, 2, 3), (4, 5, 6)))
    assert Prompt((both,)).room_after == 4
    assert Prompt((entry("x", [1], max_new_tokens=9, candidates=((1,),)),)).room_after == 9


PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(PROMPTS, st.integers(1, 4), st.integers(0, 12))
def test_every_entry_is_read_once_whoever_reads_it(prompts, processes, batch_tokens):
    entries = [entry(str(n), ids) for n, ids in enumerate(prompts)]
    plan = reading_plan(entries, batch_tokens, chunk=2, short=2)
    shares = split_plan(plan, processes, chunk=2)
    expected = sorted(str(n) for n in range(len(prompts)))
    assert sorted(name for step in names(plan) for name in step) == expected
    assert sorted(n for share in shares for step in names(share) for n in step) == expected
    assert len(shares) == processes
    for steps in (plan, *shares):
        before = np.zeros(0, np.int32)
        for step in steps:
            if len(step.prompts) > 1:
                assert step.shared == 0
                assert sum(len(p.token_ids) for p in step.prompts) <= batch_tokens
            else:
                ids = step.prompts[0].token_ids
                assert step.shared == shared_tokens(before, ids, 1, 2)
                before = ids


def test_prompts_that_begin_alike_stay_with_one_process():
    families = [[family] * 6 + [n] for family in range(4) for n in range(3)]
    plan = reading_plan([entry(str(n), ids) for n, ids in enumerate(families)], 0, chunk=2)
    shares = split_plan(plan, 2, chunk=2)
    assert sum(step.tokens for share in shares for step in share) == sum(s.tokens for s in plan)
    work = [sum(step.work for step in share) for share in shares]
    assert max(work) < 1.1 * min(work)


def test_one_family_is_cut_where_it_is_too_much_for_one():
    plan = reading_plan([entry(str(n), [1] * 6 + [n]) for n in range(8)], 0, chunk=2)
    shares = split_plan(plan, 2, chunk=2)
    assert all(shares)
    assert sum(step.tokens for share in shares for step in share) == sum(s.tokens for s in plan) + 6
