"""One self-contained page about a run: its chain of stages, results, curves, samples, data, cost and cards.

`gather` reads a run's directory into dataclasses, tolerant of stages that are missing, unfinished or damaged;
`chain` and `charts` compute where things are drawn; `page` renders all of it through a template. No torch.
"""
