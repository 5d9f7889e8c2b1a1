"""How many actors a run has, and how that changes."""
