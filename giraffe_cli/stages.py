"""What the pipeline's stages need around them: the folder's claim, the plan, data and proof."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import Checkpoint, head_to_extend, inspect
from giraffe_cli.config.base import AUTO
from giraffe_cli.config.building import build, differing_keys, resolve_dtype
from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.files import read_sealed_yaml, write_sealed_yaml
from giraffe_cli.config.pack import PackConfig
from giraffe_cli.config.train import knobs_without_effect
from giraffe_cli.corpus.base import BadRecords, Document
from giraffe_cli.corpus.packing import pack_stage, tokenizer_digest
from giraffe_cli.corpus.sources import is_local, read_source, resolve
from giraffe_cli.corpus.store import held_out, is_packed, open_packed
from giraffe_cli.errors import GiraffeError, InvalidInput, UsageError
from giraffe_cli.evals.gating import check_gates
from giraffe_cli.evals.harness import check_harness
from giraffe_cli.evals.samples import Texts, gather_material, prepare
from giraffe_cli.evals.subject import EVALUATOR, Subject
from giraffe_cli.model.levers import Levers
from giraffe_cli.plan.estimate import Pace, estimate
from giraffe_cli.plan.machine import Machine
from giraffe_cli.progress import Reporter, SilentReporter
from giraffe_cli.rope.base import RopeTable, make_table
from giraffe_cli.rope.scheme import make_positions
from giraffe_cli.rundir import (
    MANIFEST,
    digest_file,
    make_folder,
    read_kept,
    write_sealed,
)
from giraffe_cli.tune.settings import settings
from giraffe_cli.units import format_length
from giraffe_cli.verify import verify_directory


@dataclass
class Timings:
    """Seconds by stage, kept in `timings.json` so that a resumed run reports the whole."""

    path: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def kept(cls, path: Path) -> Timings:
        """With what an earlier call of the same run took."""
        return cls(path, read_kept(path) or {})

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as `name`; a stage that was skipped keeps the time of its real run."""
        started = time.monotonic()
        yield
        elapsed = round(time.monotonic() - started, 2)
        self.seconds[name] = max(elapsed, self.seconds.get(name, 0.0))
        write_sealed(self.path, self.seconds)


@contextlib.contextmanager
def claimed(config: ExtendConfig, run_dir: Path) -> Iterator[None]:
    """`run_dir` as the folder of this config; when input is refused before any stage has finished,
    a folder that was made here is removed again, so that mended input meets no leftover.

    Raises:
        InvalidInput: it holds a run of another config; the differing keys are named.
    """
    is_new = not (run_dir / "run.yaml").exists()
    claim(config, run_dir)
    try:
        yield
    except (InvalidInput, UsageError):
        if is_new and not any(run_dir.rglob(MANIFEST)):
            shutil.rmtree(run_dir)
        raise


def claim(config: ExtendConfig, run_dir: Path) -> None:
    """Make `run_dir` the folder of this config, or recognise it as such; knobs that change no
    weight may differ, and the folder's config then follows. Raises as `check_claim` does.
    """
    if check_claim(config, run_dir):
        return
    make_folder(run_dir)
    write_sealed_yaml(run_dir / "run.yaml", config.model_dump(mode="json"))


def check_claim(config: ExtendConfig, run_dir: Path) -> bool:
    """Whether `run_dir` is the folder of this very config; nothing is written.

    Raises:
        InvalidInput: it holds a run of another config, whose differing keys are named, or is no
            directory.
    """
    path, values = run_dir / "run.yaml", config.model_dump(mode="json")
    if path.exists():
        free = {f"train.{knob}" for knob in knobs_without_effect(config.train)}
        free |= {"eval.processes", "eval.batch_tokens", "allow_pickle"}
        free |= {"rope.minutes"}  # a budget; a comparison that has ended is kept, and said so
        kept = build(read_sealed_yaml(path), str(path)).model_dump(mode="json")
        different = differing_keys(kept, values)
        if set(different) - free:
            different = sorted(set(different) - free)
            raise InvalidInput(
                f"{run_dir} holds a run of another config; different: {', '.join(different)}",
                "pass the same options to resume it, or another --out to start a new run",
            )
        if not different:
            return True
    if run_dir.exists() and not run_dir.is_dir():
        raise InvalidInput(f"{run_dir} is not a directory", "choose another --out")
    return False


