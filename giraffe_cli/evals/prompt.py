"""Prompts of an exact length, and the continuations that are ranked after them.

    fill: the most filler whose prompt leaves room for the answer     [0.97 L, L], or an error
    fill_in: the same with large units, and small ones where those leave more than 3 % empty
    ranked: the true answers, then nine wrong ones of as many tokens for each token count

Nothing is ever truncated: a prompt that does not fit is built smaller, or refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.evals.base import Example, Material, Outcome
from giraffe_cli.evals.measures import RANKED_AGAINST, Value

FULL_ENOUGH = 0.97
DRAWS = 4000
"""Wrong answers tried before giving up on one of the right number of tokens: of random UUIDs about
one in ten has it."""
SPARE = 400
"""A task that builds prompts anew for each sample leaves up to length / 400 empty: at 16k 40 tokens
of 16,384, for half of the builds."""
MOST_UNITS = 8
"""Units tried for each token of room: filler that grows no more than that will never fill it."""
PROBES = 16
"""Answers drawn to choose one of a usual token count."""


def fill(
    build: Callable[[int], list[int]],
    length: int,
    answer_tokens: int,
    task: str,
    start: int = 0,
    spare: int = 0,
) -> tuple[list[int], int]:
    """The longest prompt `build(units)` that with its answer fits into `length`; and its units.

    Args:
        build: token ids of the prompt with that many units of filler; grows with the units.
        start: units of a similar prompt, where the search begins; 0: unknown.
        spare: tokens that may stay empty although a unit would fit, which saves building a long
            prompt many times.

    Raises:
        InvalidInput: it does not fit with one unit, or whole units leave more than 3 % empty.
    """
    prompt, units = _most(build, length, answer_tokens, task, start, spare)
    check_filled(len(prompt) + answer_tokens, length, task)
    return prompt, units


def fill_in(
    build: Callable[[int, int], list[int]],
    length: int,
    answer_tokens: int,
    task: str,
    start: int = 0,
    spare: int = 0,
) -> tuple[list[int], int]:
    """`fill` for large units: the prompt `build(units, small)`, and its units.

    `small` units are used only where whole `units` leave more than 3 % of the length empty.

    Raises:
        InvalidInput: it does not fit with one unit, or small ones leave more than 3 % empty too.
    """
    large = lambda count: build(count, 0)  # noqa: E731
    prompt, units = _most(large, length, answer_tokens, task, start, spare)
    if len(prompt) + answer_tokens < FULL_ENOUGH * length:
        prompt, _ = fill(lambda small: build(units, small - 1), length, answer_tokens, task)
    return prompt, units


def _most(
    build: Callable[[int], list[int]],
    length: int,
    answer_tokens: int,
    task: str,
    start: int,
    spare: int,
) -> tuple[list[int], int]:
    """The longest prompt that fits with its answer, to within a unit or `spare`; and its units."""
    room = length - answer_tokens
    best = build(1)
    if len(best) > room:
        raise InvalidInput(
            f"task `{task}`: length {length} is too short: its shortest prompt and the answer "
            f"take {len(best) + answer_tokens} tokens",
            "evaluate longer --lengths, or leave the task out of --tasks",
        )
    return _search(build, room, best, max(2, start), spare)


def _search(
    build: Callable[[int], list[int]], room: int, best: list[int], guess: int, spare: int
) -> tuple[list[int], int]:
    """From `best` of one unit on: secant steps kept between the bounds found."""
    least, low, high = len(best), 1, 0
    while not high or high - low > 1:
        prompt = build(guess)
        left = room - len(prompt)
        each = max(1.0, (len(prompt) - least) / (guess - 1))
        if left >= 0:
            best, low = prompt, guess
        else:
            high = guess
        if 0 <= left < max(each, spare) or guess > MOST_UNITS * room:
            break
        guess += max(1, int(left / each)) if left >= 0 else -int(-left / each + 1)
        if not low < guess or high and not guess < high:
            guess = (low + high) // 2 if high else low + 1
    return best, low


def check_filled(used: int, length: int, task: str) -> None:
    """Prompt and answer fill 97 to 100 % of the length.

    Raises:
        InvalidInput: they do not.
    """
    if not FULL_ENOUGH * length <= used <= length:
        raise InvalidInput(
            f"task `{task}`: whole units of filler fill {used} of {length} tokens, "
            f"{FULL_ENOUGH:.0%} to 100% are needed",
            "evaluate longer --lengths, or leave the task out of --tasks",
        )


def continuation(material: Material, before: str, value: str) -> tuple[int, ...]:
    """Token ids of `value` right after the text `before`, as the tokenizer splits them there."""
    head, whole = material.encode(before), material.encode(before + value)
    if whole[: len(head)] == head:
        return tuple(whole[len(head) :])
    return tuple(material.encode(value))  # the border is not a token border: as a text of its own


def ranked(
    answers: Sequence[str],
    pool: Iterable[str],
    draw: Callable[[np.random.Generator], str],
    encode: Callable[[str], tuple[int, ...]],
    generator: np.random.Generator,
    between: str = ", ",
) -> tuple[tuple[int, ...], ...]:
    """Candidates of an example: each of `answers`, then nine wrong ones of every token count.

    Args:
        pool: wrong answers that stand in the context; taken first, as they are the hardest.
        draw: one more wrong answer.
        encode: token ids of an answer as a continuation of the prompt.
        between: what separates several answers in a list of them.

    Raises:
        GiraffeError: no nine wrong answers of as many tokens were found.
    """
    truths = [encode(answer) for answer in answers]
    pooled = list(dict.fromkeys(pool))
    generator.shuffle(pooled)
    wrong: dict[int, list[tuple[int, ...]]] = {len(truth): [] for truth in truths}
    taken = {*answers}

    def offer(value: str) -> None:
        ids = encode(value)
        same_size = wrong.get(len(ids))
        if same_size is not None and len(same_size) < RANKED_AGAINST and value not in taken:
            same_size.append(ids)
            taken.add(value)

    for value in chain(pooled, (draw(generator) for _ in range(DRAWS))):
        if all(len(found) == RANKED_AGAINST for found in wrong.values()):
            break
        offer(value)
    if any(len(found) < RANKED_AGAINST for found in wrong.values()):
        raise GiraffeError(
            f"no {RANKED_AGAINST} wrong answers of as many tokens as {', '.join(answers)} were "
            f"found in {DRAWS} draws",
            "this is a fault of the task; please report it",
        )
    listed = [encode(between.join(answers))] if len(answers) > 1 else []
    return (*truths, *(ids for found in wrong.values() for ids in found), *listed)


def usual(
    draw: Callable[[np.random.Generator], str],
    encode: Callable[[str], tuple[int, ...]],
    generator: np.random.Generator,
) -> str:
    """An answer of the token count that most have, so that there are wrong ones as long: of a
    hundred UUIDs one has a count that nine others are not found of in thousands."""
    drawn = [draw(generator) for _ in range(PROBES)]
    sizes = [len(encode(value)) for value in drawn]
    return drawn[sizes.index(max(sizes, key=sizes.count))]


def usual_first(
    draw: Callable[[np.random.Generator], str],
    encode: Callable[[str], tuple[int, ...]],
    generator: np.random.Generator,
) -> str:
    """The first answer drawn where it has the usual token count, as it always has where digits are
    split, else one that has; `generator` moves on by one draw either way."""
    first = draw(generator)
    other = usual(draw, encode, copy.deepcopy(generator))
    return first if len(encode(first)) == len(encode(other)) else other


def retrieval_scores(example: Example, outcome: Outcome, generated: float) -> dict[str, Value]:
    """The three measures of retrieval; the ranked and exact ones where there are candidates."""
    scores = {"": Value(generated)}
    if not example.candidates:
        return scores
    several = len(example.answers)
    listed = several > 1
    wrong = range(several, len(example.candidates) - listed)
    wins = [
        all(
            outcome.candidate_nll[truth] < outcome.candidate_nll[other]
            for other in wrong
            if len(example.candidates[other]) == len(example.candidates[truth])
        )
        for truth in range(several)
    ]
    exact = outcome.candidate_greedy[-1 if listed else 0]
    return {**scores, "ranked": Value(sum(wins) / several), "exact": Value(float(exact))}


def share_found(answers: Sequence[str], text: str) -> float:
    """Share of `answers` that are substrings of `text`, whatever the case (RULER's
    string_match_all; it gives credit to a model that dumps many values)."""
    return sum(answer.lower() in text.lower() for answer in answers) / len(answers)
