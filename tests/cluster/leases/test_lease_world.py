"""The lease table in seeded worlds: whatever readers, network and Control do, the promises hold."""

from collections import Counter

from tests.cluster.lease_world import World


def play(seeds: range) -> tuple[Counter[str], Counter[str]]:
    """What happened in these worlds, and what their tables counted."""
    seen: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for seed in seeds:
        world = World(seed)
        try:
            world.run()
        except AssertionError as error:
            raise AssertionError(f"world {seed}: {error}") from error
        seen += world.seen
        counters = world.table.counters
        counted += Counter(
            {
                "fenced": counters.late["fenced"],
                "gone": counters.late["gone"],
                "term": counters.late["term"],
                "hedged": counters.hedged,
                "hedges_won": counters.hedges_won,
                "recropped": counters.recropped,
                "given_up": counters.given_up,
                "differing": counters.differing,
            }
        )
    return seen, counted


def test_every_task_is_decided_once_by_a_lease_that_holds_and_none_starves() -> None:
    """Readers that die, hang, come back, and a network that loses and repeats, change nothing."""
    seen, counted = play(range(500))
    happened = {"die", "hang", "freeze", "restart", "zombie", "missed", "hung", "silent", "left"}
    assert happened <= set(seen) and seen["given up"]  # or the worlds are too calm to tell
    refused = {"fenced", "gone", "term", "hedged", "hedges_won", "recropped", "given_up"}
    assert all(counted[name] for name in refused)
    assert counted["differing"] == 0
