"""RoPE strategies (tables) and position schemes; see `base.py`."""
