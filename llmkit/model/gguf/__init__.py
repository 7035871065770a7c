"""Models in GGUF files: which architectures there are, how they are read, and how they are written.

Modules: `architectures` (names and settings, no torch), `read` (a file as named tensors), `write` (a model as a file).
"""
