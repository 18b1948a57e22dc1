"""Parts of texts: words, numbers, languages, clean characters."""
