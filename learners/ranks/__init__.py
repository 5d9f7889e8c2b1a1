"""A Ray Train group: started, asked, restarted, checkpointed. Knows calls, not learners."""
