"""Filters that measure by a model: language models, classifiers, and lists of words."""
