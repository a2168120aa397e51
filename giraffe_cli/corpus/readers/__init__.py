"""One corpus source a file; the file name is the reader's name."""
