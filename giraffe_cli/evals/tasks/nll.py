"""Fixed-target, nested-context NLL: the same tokens scored with more and more text before them.

For a document and an anchor `a` the targets are the K tokens `[a-K, a)`, whatever the length L;
the context is the L-K tokens before them. So NLL(L) - NLL(native) is the gain from far context and
nothing else: scoring tokens `0..L` would change which tokens are scored as L grows.

    K=2, longest=6, document t0..t7, anchor 6, no BOS:   L=4 → t2 t3 [t4 t5]   L=6 → t0..t3 [t4 t5]

Tolerating length and using it are told apart by a control: beyond the native window the same
prompt is read once more with its far part, all that the native window would not hold, shuffled.

    native=4                                             L=6 → t1 t0 | t2 t3 [t4 t5]   shuffled
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from giraffe_cli.evals.base import AbstractTask, Example, Material, Outcome, Reference
from giraffe_cli.evals.measures import Measure, Value
from giraffe_cli.evals.windows import (
    anchors,
    bits_per_byte,
    check_targets,
    long_enough,
    longest_length,
    window,
)
from giraffe_cli.rundir import digest_bytes


@dataclass(frozen=True)
class Nll(AbstractTask):
    """Mean negative log-likelihood of held-out text, nats per token."""

    summary: ClassVar[str] = "NLL of the same held-out tokens under each context length"
    source: ClassVar[str] = "fixed-target form of perplexity by length (YaRN, Peng et al. 2023)"
    measures: ClassVar[Mapping[str, Measure]] = {
        "": Measure("loss of the same tokens under each context length", False, "mean", 0, "nats"),
        "bits-per-byte": Measure(
            "the same in bits for each byte of text, comparable between tokenizers",
            False,
            "mean",
            0,
            "bits",
        ),
        "shuffled": Measure(
            "loss of the same tokens when the text beyond the native window is shuffled",
            False,
            "mean",
            0,
            "nats",
        ),
    }
    contrasts: ClassVar[Mapping[str, tuple[str, str]]] = {"real_minus_shuffled": ("", "shuffled")}
    needs: ClassVar[tuple[str, ...]] = ("documents",)

    anchors: int = 4
    """Blocks of targets in a document, evenly spaced; fewer where they would overlap."""
    targets: int = 256
    """Tokens in a block, K."""
    shuffled: bool = True
    """Whether beyond the native window a control with shuffled far context is read as well."""

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """One sample per document and anchor, each exactly `length` tokens, and its control.

        A tokenizer's BOS takes the place of the first context token. Only the controls depend on
        `seed`.

        Raises:
            InvalidInput: no document reaches the longest length, or `length` leaves no context.
        """
        check_targets("nll", length, self.targets, material)
        longest = longest_length(length, material)
        samples = [
            window(document, anchor, length, self.targets, material)
            for document in long_enough("nll", material.documents, longest)
            for anchor in anchors(len(document.token_ids), longest, self.anchors, self.targets)
        ]
        if not self.shuffled or not 0 < material.native_length < length:
            return samples
        return [*samples, *(shuffle_far(sample, seed, material) for sample in samples)]

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """Mean over the targets, nats per token; bits over the bytes that they spell."""
        nats = float(np.mean(outcome.target_nll))
        if "far" in example.details:
            return {example.details["far"]: Value(nats)}
        bits = bits_per_byte(example, float(np.sum(outcome.target_nll)))
        return {"": Value(nats), "bits-per-byte": Value(bits, example.details["bytes"])}

    def bears_on(self, example: Example) -> tuple[str, ...]:
        """The control has a measure of its own."""
        return (example.details["far"],) if "far" in example.details else ("", "bits-per-byte")


def shuffle_far(sample: Example, seed: int, material: Material) -> Example:
    """The sample with the tokens beyond its native window in another order."""
    first, near = len(material.bos_token_ids), len(sample.token_ids) - material.native_length
    place = int(digest_bytes(sample.key.encode())[:8], 16)
    ids = sample.token_ids.copy()
    ids[first:near] = np.random.default_rng([seed, place]).permutation(ids[first:near])
    return replace(
        sample,
        key=f"{sample.key} shuffled",
        pairing=sample.key,
        token_ids=ids,
        details={**sample.details, "far": "shuffled"},
    )
