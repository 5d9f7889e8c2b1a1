"""The lowest layers of a policy, where nothing trains them: policy, reference and every epoch stand on the same hidden states.

Shapes: B trajectories of one pass, S tokens of prompt + completion, D hidden units.
"""

import torch
from torch import Tensor, nn

from learners.network.micro_batch import MicroBatch
from learners.network.trunk import ForwardSettings, TrunkParts, hidden_states
from learners.settings.training import MAX_KEPT_BYTES


class FrozenStates:
    """Hidden states above the frozen layers, each row of a batch computed once. Owned by a learner, which clears it.

    Rows beyond `MAX_KEPT_BYTES` are computed anew for every pass.
    """

    def __init__(self, parts: TrunkParts | None, settings: ForwardSettings) -> None:
        self._parts = parts
        self._settings = settings
        self._kept: dict[int, Tensor] = {}  # row of the batch -> [its tokens, D]
        self._kept_bytes = 0

    def clear(self) -> None:
        """Before another batch: its rows are others."""
        self._kept = {}
        self._kept_bytes = 0

    @torch.no_grad()
    def of(self, batch: MicroBatch) -> Tensor | None:
        """below_BSD, which the trained layers continue; None where they start from the tokens."""
        if self._parts is None:
            return None
        rows = batch.rows_B.tolist()
        if all(row in self._kept for row in rows):
            return nn.utils.rnn.pad_sequence([self._kept[row] for row in rows], batch_first=True)
        below_BSD = hidden_states(self._parts.lower, batch.token_ids_BS, self._settings)
        for row, length, states_SD in zip(rows, (batch.last_position_B + 1).tolist(), below_BSD, strict=True):
            self._keep(row, states_SD[:length])
        return below_BSD

    def _keep(self, row: int, states_SD: Tensor) -> None:
        num_bytes = states_SD.numel() * states_SD.element_size()
        if row not in self._kept and self._kept_bytes + num_bytes <= MAX_KEPT_BYTES:
            self._kept[row] = states_SD.clone()
            self._kept_bytes += num_bytes
