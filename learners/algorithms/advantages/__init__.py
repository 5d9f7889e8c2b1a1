"""How much better each token was than expected: one estimator a file. Imports torch only.

Estimators over groups take the return of each trajectory and the number of its group; a group is the trajectories of one
prompt. What holds for a whole trajectory is laid on its tokens with `masking.on_tokens`.
"""
