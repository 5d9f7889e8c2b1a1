"""What the optimizer minimises: one loss a file. Imports torch only.

Policy losses share one signature: `logprobs_BT` (with gradient) under the weights being updated, `old_logprobs_BT` under
the learner's weights at batch start, both in nats; `advantages_BT`; `importance_weights_BT`, the correction for the
engine's own numbers, multiplied in after any clipping; and `tokens`, which says what counts and how much.
"""
