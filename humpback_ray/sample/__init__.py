"""The embedded sample: a toy web with known truth, its seed pairs, and a base model trained on the spot."""
