"""What the tokens of a vocabulary are in bytes, as far as their spelling tells.

    byte-level     "Ġthe" → b" the", "ä¸" → b"\\xe4\\xb8", two bytes of three of a character
    byte fallback  "<0xE4>" → b"\\xe4"; all else is text

Source: openai/gpt-2, `encoder.py`, for the signs that stand for bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def bytes_of(tokens: Sequence[str]) -> list[bytes | None]:
    """Of each of a whole vocabulary; None of one that is text as it is spelt."""
    is_byte_level = any(token.startswith("Ġ") for token in tokens)
    signs = _signs() if is_byte_level else {}
    return [_of(token, signs) for token in tokens]


def is_text(held: bytes) -> bool:
    """Whether they are whole characters."""
    try:
        held.decode()
    except UnicodeDecodeError:
        return False
    return True


def _of(token: str, signs: dict[str, int]) -> bytes | None:
    if written := BYTE.fullmatch(token):
        return bytes([int(written[1], 16)])
    if token and all(sign in signs for sign in token):
        return bytes(signs[sign] for sign in token)
    return None


def _signs() -> dict[str, int]:
    """Sign → byte: those that are printed stand for themselves, the others have the signs from
    U+0100 on, in order."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(b): b for b in printed} | {chr(256 + n): b for n, b in enumerate(others)}
