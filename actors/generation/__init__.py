"""Prompts become completions: rendering, vLLM engines, the pool of them, new weights into them."""
