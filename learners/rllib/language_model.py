"""A language model of one's own as RLlib's module: the policy over tokens, with a value beside it.

Shapes: B observations of the token environment, T tokens, D hidden units. The whole text is read anew for each token, by an LSTM
too, so a step needs nothing but its observation.
"""

from pathlib import Path
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from learners.language_models.files import load_language_model

FOLDER = "folder"  # in the module's settings


class LanguageModelModule(TorchRLModule, ValueFunctionAPI):
    """The value is a linear function of what the output layer reads. Its error does not reach the language model, whose
    language it would spoil long before it is right."""

    def setup(self) -> None:
        self.language_model = load_language_model(Path(self.model_config[FOLDER]))
        self.value_head = nn.Linear(self.language_model.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.language_model.logits(self._last_hidden(batch))}

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        hidden_BD = self._last_hidden(batch)
        return {Columns.ACTION_DIST_INPUTS: self.language_model.logits(hidden_BD), Columns.EMBEDDINGS: hidden_BD}

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Of each observation. `embeddings`: what `_forward_train` found for the same batch."""
        hidden_BD = self._last_hidden(batch) if embeddings is None else embeddings
        values_B: Tensor = self.value_head(hidden_BD.detach()).squeeze(-1)
        return values_B

    def _last_hidden(self, batch: dict[str, Any]) -> Tensor:
        """[B, D] at the last token of each text; columns that are padding in all of them are not computed."""
        observations = batch[Columns.OBS].long()
        lengths_B = observations[:, 0].clamp(min=1)  # RLlib also asks about observations of zeros
        hidden_BTD = self.language_model.hidden_states(observations[:, 1 : 1 + int(lengths_B.max())])
        return hidden_BTD[torch.arange(len(lengths_B), device=lengths_B.device), lengths_B - 1]


def language_model_spec(folder: Path) -> RLModuleSpec:
    """Every process of the run reads the folder, so all must see it."""
    return RLModuleSpec(module_class=LanguageModelModule, model_config={FOLDER: str(folder.absolute())})
