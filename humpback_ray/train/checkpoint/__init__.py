"""Checkpoints that any number of workers can resume from, and when they are written."""
