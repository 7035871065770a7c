"""Tasks: what is asked of a model, what is recorded of each example, and which metrics come of the records."""
