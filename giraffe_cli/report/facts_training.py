"""What was trained, and how it ended, as rows of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from giraffe_cli.config.train import LONGEST_SHORT_CONTEXT
from giraffe_cli.report.facts import Row, value_text
from giraffe_cli.report.numbers import percent
from giraffe_cli.units import format_length, format_seconds


def training_rows(report: Mapping[str, Any]) -> list[Row]:
    """Steps, windows, optimiser and adapter; one row when nothing was trained."""
    if not report["steps"]:
        return [("steps", "0: a zero-shot extension, no weight was changed")]
    train = report.get("train", {})
    rows = [
        ("steps", f"{report['steps']:,}"),
        ("trained tokens", f"{report['trained_tokens']:,}"),
    ]
    if len(report.get("stages", [])) > 1:
        targets = [format_length(stage["target_length"]) for stage in report["stages"]]
        rows.append(("stages", f"to {', then '.join(targets)}; below are the last one's settings"))
    if "window" in report:
        scheme = report.get("positions", "plain")
        note = f", {scheme} positions up to {format_length(report['target_length'])}"
        rows.append(("window", f"{format_length(report['window'])} tokens{note}"))
    read = [stage["passes"] for stage in report.get("stages", []) if "passes" in stage]
    if read:
        rows.append(("passes over the windows", ", then ".join(f"{often:.3g}" for often in read)))
    if report.get("lookups"):
        told = "of the windows' tokens: made-up facts, each asked for further on"
        rows.append(("look-ups", f"{percent(report['lookups'])} {told}"))
    names = ("windows_per_step", "learning_rate", "schedule", "warmup_steps", "weight_decay")
    rows += [(name.replace("_", " "), value_text(train[name])) for name in names if name in train]
    rows += _rate_rows(train)
    rows += _loss_rows(train)
    rows += trained_rows(train)
    if report.get("final_loss") is not None:
        rows.append(("final training loss", f"{report['final_loss']:.3f} nats per token"))
    rows += [("training ended", sentence) for sentence in _endings(report)]
    if control := report.get("control"):
        loss = control["final_loss"]
        kind = "" if control.get("loss", "ce") == train.get("loss", "ce") else "cross-entropy, "
        rows.append(
            (
                "control run",
                f"{control['steps']:,} steps, {control['trained_tokens']:,} tokens in windows of "
                f"{format_length(control['window'])}, {kind}final loss "
                f"{'no number' if loss is None else f'{loss:.3f}'}",
            )
        )
    return rows


def _rate_rows(train: Mapping[str, Any]) -> list[Row]:
    """What has a rate of its own."""
    rates = {
        "up-projections B": train.get("lora", {}).get("b_rate", 1),
        "embeddings": train.get("embeddings_rate", 1),
    }
    return [
        (f"learning rate of {name}", f"{value_text(rate)} times that")
        for name, rate in rates.items()
        if rate != 1
    ]


def _loss_rows(train: Mapping[str, Any]) -> list[Row]:
    """What was minimised, where it is not the cross-entropy of every token alike."""
    if train.get("loss", "ce") == "ce":
        return []
    longest = f"the native window, {format_length(LONGEST_SHORT_CONTEXT)} at most"
    short = format_length(train["short_context"]) if train["short_context"] else longest
    told = (
        f"LongCE: a token counts as much as its context gains over a short one ({short}), "
        f"{train['weight_floor']:g} at the least and {train['weight_cap']:g} at the most"
    )
    return [("loss", told)]


def _endings(report: Mapping[str, Any]) -> list[str]:
    """What is not plain about a stage's end: weights of an earlier step, an early stop, steps
    that moved nothing."""
    told = []
    for stage in report.get("stages", []):
        steps, chosen = stage["steps"], stage.get("adapter_step", stage["steps"])
        parts = [
            f"with the weights of step {chosen}, the lowest held-out loss" * (chosen != steps),
            "early, the held-out loss had stopped falling" * bool(stage.get("stopped_early")),
            "early, by --finish" * bool(stage.get("cut_short")),
            f"{stage.get('bad_steps', 0)} steps without a number moved nothing"
            * bool(stage.get("bad_steps")),
        ]
        if any(parts):
            named = f"to {format_length(stage['target_length'])}, step {steps}: "
            told.append(named + "; ".join(part for part in parts if part))
    return told


def trained_rows(train: Mapping[str, Any]) -> list[Row]:
    """The adapter and what was trained beside it, or that every weight was."""
    lora = train.get("lora", {})
    if train.get("method") == "full":
        return [("trained", method_name(train))]
    if not lora:
        return []
    size = f"rank {lora['rank']}, α {lora['alpha']:g}, dropout {lora['dropout']:g}"
    rows = [(method_name(train), size), ("LoRA targets", ", ".join(lora["targets"]))]
    if lora.get("also_train"):
        rows.append(("trained whole", ", ".join(lora["also_train"])))
    if train.get("quantize_base", "none") != "none":
        rows.append(("base while training", train["quantize_base"]))
    return rows


def method_name(train: Mapping[str, Any]) -> str:
    """`LoRA`, `DoRA`, `LoRA (rsLoRA, PiSSA)`, or `every weight`."""
    if train.get("method") == "full":
        return "every weight"
    lora = train.get("lora", {})
    kinds = ["rsLoRA"] * bool(lora.get("use_rslora"))
    kinds += ["PiSSA"] * (lora.get("init_lora_weights") == "pissa")
    name = "DoRA" if lora.get("use_dora") else "LoRA"
    return f"{name} ({', '.join(kinds)})" if kinds else name


def progressive_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Target, strategy, window, steps, tokens, time and final loss of each stage of training;
    empty for a run of one."""
    stages = report.get("stages", [])
    return [
        [
            format_length(stage["target_length"]),
            stage["strategy"],
            f"{format_length(stage['window'])} {stage['positions']}",
            f"{stage['steps']:,}",
            f"{stage['trained_tokens']:,}",
            format_seconds(stage["seconds"]),
            f"{stage['final_loss']:.3f}" if stage["final_loss"] is not None else "–",
        ]
        for stage in (stages if len(stages) > 1 else [])
    ]
