"""From documents to packed training windows."""
