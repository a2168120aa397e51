"""What the tests of the evaluation engine share: two small models, and one way to open them."""

from __future__ import annotations

import torch
from conftest import build_tiny_llama

from giraffe_cli.checkpoint import inspect
from giraffe_cli.evals.open_subject import OpenSubject
from giraffe_cli.evals.subject import Subject
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.loading import load_model, load_tokenizer
from giraffe_cli.model.reading import CHUNKS


def build_other_llama(folder):
    """The tokenizer of the tiny Llama, other weights, and no end of text: generation runs on."""
    build_tiny_llama(folder, eos_token_id=None, tie_word_embeddings=False)
    model = load_model(folder, dtype=torch.float32)
    torch.manual_seed(1)
    for matrix in (p for p in model.parameters() if p.dim() == 2):
        torch.nn.init.normal_(matrix, std=0.3)
    model.save_pretrained(folder)
    return folder


def opened(folder, chunk=CHUNKS["cpu"], **sharing):
    model = load_model(folder, dtype=torch.float32, attn_implementation=register_attention())
    return OpenSubject(model, load_tokenizer(folder), chunk, **sharing)


def subject(name, folder, dtype="float32"):
    return Subject(name, folder, inspect(str(folder), folder).digest, dtype)
