"""The Hugging Face Hub: what names of it stand for."""
