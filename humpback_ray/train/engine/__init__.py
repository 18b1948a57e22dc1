"""A model in DeepSpeed: its weights, attention, loss, and resource use."""
