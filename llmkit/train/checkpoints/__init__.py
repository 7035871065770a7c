"""Checkpoints: what they hold, where they are, and how training goes on from them."""
