"""Whole runs: what a command starts, in which order, of which roles."""
