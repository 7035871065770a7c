"""Cleaning steps: each takes a batch of documents and keeps, changes or drops each of them, with a reason."""
