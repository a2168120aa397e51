"""Documents → token ids, by the tokenizer that lies beside a checkpoint; no transformers.

A document is `BOS? text EOS?`, in this order:

    DocumentTokenizer(folder).policy → "BOS <s> (0), text, EOS </s> (1)"

EOS ends every document when the tokenizer names one. BOS begins it when the tokenizer names one,
unless the tokenizer itself would not put it there: `add_bos_token: false`, or a template of its
post-processor without it. Truncation and padding saved in a `tokenizer.json` are switched off, they
would silently shorten documents.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from giraffe_cli.corpus.backends import (
    Disagreement,
    FastBackend,
    HfBackend,
    Int64,
    Proven,
    UInt32,
    is_installed,
)
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rundir import digest_file, digest_value, read_json

Ids = npt.NDArray[Any]
"""uint16 or uint32."""
Choice = Literal["auto", "yes", "no"]
SETTINGS = "tokenizer_config.json"
BackendChoice = Literal["auto", "fastokens", "tokenizers"]


class DocumentTokenizer:
    """Token ids of whole documents.

    Raises:
        InvalidInput: no `tokenizer.json`, a damaged one, special tokens that it does not hold, or
            fastokens is asked for and cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        backend: BackendChoice = "auto",
        bos: Choice = "auto",
        eos: Choice = "auto",
    ) -> None:
        self.folder = folder
        reference = HfBackend(_load(folder))
        self.tokenizer = reference.tokenizer
        """That of `tokenizers`, without truncation and padding."""
        _check_added(folder, reference.tokenizer)
        texts = special_tokens(folder, reference.tokenizer, bos, eos)
        self.bos, self.eos = (_identity(folder, reference, text) for text in texts)
        """Ids of the tokens that begin and end a document; None for neither."""
        self.policy = _policy(texts, (self.bos, self.eos))
        """What a document is made of, for people."""
        self.dtype = _smallest_dtype(reference.tokenizer)
        """uint16 where the vocabulary fits, else uint32."""
        self.fallback: str | None = None
        """Why fastokens, though installed, is not used."""
        self._vocab_size = _vocab_size(folder)
        self._backend: HfBackend | Proven = reference
        if backend == "fastokens" or (backend == "auto" and is_installed()):
            self._prove(reference, required=backend == "fastokens")

    @property
    def backend(self) -> str:
        """Library and version, such as `fastokens 0.3.5`."""
        return self._backend.name

    def encode(
        self,
        texts: list[str],
        keys: list[bytes] | None = None,
        names: list[str] | None = None,
        before: int = 0,
    ) -> tuple[Ids, Int64]:
        """All documents' ids end to end, and [texts + 1] where each document's begin.

        Args:
            keys: a hash of each text, if there is one already; picks what is proven.
            names: what to call each text in a message.
            before: documents of the same unit that were encoded earlier.

        Raises:
            InvalidInput: an id that the model beside the tokenizer has no embedding for.
            Disagreement: fastokens gave other ids than tokenizers.
        """
        if isinstance(self._backend, Proven):
            keys = keys or [hashlib.sha256(text.encode()).digest() for text in texts]
            names = names or [f"text {before + number}" for number in range(len(texts))]
            ids, offsets = self._backend.encode(texts, keys, names, before)
        else:
            ids, offsets = self._backend.encode(texts)
        self._check(ids)
        return self._with_specials(ids, offsets)

    def _prove(self, reference: HfBackend, required: bool) -> None:
        if not is_installed():
            raise InvalidInput("fastokens is not installed", "pip install 'giraffe-cli[fast]'")
        try:
            self._backend = Proven(reference, FastBackend(self.folder / "tokenizer.json"))
        except Disagreement as error:
            if required:
                raise InvalidInput(str(error), "pass --backend tokenizers") from error
            self.fallback = str(error)

    def _check(self, ids: UInt32) -> None:
        highest = max(int(ids.max(initial=0)), self.bos or 0, self.eos or 0)
        if self._vocab_size is not None and highest >= self._vocab_size:
            raise InvalidInput(
                f"the tokenizer in {self.folder} yields id {highest}, "
                f"the model has {self._vocab_size} embeddings",
                "the tokenizer is another model's: put the right tokenizer.json beside the model",
            )

    def _with_specials(self, ids: UInt32, offsets: Int64) -> tuple[Ids, Int64]:
        before, after = int(self.bos is not None), int(self.eos is not None)
        placed = offsets + np.arange(len(offsets)) * (before + after)
        out = np.empty(int(placed[-1]), dtype=self.dtype)
        of_text = np.ones(len(out), dtype=bool)
        if self.bos is not None:
            out[placed[:-1]] = self.bos
            of_text[placed[:-1]] = False
        if self.eos is not None:
            out[placed[1:] - 1] = self.eos
            of_text[placed[1:] - 1] = False
        out[of_text] = ids
        return out, placed


