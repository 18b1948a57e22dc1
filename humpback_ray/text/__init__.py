"""What texts are made of: words, numbers, languages, clean characters."""
