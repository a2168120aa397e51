"""What every benchmark found, as a table between two marks of docs/benchmarks.md.

    <!-- bench_all quick: begin -->  …  <!-- bench_all quick: end -->

The text between the marks is replaced, all else stays. A benchmark's goals are shown with what was
found; of those without goals its leading figures.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

HEADING = "## Every benchmark, run again"
LEAD = """`./scripts/bench_all` runs all of them and writes this part. The quick set has small sizes
and one round: it shows that every benchmark runs and which way it points. Goals are meant for the
full sizes; at small ones fixed costs weigh more, and a goal that is missed there says little."""
PACKAGES = ("giraffe-cli", "torch", "transformers", "peft", "tokenizers", "numpy")


def write_summary(folder: Path, docs: Path, names: Sequence[str]) -> None:
    """The results in `folder`, whose name is the set's, into `docs`."""
    records = {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in names
        if (folder / f"{name}.json").exists()
    }
    begin, end = (f"<!-- bench_all {folder.name}: {mark} -->" for mark in ("begin", "end"))
    part = f"{begin}\n{summary(folder.name, records)}\n{end}"
    text = docs.read_text(encoding="utf-8")
    found = re.search(f"{re.escape(begin)}.*?{re.escape(end)}", text, flags=re.S)
    if found:
        text = text[: found.start()] + part + text[found.end() :]
    else:
        lead = "" if HEADING in text else f"{HEADING}\n\n{' '.join(LEAD.split())}\n\n"
        text = f"{text.rstrip()}\n\n{lead}{part}\n"
    temporary = docs.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(docs)


def summary(name: str, records: dict[str, dict[str, Any]]) -> str:
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)
    spent = sum(record["cpu_seconds"] for record in records.values())
    lines = [
        f"The {name} set, {_dates(records)}, {_machine()}, load {os.getloadavg()[2]:.0f}; "
        f"{versions}; {spent:.0f} CPU-seconds.",
        "",
        "| benchmark | what | found | goal |",
        "|---|---|---|---|",
    ]
    for benchmark, record in records.items():
        rows = [*_figures(benchmark, record["result"]), *_goals(record["result"])]
        lines += [f"| {benchmark} | {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"- {name}: `{record['command']}`" for name, record in records.items())]
    return "\n".join(lines)


def _dates(records: dict[str, dict[str, Any]]) -> str:
    dates = sorted({record["date"] for record in records.values()})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else "never run"


def _machine() -> str:
    """`AMD EPYC …, 2 cores` on Linux, what Python knows elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = re.search(r"model name\s*: (.+)", text)
    except OSError:
        model = None
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _goals(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """`goals`, or `limits`, as every benchmark writes them."""
    for name, goal in {**result.get("goals", {}), **result.get("limits", {})}.items():
        wanted = goal.get("allowed", goal.get("needed"))
        if isinstance(wanted, list):
            told = f"{_number(wanted[0])} to {_number(wanted[1])}"
        else:
            told = f"{'at most' if 'allowed' in goal else 'at least'} {_number(wanted)}"
        verdict = "met" if goal["ok"] else "**missed**"
        yield name.replace("_", " "), _number(goal["found"]), f"{told}: {verdict}"


def _figures(benchmark: str, result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What is worth reading beside the goals."""
    match benchmark:
        case "attention":
            for row in result["rows"]:
                ours = row["paths"]["ours"]["cpu_seconds"]
                found = f"{ours:.3f} s, dense mask {row['times_ours']['dense']:.1f} times"
                yield f"{row['length']:,} tokens, seven documents", found, ""
        case "train":
            for work in result["works"]:
                what = f"{work['model']}, {work['length']:,} tokens, {work['documents']}"
                for peer, over in work["ours_over"].items():
                    found = f"{over['cpu_seconds']:.2f} of the time, {over['net_bytes']:.2f}"
                    yield what, f"{found} of the memory of {peer}", ""
        case "gpu":
            for row in result["cells"]:
                told = row["outcome"]
                if "mfu" in row:
                    told = f"{row['tokens_per_second']:,.0f} tokens/s, MFU {row['mfu']:.0%}"
                yield row["name"], told, ""
        case "generate":
            for row in result["rows"]:
                for path, one in row["paths"].items():
                    found = f"first {one['first_seconds']:.2f} s"
                    found += f", {one['decode_tokens_per_second']:.1f} tokens/s"
                    yield f"{row['length']:,} tokens, {path}", found, ""
        case "pack":
            for size, packers in result["compared"].items():
                for packer, one in packers.items():
                    yield f"{size} MB, {packer}", _spent(one), ""
        case "pack-memory":
            for size, one in result["memory"].items():
                yield f"{size} MB", _spent(one), ""


def _spent(one: dict[str, Any]) -> str:
    return f"{one['cpu_seconds']:.2f} CPU-s, {one['peak_bytes'] / 1e6:.0f} MB"


def _number(value: float) -> str:
    return f"{value:.3g}"
