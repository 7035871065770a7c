"""One model on many ranks: who gets which rows, which part of which weight, and how gradients come together."""
