"""Comparing runs: what their folders say, which numbers may stand in one column, and who is best within error.

Reads JSON and YAML alone; nothing in here imports torch.
"""
