"""Every strategy's zero-shot directory, read by two generations of stock transformers.

    python scripts/compare_transformers.py --model smollm2-135m --target-len 32k \
        --other .venv-4.57/bin/python --text books.txt --out transformers.json

For each registered strategy (with its example knobs where it has no defaults) a directory is
written: the model's weights by link, config, tokenizer limits and rope.json by giraffe. The
interpreter that runs this script, and the one named by --other, each load it with stock
transformers in a process that never imports giraffe, and run one window of 2,048 tokens at the last
positions of the target in float32. Held against each other and against the strategy's own table:
inv_freq (relative, float32 rounding is 6e-8), attention factor, logits. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROBE = """
import json, sys, numpy as np, torch, transformers
request = json.load(sys.stdin)
generation = int(transformers.__version__.partition(".")[0])
for folder, answer in request["folders"]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(request["text"])["input_ids"][: request["window"]]
    dtype = {"dtype" if generation >= 5 else "torch_dtype": torch.float32}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **dtype).eval()
    last = request["target"] - len(ids)
    positions = torch.arange(last, last + len(ids)).unsqueeze(0)
    with torch.inference_mode():
        logits = model(torch.tensor([ids]), position_ids=positions, use_cache=False).logits[0]
    rotary = model.model.rotary_emb
    np.savez(answer, inv_freq=rotary.inv_freq.double().numpy(), logits=logits.numpy(),
             attention_factor=float(rotary.attention_scaling), ids=np.array(ids),
             window=model.config.max_position_embeddings, limit=tokenizer.model_max_length,
             version=transformers.__version__, dtype=str(rotary.inv_freq.dtype))
    print(folder, file=sys.stderr)
"""
WINDOW = 2048
TABLE_TOLERANCE = 3e-7
"""Relative: float32 keeps 6e-8, a power and a product lose a few times that."""
LOGIT_TOLERANCE = 1e-4
"""The two generations order their float32 sums differently."""


def main() -> int:
    """Write the directories, ask both interpreters, compare; 1 when anything differs."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folders = write_directories(options.model, options.target_len, Path(scratch))
        text = options.text.read_text(encoding="utf-8")[:200_000]
        first = ask(sys.executable, folders, text, "a")
        second = ask(options.other, folders, text, "b")
        rows = {name: compare(folders[name], first[name], second[name]) for name in folders}
    result = {
        "settings": {
            "model": str(options.model),
            "target_length": _length(options.target_len),
            "window": WINDOW,
            "versions": sorted({str(a["version"]) for a in (*first.values(), *second.values())}),
            "machine": platform.processor() or platform.machine(),
        },
        "strategies": rows,
        "ok": all(row["ok"] for row in rows.values()),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0 if result["ok"] else 1


def write_directories(model: Path, target: str, scratch: Path) -> dict[str, Path]:
    """`{strategy: directory}`; weights are linked, everything else is written."""
    from giraffe_cli.checkpoint import inspect
    from giraffe_cli.rope.base import make_table, strategies
    from giraffe_cli.rope.install import finish_directory

    checkpoint = inspect(str(model), scratch / "base")
    head = checkpoint.head(_length(target))
    folders = {}
    for name, kind in strategies().items():
        folder = scratch / name
        folder.mkdir()
        for file in checkpoint.path.iterdir():
            if file.suffix == ".safetensors":
                (folder / file.name).symlink_to(file.resolve())
            elif file.is_file():
                shutil.copy(file, folder)
        finish_directory(folder, make_table(name, kind.example(head), head))
        folders[name] = folder
    return folders


def ask(python: str, folders: dict[str, Path], text: str, mark: str) -> dict[str, Any]:
    """What the interpreter's transformers makes of every folder."""
    import numpy as np

    pairs = {name: (str(folder), str(folder) + f"-{mark}.npz") for name, folder in folders.items()}
    target = json.loads((next(iter(folders.values())) / "rope.json").read_text())["target_length"]
    request = {
        "folders": list(pairs.values()),
        "text": text,
        "window": WINDOW,
        "target": target,
    }
    subprocess.run([python, "-I", "-c", PROBE], input=json.dumps(request), text=True, check=True)
    return {name: np.load(answer) for name, (_, answer) in pairs.items()}


def compare(folder: Path, first: Any, second: Any) -> dict[str, Any]:
    """One strategy's row: distances between the generations and to the strategy's own table."""
    import numpy as np

    table = json.loads((folder / "rope.json").read_text())
    own = np.array(table["inv_freq"])
    row = {
        "rope_type": table["rope_parameters"]["rope_type"],
        "inv_freq_to_table": max(
            float(np.abs(found["inv_freq"] / own - 1).max()) for found in (first, second)
        ),
        "inv_freq_between": float(np.abs(first["inv_freq"] / second["inv_freq"] - 1).max()),
        "attention_factor": [float(a["attention_factor"]) for a in (first, second)],
        "max_logit_difference": float(np.abs(first["logits"] - second["logits"]).max()),
        "same_tokens": bool((first["ids"] == second["ids"]).all()),
        "window": [int(a["window"]) for a in (first, second)],
        "limit": [int(a["limit"]) for a in (first, second)],
    }
    target = table["target_length"]
    row["ok"] = (
        row["inv_freq_to_table"] <= TABLE_TOLERANCE
        and row["max_logit_difference"] <= LOGIT_TOLERANCE
        and row["same_tokens"]
        and row["window"] == row["limit"] == [target, target]
        and all(abs(f - table["attention_factor"]) <= 1e-6 for f in row["attention_factor"])
    )
    return row


def _length(text: str) -> int:
    from giraffe_cli.units import parse_length

    return parse_length(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="an unscaled Llama directory")
    parser.add_argument("--target-len", default="32k")
    parser.add_argument("--other", required=True, help="python of the other transformers")
    parser.add_argument("--text", type=Path, required=True, help="any text of 2,048 tokens or more")
    parser.add_argument("--scratch", type=Path, help="folder for the directories")
    parser.add_argument("--out", type=Path, default=Path("transformers.json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
