"""Who works for the run: which actors there shall be, which must go, and when to give up."""

from collections import Counter

from cluster.errors import GaveUp
from cluster.orders import ActorEvent, MakeOrder, Role


class Staff:
    """Wants actors, and hears what became of them. Pure: times are passed in."""

    def __init__(self, num_readers: int, num_trainers: int, term: int) -> None:
        self._wanted: dict[Role, int] = {"reader": num_readers, "trainer": num_trainers}
        self._term, self._number = term, 0
        self._orders: dict[str, MakeOrder] = {}
        self._there: dict[str, ActorEvent] = {}
        self._kill: set[str] = set()
        self._num_lost: Counter[Role] = Counter()

    def wanted(self) -> tuple[tuple[MakeOrder, ...], tuple[str, ...]]:
        """Actors to make, and actors to end."""
        return tuple(self._orders.values()), tuple(self._kill)

    def take(self, event: ActorEvent) -> bool:
        """Note what became of an actor; whether it is gone."""
        self._orders.pop(event.name, None)
        if event.kind == "started":
            self._there[event.name] = event
            return False
        self._there.pop(event.name, None)
        self._kill.discard(event.name)
        if event.role == "trainer" and event.kind == "left":
            self.close()
        self._num_lost[event.role] += event.kind == "lost"
        return True

    def close(self) -> None:
        """The run ends: nobody is needed any more."""
        self._wanted = {"reader": 0, "trainer": 0}
        self._orders.clear()

    def kill(self, name: str) -> None:
        """This one is given up as dead, whatever it still does."""
        if name in self._there:
            self._kill.add(name)

    def tick(self) -> None:
        for role, wanted in self._wanted.items():
            there = [one for one in self._there.values() if one.role == role]
            there = [one for one in there if one.name not in self._kill]
            orders = [order for order in self._orders.values() if order.role == role]
            for _ in range(wanted - len(there) - len(orders)):
                self._number += 1
                name = f"{role}-{self._term}-{self._number}"
                self._orders[name] = MakeOrder(name, role)

    def readings(self) -> dict[tuple[str, str], float]:
        """Counters and gauges, by name and label."""
        found: dict[tuple[str, str], float] = {}
        for role, wanted in self._wanted.items():
            found[f"{role}s_lost", ""] = self._num_lost[role]
            found["actors_wanted", role] = wanted
            found["actors", role] = sum(one.role == role for one in self._there.values())
        return found

    def gave_up(self, reason: str) -> GaveUp:
        return GaveUp(f"gave up because {reason}")
