"""What a run writes and reads back: its directory and lock, ledger, metrics, checkpoints, feedback."""
