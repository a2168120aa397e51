"""`giraffe generate`: a long prompt continued, or questions about one long document answered."""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from giraffe_cli.cli.console import Console
from giraffe_cli.cli.options import AllowPickle, AsJson, Chat, Dtype, a_seed, one_of
from giraffe_cli.errors import InvalidInput, UsageError
from giraffe_cli.inference.caches import KV_DTYPES, CacheChoice

if TYPE_CHECKING:
    from giraffe_cli.checkpoint import Checkpoint
    from giraffe_cli.inference.prompts import Prompt
    from giraffe_cli.inference.session import Answer, Answering, Session

EXAMPLES = """
Examples:

giraffe generate runs/calf-16k/model --prompt-file prompt.txt

giraffe generate ./smollm2-16k --document book.txt --question 'Question: Who is Ishmael? Answer:'

giraffe generate ./llama-64k --chat --document report.md --question 'What changed in 2024?' \
--question 'Who signed it?' --kv-dtype int8

cat notes.txt | giraffe generate calf --prompt-file - --temperature 0.8 --top-p 0.95 --json
"""


def generate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Any Llama: a directory, .gguf file or Hugging Face id, calf; a run's folder, or "
            "an adapter's."
        ),
    ],
    prompt_file: Annotated[
        str | None, typer.Option(help="Text to continue; - reads standard input.")
    ] = None,
    document: Annotated[
        list[str] | None,
        typer.Option(
            help="What questions are about: text, EPUB or PDF (extra \\[pdf]); repeatable, in this "
            "order."
        ),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(help="Asked after the documents, which are read once for all; repeatable."),
    ] = None,
    chat: Chat = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 256,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Text that ends an answer and is no part of it; repeatable."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Above 0: draw tokens; 0: always the most probable one.")
    ] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many tokens; 0: from all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the most probable that together reach this.")
    ] = 1.0,
    seed: Annotated[int, a_seed("Seed of what is drawn.")] = 0,
    dtype: Dtype = "auto",
    kv_dtype: Annotated[
        str,
        one_of(KV_DTYPES, "Of keys and values: bfloat16, int8, int4, or auto, as computed."),
    ] = "auto",
    kv_offload: Annotated[
        bool,
        typer.Option("--kv-offload", help="Keep them in host memory, read piece by piece (GPU)."),
    ] = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Continue a long prompt, or answer questions about a long document, as text on stdout.

    The prompt is read in chunks, so memory is the weights, its keys and values, and little else.
    What several questions begin with, the documents, is read once. A prompt that with its answer
    is longer than the checkpoint's window, or needs more memory than there is, is refused before
    weights are loaded.
    """
    console = Console(as_json)
    from giraffe_cli.inference.sampling import Sampling
    from giraffe_cli.inference.session import Answering
    from giraffe_cli.model.precision import computed_in

    cache = CacheChoice(kv_dtype, kv_offload)
    cache.check_device(_device())
    text = _text_of(prompt_file, document, question)
    how = Answering(max_new_tokens, Sampling(temperature, top_k, top_p, seed), tuple(stop or ()))
    with tempfile.TemporaryDirectory() as scratch:
        opened = _opened(checkpoint, Path(scratch), console, allow_pickle)
        tokenizer, asked = _asked(opened, text, question or [], chat)
        merged = _merged_from(checkpoint) if opened.path == Path(scratch) / "model" else None
        _check_window(opened, asked, how, checkpoint, merged, allow_pickle)
        computed = computed_in(dtype, opened.dtype, console)
        _check_memory(opened, asked, how, computed, cache)
        session = _session(opened, tokenizer, computed, cache)
    answers = _answers(session, asked, how, console)
    console.result(_to_json(checkpoint, opened.reach, session, cache, answers), [])


def _text_of(
    prompt_file: str | None, documents: list[str] | None, questions: list[str] | None
) -> str:
    """The prompt, or the documents one after the other.

    Raises:
        UsageError: neither or both, or one of documents and questions without the other.
        InvalidInput: a file that is missing, no UTF-8 text, or a book without text.
    """
    if bool(prompt_file) == bool(documents or questions):
        raise UsageError(
            "a prompt is one file, or documents with questions about them",
            "give --prompt-file FILE, or --document FILE --question TEXT",
        )
    if prompt_file:
        return _read(prompt_file)
    if not documents or not questions:
        missing = "--question" if documents else "--document"
        raise UsageError(f"{missing} is missing", "documents and questions go together")
    return "\n\n".join(_document(name) for name in documents)


def _document(name: str) -> str:
    from giraffe_cli.corpus.base import text_of_file

    path = Path(name).expanduser()
    text = text_of_file(path) if path.is_file() else None
    return _read(name) if text is None else text


def _read(name: str) -> str:
    """Every byte but a byte order mark, as the readers of a corpus take it."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).expanduser().read_bytes()
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{name} cannot be read as text: {error}", "name a UTF-8 file"
        ) from error


