"""One lm-eval task at one length on a model that is already loaded: what lm-eval hides, checked.

lm-eval cuts a prompt that is too long from its left without failing, and its RULER prompts *are*
longer than their nominal length: the answer's first words are not counted (15 to 25 tokens), `fwe`
leaves no room for its 50 tokens of answer. So the limit is set that far above the length, every
request is measured before the model sees one, and again in lm-eval's own log of what it ran.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.harness_runs import Logged, Run
from giraffe_cli.evals.lm_eval_tasks import RULER, quiet
from giraffe_cli.evals.open_subject import OpenSubject

UNCOUNTED = 128
"""Tokens by which a RULER prompt with its answer may pass its nominal length."""
FULL_ENOUGH = 0.5
"""Share of the length prompt and answer fill at least: `niah_multikey_3` grows in steps of 5 UUIDs
and fills 71 % of 1024, a list of no words 10 %."""

ChatTemplate = str | dict[str, str] | None
"""As a tokenizer holds it; None: the bare text."""


def run_task(
    task: Any,
    opened: OpenSubject,
    kept: Path,
    *,
    length: int,
    limit: int,
    chat: ChatTemplate,
    seed: int,
) -> Run:
    """The first `limit` samples of `task` through lm-eval's `simple_evaluate`, one at a time: the
    model's attention takes no padding.

    Args:
        kept: where lm-eval keeps its responses, by request; of this model in this type alone.
        chat: what requests are asked through, whatever template the model itself has.

    Raises:
        InvalidInput: a prompt with its answer is longer than `length` (of RULER: by more than
            `UNCOUNTED`), or RULER's prompts do not fill half of it.
    """
    with quiet():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

    is_ruler, asked = task.task_name in RULER, chat is not None
    tokenizer = copy.deepcopy(opened.tokenizer)  # lm-eval gives it a padding token
    if asked:
        tokenizer.chat_template = chat
    room = length + UNCOUNTED if is_ruler else length
    with quiet():
        model = HFLM(
            pretrained=opened.model,
            tokenizer=tokenizer,
            max_length=room,
            batch_size=1,
        )
        task.set_fewshot_seed(seed)
        task.build_all_requests(
            limit=limit,
            apply_chat_template=asked,
            fewshot_as_multiturn=True,
            chat_template=model.apply_chat_template if asked else None,
        )
    planned = _sizes(task.instances, model)
    check_sizes(planned, room, FULL_ENOUGH * length if is_ruler else 0)
    with quiet(progress=True):
        found = simple_evaluate(
            model=model,
            tasks=[task],
            limit=limit,
            bootstrap_iters=0,
            apply_chat_template=asked,
            random_seed=seed,
            fewshot_random_seed=seed,
            use_cache=str(kept),
        )
    ran = _sizes(task.instances, model)  # few-shot examples may have been drawn anew
    check_sizes(ran, room, 0)
    metric = str(length) if is_ruler else None  # those of other lengths are -1: not run
    return Run(
        [_logged(sample, metric) for sample in found["samples"][task.task_name]],
        _means(found["results"][task.task_name], metric),
        max(ran, default=0),
    )


def check_sizes(sizes: list[int], room: int, least: float) -> None:
    """No request is longer than the model may read, none much shorter than its length.

    Raises:
        InvalidInput: one is.
    """
    if max(sizes, default=0) > room:
        raise InvalidInput(
            f"a prompt and its answer take {max(sizes)} tokens, more than {room}; lm-eval would "
            "cut the prompt's beginning off",
            "evaluate longer --lengths",
        )
    if min(sizes, default=0) < least:
        raise InvalidInput(
            f"lm-eval's prompts and answers fill as little as {min(sizes)} tokens",
            "evaluate longer --lengths",
        )


def _sizes(instances: list[Any], model: Any) -> list[int]:
    """Tokens of every request with its answer; text read in windows is left out, as all is read."""
    from lm_eval.models.utils import normalize_gen_kwargs

    sizes = []
    for request in instances:
        if request.request_type == "generate_until":
            prompt, settings = request.args
            answer = normalize_gen_kwargs(settings, model.max_gen_toks)["max_gen_toks"]
            sizes.append(len(model.tok_encode(prompt)) + int(answer))
        elif request.request_type == "loglikelihood":
            sizes.append(len(model.tok_encode("".join(request.args))))
    return sizes


def _logged(sample: dict[str, Any], only: str | None) -> Logged:
    """One entry of lm-eval's `log_samples`, with the metric `only`, or with all."""
    target, response = sample["target"], sample["resps"][0][0]
    suffix = "" if sample["filter"] == "none" else f".{sample['filter']}"
    return Logged(
        int(sample["doc_id"]),
        str(sample["prompt_hash"]),
        [str(answer) for answer in target] if isinstance(target, list) else [str(target)],
        response if isinstance(response, str) else "",
        {
            f"{metric}{suffix}": float(sample[metric])
            for metric in sample["metrics"]
            if isinstance(sample[metric], int | float) and only in (None, metric)
        },
        [list(request) for request in sample["arguments"]],
    )


def _means(figures: dict[str, Any], only: str | None) -> dict[str, float]:
    """lm-eval's figures by `metric` or `metric.filter`, of the metric `only` or of all; a stderr,
    which RULER gives as N/A, is not read."""
    means = {}
    for key, figure in figures.items():
        metric, _, used = key.partition(",")
        wanted = used and not metric.endswith("_stderr") and only in (None, metric)
        if wanted and isinstance(figure, int | float):
            means[metric if used == "none" else f"{metric}.{used}"] = float(figure)
    return means
