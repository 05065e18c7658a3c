"""Alerts of runs in one process fire for their faults, and not for a healthy run.

`test_alerts_on_ray` has the alerts of runs on Ray, `quick_alerts` the times of the rules.
"""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.run_config import RunConfig
from tests.drills import small_disk
from tests.drills.calm import PROGRAM, calm
from tests.drills.processes import Run, started
from tests.drills.quick_alerts import (
    fired,
    firing,
    quick_prometheus,
    settled,
    wait_for_alerts,
)
from tests.fault_proxy import fault_proxy
from tests.prometheus import needs_prometheus
from tests.stores import FileHandler, web_server
from tests.tars import make_tar, samples_by_tarfile
from tests.tinyrun import tiny_swav

pytestmark = [pytest.mark.slow, needs_prometheus]
needs_mounts = pytest.mark.skipif(
    not small_disk.is_possible(), reason="this system allows no private mounts"
)

STARVED = {"StreamsslStarved"}
# Codes without a preference: the authors' remedy for a loss that stays at ln K is a lower epsilon.
FLAT = tiny_swav(
    method=SwAVConfig(num_prototypes=24, dim=16, hidden_dim=32, freeze_steps=0, epsilon=1.0),
    num_steps=5000,
    save_every=5000,
)
# Weights of 1e27 are finite, but no step from them is.
NOT_FINITE = replace(
    tiny_swav(num_steps=5000, save_every=5000, max_skipped_steps=5000),
    optim=replace(tiny_swav().optim, base_lr=1e30),
)


@dataclass
class Tap:
    """Delay of a web server, and whether it answers at all."""

    seconds: float = 0.0
    is_open: threading.Event = field(default_factory=threading.Event)


@contextmanager
def tapped_server(folder: Path) -> Iterator[tuple[str, Tap]]:
    """Serve the folder; yield the address and its tap."""
    tap = Tap()
    tap.is_open.set()

    class Handler(FileHandler):
        def do_GET(self) -> None:
            time.sleep(tap.seconds)
            tap.is_open.wait()
            super().do_GET()

    with web_server(folder, Handler) as address:
        try:
            yield address, tap
        finally:
            tap.is_open.set()


def make_bad_shards(good: Path, folder: Path) -> Path:
    """Write the shards of `good` with every third image replaced by text."""
    folder.mkdir()
    for shard in sorted(good.glob("*.tar")):
        members = [
            (f"{key}.{kind}", b"no image at all" if number % 3 == 0 and kind != "cls" else data)
            for number, (key, parts) in enumerate(samples_by_tarfile(shard.read_bytes()))
            for kind, data in parts.items()
        ]
        (folder / shard.name).write_bytes(make_tar(members))
    return folder


def shards_at(address: str, folder: Path) -> str:
    """Return the pattern of the shards of a folder at a web server."""
    last = len(list(folder.glob("*.tar"))) - 1
    return f"{address}/shard-{{000000..{last:06d}}}.tar"


def test_faulty_runs_raise_their_alerts_and_a_healthy_run_none(
    shards_folder: Path, tmp_path: Path
) -> None:
    """Slow data, then none; bad shards in a bucket that fails; features and steps that are lost."""
    outs = {name: tmp_path / name for name in ("healthy", "slow", "bad", "flat", "not-finite")}
    bad = make_bad_shards(shards_folder, tmp_path / "bad-shards")
    faults = itertools.cycle(["status_500", None, None, None, None])
    with (
        quick_prometheus(tmp_path / "prometheus", *outs.values()) as prometheus,
        tapped_server(shards_folder) as (address, tap),
        web_server(bad) as upstream,
        fault_proxy(upstream, lambda _: next(faults)) as proxy,
        ExitStack() as runs,
    ):

        def start(name: str, data: Path | str, config: RunConfig) -> Run:
            run = runs.enter_context(started(config, data, outs[name], program=PROGRAM))
            run.wait_for_step(1)
            return run

        healthy = start("healthy", shards_folder, calm())
        began = settled(prometheus, healthy)
        tap.seconds = 0.3
        slow = start("slow", shards_at(address, shards_folder), calm())
        slowed = time.time()
        hit = start("bad", shards_at(proxy.address, bad), calm())
        was_hit = time.time()
        assert wait_for_alerts(prometheus, STARVED, slow, healthy, since=slowed) == STARVED
        tap.is_open.clear()
        stalled = time.time()
        flat = start("flat", shards_folder, FLAT)
        names = {"StreamsslCollapsing"}
        found = wait_for_alerts(prometheus, names, flat, since=time.time())
        assert found - STARVED == names
        flat.kill()
        torn = start("not-finite", shards_folder, NOT_FINITE)
        names = {"StreamsslStepsLeftOut"}
        assert names <= wait_for_alerts(prometheus, names, torn, since=time.time())
        torn.kill()
        names = {"StreamsslRejects", "StreamsslBucketErrors"}
        assert wait_for_alerts(prometheus, names, hit, since=was_hit) - STARVED == names
        names = {"StreamsslInputStalled", "StreamsslNoProgress"}
        found = wait_for_alerts(prometheus, names, slow, since=stalled)
        # A request without an answer for half a minute is an error, too.
        assert found - {"StreamsslBucketErrors"} == names
        healthy.wait_for_step(healthy.last_step + 10)
        print(f"healthy for {time.time() - began:.0f} s, {healthy.last_step} steps")
        # Five runs share two cores, so one may starve for a moment; the alert must end at once.
        assert fired(prometheus, "healthy", began) <= STARVED
        healthy.wait_for(lambda: not firing(prometheus, "healthy"), "silence")


@pytest.mark.nightly
@needs_mounts
def test_a_full_disk_raises_its_alert(shards_folder: Path, tmp_path: Path) -> None:
    """The run would end without a warning. The cache has its own disk of 16 MB."""
    out, cache = tmp_path / "run", tmp_path / "cache"
    cache.mkdir()
    env = {small_disk.PLACE: str(cache)}
    with (
        quick_prometheus(tmp_path / "prometheus", out) as prometheus,
        started(
            calm(), shards_folder, out, "--cache", cache, env=env, program=small_disk.PROGRAM
        ) as run,
    ):
        run.wait_for_step(20)
        began = settled(prometheus, run)
        inside = Path(f"/proc/{run.process.pid}/root", *cache.parts[1:])
        (inside / "other-file").write_bytes(bytes(16_200_000))
        wait_for_alerts(prometheus, {"StreamsslDiskFilling"}, run, since=time.time())
        assert fired(prometheus, "run", began) == {"StreamsslDiskFilling"}
