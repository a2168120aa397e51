"""Units tokenised by this process or by several, with a bar that tells how fast."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.pace import Pace
from giraffe_cli.corpus.tokenising import tokenise_unit
from giraffe_cli.corpus.tools import Tools
from giraffe_cli.corpus.unit import Unit
from giraffe_cli.corpus.unit_files import unit_folder
from giraffe_cli.errors import GiraffeError, InvalidInput, UsageError
from giraffe_cli.progress import Reporter

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


def tokenise_units(
    units: Sequence[Unit],
    numbers: Sequence[int],
    work: Path,
    tools: Tools,
    workers: int,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """`done.json` of each unit of `numbers`, in their order, tokenised into `work`.

    Raises:
        InvalidInput, GiraffeError: as `tokenise_unit`, from whichever process.
    """
    if workers > 1 and len(units) == 1:
        reporter.info(f"{units[0].source} is read by one process: nothing in it can be shared out")
    total = sum(units[number].size for number in numbers) / 1e6
    with reporter.bar("tokenising", total, "MB") as bar:
        pace = Pace(bar)
        if workers == 1 or len(numbers) < 2:
            return [tokenise_unit(units[n], unit_folder(work, n), tools, pace) for n in numbers]
        done = []
        for entry, number in _in_processes(units, numbers, work, tools, workers):
            pace.advance(units[number].size / 1e6, entry["tokens"])
            done.append(entry)
        return done


def _in_processes(
    units: Sequence[Unit], numbers: Sequence[int], work: Path, tools: Tools, workers: int
) -> Iterator[tuple[dict[str, Any], int]]:
    """`done.json` of each unit in order, tokenised by `workers` processes.

    Raises:
        GiraffeError: what a worker raised, or one was killed.
    """
    import concurrent.futures.process  # here: it brings ssl, which one process does not need
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    tokenizer, config = str(tools.tokenize.folder), tools.config.model_dump_json()
    ending, end = context.Pipe(duplex=False)
    with (
        concurrent.futures.ProcessPoolExecutor(workers, context, _end_with, (ending,)) as pool,
        _closed_on_error(end),
    ):
        futures = [
            pool.submit(_work, units[n], str(unit_folder(work, n)), tokenizer, config)
            for n in numbers
        ]
        try:
            for number, future in zip(numbers, futures, strict=True):
                kind, value = future.result()
                if kind != "done":
                    raise _raised(kind, value)
                yield value, number
        except concurrent.futures.process.BrokenProcessPool as error:
            raise GiraffeError(
                "a worker process was killed, as by the system when memory runs out",
                "run the same command again with fewer --workers: finished units stay",
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _closed_on_error(end: Connection) -> Iterator[None]:
    """What the workers wait for to end at once; their finished blocks stay."""
    try:
        yield
    except BaseException:
        end.close()
        raise


def _end_with(ending: Connection) -> None:
    """In a worker process: end when the parent closes its side, or has ended itself."""

    def wait() -> None:
        with contextlib.suppress(EOFError, OSError):
            ending.recv_bytes()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _work(unit: Unit, folder: str, tokenizer: str, config: str) -> tuple[str, Any]:
    """In a worker process: ("done", `done.json`), or an error's class and words."""
    try:
        return "done", tokenise_unit(unit, Path(folder), _tools(tokenizer, config))
    except GiraffeError as error:
        return type(error).__name__, (error.message, error.hint)


@functools.cache  # a unit may take less time than opening these
def _tools(tokenizer: str, config: str) -> Tools:
    """Of a worker process, for all its units."""
    return Tools.of(Path(tokenizer), PackConfig.model_validate_json(config))


def _raised(kind: str, value: tuple[str, str | None]) -> GiraffeError:
    kinds = {error.__name__: error for error in (InvalidInput, UsageError, GiraffeError)}
    return kinds.get(kind, GiraffeError)(*value)
