"""Texts that a model has written, as a file, on TensorBoard and on a console. `gentrain.report` files them."""

from __future__ import annotations

from collections.abc import Sequence

EXCERPT = 240
"""Characters of the first text that a console shows."""


def sheet(texts: Sequence[str]) -> str:
    """All of them in one file, a ruler between two.

    >>> sheet(["To be,", "or not"])
    'To be,\\n\\n---- 2 of 2 ----\\n\\nor not\\n'
    """
    parts = [texts[0], *(f"---- {i} of {len(texts)} ----\n\n{text}" for i, text in enumerate(texts[1:], 2))]
    return "\n\n".join(parts) + "\n"


def markdown(texts: Sequence[str]) -> str:
    """All of them for TensorBoard, which reads Markdown: each line indented, so that it stays as it is."""
    return "\n".join("    " + line for line in sheet(texts).split("\n"))


def excerpt(texts: Sequence[str]) -> str:
    """The beginning of the first, indented, without what a console would carry out (escape sequences and the like)."""
    text = texts[0]
    shown = text[:EXCERPT] + ("…" if len(text) > EXCERPT else "")
    return "\n".join("    " + "".join(c if c.isprintable() else " " for c in line) for line in shown.split("\n"))
