"""Self-curation: a model rates every candidate (`score.py`, `scorers/`), and the best are kept (`select.py`)."""
