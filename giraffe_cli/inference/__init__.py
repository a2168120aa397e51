"""Long prompts answered at speed."""
