"""Exposes a policy over HTTP with Ray Serve LLM. Never imports `learners`."""
