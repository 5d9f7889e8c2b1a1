"""Code of the user, run in child processes that can be limited and killed."""
