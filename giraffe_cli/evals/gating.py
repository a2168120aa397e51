"""Gates of an evaluation checked before a model is opened: what they name is going to be scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.errors import InvalidInput, Problems, near_misses
from giraffe_cli.evals.base import AbstractTask, Example
from giraffe_cli.evals.coming import Coming
from giraffe_cli.evals.measures import Measure, measure_name
from giraffe_cli.evals.samples import Batch
from giraffe_cli.evals.short_context import AT_NATIVE_EXACTLY, GIVEN_BY, KEYS
from giraffe_cli.evals.statistics import Score, clustered_share
from giraffe_cli.evals.subject import Subject
from giraffe_cli.gates import Claim, Difference, Reach, Short, Side, judged, parse_gate, sides
from giraffe_cli.units import format_length


def check_gates(
    config: EvalConfig,
    batches: Sequence[Batch],
    subjects: Sequence[Subject],
    native_length: int,
    all_samples: bool = True,
) -> None:
    """Gates and threshold bear on models, measures and lengths that are about to be evaluated, and
    can be passed: with `all_samples`, by as many right answers as there are going to be.

    Raises:
        InvalidInput: some do not, all at once; with near misses and what is evaluated.
    """
    problems = Problems()
    problems.note(_check_threshold, config.threshold, batches)
    coming = Coming(batches, {subject.name: subject for subject in subjects}, native_length)
    for claim in map(parse_gate, config.gates):
        problems.note(_check_claim, claim, coming, config.threshold, all_samples)
    problems.settle()


def check_tests_something(coming: Coming, gates: Sequence[str]) -> None:
    """An evaluation after an extension, which a script goes by, holds something against a bar.

    Raises:
        InvalidInput: it has neither gates nor the losses that `default_gates` tests.
    """
    native = coming.native_length
    if gates or any(native in coming.lengths(task, "checkpoint") for task in ("nll", "short")):
        return
    raise InvalidInput(
        "--strict: no gate would be tested, as no loss is evaluated at the native window of "
        f"{format_length(native)}",
        f"add nll to eval.tasks and {native} to eval.lengths, write eval.gates, or leave --strict "
        "out",
    )


def _check_claim(claim: Claim, coming: Coming, threshold: float | None, all_samples: bool) -> None:
    quantity = claim.quantity
    for side in sides(quantity):
        _check_side(side, claim, coming)
        if isinstance(side, Reach):
            _check_reach(side, claim, coming, threshold)
            if threshold is not None and ">" in claim.op and all_samples:
                _check_reachable(side, claim, coming, threshold)
    if isinstance(quantity, Side) and all_samples:
        _check_attainable(quantity, claim, coming)
    if isinstance(quantity, Short):
        _check_short(quantity.key, claim, coming)
    if isinstance(quantity, Difference):
        _check_difference(quantity, claim, {batch.name: batch.task for batch in coming.batches})


def _check_threshold(threshold: float | None, batches: Sequence[Batch]) -> None:
    """A given threshold of the effective length bears on some measure.

    Raises:
        InvalidInput: only losses are evaluated, whose effective length asks for no threshold.
    """
    if threshold is not None and not any(m.has_threshold for m in _measures(batches)):
        raise InvalidInput(
            f"threshold {threshold:g} has no effect: {', '.join(b.name for b in batches)} "
            "measure no share of right answers",
            "leave it out, or add a retrieval task such as passkey",
        )


def _check_side(side: Side | Reach, claim: Claim, coming: Coming) -> None:
    """The model is evaluated, by that measure, at that length.

    Raises:
        InvalidInput: it is not.
    """
    if side.subject not in coming.subjects:
        raise InvalidInput(
            f"gate `{claim.text}`: no model `{side.subject}` is evaluated",
            near_misses(side.subject, coming.subjects),
        )
    measured = coming.measured()
    if side.measure not in measured:
        raise InvalidInput(
            f"gate `{claim.text}`: no measure `{side.measure}` is evaluated",
            near_misses(side.measure, measured),
        )
    batch, key = measured[side.measure]
    if batch.task.measures[key].against_base and "base" not in coming.subjects:
        raise InvalidInput(
            f"gate `{claim.text}`: `{side.measure}` holds a model against the base, and none is "
            "given",
            "pass --base",
        )
    if isinstance(side, Side) and side.length not in coming.lengths(side.measure, side.subject):
        where = f"`{side.subject}` is not scored on `{side.measure}` at "
        _refuse_length(claim, where + format_length(side.length), side, coming)


def _check_attainable(side: Side, claim: Claim, coming: Coming) -> None:
    """A share can be shown by so many samples.

    Raises:
        InvalidInput: not even if each were right, or wrong where the gate asks for few.
    """
    batch, key = coming.measured()[side.measure]
    measure = batch.task.measures[key]
    examples = [e for e in coming.examples(side.measure, side.subject) if e.length == side.length]
    if not measure.bounded:
        return
    word, end, value = ("right", "lower", 1.0) if ">" in claim.op else ("wrong", "upper", 0.0)
    best = _all_alike(examples, measure, value)
    tested = judged(claim.name, best, claim.op, claim.threshold)
    if not tested.ok and tested.bound is not None:
        _refuse_bar(claim, best, batch, f"all {word}, have the {end} bound {tested.bound:.3f}")


def _check_reachable(side: Reach, claim: Claim, coming: Coming, threshold: float) -> None:
    """The samples of a length can show the share that an effective length was given to ask for.

    Raises:
        InvalidInput: at some length not even if each were right.
    """
    batch, key = coming.measured()[side.measure]
    measure = batch.task.measures[key]
    if not measure.has_threshold:
        return
    for length in coming.lengths(side.measure, side.subject):
        examples = [e for e in coming.examples(side.measure, side.subject) if e.length == length]
        best = _all_alike(examples, measure, 1.0)
        if best["ci_low"] < threshold:
            what = (
                f"all right, have the lower bound {best['ci_low']:.3f} at {format_length(length)}"
            )
            _refuse_bar(claim, best, batch, f"{what}, the threshold is {threshold:g}")


def _all_alike(examples: Sequence[Example], measure: Measure, value: float) -> Score:
    return clustered_share(
        [value] * len(examples),
        [example.cluster for example in examples],
        parts=sum(measure.questions(len(example.answers)) for example in examples),
    )


def _refuse_bar(claim: Claim, best: Score, batch: Batch, fact: str) -> NoReturn:
    n, haystacks = best["n"], best["clusters"]
    of = f" of {haystacks} haystacks" if haystacks < n else ""
    raise InvalidInput(
        f"gate `{claim.text}` cannot be passed: {n} samples{of}, {fact}",
        f"take more samples of {batch.name} (--suite standard, or its knobs with --set), or "
        "another bar",
    )


def _check_reach(side: Reach, claim: Claim, coming: Coming, threshold: float | None) -> None:
    """There is something to hold the lengths beyond the native window against.

    Raises:
        InvalidInput: there is not, so that no effective length can be shown.
    """
    batch, key = coming.measured()[side.measure]
    measure, native = batch.task.measures[key], format_length(coming.native_length)
    if not measure.reaches:
        raise InvalidInput(
            f"gate `{claim.text}`: `{side.measure}` tells nothing of how it reads long texts",
            f"known: {', '.join(_reaching(coming))}",
        )
    if not measure.has_threshold:
        if coming.native_length not in coming.lengths(side.measure, side.subject):
            what = f"`{side.measure}` is held against the native window of {native}, at which "
            _refuse_length(claim, f"{what}`{side.subject}` is not scored", side, coming)
    elif threshold is None:
        reference = "base" if coming.lengths(side.measure, "base") else "checkpoint"
        if not coming.within_native(side.measure, reference):
            what = f"`{side.measure}` is held against the {reference}'s score within the native "
            _refuse_length(claim, f"{what}window of {native}, which it has not", side, coming)


def _reaching(coming: Coming) -> list[str]:
    return [n for n, (batch, key) in coming.measured().items() if batch.task.measures[key].reaches]


def _refuse_length(claim: Claim, fact: str, side: Side | Reach, coming: Coming) -> NoReturn:
    """Raises InvalidInput: `fact`, and what is scored instead."""
    lengths = coming.lengths(side.measure, side.subject)
    scored = ", ".join(map(format_length, lengths)) or "no length"
    raise InvalidInput(
        f"gate `{claim.text}`: {fact}", f"scored at {scored}; lengths are chosen with --lengths"
    )


def _check_short(key: str, claim: Claim, coming: Coming) -> None:
    """A measure that gives the entry is evaluated within the native window, beside a base.

    Raises:
        InvalidInput: none is.
    """
    if key not in KEYS:
        raise InvalidInput(
            f"gate `{claim.text}`: short_context has no `{key}`", near_misses(key, KEYS)
        )
    if "base" not in coming.subjects:
        raise InvalidInput(
            f"gate `{claim.text}`: short context is held against the base, and none is given",
            "pass --base",
        )
    native, measures = coming.native_length, GIVEN_BY[key]
    within = {name: coming.within_native(name, "checkpoint") for name in measures}
    if not any(
        native in lengths if name in AT_NATIVE_EXACTLY else lengths
        for name, lengths in within.items()
    ):
        tasks = [name.partition(".")[0] for name in measures]
        raise InvalidInput(
            f"gate `{claim.text}`: short_context.{key} is given by {' or '.join(tasks)} within "
            f"the native window of {format_length(native)}, and none is evaluated there",
            f"add {tasks[0]} to --tasks, and {native} to --lengths",
        )


def _check_difference(
    quantity: Difference, claim: Claim, tasks: Mapping[str, AbstractTask]
) -> None:
    """The same measure, or two that a task holds against each other.

    Raises:
        InvalidInput: neither, or the same score twice.
    """
    first, second = quantity.first, quantity.second
    pairs = [
        tuple(measure_name(name, side) for side in contrast)
        for name, task in tasks.items()
        for contrast in task.contrasts.values()
    ]
    contrasted = {first.measure, second.measure} in [set(pair) for pair in pairs]
    if first == second or not (first.measure == second.measure or contrasted):
        listed = "".join(f", or {a} and {b}" for a, b in pairs)
        raise InvalidInput(
            f"gate `{claim.text}`: {first} and {second} have no paired difference",
            "subtract the same measure at two lengths or of two models, such as "
            f"nll@16k-nll@8k{listed}",
        )


def _measures(batches: Sequence[Batch]) -> list[Measure]:
    return [measure for batch in batches for measure in batch.task.measures.values()]
