"""One rotary table for a whole text, of a model whose table follows the length of its text.

`dynamic`, and `longrope` with two lists of factors, choose a table by the last position of each
pass, and keys that are kept have been turned by the table of theirs: read in chunks, a text beyond
the native window had keys of two tables or more (logits 0.06 and 0.16 off). Held, the table is the
one that a single pass over the text and its answer takes, as transformers computes it; of
several short texts in a row, the one of the longest.
"""

from __future__ import annotations

from typing import Any

from giraffe_cli.rope.readings import switches


class HeldTable:
    """The rotary table of a model, chosen by the length of what is read.

    table = HeldTable(model)
    if table.hold(len(token_ids)):      # it is another than before:
        kept.clear()                    # keys that were turned by that one are void
    """

    def __init__(self, model: Any) -> None:
        """`model` is transformers' Llama; its own choice ends where it has one."""
        self._model = model
        self._take()

    def _take(self) -> None:
        parameters = self._model.config.rope_parameters
        self._rotary = self._model.model.rotary_emb
        self._kind: str = parameters["rope_type"]
        self._switches = switches(parameters)
        if self._switches:
            self._rotary.rope_type = "default"

    def hold(self, length: int) -> bool:
        """Take the table of a text of `length` tokens; True where it differs from the last one."""
        import torch
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        if self._rotary is not self._model.model.rotary_emb:  # another was swapped in
            self._take()
        if not self._switches:
            return False
        rotary = self._rotary
        table, factor = ROPE_INIT_FUNCTIONS[self._kind](
            rotary.config, rotary.inv_freq.device, seq_len=length
        )
        if torch.equal(table, rotary.inv_freq):
            return False
        rotary.inv_freq.copy_(table)
        rotary.attention_scaling = factor
        return True
