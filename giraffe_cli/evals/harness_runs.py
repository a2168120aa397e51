"""One lm-eval task at one length on one model, as it was logged and as it is kept."""

from __future__ import annotations

from typing import Any, NamedTuple


class Logged(NamedTuple):
    """One sample as lm-eval logged it."""

    document: int
    prompt_sha256: str
    """Of the rendered prompt's UTF-8 bytes."""
    answers: list[str]
    text: str
    """What was generated; `""` where nothing is."""
    scores: dict[str, float]
    """By metric; what is no number is left out, and of RULER's what is of another length."""
    requests: list[list[Any]]
    """The arguments of its requests, prompt first."""


class Run(NamedTuple):
    """One task at one length on one model."""

    samples: list[Logged]
    means: dict[str, float]
    """lm-eval's own figure by metric."""
    longest: int
    """Tokens of the longest prompt with its answer."""

    def to_json(self) -> dict[str, Any]:
        """What is kept of it: all but the prompts."""
        samples = [{**sample._asdict(), "requests": []} for sample in self.samples]
        return {"samples": samples, "means": self.means, "longest": self.longest}

    @classmethod
    def of_json(cls, kept: dict[str, Any]) -> Run:
        """The run of which `to_json` gave `kept`."""
        return cls([Logged(**sample) for sample in kept["samples"]], kept["means"], kept["longest"])
