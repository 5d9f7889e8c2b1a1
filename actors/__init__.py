"""Makes text and judges text: tasks, generators, scorers. Imports `cluster` only."""
