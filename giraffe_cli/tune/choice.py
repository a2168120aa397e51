"""`--rope auto`: the bake-off inside a run, on its training text and within a part of its time.

    training predicted at 60 min → 6 min of comparing on up to 8 documents → rope_choice.json

The documents are of the training text, never of what the evaluation reads. Where no comparison can
be made, for want of time or of long documents, the likeliest setting is taken, and that is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import Checkpoint, head_to_extend
from giraffe_cli.config.base import AUTO
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.corpus.base import Document
from giraffe_cli.corpus.holdout import choose_held_out, is_held_out
from giraffe_cli.corpus.packed_facts import given_attention_share
from giraffe_cli.corpus.store import held_out, is_packed
from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.samples import Texts
from giraffe_cli.model.out_of_memory import is_out_of_memory
from giraffe_cli.model.precision import computed_in
from giraffe_cli.plan.estimate import estimate
from giraffe_cli.plan.machine import this_machine
from giraffe_cli.plan.trial import pace_of
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.base import Head
from giraffe_cli.rundir import make_folder, read_json, write_sealed
from giraffe_cli.tune.compare import Budget, compare
from giraffe_cli.tune.evidence import Evidence, gather_evidence
from giraffe_cli.tune.reading import TableReader
from giraffe_cli.tune.settings import Setting, settings
from giraffe_cli.tune.texts import longest_documents
from giraffe_cli.units import counted, format_length, format_seconds

CHOICE = "rope_choice.json"
DOCUMENTS = 8
SHARE = 0.1
"""Of the predicted training time."""
UNTRAINED_MINUTES = 5.0
"""Where nothing is trained: the table is all there is."""


def chooses_rope(config: ExtendConfig) -> bool:
    """Whether any stage leaves its strategy to the comparison."""
    return any(stage.rope.strategy == AUTO for stage in config.stage_configs())


def compared_stage(config: ExtendConfig) -> ExtendConfig:
    """The stage that tables are compared for: the last that leaves its strategy to it."""
    return [stage for stage in config.stage_configs() if stage.rope.strategy == AUTO][-1]


def predicted_seconds(
    the_plan: Mapping[str, Any], checkpoint: Checkpoint, config: ExtendConfig
) -> float:
    """Of the training in `plan.json`, at what this machine is measured to sustain."""
    assumed = [stage["estimate"] for stage in (*the_plan["stages"], *the_plan["control"])]
    if not config.trains:
        return 0.0
    pace = pace_of(this_machine(), checkpoint, config)
    last = config.stage_configs()[-1]
    share = given_attention_share(last.data, last.train.across_documents)
    measured = estimate(checkpoint, last, pace=pace, attention_share=share)
    slower = measured["seconds_per_step"] / the_plan["stages"][-1]["estimate"]["seconds_per_step"]
    return float(slower * sum(one["seconds"] for one in assumed))


def budget_seconds(config: ExtendConfig, training_seconds: float) -> float:
    """What the comparison may take: what was given, else a tenth of the training."""
    if config.rope.minutes is not None:
        return 60 * config.rope.minutes
    return SHARE * training_seconds if config.trains else 60 * UNTRAINED_MINUTES


def choose_rope(
    config: ExtendConfig,
    checkpoint: Checkpoint,
    run_dir: Path,
    seconds: float,
    reporter: Reporter,
    *,
    is_settled: bool = True,
) -> dict[str, Any]:
    """The content of `rope_choice.json`: the comparison, and `chosen` with its `reason`; that of an
    earlier call of the same run, where there is one.

    Args:
        is_settled: whether something was trained or written on an earlier choice; until then one
            that nothing was compared for is made again.

    Raises:
        InvalidInput: a corpus that cannot be read, or a base that cannot be extended so.
    """
    path = run_dir / CHOICE
    if path.exists():
        kept: dict[str, Any] = read_json(path)
        compared_before = bool(kept.get("settings"))
        if compared_before or is_settled:
            how = "compared and chosen" if compared_before else "taken by rule of thumb"
            reporter.info(f"rope: {kept['chosen']['label']}, {how} before ({path})")
            return kept
    config = compared_stage(config)
    head = head_to_extend(checkpoint, config.target_length, config.rope.on_existing)
    found, _ = settings(head)
    compared: dict[str, Any] = {}
    try:
        evidence = evidence_of(config, checkpoint, head, reporter)
    except NoText as problem:
        reason = f"{problem.message}: nothing to compare on"
    else:
        reason = f"{format_seconds(seconds)} were too little to compare two"
        try:
            compared = _compared(
                config, checkpoint, run_dir, seconds, found, head, evidence, reporter
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = f"{format_length(head.target_length)} tokens do not fit into memory at once"
            reporter.warn(f"rope auto: {reason}")
    choice = _record(compared, found[0], reason)
    reporter.info(f"rope: {choice['chosen']['label']}, {choice['reason']}")
    write_sealed(path, choice)
    return choice


def _compared(
    config: ExtendConfig,
    checkpoint: Checkpoint,
    run_dir: Path,
    seconds: float,
    found: Sequence[Setting],
    head: Head,
    evidence: Evidence,
    reporter: Reporter,
) -> dict[str, Any]:
    reporter.info(
        f"rope auto: comparing {len(found)} tables on up to "
        f"{counted(evidence.count, 'training document')} "
        f"within {format_seconds(seconds)}"
    )
    dtype = computed_in(config.dtype, checkpoint.dtype)
    reader = TableReader(checkpoint, dtype, make_folder(run_dir / "tune" / "cache"))
    budget = Budget(seconds)
    try:
        return compare(reader, found, head, evidence, reporter, budget=budget, seed=config.seed)
    finally:
        reader.close()


def _record(compared: Mapping[str, Any], likeliest: Setting, reason: str) -> dict[str, Any]:
    """What was chosen and why; by rule of thumb where nothing was compared."""
    chosen = compared.get("recommendation")
    if chosen:
        reason = chosen["reason"]
    else:
        reason = f"{reason}; {likeliest.label} by rule of thumb"
        chosen = {
            "label": likeliest.label,
            "strategy": likeliest.strategy,
            "knobs": likeliest.knobs,
        }
    named = {key: chosen[key] for key in ("label", "strategy", "knobs")}
    return {
        "settings": [],
        "warnings": [],
        **compared,
        "asked": "auto",
        "chosen": named,
        "reason": reason,
    }


class NoText(InvalidInput):
    """No document that tables could be compared on."""


def evidence_of(
    config: ExtendConfig, checkpoint: Checkpoint, head: Head, reporter: Reporter
) -> Evidence:
    """Samples of the training text.

    Raises:
        NoText: no document of it reaches the target.
        InvalidInput: it cannot be read.
    """
    documents = training_documents(config)
    texts, window = Texts(documents, documents), head.original_max_position_embeddings
    try:
        return gather_evidence(
            checkpoint,
            window,
            head.target_length,
            texts,
            reporter,
            documents=DOCUMENTS,
            seed=config.seed,
            needles=False,
        )
    except InvalidInput as problem:
        raise NoText(problem.message, problem.hint) from problem


def training_documents(config: ExtendConfig) -> list[Document]:
    """The longest that are not held out; of packed windows, which are no documents any more, the
    longest held-out ones that the evaluation leaves alone.

    Raises:
        InvalidInput: a corpus is missing or unreadable.
    """
    packed = [Path(source) for source in config.data if is_packed(Path(source))]
    if packed:
        ordered = sorted(held_out(packed[0]), key=lambda d: (-len(d.text), d.source, d.id))
        own = 0 if config.eval.data else config.eval.documents
        return ordered[own : own + DOCUMENTS]
    share, seen = config.pack.hold_out, set[str]()

    def is_trained_on(document: Document) -> bool:
        seen.add(document.id)
        return not is_held_out(document.id, share)

    found = longest_documents(config.data, DOCUMENTS + 1, config.pack, is_trained_on)
    # of a small corpus packing holds one out though its hash would not say so
    kept_out = choose_held_out(seen, share)
    return [document for document in found if document.id not in kept_out][:DOCUMENTS]
