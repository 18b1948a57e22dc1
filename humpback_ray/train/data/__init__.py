"""Training data: examples, their tokens, their order, and which worker computes which."""
