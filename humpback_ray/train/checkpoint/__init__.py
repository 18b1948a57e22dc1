"""Checkpoints that any number of workers go on from, and when they are written."""
