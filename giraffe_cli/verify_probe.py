"""What stock libraries make of a model directory: run as a program that knows nothing of us.

    python -I verify_probe.py [PARENT] < request.json > answer.json

PARENT is the process with which this one ends; by default the one that started it.

Only torch, transformers, peft and the standard library are imported, and those inside functions.
Request: `folder`, `windows` (`[{"name", "start", "length"}]`: tokens at positions start …),
`full_length` (or null), `adapter` (a folder of PEFT's, or with every trained tensor in
`trained.safetensors`) and `base` (or null), `seed`. Answer: one JSON object with the
sections `loaded`, `weights`, `table`, `tokenizer`, `logits`, `full`; a section that failed is
`{"error": reason}`. The models are loaded one after the other, on the CPU, so that memory peaks
at one model and the logits of the windows.

16-bit weights stay as stored, the arithmetic on them is done in float32: a bfloat16 pass is further
from the float32 pass of the very same model (SmolLM2-135M, 512 tokens of a book: KL 1.2e-3 nats)
than a right merge is from its adapter (2.9e-5), so its noise would hide what is looked for.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TRAINED = "trained.safetensors"
KEPT_POSITIONS = 512
"""Of a full-length pass, the logits of so many last positions are looked at."""


def section(work: Callable[[], Any]) -> Any:
    """The result of `work`, or the reason it has none, in one line."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - every failure is an answer, none a traceback
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"error": f"{type(error).__name__}: {' '.join(lines)[:500]}"}


def pseudo_random_tokens(length: int, vocab_size: int, seed: int) -> Any:
    """`[1, length]` int64 token ids, the same on every machine."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (1, length), generator=generator)


def load(folder: str) -> tuple[Any, dict[str, Any]]:
    """The model as `AutoModelForCausalLM` gives it, in the directory's own dtype."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    keys = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    problems = {key: sorted(str(entry) for entry in info.get(key) or ()) for key in keys}
    return model.eval(), {key: listed for key, listed in problems.items() if listed}


def tensor_digests(model: Any) -> dict[str, dict[str, Any]]:
    """sha256 of every tensor's bytes, with its dtype and shape as loaded."""
    import torch

    digests = {}
    for name, tensor in model.state_dict().items():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        digests[name] = {
            "sha256": hashlib.sha256(raw).hexdigest(),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
        }
    return digests


def table(model: Any) -> dict[str, Any]:
    """The rotary table in force."""
    rotary = model.model.rotary_emb
    return {
        "inv_freq": [float(value) for value in rotary.inv_freq],
        "dtype": str(rotary.inv_freq.dtype).removeprefix("torch."),
        "attention_factor": float(rotary.attention_scaling),
    }


def widen_blocks(model: Any) -> None:
    """Let every block of a Llama compute in float32, one block widened at a time.

    The stored weights come back after each block, so memory grows by one block, not twofold, and
    what is in 32 bits already (PEFT's matrices) is left alone.
    """
    blocks = [model.model.embed_tokens, *model.model.layers, model.model.norm, model.lm_head]
    for block in blocks:
        stored: dict[Any, Any] = {}
        block.register_forward_pre_hook(functools.partial(_widen, stored))
        block.register_forward_hook(functools.partial(_restore, stored))


def _widen(stored: dict[Any, Any], block: Any, arguments: Any) -> None:
    for parameter in block.parameters():
        stored[parameter] = parameter.data
        parameter.data = parameter.data.float()


def _restore(stored: dict[Any, Any], block: Any, arguments: Any, output: Any) -> None:
    for parameter, data in stored.items():
        parameter.data = data
    stored.clear()