def _opened(checkpoint: str, scratch: Path, console: Console, allow_pickle: bool) -> Checkpoint:
    from giraffe_cli.evals.opening import open_checkpoint

    return open_checkpoint(checkpoint, None, scratch, console, allow_pickle)


def _asked(
    opened: Checkpoint, text: str, questions: list[str], chat: bool
) -> tuple[Any, list[Prompt]]:
    """The tokenizer, and every prompt."""
    from giraffe_cli.inference.prompts import prompts
    from giraffe_cli.model.loading import load_tokenizer

    tokenizer = load_tokenizer(opened.path)
    return tokenizer, prompts(tokenizer, text, questions, chat=chat)


def _merged_from(named: str) -> tuple[str, str]:
    """What makes a model of an adapter, or of a run without one, and where that lies then: what was
    merged here is gone with the command."""
    path = Path(named).expanduser()
    run = path if (path / "run.yaml").is_file() else path.parent
    if (run / "run.yaml").is_file():
        return f"giraffe merge {shlex.quote(str(run))}, then ", str(run / "model")
    return "merge the adapter into its base with PEFT's merge_and_unload, then ", "MERGED"


def _check_window(
    opened: Checkpoint,
    asked: list[Prompt],
    how: Answering,
    named: str,
    merged: tuple[str, str] | None,
    allow_pickle: bool,
) -> None:
    """Raises InvalidInput where a prompt with its answer is longer than the window."""
    from giraffe_cli.inference.prompts import check_window

    needed = ["--on-existing-rope compose"] if opened.existing_rope is not None else []
    needed += ["--allow-pickle"] if allow_pickle and merged is None else []
    extends = merged or ("", opened.source)
    check_window(asked, how.max_new_tokens, opened.reach, named, " ".join(needed), extends)


def _check_memory(
    opened: Checkpoint, asked: list[Prompt], how: Answering, dtype: str, cache: CacheChoice
) -> None:
    """Raises DoesNotFit, before any weight is read, where the longest prompt cannot be held."""
    from giraffe_cli.plan.inference_memory import Demand, check_fits
    from giraffe_cli.plan.machine import Machine, available_bytes, this_machine

    host = Machine("cpu", 1, available_bytes()).usable_bytes if cache.offload else None
    longest = max(len(prompt.token_ids) for prompt in asked)
    demand = Demand(opened, dtype, longest, how.max_new_tokens, this_machine(), host)
    check_fits(demand, cache.dtype)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _session(opened: Checkpoint, tokenizer: Any, dtype: str, cache: CacheChoice) -> Session:
    from giraffe_cli.inference.session import Session
    from giraffe_cli.model.attention import register_attention
    from giraffe_cli.model.loading import load_model, torch_dtype
    from giraffe_cli.model.reading import PROMPT_CHUNKS

    model = load_model(
        opened.path,
        dtype=torch_dtype(dtype),
        attn_implementation=register_attention(),
    )
    model.to(_device())
    return Session(model, tokenizer, cache.empty(model), PROMPT_CHUNKS[model.device.type])


def _answers(
    session: Session, asked: list[Prompt], how: Answering, console: Console
) -> list[Answer]:
    """Every answer as it comes: on stdout its text and a line break, on stderr its question."""
    last = -1

    def show(number: int, text: str) -> None:
        nonlocal last
        if number != last:
            if last >= 0:
                console.stream("\n")
            if asked[number].question is not None:
                console.info(f"{asked[number].question}")
            last = number
        console.stream(text)

    answers = session.answers(asked, how, console, show)
    console.stream("\n")
    for answer in answers:
        console.info(_told(answer))
    return answers


def _told(answer: Answer) -> str:
    """`12,000 tokens read, first token after 3.2 s, 40 tokens at 21.3 tokens/s, stopped by ...`."""
    speed = answer.to_json()["decode_tokens_per_second"]
    pace = f" at {speed:.1f} tokens/s" if speed else ""
    ended = {"end": "end of text", "stop": "stop string", "length": "--max-new-tokens"}
    return (
        f"{answer.read_tokens:,} of {answer.prompt_tokens:,} prompt tokens read, first token after "
        f"{answer.seconds_to_first_token:.2f} s, {len(answer.token_ids)} tokens{pace}, ended by "
        f"{ended[answer.finish_reason]}"
    )


def _to_json(
    named: str, window: int, session: Session, cache: CacheChoice, answers: list[Answer]
) -> dict[str, Any]:
    return {
        "model": named,
        "window": window,
        "dtype": str(session.model.dtype).removeprefix("torch."),
        "device": str(session.model.device),
        "chunk": session.chunk,
        "kv_cache": {
            "dtype": cache.dtype,
            "offload": cache.offload,
            "bytes": session.kept.num_bytes,
            "tokens": session.kept.get_seq_length(),
        },
        "answers": [answer.to_json() for answer in answers],
    }
