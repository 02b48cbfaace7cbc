"""A report on runs: one page that works without a network.

`runs.py` reads the run folders, `teachers.py` builds their teachers, `observe.py` evaluates both once, `measures.py`
computes what is reported, `sections/` writes a section each, `svg.py` draws, and `page.py` makes the page.
"""
