"""Low-rank adapters: attached to a frozen model, trained, merged, saved in PEFT's format and loaded from it."""
