"""A run for people: the page, its figures, the terminal's view."""
