"""A reward model behind HTTP, in the protocol of scorers of kind http."""
