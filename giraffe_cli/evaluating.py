"""What the evaluation of a run reads, opened before anything is packed, and what would stop it.

    inputs = open_inputs(config, folder, True, problems)     every corpus but held-out documents
    foresee(config, checkpoint, inputs, native_length)       a few samples, as if those were long
    ... pack ...
    check_samples(config, checkpoint, inputs.texts(config, documents), ...)      all of them

So what follows from the config alone is refused in seconds, and only documents too short for a
length after packing has chosen them; both before training.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from giraffe_cli.checkpoint import Checkpoint, inspect
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.corpus.base import BadRecords, Document
from giraffe_cli.corpus.source_names import is_local
from giraffe_cli.corpus.store import held_out, is_packed
from giraffe_cli.errors import InvalidInput, Problems
from giraffe_cli.evals.base import Material, TokenDocument
from giraffe_cli.evals.chosen import sparing
from giraffe_cli.evals.coming import Coming
from giraffe_cli.evals.gating import check_gates, check_tests_something
from giraffe_cli.evals.room import check_room
from giraffe_cli.evals.samples import Texts, default_lengths, gather_material, prepare
from giraffe_cli.evals.subject import EVALUATOR, Subject
from giraffe_cli.evals.texts import documents_of, make_texts
from giraffe_cli.progress import SilentReporter
from giraffe_cli.units import format_length

LONG_TEXT = 100_000
"""Characters from which a text that is made up is not encoded as one."""
_BETWEEN = re.compile(r"(?<=\.)(?= )")
_SENTENCE = "Here stands a document that packing has yet to hold out. "


@dataclass(frozen=True)
class EvaluationInputs:
    """What an evaluation reads, as far as it is known before packing."""

    documents: list[Document] | None
    """None: packing chooses them."""
    haystack: list[Document]
    other: list[Document]
    evaluator: Checkpoint | None
    """The checkpoint that chooses the tokens of `longppl`, where one is named."""

    def texts(self, config: ExtendConfig, documents: Sequence[Document]) -> Texts:
        """With the documents that are scored."""
        return make_texts(config.eval, documents, self.haystack, self.other, self.evaluator)


def open_inputs(
    config: ExtendConfig, work_dir: Path, reads_all: bool, problems: Problems
) -> EvaluationInputs:
    """Read the corpora and open the evaluator that `config` names; what cannot be is noted.

    A GGUF is converted in `work_dir`. Without `reads_all` standard input and the Hub are left
    alone.
    """
    named, bad = config.eval, BadRecords()

    def read(sources: list[str], option: str) -> list[Document]:
        local = [source for source in sources if reads_all or is_local(source)]
        return problems.note(documents_of, local, option, bad) or []

    return EvaluationInputs(
        problems.note(known_documents, config, reads_all),
        read(named.haystack, "--haystack"),
        read(named.other_data, "--other-data"),
        problems.note(inspect, named.evaluator, work_dir / EVALUATOR, config.allow_pickle)
        if named.evaluator
        else None,
    )


def known_documents(config: ExtendConfig, reads_all: bool) -> list[Document] | None:
    """The documents to score on where packing does not choose them: `eval.data`, or what a packed
    directory held out; None where it does, or where they are left alone.

    Raises:
        InvalidInput: a corpus cannot be read, or nothing is held out.
    """
    if named := config.eval.data:
        local = [source for source in named if reads_all or is_local(source)]
        found = documents_of(local, "--eval-data", BadRecords(config.pack.on_bad))
        return found if local == named else None
    packed = [Path(s) for s in config.stage_configs()[-1].data if is_packed(Path(s))]
    if packed or not config.pack.hold_out:
        return held_out_documents(packed[0] if packed else None)
    return None


def held_out_documents(packed: Path | None) -> list[Document]:
    """What packing kept out of training.

    Raises:
        InvalidInput: there is nothing.
    """
    documents = held_out(packed) if packed else []
    if not documents:
        raise InvalidInput(
            "no held-out documents to evaluate on",
            "pass --eval-data FILE, raise pack.hold_out, or pass --no-eval",
        )
    return documents


def evaluated_lengths(config: ExtendConfig, native_length: int) -> list[int]:
    """Context lengths of the evaluation, rising."""
    chosen = sorted({*(config.eval.lengths or [])})
    return chosen or default_lengths(native_length, config.target_length)


def refuse_what_cannot_be_read(config: ExtendConfig, checkpoint: Checkpoint, native: int) -> None:
    """Before anything is trained, by memory alone.

    Raises:
        DoesNotFit: the longest text of the evaluation.
    """
    longest = evaluated_lengths(config, native)[-1]
    check_room(checkpoint.path, config.dtype, longest, reading_processes(config) or 1)


def reading_processes(config: ExtendConfig) -> int | None:
    """How many processes read: as `eval.processes` says, else those of the training on one node
    where each has a device of its own; None: not said."""
    on_this_node = config.train.processes and config.train.processes // config.train.nodes
    return config.eval.processes or (None if config.train.share_devices else on_this_node)


def check_control(config: ExtendConfig, native_length: int) -> None:
    """A control run is scored somewhere.

    Raises:
        InvalidInput: every length lies beyond its window.
    """
    shortest = evaluated_lengths(config, native_length)[0]
    if config.train.control and shortest > native_length:
        raise InvalidInput(
            f"the control run is scored up to {format_length(native_length)}, eval.lengths "
            f"begins at {format_length(shortest)}",
            f"add {format_length(native_length)} to eval.lengths, or leave --control out",
        )


def foresee(
    config: ExtendConfig,
    checkpoint: Checkpoint,
    inputs: EvaluationInputs,
    native_length: int,
    strict: bool = False,
) -> None:
    """`check_samples` before packing, on a few samples: held-out documents that are not known yet
    are taken to be as long as any task asks for. Raises as that does; under `strict` also where no
    gate would be tested.
    """
    texts = inputs.texts(config, inputs.documents or [])
    # any words are a haystack of any length, and few are split sooner
    texts = dataclasses.replace(texts, haystack=[Document("", _SENTENCE, "")])
    few = config.model_copy(update={"eval": sparing(config.eval)})
    material = _material(few, checkpoint, inputs.evaluator, texts, native_length)
    material = dataclasses.replace(material, encode=_by_sentence(material.encode))
    if inputs.documents is None:
        tokens = 4 * material.lengths[-1] + 2**16
        material = dataclasses.replace(material, documents=[_stand_in(material, tokens)])
    _check(few, checkpoint, inputs.evaluator, material, strict, all_samples=False)


def check_samples(
    config: ExtendConfig,
    checkpoint: Checkpoint,
    evaluator: Checkpoint | None,
    texts: Texts,
    native_length: int,
) -> None:
    """Refuse before training what the evaluation would refuse after it: its samples are made.

    Raises:
        InvalidInput: an unknown task or knob, documents that fill no length, a gate on what is not
            evaluated.
    """
    _check(
        config,
        checkpoint,
        evaluator,
        _material(config, checkpoint, evaluator, texts, native_length),
    )


def _material(
    config: ExtendConfig,
    checkpoint: Checkpoint,
    evaluator: Checkpoint | None,
    texts: Texts,
    native_length: int,
) -> Material:
    lengths = evaluated_lengths(config, native_length)
    subjects = _subjects(checkpoint, evaluator)
    return gather_material(subjects, texts, config.eval, lengths, native_length)


def _check(
    config: ExtendConfig,
    checkpoint: Checkpoint,
    evaluator: Checkpoint | None,
    material: Material,
    strict: bool = False,
    all_samples: bool = True,
) -> None:
    """Samples and gates; raises as `check_samples`."""
    lengths, native = [*material.lengths], material.native_length
    batches, _ = prepare(config.eval, lengths, config.seed, material, SilentReporter())
    base = _subjects(checkpoint, None)[0]
    tested = [base, dataclasses.replace(base, name="checkpoint")]
    if config.train.control:
        tested.append(dataclasses.replace(base, name="control", longest=native))
    check_gates(config.eval, batches, tested, native, all_samples)
    if strict:
        coming = Coming(batches, {subject.name: subject for subject in tested}, native)
        check_tests_something(coming, config.eval.gates)


def _subjects(checkpoint: Checkpoint, evaluator: Checkpoint | None) -> list[Subject]:
    return [
        Subject(name, opened.path, opened.digest, opened.dtype)
        for name, opened in (("base", checkpoint), (EVALUATOR, evaluator))
        if opened
    ]


def _stand_in(material: Material, tokens: int) -> TokenDocument:
    """A document of so many tokens; a text of as many would take 300 bytes a token to encode."""
    ids = np.resize(np.asarray(material.encode(_SENTENCE), np.int32), tokens)
    return TokenDocument("to be held out", ids)


def _by_sentence(encode: Callable[[str], list[int]]) -> Callable[[str], list[int]]:
    """`encode`, for a long text sentence by sentence, each once: filler repeats a few, and a token
    or so at their borders decides nothing there. A million tokens took 16 s and 2 GB."""
    known = functools.cache(encode)

    def encode_quickly(text: str) -> list[int]:
        if len(text) < LONG_TEXT:
            return encode(text)
        sentences = _BETWEEN.split(text)
        found = (known(one) if len(one) < LONG_TEXT else encode(one) for one in sentences)
        return [*chain.from_iterable(found)]

    return encode_quickly
