"""The pace of requests: up by one while all is well, down to half when a store says 503."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from shards.stores.request_limit import AdaptiveLimit, RequestLimiter


def test_a_limit_that_is_felt_grows_by_one_a_round():
    """A store that can do more would never be asked for it."""
    limit = AdaptiveLimit(4.0)
    for _ in range(4):
        limit.increase(num_busy=4)
    assert 4.9 < limit.limit <= 5.0
    for _ in range(100_000):
        limit.increase(num_busy=999)
    assert limit.limit == 256.0


def test_a_limit_that_nobody_feels_stays():
    """Two threads that go well prove nothing about two hundred."""
    limit = AdaptiveLimit(16.0)
    for _ in range(100):
        limit.increase(num_busy=2)
    assert limit.limit == 16.0


def test_one_storm_halves_what_is_under_way_once():
    """Ten answers to ten requests of the same moment are one piece of news."""
    limit = AdaptiveLimit(16.0)
    for moment in range(10):
        limit.decrease(began=1.0, now=2.0 + moment, num_busy=10)
    assert limit.limit == 5.0
    limit.decrease(began=12.0, now=13.0, num_busy=5)
    assert limit.limit == 2.5


def test_below_one_the_only_request_rests_between_its_turns():
    """With hundreds of readers, one request each at a time is still too many."""
    limit = AdaptiveLimit(1.0)
    assert limit.pause_after(2.0) == 0.0
    limit.decrease(began=1.0, now=1.0, num_busy=1)
    limit.decrease(began=1.0, now=2.0, num_busy=1)
    assert (
        limit.limit == 0.25 and limit.pause_after(2.0) == 6.0 and limit.pause_after(100.0) == 10.0
    )
    for moment in range(50):
        limit.decrease(began=3.0 + moment, now=3.0 + moment, num_busy=1)
    assert limit.limit == 1 / 16  # and never stands still
    for _ in range(5):
        limit.increase(num_busy=1)
    assert limit.limit == 2.0


def test_no_more_pass_than_the_limit_allows():
    """A limit that is only advice brings the next 503."""
    gate, busy, most = RequestLimiter(AdaptiveLimit(3.0)), [], []

    def work(_):
        with gate.permit():
            busy.append(1)
            most.append(len(busy))
            time.sleep(0.002)
            busy.pop()

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(60)))
    assert max(most) == 3


def test_a_pause_holds_for_everybody_and_ends():
    """The thread that was told to wait would wait alone, the others would ask on."""
    gate = RequestLimiter()
    with gate.permit() as began:
        gate.throttled(began, retry_after=0.2)
    started, waited = time.monotonic(), []

    def work():
        with gate.permit():
            waited.append(time.monotonic() - started)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(waited) == 3 and min(waited) > 0.15


def test_a_request_that_fails_gives_its_place_back():
    """Sixteen errors, and nothing would ever be read again."""
    gate = RequestLimiter(AdaptiveLimit(1.0))
    for _ in range(3):
        with pytest.raises(OSError, match="broken"), gate.permit():
            raise OSError("broken")


class SimulatedStore:
    """Answers `capacity` requests a tick; the others are told to slow down."""

    def __init__(self, capacity, num_threads):
        self.capacity, self.gates = (
            capacity,
            [RequestLimiter(clock=lambda: self.now) for _ in range(8)],
        )
        self.now, self.num_threads = 0.0, num_threads
        self.served = self.refused = 0

    def tick(self):
        self.now += 1.0
        budget = self.capacity
        for gate in self.gates:
            places = min(self.num_threads, max(1, int(gate.limit)))
            if gate.limit < 1 and (self.now * gate.limit) % 1 >= gate.limit:
                places = 0  # at rest
            for _ in range(places):
                if budget > 0:
                    budget -= 1
                    self.served += 1
                    gate._limit.increase(places)
                else:
                    self.refused += 1
                    gate._limit.decrease(self.now, self.now, places)


@pytest.mark.parametrize("capacity", [4, 40, 400])
def test_readers_together_find_what_a_store_can_do(capacity):
    """Additive increase, multiplicative decrease: near capacity, with few refusals, by nobody's
    setting."""
    store = SimulatedStore(capacity, num_threads=100)
    for _ in range(300):
        store.tick()
    store.served = store.refused = 0
    for _ in range(1000):
        store.tick()
    assert store.served > 0.5 * 1000 * capacity
    assert store.refused < 0.25 * store.served
