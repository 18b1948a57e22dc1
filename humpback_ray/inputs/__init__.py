"""Files from outside: records as people publish them, the pairs and prompts that they hold."""
