"""Options with choices: a value outside them is the command line's fault; and what helps print."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
import typer
from rich.text import Text

from giraffe_cli.cli.app import make_app


@pytest.mark.parametrize(
    ("line", "wrong", "known"),
    [
        ("extend --target-len 16k --rope yarrn", "--rope yarrn", "did you mean `yarn`?"),
        ("extend --target-len 16k --rope foo --dry-run", "--rope foo", "auto, dynamic"),
        ("extend --target-len 16k --dtype foo", "--dtype foo", "bfloat16"),
        ("plan --target-len 16k --shape llama3-7b", "--shape llama3-7b", "did you mean `llama3-"),
        ("plan --target-len 16k --device foo", "--device foo", "h100"),
        ("eval calf --suite foo", "--suite foo", "standard"),
        ("eval calf --tasks nil", "--tasks nil", "did you mean `nll`?"),
        ("eval calf --tasks nll,paskey", "--tasks paskey", "did you mean `passkey`?"),
        ("export calf --to foo", "--to foo", "known: adapter, gguf"),
        ("export calf --to gguf --dtype q4_0", "--dtype q4_0", "did you mean `q8_0`"),
        (
            "pack-data x --tokenizer calf --window 1k --out y --executor foo",
            "--executor foo",
            "ray",
        ),
    ],
)
def test_a_value_outside_the_choices_ends_with_2(giraffe, line, wrong, known):
    refused = giraffe(*line.split())
    assert (refused.code, refused.stdout) == (2, "")
    assert f"error: {wrong}: no such choice" in refused.stderr
    assert known in refused.stderr


def test_a_bad_value_of_a_config_ends_with_3(giraffe):
    refused = giraffe("extend", "--target-len", "16k", "--set", "rope.strategy=foo", "--dry-run")
    assert refused.code == 3
    assert "`foo`" in refused.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("extend", "trains with PoSE, which was not shown to teach the use of far text."),
        ("extend", "of as many as a tenth of the predicted training time lets it read."),
        ("extend", "Default: auto; of calf: yarn."),
        ("plan", "Default: this one; h100 with --gpus."),
        ("pack-data", "and the merge (extra [cluster])."),
    ],
)
def test_a_help_says(giraffe, monkeypatch, command, said):
    monkeypatch.setenv("COLUMNS", "400")
    assert said in giraffe(command, "--help").stdout


def texts(command: click.Command) -> Iterator[str]:
    """Everything that the help of `command` and those below it prints as Rich markup."""
    yield from filter(None, (command.help, command.epilog))
    yield from filter(None, (getattr(parameter, "help", None) for parameter in command.params))
    for below in getattr(command, "commands", {}).values():
        yield from texts(below)


def test_helps_print_every_bracket():
    """Rich takes `[cluster]` for a style, unless it is written `\\[cluster]`."""
    found = list(texts(typer.main.get_command(make_app())))
    assert any("\\[" in text for text in found)
    for text in found:
        assert Text.from_markup(text).plain == text.replace("\\[", "["), text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("extend", "--out", ""), "--out: nothing is given"),
        (("extend", "--out="), "--out: nothing is given"),
        (("pack-data", "", "--out", "x"), "pack-data: nothing is given"),
        (("",), "giraffe: nothing is given"),
    ],
)
def test_a_word_that_an_unset_variable_left_empty_is_refused(giraffe, words, told):
    """An empty --out was the folder that the command ran in."""
    done = giraffe(*words)
    assert (done.code, told in done.stderr) == (2, True), done.stderr
