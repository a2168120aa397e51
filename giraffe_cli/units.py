"""Lengths, bytes and durations as people write them: `16k` tokens, `1.5 GB`, `3 min 20 s`."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

from giraffe_cli.errors import InvalidInput

_MULTIPLIERS = {"": 1, "k": 1024, "m": 1024 * 1024}
BEYOND = 10**18
"""No length or size is as large, its unit counted: what is read can be written and read again."""
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Embeddings, overrides and isolates: they make text read otherwise than it is."""


def parse_length(text: str | int) -> int:
    """`"16k"` → 16384, `"1m"` → 1048576, `4096` → 4096 (tokens).

    Raises:
        InvalidInput: not a positive length.
    """
    match = re.fullmatch(r"([0-9]{1,18})([km]?)", str(text).strip().lower())
    length = int(match[1]) * _MULTIPLIERS[match[2]] if match else 0
    if not 0 < length < BEYOND:
        raise InvalidInput(
            f"`{brief(text)}` is not a length in tokens",
            "write 16k, 1m or a plain integer such as 16384",
        )
    return length


def format_length(length: int) -> str:
    """16384 → `16k`, 1048576 → `1m`, 1000 → `1000`: the inverse of `parse_length`."""
    for suffix in ("m", "k"):
        if length and length % _MULTIPLIERS[suffix] == 0:
            return f"{length // _MULTIPLIERS[suffix]}{suffix}"
    return str(length)


def format_bytes(count: float) -> str:
    """Decimal units, one decimal: 1500000000 → `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_bytes(text: str | int) -> int:
    """`"256MB"` → 256000000, `"1.5 GB"` → 1500000000: decimal units, as `format_bytes` writes them.

    Raises:
        InvalidInput: not a positive size.
    """
    match = re.fullmatch(
        r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kmgt]?)b?", str(text).strip().lower()
    )
    size = int(Decimal(match[1]) * _BYTES[match[2]]) if match else 0
    if not 0 < size < BEYOND:
        raise InvalidInput(
            f"`{brief(text)}` is not a size in bytes", "write 256MB, 1.5GB or 1000000"
        )
    return size


def format_seconds(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def three_digits(value: float) -> str:
    """At the most three of them count, and no power of ten: `0.0123`, `12.3`, `1,230`."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{float(f'{value:.3g}'):,.0f}"


def counted(number: int, noun: str) -> str:
    """`1 document`, `1,200 documents`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def brief(value: object) -> str:
    """`value` as text of at most 120 characters, for an error that names it."""
    text = str(value)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text):,} characters)"


def visible(text: str) -> str:
    """`text` with every character that commands a terminal or turns the direction of reading shown
    as a sign: `\x1b[2J` becomes `␛[2J`. Line breaks and tabs stay.
    """
    return "".join(character if _is_harmless(character) else _sign(character) for character in text)


def _is_harmless(character: str) -> bool:
    if character in "\n\t":
        return True
    return unicodedata.category(character) not in ("Cc", "Cs") and character not in _DIRECTIONS


def _sign(character: str) -> str:
    """The picture of an ASCII control character, of others the replacement character."""
    if character < " ":
        return chr(0x2400 + ord(character))
    return "\u2421" if character == "\x7f" else "\ufffd"
