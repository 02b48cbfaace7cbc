"""A report on runs: one page that works without a network.

`runs.py` reads the run folders, `teachers.py` builds their teachers, `observe.py` evaluates both once and `collect.py`
keeps what is needed of it. `measures.py` computes what is reported, a file in `sections/` writes each section, `svg.py`
draws, and `page.py` makes the page.
"""
