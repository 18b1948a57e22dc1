"""Faults, injected on purpose."""
