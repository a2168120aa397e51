"""One position scheme a file: the position ids of a training window."""
