"""What a file of divisors says of the search it comes from, where that asks for caution."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from giraffe_cli.rundir import read_kept
from giraffe_cli.units import format_length

if TYPE_CHECKING:
    from giraffe_cli.tune.evidence import Evidence

DOCUMENTS = "fitness_documents"
"""Where `search.json` and `factors.json` name what decided."""


def fitted_on(factors: Any, evidence: Evidence) -> list[str]:
    """A warning where a file of `factors` comes from a search that read documents of `evidence`:
    their loss is what its table was chosen by."""
    known = _search(_content(factors)).get(DOCUMENTS)
    both = sorted({*evidence.clusters().values()} & {*map(str, known)}) if known else []
    if not both:
        return []
    return [
        f"longrope: {factors} was searched on {', '.join(both)}, which are read here: its loss is "
        "too good; give other documents with --data"
    ]


def searched_for_another(
    factors: Any,
    target_length: int,
    theta: float | None,
    window: int | None,
    digest: str | None = None,
) -> list[str]:
    """Warnings where a file of `factors` comes from a search for another target or base, or one
    that did not find better divisors; none of a file that is from no search.

    Args:
        theta: θ of the base, and `window` what is extended of it; None where they are not known.
        digest: of its files; None where it is not known.
    """
    content = _content(factors)
    search = _search(content)
    if not search:
        return []
    model, was = search.get("model", "another base"), content.get("target_length")
    told = []
    if isinstance(was, int) and was != target_length:
        told.append(f"they were searched for {format_length(was)} tokens, "
                    f"{format_length(target_length)} are asked for")  # fmt: skip
    for name, asked in (("rope_theta", theta), ("original_max_position_embeddings", window)):
        if asked is not None and content.get(name) not in (None, asked):
            found = content[name]
            told.append(f"they were searched on {model} with {name} {found:g}, not {asked:g}")
    if not told and digest is not None and search.get("sha256") not in (None, digest):
        told.append(f"they were searched on {model}, which is another model")
    if search.get("improved") is False:
        told.append("their search did not show them to be better than the table they began with")
    return [f"divisors of {factors}: {one}" for one in told]


def _content(factors: Any) -> Mapping[str, Any]:
    """Of the file that `factors` names, if it is one and holds an object."""
    is_named = isinstance(factors, (str, Path)) and str(factors)
    kept = read_kept(Path(factors).expanduser()) if is_named else None
    return kept if isinstance(kept, dict) else {}


def _search(content: Mapping[str, Any]) -> Mapping[str, Any]:
    found = content.get("searched")
    return found if isinstance(found, dict) else {}
