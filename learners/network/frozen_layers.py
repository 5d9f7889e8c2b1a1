"""The lowest layers of a policy, where nothing trains them: policy, reference and every epoch stand on the same hidden states.

Shapes: R rows of one pass, S tokens of a row, D hidden units.
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
        self._kept: dict[int, list[Tensor]] = {}  # row of the batch -> of each of its segments [its tokens, D]
        self._kept_bytes = 0

    def clear(self) -> None:
        """Before another batch: its rows are others."""
        self._kept = {}
        self._kept_bytes = 0

    @torch.no_grad()
    def of(self, batch: MicroBatch) -> Tensor | None:
        """below_RSD, which the trained layers continue; None where they start from the tokens."""
        if self._parts is None:
            return None
        if all(row in self._kept for row in batch.rows):
            kept = [states_SD for row in batch.rows for states_SD in self._kept[row]]
            return torch.cat(kept)[None] if batch.packing else nn.utils.rnn.pad_sequence(kept, batch_first=True)
        below_RSD = hidden_states(self._parts.lower, batch.token_ids_RS, self._settings, packing=batch.packing)
        segments = iter(below_RSD[0].split(batch.packing.lengths) if batch.packing else below_RSD)
        for row, lengths in zip(batch.rows, batch.segment_lengths, strict=True):
            self._keep(row, [next(segments)[:length] for length in lengths])
        return below_RSD

    def _keep(self, row: int, states: list[Tensor]) -> None:
        num_bytes = sum(states_SD.numel() * states_SD.element_size() for states_SD in states)
        if row not in self._kept and self._kept_bytes + num_bytes <= MAX_KEPT_BYTES:
            self._kept[row] = [states_SD.clone() for states_SD in states]
            self._kept_bytes += num_bytes
