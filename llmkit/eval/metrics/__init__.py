"""Metrics: sufficient statistics of each example, and how their sums become one figure."""
