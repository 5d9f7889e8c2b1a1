"""How many calls each actor of a pool has in flight, and who has the fewest; every question takes constant time."""

from collections import OrderedDict, defaultdict


class Loads:
    """Counts by actor name. Of actors with equally few calls, the one that has had so few for the longest is the next."""

    def __init__(self) -> None:
        self._loads: dict[str, int] = {}
        # By load, in the order in which they came to it. The first entry of a plain dict is found past all that were deleted.
        self._names: defaultdict[int, OrderedDict[str, None]] = defaultdict(OrderedDict)
        self._least = 0

    def __getitem__(self, name: str) -> int:
        return self._loads[name]

    def by_name(self) -> dict[str, int]:
        """All of them; takes time for each actor."""
        return dict(self._loads)

    def add(self, name: str) -> None:
        """An actor without calls."""
        self._loads[name] = self._least = 0
        self._names[0][name] = None

    def remove(self, name: str) -> None:
        """This actor takes no more calls. A loss: may take time for each actor."""
        self._leave(self._loads.pop(name), name)
        self._least = min(self._names, default=0)

    def begin(self, name: str) -> None:
        """One more call."""
        self._move(name, self._loads[name] + 1)

    def end(self, name: str) -> None:
        """One call fewer."""
        self._move(name, self._loads[name] - 1)

    @property
    def least(self) -> int:
        """Calls of the actor with the fewest. There must be an actor."""
        return self._least

    def least_loaded(self) -> str:
        """The actor for the next call. There must be one."""
        return next(iter(self._names[self._least]))

    def _move(self, name: str, load: int) -> None:
        before, self._loads[name] = self._loads[name], load
        self._leave(before, name)
        self._names[load][name] = None
        # Loads change by one, so whoever leaves the lowest empty has the lowest now.
        if load < self._least or self._least not in self._names:
            self._least = load

    def _leave(self, load: int, name: str) -> None:
        del self._names[load][name]
        if not self._names[load]:
            del self._names[load]
