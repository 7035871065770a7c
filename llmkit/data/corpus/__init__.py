"""From sources to a corpus: reading, measuring, judging, finding duplicates, and writing, each in tasks of its own."""
