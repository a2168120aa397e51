"""`giraffe generate` as people type it."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys

import pytest
import torch
from books import write_book, write_pdf
from conftest import prose
from evaluated import build_other_llama
from tiny_runs import make_adapter

from giraffe_cli.model.loading import load_model, load_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return build_other_llama(tmp_path_factory.mktemp("other-llama"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(prose(1, 8), encoding="utf-8")
    return path


def expected_text(folder, text, count):
    """What transformers gives, without half a character at the end."""
    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype=torch.float32)
    prompt = tokenizer(text, return_tensors="pt")
    found = model.generate(**prompt, max_new_tokens=count, do_sample=False, pad_token_id=1)
    new = found[0, prompt.input_ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd"), new.tolist()


def test_a_prompt_is_continued_on_stdout_and_told_about_on_stderr(giraffe, llama, text):
    found = giraffe("generate", llama, "--prompt-file", text, "--max-new-tokens", 12)
    expected, _ = expected_text(llama, text.read_text(), 12)
    assert found.code == 0
    assert found.stdout == expected + "\n"
    assert "prompt tokens read, first token after" in found.stderr
    assert "12 tokens at" in found.stderr


def test_json_tells_the_same_and_how_it_went(giraffe, llama, text):
    found = giraffe("generate", llama, "--prompt-file", text, "--max-new-tokens", 12, "--json")
    told = json.loads(found.stdout)
    expected, tokens = expected_text(llama, text.read_text(), 12)
    (answer,) = told["answers"]
    assert (answer["text"], answer["token_ids"]) == (expected, tokens)
    assert answer["finish_reason"] == "length"
    assert told["window"] == 128
    assert told["kv_cache"]["tokens"] == answer["prompt_tokens"] + 11
    # 2 layers, keys and values of 2 heads of 16, float32, room for all that was asked
    assert told["kv_cache"]["bytes"] == (answer["prompt_tokens"] + 12) * 2 * 2 * 2 * 16 * 4


def test_questions_are_asked_about_one_document(giraffe, llama, text):
    asked = ("--document", text, "--question", "Who?", "--question", "What is green?")
    found = giraffe("generate", llama, *asked, "--max-new-tokens", 5, "--json")
    first, second = json.loads(found.stdout)["answers"]
    assert (first["question"], second["question"]) == ("Who?", "What is green?")
    assert first["read_tokens"] == first["prompt_tokens"]
    assert second["read_tokens"] < second["prompt_tokens"] / 2
    expected, _ = expected_text(llama, text.read_text() + "\n\nWhat is green?", 5)
    assert second["text"] == expected
    plain = giraffe("generate", llama, *asked, "--max-new-tokens", 5)
    assert plain.stdout == f"{first['text']}\n{second['text']}\n"
    assert plain.stderr.index("Who?") < plain.stderr.index("What is green?")


@pytest.mark.parametrize("suffix", ["epub", "pdf"])
def test_a_book_is_a_document_by_its_text(giraffe, llama, tmp_path, suffix):
    told = "The grass is green."
    if suffix == "epub":
        book = write_book(tmp_path / "book.epub", f"<p>{told}</p>")
    else:
        book = write_pdf(tmp_path / "book.PDF", told)
    asked = ("--question", "What is green?", "--max-new-tokens", 5)
    found = giraffe("generate", llama, "--document", book, *asked)
    assert found.code == 0, found.stderr
    expected, _ = expected_text(llama, f"{told}\n\nWhat is green?", 5)
    assert found.stdout == expected + "\n"
    book.write_bytes(b"no book at all")
    broken = giraffe("generate", llama, "--document", book, *asked)
    assert broken.code == 3
    assert "book that has one" in broken.stderr
    assert "--on-bad" not in broken.stderr


def test_standard_input_is_a_prompt_too(giraffe, llama, text, monkeypatch):
    # a terminal of another encoding changes no prompt
    stream = io.TextIOWrapper(io.BytesIO(text.read_bytes()), encoding="latin-1")
    monkeypatch.setattr(sys, "stdin", stream)
    found = giraffe("generate", llama, "--prompt-file", "-", "--max-new-tokens", 12)
    assert found.stdout == expected_text(llama, text.read_text(), 12)[0] + "\n"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file_and_standard_input_are_the_same_prompt(giraffe, llama, tmp_path, monkeypatch, mark):
    """Line ends of Windows stay, and a byte order mark is none of the text."""
    asked = ("--max-new-tokens", 1, "--json")
    (tmp_path / "text").write_bytes(mark + b"the\r\ngrass")
    from_file = giraffe("generate", llama, "--prompt-file", tmp_path / "text", *asked)
    stream = io.TextIOWrapper(io.BytesIO(mark + b"the\r\ngrass"))
    monkeypatch.setattr(sys, "stdin", stream)
    from_stdin = giraffe("generate", llama, "--prompt-file", "-", *asked)
    expected = len(load_tokenizer(llama)("the\r\ngrass").input_ids)
    for found in (from_file, from_stdin):
        (answer,) = json.loads(found.stdout)["answers"]
        assert answer["prompt_tokens"] == expected


def test_a_stop_string_is_left_out(giraffe, llama, text):
    whole, _ = expected_text(llama, text.read_text(), 12)
    stop = whole[5:7]
    arguments = ("--prompt-file", text, "--max-new-tokens", 12, "--stop", stop)
    found = giraffe("generate", llama, *arguments)
    assert found.stdout == whole[: whole.index(stop)] + "\n"
    assert "ended by stop string" in found.stderr


@pytest.mark.parametrize("kept", ["bfloat16", "int8", "int4"])
def test_keys_and_values_may_be_kept_smaller(giraffe, llama, text, kept):
    arguments = ("--prompt-file", text, "--max-new-tokens", 3, "--kv-dtype", kept, "--json")
    told = json.loads(giraffe("generate", llama, *arguments).stdout)
    assert told["kv_cache"]["dtype"] == kept


def test_more_than_the_window_is_refused_before_anything_is_loaded(
    giraffe, llama, text, monkeypatch
):
    text.write_text(prose(1, 40), encoding="utf-8")
    monkeypatch.setattr("giraffe_cli.model.loading.load_model", None)
    found = giraffe("generate", llama, "--prompt-file", text, "--max-new-tokens", 9)
    count = len(load_tokenizer(llama)(text.read_text()).input_ids)
    assert found.code == 3
    assert f"has {count} tokens, with 9 new ones {count + 9}; the window" in found.stderr
    assert f"hint: giraffe extend --model {llama} --target-len 1k\n" in found.stderr


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, llama):
    return make_adapter(tmp_path_factory.mktemp("lora") / "my lora", llama)


def test_an_adapter_is_called_what_it_was_called(giraffe, adapter, text):
    """The model that was made of it is gone with the command."""
    found = giraffe("generate", adapter, "--prompt-file", text, "--max-new-tokens", 2, "--json")
    assert json.loads(found.stdout)["model"] == str(adapter)
    text.write_text(prose(1, 40), encoding="utf-8")
    refused = giraffe("generate", adapter, "--prompt-file", text, "--max-new-tokens", 9)
    assert refused.code == 3
    assert f"the window of {adapter} is 128" in refused.stderr
    assert (
        "hint: merge the adapter into its base with PEFT's merge_and_unload, then giraffe extend "
        "--model MERGED --target-len 1k\n"
    ) in refused.stderr


def test_what_a_run_trained_is_merged_by_its_run_first(giraffe, adapter, text, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "adapter")
    (run / "run.yaml").write_text("model: any", encoding="utf-8")
    text.write_text(prose(1, 40), encoding="utf-8")
    refused = giraffe("generate", run / "adapter", "--prompt-file", text, "--max-new-tokens", 9)
    assert (
        f"hint: giraffe merge {run}, then giraffe extend --model {run}/model --target-len 1k\n"
    ) in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "--prompt-file FILE, or --document FILE --question TEXT"),
        (["--prompt-file", "FILE", "--question", "Who?"], 2, "a prompt is one file, or documents"),
        (["--document", "FILE"], 2, "--question is missing"),
        (["--question", "Who?"], 2, "--document is missing"),
        (["--prompt-file", "absent.txt"], 3, "absent.txt cannot be read"),
        (["--prompt-file", "FILE", "--kv-offload"], 2, "--kv-offload without effect"),
        (["--prompt-file", "FILE", "--kv-dtype", "int9"], 2, "did you mean `int8`"),
        (["--prompt-file", "FILE", "--top-p", "0.5"], 2, "add --temperature"),
        (["--prompt-file", "FILE", "--stop", ""], 2, "--stop: nothing is given"),
        (["--prompt-file", "FILE", "--dtype", "int8"], 2, "--dtype int8: no such choice"),
        (["--prompt-file", "FILE", "--chat"], 3, "no chat template"),
    ],
)
def test_what_cannot_be_is_refused(giraffe, llama, text, arguments, code, said):
    found = giraffe("generate", llama, *[text if a == "FILE" else a for a in arguments])
    assert found.code == code, found.stderr
    assert said in found.stderr
    assert found.stdout == ""


@pytest.fixture
def small_machine(monkeypatch, llama, tmp_path):
    """A CPU whose memory holds `extra` bytes of keys and values beside all else."""
    from giraffe_cli.checkpoint import inspect
    from giraffe_cli.plan.inference_memory import Demand
    from giraffe_cli.plan.machine import Machine

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def with_room_for(extra: int) -> None:
        fixed = Demand(inspect(str(llama), tmp_path), "float32", 1, 1, Machine("cpu", 1, 0)).fixed
        memory = -(-(sum(fixed.values()) + extra) * 100 // 85)  # less the margin: what is asked for
        monkeypatch.setattr("giraffe_cli.plan.machine.available_bytes", lambda: memory)

    return with_room_for


# 2 layers, keys and values of 2 heads of 16: 128 numbers a token
def test_a_prompt_that_does_not_fit_is_refused_before_weights_are_read(
    giraffe, llama, text, small_machine, monkeypatch
):
    small_machine(128 * 4 * 50)
    monkeypatch.setattr("giraffe_cli.model.loading.load_model", None)
    count = len(load_tokenizer(llama)(text.read_text()).input_ids)
    assert count + 12 > 50
    found = giraffe("generate", llama, "--prompt-file", text, "--max-new-tokens", 12, "--json")
    assert found.code == 4, found.stderr
    assert found.stdout == ""
    needed = f"{(count + 12) * 128 * 4 / 1000:.1f} kB for keys and values in float32"
    assert f"a prompt of {count} tokens with 12 new ones needs" in found.stderr
    assert needed in found.stderr
    assert "this machine's cpu has" in found.stderr
    assert "hint: --kv-dtype bfloat16 fits; --kv-dtype int8 fits; --kv-dtype int4" in found.stderr
    assert "a prompt of 38 tokens fits in float32" in found.stderr


def test_what_the_refusal_names_does_fit(giraffe, llama, text, small_machine):
    small_machine(128 * 4 * 50)
    arguments = ("--prompt-file", text, "--max-new-tokens", 12)
    assert giraffe("generate", llama, *arguments, "--kv-dtype", "bfloat16").code == 0
    text.write_text("go " * 30, encoding="utf-8")
    assert len(load_tokenizer(llama)(text.read_text()).input_ids) <= 38
    assert giraffe("generate", llama, *arguments).code == 0


def test_where_weights_alone_do_not_fit_no_prompt_is_promised(giraffe, llama, text, small_machine):
    small_machine(-100_000)
    found = giraffe("generate", llama, "--prompt-file", text, "--max-new-tokens", 1)
    assert found.code == 4
    assert "hint: --dtype bfloat16, a smaller model or a larger machine" in found.stderr


def test_an_answer_that_is_too_long_is_the_one_to_shorten(giraffe, llama, text, small_machine):
    """Within the window of 128, where 15 tokens fit in float32 and 50 to 100 in int4."""
    small_machine(128 * 4 * 15)
    text.write_text("go go go", encoding="utf-8")
    arguments = ("generate", llama, "--prompt-file", text, "--max-new-tokens")
    found = giraffe(*arguments, 110)
    assert found.code == 4
    most = int(re.search(r"hint: --max-new-tokens (\d+) fits in int4", found.stderr)[1])
    assert 40 < most < 100
    assert giraffe(*arguments, most, "--kv-dtype", "int4").code == 0
    assert giraffe(*arguments, most + 1, "--kv-dtype", "int4").code == 4


def test_offloaded_keys_are_held_against_the_host(tmp_path, llama):
    from giraffe_cli.checkpoint import inspect
    from giraffe_cli.errors import DoesNotFit
    from giraffe_cli.plan.inference_memory import Demand, check_fits
    from giraffe_cli.plan.machine import Machine

    shape, gpu = inspect(str(llama), tmp_path), Machine("cuda", 1, 80 * 10**9)
    check_fits(Demand(shape, "float32", 90, 10, gpu, host_bytes=128 * 4 * 100), "auto")
    with pytest.raises(DoesNotFit, match=r"50\.7 kB of the host for keys and values"):
        check_fits(Demand(shape, "float32", 90, 10, gpu, host_bytes=128 * 4 * 99), "auto")
    with pytest.raises(DoesNotFit):
        check_fits(Demand(shape, "float32", 1, 1, Machine("cuda", 1, 10**9), 10**9), "int4")
