"""The directory that people serve: written, loaded again, described."""
