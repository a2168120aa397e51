"""lm-eval's tasks by name: which there are, and one with prompts for a length.

Its generators hang or make empty prompts where a length is too short; the first is refused here,
the second before a model reads them (`lm_eval_run.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_cli.errors import InvalidInput

RULER = (
    *("niah_single_1", "niah_single_2", "niah_single_3"),
    *("niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
    *("niah_multivalue", "niah_multiquery"),
    *("ruler_vt", "ruler_cwe", "ruler_fwe", "ruler_qa_squad", "ruler_qa_hotpot"),
)
"""RULER's tasks under lm-eval's names; each makes its prompts for a length."""
MADE = 500
"""Prompts lm-eval makes of a RULER task at a length, however few are used."""


def installed_version() -> str:
    """lm-eval's version."""
    return metadata.version("lm_eval")


def all_tasks() -> list[str]:
    """Names of all tasks, groups and tags of lm-eval; reading 14,683 of them takes 5 to 25 s."""
    with quiet():
        from lm_eval.tasks import TaskManager

        return list(TaskManager().all_tasks)


def load_task(name: str, length: int, tokenizer: Any, path: Path, seed: int) -> dict[str, Any]:
    """lm-eval's task objects by name: one, or those of a group; RULER's with prompts for `length`.

    A RULER task loaded twice with one seed holds the same prompts, whatever was loaded before.

    Raises:
        InvalidInput: lm-eval cannot make the prompts, or would not end making them.
    """
    with quiet():
        from lm_eval import tasks as shipped

    if "auto_map" in tokenizer.init_kwargs:
        raise InvalidInput(f"lm-eval would run the tokenizer's own code in {path}")
    if name == "ruler_vt" and not _variable_tracking_fits(tokenizer, length):
        raise InvalidInput("its example and ten sentences of filler do not fit")
    random.seed(seed)  # its generators draw from both; 0 and 1234 are what lm_eval sets itself
    np.random.seed(1234 + seed)
    folder = str(Path(str(shipped.__file__)).parent / "ruler")
    # spares the index of all tasks, see `all_tasks`
    own = {"include_path": folder, "include_defaults": False} if name in RULER else {}
    try:
        with quiet():
            manager = shipped.TaskManager(
                metadata={"tokenizer": str(path), "max_seq_lengths": [length]}, **own
            )
            return dict(manager.load([name])["tasks"])
    except Exception as error:  # another project's generators, files and downloads
        said = next(iter(str(error).splitlines()), "")
        raise InvalidInput(f"lm-eval cannot load it: {type(error).__name__}: {said}") from error


def _variable_tracking_fits(tokenizer: Any, length: int) -> bool:
    """Whether the generator of `ruler_vt` ends: it starts at ten sentences after an example of up
    to 500 tokens, itself begun at five, and tries for ever where the first try does not fit."""
    with quiet():
        from lm_eval.tasks.ruler.vt_utils import generate_input_output

        example, prompt = (
            len(tokenizer(generate_input_output(count, 1, 4, is_icl=is_icl)[0]).input_ids)
            for count, is_icl in ((5, True), (10, False))
        )
    return example + 60 <= 500 and prompt + 530 <= length


@contextlib.contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """Keep what lm-eval says off both streams; with `progress` its bars stay on stderr."""
    before = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        if not progress:
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(logging.disable, before)
        logging.disable(logging.WARNING)
        yield
