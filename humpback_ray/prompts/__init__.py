"""What models read: the chat layout with its source tags, the backward prompt, the rating prompt and its parser."""
