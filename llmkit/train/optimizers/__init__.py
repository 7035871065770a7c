"""Optimizers, how they keep state and weights, and which parameters they treat alike."""
