"""API keys, what each may use, and who counts it."""
