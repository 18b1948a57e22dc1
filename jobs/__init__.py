"""What one submits: arguments in, one call, an exit code. `console.py` is what all jobs share."""