def choose_table(config: ExtendConfig, checkpoint: Checkpoint) -> RopeTable:
    """The table of the configured strategy; of `auto` the likeliest, to plan with.

    Raises:
        InvalidInput: the base reaches the target, or is scaled and `rope.on_existing` refuses;
            an unknown strategy, position scheme or knob.
    """
    make_positions(config.positions, config.train.position_knobs)
    head = head_to_extend(
        checkpoint, config.target_length, config.rope.on_existing, "--allow-native"
    )
    if config.rope.strategy == AUTO:
        return settings(head)[0][0].table
    return make_table(config.rope.strategy, config.rope.knobs, head)


def make_plan(
    config: ExtendConfig,
    checkpoint: Checkpoint,
    table: RopeTable,
    machine: Machine | None = None,
    pace: Pace | None = None,
    kept: Levers | None = None,
) -> dict[str, Any]:
    """What will be done and what it will cost, before anything is loaded.

    On `machine` at `pace`, else here; `kept` are the levers of an earlier call of the same run.
    """
    return {
        "model": checkpoint.to_json(),
        "strategy": config.rope.strategy,
        "native_length": table.original_max_position_embeddings,
        "target_length": config.target_length,
        "window": config.window,
        "positions": config.positions,
        "steps": config.train.steps,
        "tokens_per_step": config.window * config.train.windows_per_step,
        "dtype": resolve_dtype(config.dtype, checkpoint.dtype),
        "estimate": estimate(checkpoint, config, machine, pace, kept),
        "files": ["run.yaml", "plan.json", "rope.json", "packed/", "adapter/", "model/", "eval/"],
    }


def packed_folder(
    config: ExtendConfig, checkpoint: Checkpoint, run_dir: Path, reporter: Reporter
) -> Path:
    """The training windows: packed here, or the given directory once it is shown to fit.

    Raises:
        InvalidInput: a packed directory of another tokenizer or of shorter windows.
    """
    given = given_windows(config, checkpoint)
    if given:
        return given
    out = run_dir / "packed"
    pack_stage(config.data, checkpoint.path, config.window, config.pack, config.seed, out, reporter)
    return out


def given_windows(config: ExtendConfig, checkpoint: Checkpoint) -> Path | None:
    """The packed directory that `config` names in the place of a corpus; raises as
    `packed_folder`."""
    given = [Path(source) for source in config.data if is_packed(Path(source))]
    if not given:
        return None
    if len(config.data) > 1:
        raise InvalidInput(
            f"--data mixes the packed directory {given[0]} with other sources",
            "pack all sources together with `giraffe pack-data`, or pass the directory alone",
        )
    rows = open_packed(given[0])
    if rows.tokenizer_digest != tokenizer_digest(checkpoint.path):
        raise InvalidInput(
            f"{given[0]} was packed with another tokenizer than {checkpoint.source} has",
            f"run giraffe pack-data SRC --tokenizer {checkpoint.source} --window "
            f"{format_length(config.window)} --out {given[0]}",
        )
    if rows.window != config.window:
        raise InvalidInput(
            f"{given[0]} holds windows of {rows.window} tokens, {config.window} were asked for",
            f"pass --window {rows.window}, or pack again with --window {config.window}",
        )
    return given[0]


def check_sources(config: ExtendConfig, checkpoint: Checkpoint) -> None:
    """Look at what would be packed, and read nothing of it; standard input and the Hub are left
    alone.

    Raises:
        InvalidInput, UsageError: as `packed_folder`, as far as the files' names tell.
    """
    if given_windows(config, checkpoint) is None:
        resolve([named for named in config.data if is_local(named)], config.pack)


def check_texts(config: EvalConfig) -> None:
    """Look at the corpora that would be scored on, as `check_sources` does; raises likewise."""
    for named in (*config.data, *config.haystack, *config.other_data):
        if is_local(named) and not is_packed(Path(named)):
            resolve([named], PackConfig())


