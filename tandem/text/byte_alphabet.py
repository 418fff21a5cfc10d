"""The 256 characters that byte-level tokenizers write for bytes, so that a vocabulary of bytes is readable JSON.

Printable Latin-1 characters stand for their own byte, and the others for U+0100 upwards in order of their bytes.

Source: GPT-2's byte-level BPE, which `tokenizers` calls ByteLevel.
"""

from __future__ import annotations


def _alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(rest)}


BYTE_OF = _alphabet()
"""Character -> the byte it stands for."""


def token_bytes(token: str) -> bytes:
    """The bytes a byte-level token stands for; a token with any other character stands for its own text."""
    if all(letter in BYTE_OF for letter in token):
        return bytes(BYTE_OF[letter] for letter in token)
    return token.encode()
