"""Request limit: additive increase while a store answers, half after a 503."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from shards.stores.request_limit import AdaptiveLimit, RequestLimiter


def test_a_reached_limit_grows_by_one_each_round():
    """A store that can do more would never receive more requests."""
    limit = AdaptiveLimit(4.0)
    for _ in range(4):
        limit.increase(num_busy=4)
    assert 4.9 < limit.limit <= 5.0
    for _ in range(100):
        limit.increase(num_busy=2)
    assert limit.limit <= 5.0  # two requests prove nothing about five
    for _ in range(100_000):
        limit.increase(num_busy=999)
    assert limit.limit == 256.0


def test_many_refusals_of_one_moment_halve_the_limit_once():
    """Ten 503 answers to ten concurrent requests would stop the reads."""
    limit = AdaptiveLimit(16.0)
    for moment in range(10):
        limit.decrease(began=1.0, now=2.0 + moment, num_busy=10)
    assert limit.limit == 5.0
    limit.decrease(began=12.0, now=13.0, num_busy=5)
    assert limit.limit == 2.5


def test_a_limit_below_one_pauses_between_requests():
    """With hundreds of readers, one request each at a time is still too many."""
    limit = AdaptiveLimit(1.0)
    assert limit.pause_after(2.0) == 0.0
    limit.decrease(began=1.0, now=1.0, num_busy=1)
    limit.decrease(began=1.0, now=2.0, num_busy=1)
    assert limit.limit == 0.25
    assert limit.pause_after(2.0) == 6.0 and limit.pause_after(100.0) == 10.0
    for moment in range(50):
        limit.decrease(began=3.0 + moment, now=3.0 + moment, num_busy=1)
    assert limit.limit == 1 / 16  # requests never stop
    for _ in range(5):
        limit.increase(num_busy=1)
    assert limit.limit == 2.0


def test_no_more_requests_are_active_than_allowed():
    """A limit that is not enforced causes the next 503; a failed request must free its place."""
    limiter, busy, seen = RequestLimiter(AdaptiveLimit(3.0)), [], []

    def work(number):
        try:
            with limiter.permit():
                busy.append(1)
                seen.append(len(busy))
                time.sleep(0.001)
                busy.pop()
                if number % 5 == 0:
                    raise OSError("broken")
        except OSError:
            pass

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(60)))
    assert max(seen) == 3


def test_a_requested_pause_holds_for_all_threads_and_ends():
    """Other threads would send requests while one waits."""
    limiter = RequestLimiter()
    with limiter.permit() as began:
        limiter.throttled(began, retry_after=0.1)
    started, waited = time.monotonic(), []

    def work():
        with limiter.permit():
            waited.append(time.monotonic() - started)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: work(), range(3)))
    assert len(waited) == 3 and min(waited) > 0.05


class SimulatedStore:
    """Store that answers `capacity` requests a tick and throttles the others."""

    def __init__(self, capacity, num_threads):
        self.capacity, self.limits = capacity, [AdaptiveLimit() for _ in range(8)]
        self.now, self.num_threads = 0.0, num_threads
        self.served = self.refused = 0

    def tick(self):
        self.now += 1.0
        budget = self.capacity
        for limit in self.limits:
            places = min(self.num_threads, max(1, int(limit.limit)))
            if limit.limit < 1 and (self.now * limit.limit) % 1 >= limit.limit:
                places = 0  # in a pause
            for _ in range(places):
                if budget > 0:
                    budget -= 1
                    self.served += 1
                    limit.increase(places)
                else:
                    self.refused += 1
                    limit.decrease(self.now, self.now, places)


@pytest.mark.parametrize("capacity", [4, 40, 400])
def test_independent_readers_converge_to_the_capacity_of_a_store(capacity):
    """A fixed limit is wrong for each store; eight readers must share one with few refusals."""
    store = SimulatedStore(capacity, num_threads=100)
    for _ in range(300):
        store.tick()
    store.served = store.refused = 0
    for _ in range(1000):
        store.tick()
    assert store.served > 0.5 * 1000 * capacity
    assert store.refused < 0.25 * store.served
