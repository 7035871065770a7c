"""Evaluation: several models on the same tasks, every figure with its signature and a bootstrap interval."""
