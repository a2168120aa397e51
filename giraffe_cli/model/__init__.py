"""What changes inside the model while it trains: attention, loss, adapters."""
