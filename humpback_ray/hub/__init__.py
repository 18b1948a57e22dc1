"""The Hugging Face Hub: its ids."""
