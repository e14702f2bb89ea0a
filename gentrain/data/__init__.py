"""Data sets and the road from what they store to batches in the model's support."""
