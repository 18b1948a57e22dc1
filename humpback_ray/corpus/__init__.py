"""The corpus: files of web pages in, header-delimited segments out, each text once."""
