"""External files: records as people publish them, and the pairs and prompts that they hold."""
