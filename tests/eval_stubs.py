"""Material that needs no model, and stubs for models: what the task contract is tested with.

Tokens are bytes, so that every count can be checked by eye; 256 is the BOS.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from giraffe_cli.evals.base import Material, Outcome, TokenDocument

BOS = 256
NATIVE, LONG = LENGTHS = (4096, 8192)
WINDOW = 512
"""Tokens that the near-sighted stub sees."""


def sentences(seed: int, count: int) -> str:
    """Sentences of random letters, without a digit; no two texts are alike."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(400)]
    made = (" ".join(draw.choices(words, k=draw.randint(3, 9))).capitalize() for _ in range(count))
    return "".join(f"{sentence}. " for sentence in made)


def encode(text: str) -> list[int]:
    return list(text.encode())


def decode(ids) -> str:
    return bytes(token for token in ids if token < BOS).decode(errors="replace")


def documents(seed: int, count: int, tokens: int) -> list[TokenDocument]:
    texts = (sentences(seed + index, tokens // 10)[:tokens] for index in range(count))
    return [
        TokenDocument(f"doc-{seed + index}", np.asarray(encode(text), np.int32))
        for index, text in enumerate(texts)
    ]


def byte_material(**changes) -> Material:
    """All that a task may need, but for data files."""
    given = {
        "encode": encode,
        "decode": decode,
        "bos_token_ids": (BOS,),
        "documents": documents(0, 3, 12_000),
        "haystack": [sentences(50, 800), sentences(51, 900)],
        "native_length": NATIVE,
        "lengths": LENGTHS,
        "reference_length": NATIVE,
        "other_text": documents(90, 2, 12_000),
    }
    return Material(**{**given, **changes})


def real_material(folder: Path, **changes) -> Material:
    """The same with the tokenizer in `folder`."""
    from giraffe_cli.model.loading import load_tokenizer

    tokenizer = load_tokenizer(folder)
    fast = tokenizer.backend_tokenizer
    return byte_material(
        encode=lambda text: list(fast.encode(text, add_special_tokens=False).ids),
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        bos_token_ids=(),
        **changes,
    )


def ask_as_chat(text: str) -> list[int]:
    """A chat template: special tokens 257 and 258 around the turns."""
    return [257, *encode(f"user {text}"), 258, *encode("assistant")]


def num_truths(example) -> int:
    """True candidates stand first: one for each answer."""
    return len(example.answers) if example.candidates else 0


def wrong(example) -> list[tuple[int, ...]]:
    """Between the true ones and, of several, the list of them."""
    listed = num_truths(example) > 1
    return list(example.candidates[num_truths(example) : len(example.candidates) - listed])


def visible(example, material: Material, tokens: int | None = None) -> str:
    """The text of the last `tokens` of the prompt; None: of all."""
    return material.decode(example.token_ids[-tokens if tokens else None :].tolist())


def answered(example, text: str, nll: list[float], greedy: list[bool]) -> Outcome:
    divergence = np.zeros(example.num_targets) if example.compared else None
    targets = np.zeros(example.num_targets)
    return Outcome(targets, text, tuple(nll), tuple(greedy), divergence)


def oracle(example, material: Material) -> Outcome:
    """Knows every target and every answer."""
    truths, several = num_truths(example), num_truths(example) > 1
    right = [
        place < truths or several and place == len(example.candidates) - 1
        for place in range(len(example.candidates))
    ]
    text = "" if example.details.get("control") else f" {', '.join(example.answers)}."
    return answered(example, text, [0.0 if known else 1.0 for known in right], right)


def constant(example, material: Material) -> Outcome:
    """Says the same whatever it is asked, and finds every token as likely as any other."""
    nll = [float(len(candidate)) for candidate in example.candidates]
    found = answered(example, " 1", nll, [False] * len(nll))
    found.target_nll[:] = 5.0
    return found


def reciter(example, material: Material) -> Outcome:
    """Repeats its prompt word by word, from the first one on: surely right about no other word."""
    text = visible(example, material)
    nll = [0.0 if text.startswith(material.decode(c).strip()) else 9.0 for c in example.candidates]
    return answered(example, text, nll, [value == 0 for value in nll])


def copier(example, material: Material) -> Outcome:
    """Finds whatever stands in its prompt as likely as anything else in it."""
    text = visible(example, material)
    nll = [1.0 if material.decode(c).strip() in text else 9.0 for c in example.candidates]
    return answered(example, text, nll, [False] * len(nll))


def near_sighted(example, material: Material) -> Outcome:
    """Sees its last 512 tokens only: repeats them, and prefers what stands there."""
    text = visible(example, material, WINDOW)
    seen = [material.decode(c).strip() in text for c in example.candidates]
    guess = random.Random(example.digest)
    nll = [0.0 if known else 1.0 + guess.random() for known in seen]
    return answered(example, text, nll, seen)


def reference_reading(example, material: Material) -> Outcome:
    """A reference model that needs all its context: no loss with it, 5 nats without."""
    full = len(example.token_ids) >= material.reference_length
    return Outcome(np.full(example.num_targets, 0.0 if full else 5.0), "")


def score(task, examples, stub, material: Material):
    """`(example, measure → Value)` for each example that models are scored on."""
    reference = {example.key: reference_reading(example, material) for example in examples}
    return [
        (example, task.scores(example, stub(example, material), reference))
        for example in examples
        if not example.for_reference
    ]
