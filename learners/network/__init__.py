"""Networks, their optimizer, and sums over ranks: what every learner shares."""
