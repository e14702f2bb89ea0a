"""The truth tests: what a model claims, against answers that are known by enumeration on a tiny space.

`base` says what a check is, `spaces` holds the mathematics, `models` and `objectives` the checks themselves. They ask
for capabilities, never for a family, so that a model of one's own is proved by the same ones (`gentrain check`).
"""