def logits_of(model: Any, windows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """`{window: float32 [length, vocabulary]}`; the same tokens in every window."""
    import torch

    found: dict[str, Any] = {}
    for window in windows:
        start, length = window["start"], window["length"]
        tokens = pseudo_random_tokens(length, model.config.vocab_size, seed)
        positions = torch.arange(start, start + length).unsqueeze(0)
        with torch.no_grad():
            output = model(input_ids=tokens, position_ids=positions, use_cache=False)
        found[window["name"]] = output.logits[0].float()
    return found


def full_pass(model: Any, length: int, seed: int) -> Any:
    """float32 `[min(length, 512), vocabulary]`: the end of one pass over `length` tokens."""
    import torch

    tokens = pseudo_random_tokens(length, model.config.vocab_size, seed)
    with torch.no_grad():
        output = model(
            input_ids=tokens, use_cache=False, logits_to_keep=min(length, KEPT_POSITIONS)
        )
    return output.logits[0].float()


def is_finite(logits: dict[str, Any]) -> dict[str, bool]:
    """Which windows hold neither infinities nor NaN."""
    return {name: bool(value.isfinite().all()) for name, value in logits.items()}


def spread(dtype: str) -> float:
    """One step of a 16-bit `dtype`, relative: logits closer than this are a tie to its readers."""
    return {"bfloat16": 2.0**-7, "float16": 2.0**-10}.get(dtype, 0.0)


def compare(merged: Any, adapted: Any, dtype: str) -> dict[str, float]:
    """How far two `[n, vocabulary]` logits lie apart.

    `top1_agreement` counts a position when the merged model's first choice is the adapter model's,
    or ties with it within one step of the stored 16-bit dtype. `mean_kl` is KL(adapter ‖ merged),
    in nats.
    """
    expected, found = adapted.log_softmax(-1), merged.log_softmax(-1)
    best = adapted.max(-1).values
    chosen = adapted.gather(-1, merged.argmax(-1, keepdim=True)).squeeze(-1)
    agreed = best - chosen <= best.abs() * spread(dtype)
    return {
        "max_abs_difference": float((merged - adapted).abs().max()),
        "mean_kl": float((expected.exp() * (expected - found)).sum(-1).mean()),
        "top1_agreement": float(agreed.float().mean()),
        "positions": len(agreed),
    }


def trained_model(request: dict[str, Any], dtype: Any) -> Any:
    """The base under the directory's config with what was trained: an adapter on top as PEFT puts
    it there, or every tensor in place of the base's."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(request["folder"])
    model = AutoModelForCausalLM.from_pretrained(request["base"], config=config, dtype=dtype)
    if (Path(request["adapter"]) / TRAINED).is_file():
        put_in_place(model, Path(request["adapter"]) / TRAINED)
        widen_blocks(model)
        return model.eval()
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, request["adapter"]).eval()
    widen_blocks(adapted.get_base_model())
    return adapted


def put_in_place(model: Any, trained: Path) -> None:
    """Every parameter of `model` from a file, which holds each of them and nothing else."""
    from safetensors.torch import load_file

    names = {name for name, _ in model.named_parameters()}  # a tied head has none
    tensors = load_file(trained)
    if names != set(tensors):
        raise ValueError(f"{trained.name} and the model differ in {sorted(names ^ set(tensors))}")
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()


def rounding_steps(found: Any, weight: Any, module: Any, adapter: str) -> float:
    """Largest distance of `found` from weight + PEFT's own update, in steps of found's dtype.

    A step is taken at the scale |W| + s·|B|@|A|, where float32 sums lose their last bits, and is
    never below the dtype's smallest subnormal (float16: 2^-24, the step of all below 6.1e-5). DoRA
    multiplies that sum by magnitude / norm, row by row, and the scale with it.
    """
    import torch

    down, up = (half[adapter].weight.float().abs() for half in (module.lora_A, module.lora_B))
    exact = weight.float() + module.get_delta_weight(adapter).float()
    scale = weight.float().abs() + abs(module.scaling[adapter]) * (up @ down)
    if module.use_dora[adapter]:
        magnitude = module.lora_magnitude_vector[adapter].weight.double()
        factor = (magnitude / exact.double().pow(2).sum(1).sqrt()).unsqueeze(1)
        exact, scale = exact.double() * factor, scale * factor.abs().float()
    exponent = torch.frexp(scale).exponent.float()
    limits = torch.finfo(found.dtype)
    step = limits.eps * (2.0 ** (exponent - 1)).clamp(min=limits.smallest_normal)
    return float(((found.double() - exact).abs() / step).nan_to_num(nan=math.inf).max())


def same_numbers(one: Any, other: Any) -> bool:
    """Whether two tensors hold the same, NaN where the other has it too."""
    import torch

    if torch.equal(one, other):
        return True
    return one.shape == other.shape and bool(torch.isclose(one, other, 0, 0, equal_nan=True).all())


def compare_weights(model: Any, folder: str) -> dict[str, Any]:
    """Every stored tensor against the base's, plus PEFT's update where the adapter has one, or
    against the trained tensor, rounded, where there is one in its place."""
    import torch
    from safetensors import safe_open

    prefix, adapter = "base_model.model.", "default"
    targets = {
        f"{name.removeprefix(prefix)}.weight": module
        for name, module in model.named_modules()
        if adapter in getattr(module, "lora_A", {})
    }
    plain = {
        name.removeprefix(prefix)
        .replace(".base_layer", "")
        .replace(f".modules_to_save.{adapter}", ""): value
        for name, value in model.named_parameters()
        if "lora_" not in name and ".original_module." not in name
    }
    steps, changed, equal = {}, [], 0
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as stored, torch.no_grad():
            for name in sorted(stored.keys()):
                value, module = stored.get_tensor(name), targets.get(name)
                if module is not None:
                    steps[name] = rounding_steps(value, plain[name], module, adapter)
                elif name in plain and not same_numbers(value, plain[name].to(value.dtype)):
                    changed.append(name)
                elif name in plain:
                    equal += 1
    worst = max(steps, key=lambda name: steps[name], default=None)
    missing = sorted(set(targets) - set(steps))
    return {
        "worst": worst,
        "steps": steps[worst] if worst else 0.0,
        "changed": changed,
        "missing": missing,
        "equal": equal,
    }


def tokenizer_facts(folder: str) -> dict[str, int]:
    """Size and limit of the tokenizer as `AutoTokenizer` gives it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {
        "largest_id": max(tokenizer.get_vocab().values()),
        "model_max_length": int(tokenizer.model_max_length),
    }


def own_logits(model: Any, request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The merged model's logits by window, `full` among them; what failed is in the answer."""
    logits: dict[str, Any] = section(lambda: logits_of(model, request["windows"], request["seed"]))
    if "error" in logits:
        answer["logits"] = logits
        return {}
    answer["table"]["at_target"] = section(lambda: table(model))
    if request["full_length"]:
        last = section(lambda: full_pass(model, request["full_length"], request["seed"]))
        if isinstance(last, dict):
            answer["full"] = last
        else:
            logits["full"] = last
    answer["logits"] = {"finite": is_finite(logits)}
    return logits


def compare_with_adapter(
    request: dict[str, Any], logits: dict[str, Any], dtype: Any
) -> dict[str, Any]:
    """Per window: the distance between the merged and the trained model; and their weights'."""
    model = trained_model(request, dtype)
    expected = logits_of(model, request["windows"], request["seed"])
    if "full" in logits:
        expected["full"] = full_pass(model, request["full_length"], request["seed"])
    name = str(dtype).removeprefix("torch.")
    windows = {key: compare(value, expected[key], name) for key, value in logits.items()}
    return {"windows": windows, "weights": compare_weights(model, request["folder"])}


def examine(request: dict[str, Any], answer: dict[str, Any]) -> None:
    """Fill `answer` section by section; the first model is gone before the second comes."""
    answer["tokenizer"] = section(lambda: tokenizer_facts(request["folder"]))
    loaded = section(lambda: load(request["folder"]))
    if isinstance(loaded, dict):
        answer["loaded"] = loaded
        return
    model, problems = loaded
    dtype = next(iter(model.parameters())).dtype
    answer["loaded"] = {"dtype": str(dtype).removeprefix("torch."), "problems": problems}
    answer["weights"] = section(functools.partial(tensor_digests, model))
    answer["table"] = {"at_load": section(functools.partial(table, model))}
    widen_blocks(model)
    logits = own_logits(model, request, answer)
    del model, loaded
    gc.collect()
    if request["adapter"] and logits:
        answer["comparison"] = section(lambda: compare_with_adapter(request, logits, dtype))


def end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed while a model is loaded here."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """stdin → stdout; whatever the libraries print goes to stderr."""
    parent = int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid()
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    answer: dict[str, Any] = {}
    failure = section(lambda: examine(request, answer))
    if failure is not None:
        answer["loaded"] = failure
    answer["modules"] = sorted({name.partition(".")[0] for name in sys.modules})
    json.dump(answer, answer_to)
    answer_to.close()


if __name__ == "__main__":
    main()
