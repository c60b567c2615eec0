"""Text that a device sent, made safe to be shown: no control characters, not too long."""

from __future__ import annotations


def printable(text: str, most: int = 300) -> str:
    """At most ``most`` characters; what would move a terminal's cursor or end a line becomes ?."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])
