"""New weights on their way to generators."""
