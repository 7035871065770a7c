"""The one training loop: optimizers, schedules, precision, checkpoints and metrics, for every stage that trains."""
