"""giraffe: turn a Llama checkpoint into a long-context model, and prove it."""

__version__ = "0.1.0"
