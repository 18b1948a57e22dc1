"""The embedded default: a toy web whose truth is known, its seed pairs, and a base model made on the spot."""
