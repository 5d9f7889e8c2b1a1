"""Runs of language models of one's own."""
