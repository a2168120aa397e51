"""What calf is trained to and measured by: its loss, and the share of answers it gives."""

from __future__ import annotations

import numpy as np
import torch
from calf_data import WINDOW
from calf_forms import ANSWER
from calf_lookups import Lookups
from transformers import LlamaForCausalLM


def token_nll(model: LlamaForCausalLM, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[batch, window]` nats of the tokens after the first, and whether each came out first."""
    logits = read(model, rows[:, :-1])
    return nats(logits, rows[:, 1:]), logits.argmax(-1) == rows[:, 1:]


def mean_loss(model: LlamaForCausalLM, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the nats of the tokens after the first of each row."""
    losses, weights = nats(read(model, rows[:, :-1]), rows[:, 1:]), weights[:, 1:]
    return (losses * weights).sum() / weights.sum()


def read(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """`[batch, window, vocabulary]` logits.

    The layers are called one by one, without a mask: traced by torch.compile, transformers would
    build one, which the fast attention kernels do not take.
    """
    inner = model.model
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = inner.embed_tokens(ids)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        angles = inner.rotary_emb(hidden, position_ids=positions)
        for layer in inner.layers:
            hidden = layer(hidden, position_embeddings=angles, position_ids=positions)
        return model.lm_head(inner.norm(hidden))


def nats(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`[batch, window]` cross entropy in float32."""
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none"
    )
    return losses.view(targets.shape)


@torch.no_grad()
def answered(model: LlamaForCausalLM, lookups: Lookups, window: int, seed: int) -> dict[str, float]:
    """Share of answers, in texts that are not trained on, of which every token comes out first."""
    found = {}
    for kind in ("repeat", "pairs", "dense", "hidden"):
        rng = np.random.default_rng([seed, 1 << 30])
        drawn = [lookups.window(rng, window + 1, [kind]) for _ in range(max(8, 8192 // window))]
        rows = torch.from_numpy(np.stack([ids for ids, _ in drawn])).to(model.device)
        _, right = token_nll(model, rows)
        marked = np.stack([weights for _, weights in drawn])[:, 1:] == ANSWER
        found[kind] = round(whole_answers(right.cpu().numpy(), marked), 3)
    return found


def whole_answers(right: np.ndarray, marked: np.ndarray) -> float:
    """Of the runs of marked tokens, the share of which all are right."""
    kept = []
    for row, marks in zip(right, marked, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(np.int8), [0]])))
        kept += [row[begin:end].all() for begin, end in edges.reshape(-1, 2)]
    return float(np.mean(kept)) if kept else 0.0


@torch.no_grad()
def held_out_nll(model: LlamaForCausalLM, stream: np.ndarray) -> float:
    count = min(64, (len(stream) - 1) // WINDOW)
    rows = torch.from_numpy(
        np.stack([stream[i * WINDOW : (i + 1) * WINDOW + 1] for i in range(count)]).astype(np.int64)
    )
    parts = rows.to(model.device).split(8)
    return float(np.mean([float(token_nll(model, part)[0].mean()) for part in parts]))
