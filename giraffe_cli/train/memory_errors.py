"""Memory that runs out in a step of training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from giraffe_cli.errors import DoesNotFit, FirstStepDoesNotFit, first_line
from giraffe_cli.model.out_of_memory import is_out_of_memory

SMALLER = (
    "give it more memory, or less to do: `giraffe plan` shows what each setting of the run needs"
)


@contextlib.contextmanager
def memory_errors_told(step: int, is_first: bool) -> Iterator[None]:
    """Around one step, the one after `step`; `is_first`: the first that this process takes.

    Raises:
        DoesNotFit: memory ran out; FirstStepDoesNotFit in the first step.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        kind = FirstStepDoesNotFit if is_first else DoesNotFit
        stands = f"; the checkpoint before step {step + 1} stands" if step else ""
        raise kind(
            f"memory ran out in step {step + 1}: {first_line(error)}{stands}",
            SMALLER,
        ) from None
