"""Instruction backtranslation (Humpback) as a batch job on Ray: web corpus and seed pairs in, instruction model out.

`pipeline.py` is the table of contents. Source: Li et al. 2023, arXiv:2308.06259.
"""

__version__ = "0.1.0"
