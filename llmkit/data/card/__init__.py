"""The data card: what a corpus is and how it was made, as a page beside it."""
