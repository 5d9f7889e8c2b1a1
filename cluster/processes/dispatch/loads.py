"""How many calls each actor of a pool has in flight, and who is the next; a question takes time for each capacity, not actor."""

from collections import OrderedDict, defaultdict

ROUNDING = 1e-9  # of a product that would be a whole number


def equal_capacity(name: str) -> int:
    """Of actors that are alike."""
    return 1


class Loads:
    """Counts by actor name. Actors have capacities, whole numbers in whatever unit their pool counts: an actor of twice the
    capacity gets twice the calls. Of actors that are equally filled, the one that has been so for the longest is the next."""

    def __init__(self) -> None:
        self._capacities: dict[str, int] = {}  # by name
        self._alike: dict[int, _EqualLoads] = {}  # by capacity

    def __getitem__(self, name: str) -> int:
        return self._of(name)[name]

    def by_name(self) -> dict[str, int]:
        """All of them; takes time for each actor."""
        return {name: self[name] for name in self._capacities}

    def add(self, name: str, capacity: int = 1) -> None:
        """An actor without calls."""
        self._capacities[name] = capacity
        self._alike.setdefault(capacity, _EqualLoads()).add(name)

    def remove(self, name: str) -> None:
        """This actor takes no more calls. A loss: may take time for each actor."""
        alike = self._of(name)
        alike.remove(name)
        if not alike:
            del self._alike[self._capacities[name]]
        del self._capacities[name]

    def begin(self, name: str) -> None:
        """One more call."""
        self._of(name).move(name, 1)

    def end(self, name: str) -> None:
        """One call fewer."""
        self._of(name).move(name, -1)

    def least_loaded(self) -> str:
        """The actor for the next call: an idle one, or else the one that is least filled with it. There must be one."""
        return self._alike[self._next_capacity()].least_loaded()

    def has_room(self, max_in_flight: float) -> bool:
        """Whether `least_loaded` may have one more call. `max_in_flight`: for each unit of capacity; an idle one may in any case.

        There must be an actor.
        """
        capacity = self._next_capacity()
        least = self._alike[capacity].least
        return least == 0 or least + 1 <= max_in_flight * capacity + ROUNDING

    def _next_capacity(self) -> int:
        def filled(capacity: int) -> tuple[bool, float]:
            least = self._alike[capacity].least
            return least > 0, (least + 1) / capacity

        return min(self._alike, key=filled)

    def _of(self, name: str) -> "_EqualLoads":
        return self._alike[self._capacities[name]]


class _EqualLoads:
    """Those of actors with the same capacity; every question takes constant time."""

    def __init__(self) -> None:
        self._loads: dict[str, int] = {}
        # By load, in the order in which they came to it. The first entry of a plain dict is found past all that were deleted.
        self._names: defaultdict[int, OrderedDict[str, None]] = defaultdict(OrderedDict)
        self.least = 0  # calls of the actor with the fewest

    def __len__(self) -> int:
        return len(self._loads)

    def __getitem__(self, name: str) -> int:
        return self._loads[name]

    def add(self, name: str) -> None:
        self._loads[name] = self.least = 0
        self._names[0][name] = None

    def remove(self, name: str) -> None:
        self._leave(self._loads.pop(name), name)
        self.least = min(self._names, default=0)

    def least_loaded(self) -> str:
        return next(iter(self._names[self.least]))

    def move(self, name: str, change: int) -> None:
        """`change`: 1 or -1."""
        before = self._loads[name]
        load = self._loads[name] = before + change
        self._leave(before, name)
        self._names[load][name] = None
        # Loads change by one, so whoever leaves the lowest empty has the lowest now.
        if load < self.least or self.least not in self._names:
            self.least = load

    def _leave(self, load: int, name: str) -> None:
        del self._names[load][name]
        if not self._names[load]:
            del self._names[load]
