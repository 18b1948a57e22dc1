"""The model directory that people serve: written, checked, described."""