def evaluation_documents(config: ExtendConfig, packed: Path | None) -> list[Document]:
    """The documents to score on: `eval.data`, else what packing held out.

    Raises:
        InvalidInput: there are none.
    """
    if config.eval.data:
        return documents_of(config.eval.data, "--eval-data", BadRecords(config.pack.on_bad))
    documents = held_out(packed) if packed else []
    if not documents:
        raise InvalidInput(
            "no held-out documents to evaluate on",
            "pass --eval-data FILE, raise pack.hold_out, or pass --no-eval",
        )
    return documents


def check_samples(
    config: ExtendConfig,
    checkpoint: Checkpoint,
    texts: Texts,
    lengths: list[int],
    native_length: int,
    evaluator: Checkpoint | None = None,
) -> None:
    """Refuse before training what the evaluation would refuse after it: its samples are made.

    Raises:
        InvalidInput: an unknown task or knob, documents that fill no length, a gate on what is not
            evaluated, or a task of lm-eval that cannot run.
    """
    check_harness(config.eval.harness)
    subjects = [
        Subject(name, opened.path, opened.digest, opened.dtype)
        for name, opened in (("base", checkpoint), (EVALUATOR, evaluator))
        if opened
    ]
    material = gather_material(subjects, texts, config.eval, lengths, native_length)
    batches, _ = prepare(config.eval, lengths, config.seed, material, SilentReporter())
    tested = [subjects[0], dataclasses.replace(subjects[0], name="checkpoint")]
    if config.train.control:
        tested.append(dataclasses.replace(subjects[0], name="control", longest=native_length))
    check_gates(config.eval, batches, tested, native_length)


def evaluation_texts(
    config: EvalConfig, documents: list[Document], evaluator: Checkpoint | None = None
) -> Texts:
    """The documents, what needles are hidden in, and how far the evaluator reads; see `EvalConfig`.

    Raises:
        InvalidInput: a corpus is missing, unreadable or without text.
    """
    haystack = documents_of(config.haystack, "--haystack")
    other = documents_of(config.other_data, "--other-data")
    reach = evaluator.reach if evaluator else 0
    return Texts(documents, haystack or (documents if config.data else []), other, reach)


def documents_of(sources: list[str], option: str, bad: BadRecords | None = None) -> list[Document]:
    """The documents of corpora, of a folder that `pack-data` wrote those that it holds out; none
    where no source is named.

    Raises:
        InvalidInput: a source is missing or unreadable, or all of them hold no text.
    """
    found: list[Document] = []
    for source in sources:
        if is_packed(Path(source)):
            found += held_out(Path(source))
        else:
            found += read_source(source, bad or BadRecords())
    if sources and not any(document.text.strip() for document in found):
        raise InvalidInput(
            f"{option}: no text in {', '.join(sources)}", "name a corpus that holds text"
        )
    return found


def open_evaluator(config: ExtendConfig, run_dir: Path) -> Checkpoint | None:
    """The checkpoint that chooses the tokens of `longppl`, where one is named.

    Raises:
        InvalidInput: it is no checkpoint that can be read.
    """
    named = config.eval.evaluator
    return inspect(named, run_dir / EVALUATOR, config.allow_pickle) if named else None


def verified(
    checkpoint: Checkpoint,
    adapter: Path | None,
    table: RopeTable,
    model_dir: Path,
    reporter: Reporter,
) -> dict[str, Any]:
    """The proof that `model_dir` is what was trained; kept in `verify.json` beside its inputs.

    Raises:
        GiraffeError: any check failed; each difference is named.
    """
    path = model_dir.parent / "verify.json"
    inputs = {"model": digest_file(model_dir / "manifest.json"), "base": checkpoint.digest}
    kept = read_kept(path) or {}
    if kept.get("inputs") == inputs:
        earlier: dict[str, Any] = kept["proof"]
        return earlier
    proof = verify_directory(
        model_dir, adapter_dir=adapter, base=checkpoint.path, table=table, reporter=reporter
    )
    failed = {name: check for name, check in proof["checks"].items() if not check["ok"]}
    if failed:
        listed = "\n".join(
            f"  - {name}: found {check['found']}, expected {check['expected']}"
            for name, check in failed.items()
        )
        raise GiraffeError(f"{model_dir} is not what was trained\n{listed}", "report this")
    write_sealed(path, {"inputs": inputs, "proof": proof})
    return proof
