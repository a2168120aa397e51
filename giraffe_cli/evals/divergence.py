"""KL(base || model) of the next-token distributions, exact over the whole vocabulary.

While a subject runs, the final hidden states before the targets of `compared` examples go to files
(`cache.py`). When all have run, both heads are applied to them here, so no two models are in memory
at one time and the logits of `CHUNK` tokens are all that exists of them:

    KL_t = Σ_v p_base(v|t) (log p_base(v|t) - log p_model(v|t))    nats, one for each target

It costs two products with the head for each target: 0.1 TFLOP for 1,000 targets of a model 576 wide
with 49,152 tokens, and both heads in float32: 4.2 GB for 128,256 tokens of models 4096 wide, less
than either model took. Finished ones lie in the cache folder beside the states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import Example, Outcome
from giraffe_cli.evals.cache import read_array, read_states, sample_key, write_array
from giraffe_cli.evals.samples import Batch
from giraffe_cli.evals.subject import EVALUATOR, Subject
from giraffe_cli.model.loading import torch_dtype
from giraffe_cli.progress import Reporter
from giraffe_cli.rundir import digest_value, make_folder, read_json
from giraffe_cli.weights import weight_files

if TYPE_CHECKING:
    import torch

CHUNK = 128
"""Targets whose logits exist at one time; four arrays of them are 100 MB at 49,152 tokens."""

Outcomes = dict[tuple[str, int, str], Outcome]
"""By task, length and key."""
Compared = Sequence[tuple[str, Example]]
"""Examples with the names of their tasks."""


def add_divergences(
    subjects: Sequence[Subject],
    batches: Sequence[Batch],
    outcomes: Mapping[str, Outcomes],
    cache: Path,
    reporter: Reporter,
) -> None:
    """Put `divergence` into the outcomes of every compared example that the base has read too.

    Raises:
        InvalidInput: a head of another shape than the base's.
    """
    compared = [(batch.name, e) for batch in batches for e in batch.examples if e.compared]
    base = next((subject for subject in subjects if subject.name == "base"), None)
    if base is None or not compared:
        return
    for subject in subjects:
        if subject.name in (base.name, EVALUATOR):
            continue
        own = outcomes[subject.name]
        shared = [
            (task, example)
            for task, example in compared
            if (task, example.length, example.key) in own.keys() & outcomes[base.name].keys()
        ]
        for task, example, found in _divergences(base, subject, shared, cache, reporter):
            place = (task, example.length, example.key)
            own[place] = dataclasses.replace(own[place], divergence=found)


def _divergences(
    base: Subject, subject: Subject, compared: Compared, cache: Path, reporter: Reporter
) -> Iterator[tuple[str, Example, npt.NDArray[np.float64]]]:
    """Each example with its `[num_targets]` nats; the heads are read only if one is not cached."""
    paths = [
        cache / "divergence" / f"{digest_value(_keys(base, subject, *entry))}.npy"
        for entry in compared
    ]
    found = [_kept(path) for path in paths]
    missing = [place for place, nats in enumerate(found) if nats is None]
    if missing:
        make_folder(cache / "divergence")
        heads, total = _heads(base, subject), sum(compared[n][1].num_targets for n in missing)
        with reporter.bar(f"comparing KL(base || {subject.name})", total, "targets") as bar:
            for place in missing:
                keys = _keys(base, subject, *compared[place])
                ours, theirs = (read_states(cache, key) for key in keys)
                nats = divergence(ours, heads[0], theirs, heads[1])
                write_array(paths[place], nats)
                found[place] = nats
                bar.advance(compared[place][1].num_targets)
    for (task, example), known in zip(compared, found, strict=True):
        assert known is not None
        yield task, example, known


def _kept(path: Path) -> npt.NDArray[np.float64] | None:
    """What was computed before; None where it was not, or the file is damaged."""
    try:
        return read_array(path)
    except (OSError, EOFError, ValueError):
        return None


def _keys(base: Subject, subject: Subject, task: str, example: Example) -> list[str]:
    return [sample_key(model, task, example) for model in (base, subject)]


def divergence(
    base_states: npt.NDArray[np.float32],
    base_head: torch.Tensor,
    states: npt.NDArray[np.float32],
    head: torch.Tensor,
) -> npt.NDArray[np.float64]:
    """`[n]` nats of KL(base || model), right to about 1e-6; exactly 0 for equal arguments.

    Args:
        base_states: `[n, d]` final hidden states; the model's width may differ from the base's.
        base_head: `[V, d]` float32, as `states` and `head` are.
    """
    import torch

    parts = [np.zeros(0)]
    for start in range(0, len(states), CHUNK):
        rows = slice(start, start + CHUNK)
        log_p = _log_probabilities(base_states[rows], base_head)
        log_q = _log_probabilities(states[rows], head)
        nats = (log_p.exp() * (log_p - log_q)).sum(-1, dtype=torch.float64)
        # rounding can put the divergence of near-equal models below its least value, 0
        parts.append(nats.clamp(min=0).cpu().numpy())
    return np.concatenate(parts)


def _log_probabilities(states: npt.NDArray[np.float32], head: torch.Tensor) -> torch.Tensor:
    """`[n, V]` float32."""
    import torch

    return torch.log_softmax(torch.from_numpy(states).to(head.device) @ head.T, -1)


def _heads(base: Subject, subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    """`[V, d]` of both, the same V.

    Raises:
        InvalidInput: they have not.
    """
    first, second = read_head(base), read_head(subject)
    if len(first) != len(second):
        raise InvalidInput(
            f"{subject.path} predicts {len(second)} tokens, the base {base.path} {len(first)}",
            "compare a checkpoint with the base it was made from, its vocabulary not resized",
        )
    return first, second


def read_head(subject: Subject) -> torch.Tensor:
    """`[V, d]` float32: the output head alone, rounded to the type the model computed in."""
    import torch
    from safetensors import safe_open

    tied = read_json(subject.path / "config.json").get("tie_word_embeddings", False)
    name = "model.embed_tokens.weight" if tied else "lm_head.weight"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for path in weight_files(subject.path):
        with safe_open(path, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                weight: torch.Tensor = tensors.get_tensor(name)
                return weight.to(torch_dtype(subject.dtype)).float().to(device)
    raise InvalidInput(f"{subject.path} has no {name}", "download the weights again")
