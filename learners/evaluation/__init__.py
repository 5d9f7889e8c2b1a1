"""Completions on held-out prompts, and what they say."""
