"""One export target a file; the file name is the target's name."""
