"""Answers of the trained models to a file of prompts (`respond.py`), and win rates from a judge's annotations."""
