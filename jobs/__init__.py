"""The entry points: each parses arguments, makes one call and returns an exit code. All jobs share `console.py`."""
