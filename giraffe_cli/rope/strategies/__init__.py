"""One strategy a file; the file name is the strategy's name."""
