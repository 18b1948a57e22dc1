"""A whole run under faults: failing requests, killed drivers and a killed raylet; it finishes and verifies."""
