"""One way to run the tasks of a packing a file; the file name is the executor's name."""
