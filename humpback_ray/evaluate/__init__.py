"""What the trained models can do: their answers to a file of prompts (`respond.py`)."""
