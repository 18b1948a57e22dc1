"""What a model learns from: examples, their tokens, their order, who computes which."""
