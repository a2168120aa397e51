"""One file a command; `app.py` is the error boundary, `console.py` the only printer."""
