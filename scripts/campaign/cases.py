"""A case of the campaign, what may come of it, and the journal that makes a campaign resumable.

same      the result is that of an undisturbed run
refused   giraffe's exit code, `error:` and `hint:`, no traceback, nothing half-written
resumed   the same command, given again, ends in the result of an undisturbed run
limit     cannot be known from the files; the document names it
wrong     anything else: a traceback, another result without a word, a hang, half a file
"""

from __future__ import annotations

import json
import re
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.campaign.commands import Ended

KINDS = ("same", "refused", "resumed", "limit", "wrong")
EXIT_CODES = (1, 2, 3, 4, 5, 130)


@dataclass(frozen=True)
class Verdict:
    """What came of a case."""

    kind: str
    detail: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """Counted over all cases, such as `{"inside_a_write": True}`."""


@dataclass(frozen=True)
class Case:
    """One disturbance; `run` gets an empty folder of its own."""

    key: str
    """`faults/kill/pack/12`: unique, and the same in every run of the campaign."""
    run: Callable[[Path], Verdict]

    @property
    def group(self) -> str:
        return self.key.rpartition("/")[0]


def refusal(ended: Ended) -> str:
    """Empty for a refusal as it must be; else what is missing."""
    told = ended.stdout + ended.stderr
    if ended.hung:
        return "hangs"
    if "Traceback (most recent call last)" in told:
        return f"traceback: {ended.stderr.strip().splitlines()[-1][:300]}"
    if ended.code not in EXIT_CODES:
        return f"exit code {ended.code}"
    if "error:" not in ended.stderr and "Usage:" not in ended.stderr:
        return f"exit code {ended.code} without `error:`: {ended.stderr[-200:]!r}"
    if "hint:" not in ended.stderr and "--help" not in ended.stderr:
        return f"no `hint:` in {ended.stderr.strip()[-300:]!r}"
    told = re.sub(r"\x1b\[[0-9;]*m|\r", "", told)  # colours of libraries
    if raw := re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", told):
        return f"a control character reaches the terminal: {raw[0]!r}"
    return ""


def judged(ended: Ended, same: Callable[[], str]) -> Verdict:
    """`same` when it ended well and `same()` finds no difference, `refused` when clearly so."""
    if ended.code == 0 and not ended.hung:
        difference = same()
        return Verdict("wrong", f"silent: {difference}") if difference else Verdict("same")
    problem = refusal(ended)
    line = next((x for x in ended.stderr.splitlines() if "error:" in x), "")[:200]
    return Verdict("wrong", problem) if problem else Verdict("refused", line)


class Journal:
    """Finished cases, one JSON line each; a case that is there is not run again."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self.entries[entry["key"]] = entry

    def run(self, cases: Sequence[Case], work: Path, say: Callable[[str], None]) -> None:
        """Every case that is not in the journal, each in a folder below `work`.

        Raises:
            ValueError: two cases have one key, so that the second would count as done.
        """
        if twice := [key for key, n in Counter(case.key for case in cases).items() if n > 1]:
            raise ValueError(f"two cases have the key {twice[0]}")
        for case in cases:
            if case.key in self.entries:
                continue
            folder = work / "case"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                verdict = case.run(folder)
            except Exception:  # the harness itself: never a silent pass
                verdict = Verdict("wrong", f"harness: {traceback.format_exc()[-1500:]}")
            self._add(case, verdict)
            if verdict.kind == "wrong":
                say(f"WRONG {case.key}: {verdict.detail}")

    def _add(self, case: Case, verdict: Verdict) -> None:
        entry = {"key": case.key, "group": case.group, **asdict(verdict)}
        self.entries[case.key] = entry
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(entry) + "\n")

    def summary(self) -> dict[str, Any]:
        """Group → number of cases by outcome and of every fact, and the same over all."""
        groups: dict[str, Counter[str]] = {}
        for entry in self.entries.values():
            weight = int(entry["facts"].get("inputs", 1))
            for name in (entry["group"], entry["group"].partition("/")[0]):
                counts = groups.setdefault(name, Counter())
                counts["cases"] += weight
                counts[entry["kind"]] += weight
                for fact, value in entry["facts"].items():
                    if fact != "inputs":
                        counts[fact] += int(value)
        wrong = {e["key"]: e["detail"] for e in self.entries.values() if e["kind"] == "wrong"}
        return {"groups": {k: dict(v) for k, v in sorted(groups.items())}, "wrong": wrong}
