"""Lease table in seeded worlds: its promises hold, whatever readers, network and Control do."""

from collections import Counter

from tests.cluster.lease_world import World


def test_every_task_is_decided_once_by_a_valid_lease_and_none_starves(share: float) -> None:
    """Two results of a chunk would train it twice; a task without a result stops the run."""
    seen: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for seed in range(round(500 * share)):
        world = World(seed)
        try:
            world.run()
        except AssertionError as error:
            raise AssertionError(f"world {seed}: {error}") from error
        seen += world.seen
        counters = world.table.counters
        names = ("hedged", "hedges_won", "recropped", "given_up", "differing")
        counted += counters.late + Counter({name: getattr(counters, name) for name in names})
    # Otherwise the worlds are too calm to prove anything.
    happened = {"die", "hang", "freeze", "restart", "zombie", "missed", "hung", "silent", "left"}
    assert happened <= set(seen) and seen["given up"]
    refused = {"fenced", "gone", "term", "hedged", "hedges_won", "recropped", "given_up"}
    assert all(counted[name] for name in refused)
    assert counted["differing"] == 0
