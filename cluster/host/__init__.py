"""This machine: versions, caches, what is missing, the environment of a CPU engine."""
