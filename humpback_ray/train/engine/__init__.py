"""A model in DeepSpeed: its weights, attention, loss, and what a step used."""
