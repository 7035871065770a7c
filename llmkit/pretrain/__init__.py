"""Pretraining: a model learns to predict text, the next token or the hidden ones."""
