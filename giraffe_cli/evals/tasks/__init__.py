"""One evaluation task a file; the file name is the task's name."""
