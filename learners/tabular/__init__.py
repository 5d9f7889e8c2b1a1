"""Tables of values and policies: planning with a model, and learning from episodes."""
