"""Checkpoints and runs in the forms other runtimes take."""
