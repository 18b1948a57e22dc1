"""A whole run under faults: requests that fail, drivers and a raylet that are killed; it finishes and verifies."""
