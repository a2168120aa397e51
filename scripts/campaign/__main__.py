"""Run the campaign: `python -m scripts.campaign --out /tmp/campaign`, resumed by the same command.

    --family faults,corruption,fuzz,hostile   some of it
    --share 0.01, --most 10                   a hundredth of the counts; at most so many cases
    --out DIR                                 material, journal of finished cases, summary.json

The summary goes to stdout as one JSON object; exit code 1 when any case went wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import resource
import sys
import time
from pathlib import Path

from scripts.campaign import material
from scripts.campaign.cases import Journal
from scripts.campaign.commands import import_everything

FAMILIES = ("hostile", "corruption", "faults", "fuzz")


def main() -> int:
    """Every case of the chosen families that is not in the journal yet."""
    parser = argparse.ArgumentParser(prog="python -m scripts.campaign", description=__doc__)
    parser.add_argument("--family", default=",".join(FAMILIES))
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose key holds this")
    parser.add_argument("--most", type=int, default=10**6, help="cases of a family")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    out = options.out.resolve()
    started = time.monotonic()
    import_everything()
    made = material.build(out)
    summary = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
    failed = False
    for family in options.family.split(","):
        module = importlib.import_module(f"scripts.campaign.{family}")
        journal = Journal(out / f"{family}.jsonl")
        cases = module.cases(made, out, options.share, options.seed)
        chosen = [case for case in cases if options.only in case.key]
        chosen = chosen[:: max(1, -(-len(chosen) // options.most))]
        journal.run(chosen, out / family, lambda text: print(text, file=sys.stderr, flush=True))
        summary[family] = journal.summary()
        failed |= bool(summary[family]["wrong"])
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    summary["cpu_seconds"] = round(sum(use.ru_utime + use.ru_stime for use in spent), 1)
    summary["seconds"] = round(time.monotonic() - started, 1)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
