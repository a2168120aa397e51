"""A user's turn in a tokenizer's chat template, as token ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from giraffe_cli.errors import InvalidInput, first_line

WITHOUT = "leave --chat out for a base model"
"""The hint wherever there is no template to use."""


def in_chat(tokenizer: Any) -> Callable[[str], list[int]]:
    """text → ids of the user's turn, up to where the assistant begins.

    The function raises InvalidInput where the template, which is a program of the checkpoint's,
    fails or writes nothing.
    """
    from jinja2 import TemplateError

    def ask(text: str) -> list[int]:
        try:
            rendered = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, ValueError, TypeError, ArithmeticError) as error:
            raise InvalidInput(
                f"--chat: the tokenizer's chat template fails: {first_line(error)}",
                "mend chat_template.jinja, or leave --chat out",
            ) from error
        if not rendered:
            raise InvalidInput(
                "--chat: the tokenizer's chat template writes nothing for a user's turn",
                "mend chat_template.jinja, or leave --chat out",
            )
        return list(tokenizer.backend_tokenizer.encode(rendered, add_special_tokens=False).ids)

    return ask
