"""The trained models' answers to a file of prompts (`respond.py`)."""
