"""Tables, plots, the HTML page and the model card."""
