"""Which trial comes next: from a list, or where Optuna expects most. What Tune saves of them is nothing: `sweep.json` has it."""

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from learners.sweep.record import Trial
from learners.sweep.space import Point, Space

VALUE = "value"  # of a trial's result, whatever the sweep's metric is
Order = dict[str, Any]  # a trial's configuration, as Tune calls it


class ListedTrials(Searcher):
    """One after the other."""

    def __init__(self, orders: Sequence[Order]) -> None:
        super().__init__()
        self._left = list(orders)

    def suggest(self, trial_id: str) -> Order | str:
        return self._left.pop(0) if self._left else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A list learns nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Not pickled."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed from its own record")


class SuggestedTrials(OptunaSearch):
    """Earlier trials of a resumed sweep in their order, then new ones."""

    def __init__(
        self, space: Space, earlier: Sequence[Trial], order_of: Callable[[Trial | Point], Order], *, mode: str, seed: int
    ) -> None:
        super().__init__(
            {name: each.for_optuna() for name, each in space.settings.items()},
            metric=VALUE,
            mode=mode,
            seed=seed,
            points_to_evaluate=[
                {name: space.settings[name].optuna_value(text) for name, text in trial.settings.items()} for trial in earlier
            ],
        )
        self._settings = space.settings
        self._earlier = list(earlier)
        self._order_of = order_of

    def suggest(self, trial_id: str) -> Order:
        found = super().suggest(trial_id)  # also for an earlier one, which it takes from the points that it was given
        if self._earlier:
            return self._order_of(self._earlier.pop(0))
        return self._order_of({name: each.text(found[name]) for name, each in self._settings.items()})

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Optuna's would need the value in every result; what it is for, pruning, is the scheduler's here."""

    def save(self, checkpoint_path: str) -> None:
        """Not pickled."""