def special_tokens(
    folder: Path, tokenizer: Any, bos: Choice, eos: Choice
) -> tuple[str | None, str | None]:
    """The texts of the tokens that begin and end a document.

    Raises:
        InvalidInput: `yes` to a token that the tokenizer does not name.
    """
    named = {name: _special_token(folder, name) for name in ("bos_token", "eos_token")}
    for choice, (name, token) in zip((bos, eos), named.items(), strict=True):
        if choice == "yes" and token is None:
            flag = name.removesuffix("_token")
            raise InvalidInput(
                f"--{flag} yes: {folder / SETTINGS} names no {name}",
                f"leave --{flag} out",
            )
    begins = bos == "yes" or (bos == "auto" and _begins_with(folder, tokenizer, named["bos_token"]))
    return named["bos_token"] if begins else None, None if eos == "no" else named["eos_token"]


def tokenizer_digest(path: Path) -> str:
    """Identity of the tokenizer at `path`; window limits do not count.

    Raises:
        InvalidInput: no `tokenizer.json`.
    """
    return digest_value(
        {
            "tokenizer": digest_file(_tokenizer_file(path)),
            "bos": _special_token(path, "bos_token"),
            "eos": _special_token(path, "eos_token"),
        }
    )


def vocabulary(folder: Path) -> dict[str, int]:
    """Token → id, special tokens among them, as the tokenizer in `folder` writes them.

    Raises:
        InvalidInput: no `tokenizer.json`, or a damaged one.
    """
    tokens: dict[str, int] = _load(folder).get_vocab(with_added_tokens=True)
    return tokens


def _tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InvalidInput(
            f"{folder} has no tokenizer.json",
            "write one: transformers.AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)",
        )
    return path


def _load(folder: Path) -> Any:
    from tokenizers import Tokenizer

    path = _tokenizer_file(folder)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a file it cannot parse
        raise InvalidInput(
            f"{path} is no tokenizer: {error}", "fetch the checkpoint again"
        ) from error


def _special_token(folder: Path, name: str) -> str | None:
    """`bos_token` as text; a file writes a string, an object with `content`, or null, which is
    none. Older ones that do not write it have it in a file of its own."""
    files = (_settings(folder, file) for file in (SETTINGS, "special_tokens_map.json"))
    entry = next((settings[name] for settings in files if name in settings), None)
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None


def _check_added(folder: Path, tokenizer: Any) -> None:
    """transformers adds tokens that only `tokenizer_config.json` holds; giraffe reads none but
    those of `tokenizer.json`.

    Raises:
        InvalidInput: there is one.
    """
    named = _settings(folder).get("added_tokens_decoder")
    for entry in named.values() if isinstance(named, dict) else ():
        token = entry.get("content") if isinstance(entry, dict) else None
        if isinstance(token, str) and tokenizer.token_to_id(token) is None:
            raise InvalidInput(
                f"{folder / SETTINGS} adds the token `{token}`, which tokenizer.json does not hold",
                "save both anew: transformers.AutoTokenizer.from_pretrained(MODEL)"
                ".save_pretrained(FOLDER)",
            )


def _settings(folder: Path, name: str = SETTINGS) -> dict[str, Any]:
    path = folder / name
    settings = read_json(path) if path.is_file() else {}
    if not isinstance(settings, dict):
        raise InvalidInput(f"{path} holds no JSON object", "download it again")
    return settings


def _begins_with(folder: Path, tokenizer: Any, bos: str | None) -> bool:
    """Whether the tokenizer itself begins a text with `bos`, as far as its files say so."""
    says = _settings(folder).get("add_bos_token")
    if bos is None or isinstance(says, bool):
        return bool(bos and says)
    # Its state is the JSON of this part; the whole tokenizer.json takes 50 ms to parse again.
    processor = tokenizer.post_processor
    post = json.loads(processor.__getstate__()) if processor is not None else {}
    templates = [p for p in (post, *post.get("processors", ())) if "single" in p]
    first = [template["single"][0] for template in templates if template["single"]]
    return not first or any(entry.get("SpecialToken", {}).get("id") == bos for entry in first)


def _identity(folder: Path, reference: HfBackend, token: str | None) -> int | None:
    identity: int | None = None if token is None else reference.tokenizer.token_to_id(token)
    if token is not None and identity is None:
        raise InvalidInput(
            f"{folder / SETTINGS} names `{token}`, which tokenizer.json does not hold",
            "the two files are of different tokenizers: take both from one model",
        )
    return identity


def _policy(texts: tuple[str | None, str | None], ids: tuple[int | None, int | None]) -> str:
    parts = [
        f"{name} {text} ({identity})" if text is not None else ""
        for name, text, identity in zip(("BOS", "EOS"), texts, ids, strict=True)
    ]
    return ", ".join(part for part in (parts[0], "text", parts[1]) if part)


def _smallest_dtype(tokenizer: Any) -> type[np.uint16] | type[np.uint32]:
    added = max(tokenizer.get_added_tokens_decoder(), default=0)
    highest = max(tokenizer.get_vocab_size(with_added_tokens=True) - 1, added)
    return np.uint16 if highest <= np.iinfo(np.uint16).max else np.uint32


def _vocab_size(folder: Path) -> int | None:
    """Embeddings of the model in the same folder; None for a folder with a tokenizer only."""
    path = folder / "config.json"
    size = read_json(path).get("vocab_size") if path.is_file() else None
    return size if isinstance(size, int) else None
