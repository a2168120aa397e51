"""Choosing a RoPE table by measurement: the bake-off and the search."""
