"""The table the console ends with: base against extended by context length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from giraffe_cli.report.scores import ABSENT, LengthRow, length_rows, proportion, with_half_width
from giraffe_cli.report.verdicts import Verdict, verdicts
from giraffe_cli.units import format_length

_HEADINGS = ("nll\nbase", "nll\nextended", "n", "passkey\nbase", "passkey\nextended", "n")
_WITH_CONTROL = ("nll\nbase", "nll\ncontrol", "nll\nextended", "passkey\nbase", "passkey\nextended")
_STYLES = {"yes": "green", "no": "red", "not shown": "yellow", "not measured": "dim"}


def summary_table(report: Mapping[str, Any]) -> list[RenderableType]:
    """The scores by length, the verdicts as sentences, and where everything lies."""
    parts: list[RenderableType] = []
    if length_rows(report):
        parts.append(scores_table(report))
    parts += [_line(verdict) for verdict in verdicts(report)]
    parts += [
        "",
        f"model   {escape(str(report['model_dir']))}",
        f"report  {escape(str(report['run_dir']))}/report.html",
    ]
    return parts


def scores_table(report: Mapping[str, Any]) -> Table:
    """Lengths as rows; losses with the half-width of their 95 % interval, passkey with n."""
    native, target = (format_length(report[key]) for key in ("native_length", "target_length"))
    table = Table(
        title=f"{escape(str(report.get('model', 'model')))}: {native} → {target} "
        f"({escape(str(report['strategy']))})",
        caption="nll in nats per token, lower is better; ± half of the 95% interval\n"
        "passkey: share found and its 95% interval; * beyond the native window",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    # Two-line headings and no borders keep the table within 80 columns.
    control = bool(report.get("control"))
    for heading in ("context", *(_WITH_CONTROL if control else _HEADINGS)):
        table.add_column(heading, justify="right")
    for row in length_rows(report):
        mark = "*" if row.beyond_native else ""
        nll = [with_half_width(row.base_nll), with_half_width(row.extended_nll)]
        passkey = [proportion(s, unit="") for s in (row.base_passkey, row.extended_passkey)]
        counts = _counts(row)
        if control:  # 80 columns hold either the control or the counts
            cells = [nll[0], with_half_width(row.control_nll), nll[1], *passkey]
        else:
            cells = [*nll, counts[0], *passkey, counts[1]]
        table.add_row(f"{format_length(row.length)}{mark}", *cells)
    if control:
        nll_n, passkey_n = (_range(n) for n in zip(*map(_counts, length_rows(report)), strict=True))
        table.caption = f"{table.caption}\nn = {nll_n} for nll, {passkey_n} for passkey"
    return table


def _counts(row: LengthRow) -> tuple[str, str]:
    """Samples of each task at one length."""
    return (
        _count(row.extended_nll or row.base_nll),
        _count(row.extended_passkey or row.base_passkey),
    )


def _range(counts: tuple[str, ...]) -> str:
    """`16`, or `12 to 16`."""
    numbers = sorted({int(count) for count in counts if count != ABSENT})
    if not numbers:
        return ABSENT
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _count(score: Mapping[str, Any] | None) -> str:
    return ABSENT if score is None else str(score["n"])


def _line(verdict: Verdict) -> str:
    """The answer in words and, on a terminal, in colour as well."""
    style = "default" if verdict.about_base else _STYLES[verdict.answer]
    figures = f", {escape(verdict.figures)}" if verdict.figures else ""
    return f"{escape(verdict.claim)}: [{style}]{verdict.answer}[/]{figures}"
