"""Memory: what a step needs, what fits, and what is computed twice to need less."""
