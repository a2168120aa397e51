"""Scores with intervals; see `base.py`."""
