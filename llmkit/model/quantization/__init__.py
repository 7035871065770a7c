"""Weights kept in fewer bits: int8, int4 and NF4, for generation and under adapters in training."""
