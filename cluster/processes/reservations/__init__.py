"""What a run has reserved of its cluster."""
