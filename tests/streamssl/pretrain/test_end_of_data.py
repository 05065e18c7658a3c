"""Runs that their store ends: the steps before are saved, and the same command goes on."""

import pytest

from shards.errors import ShardUnreadable
from shards.redaction import notes
from streamssl import checkpoint
from tests.fault_proxy import fault_proxy
from tests.stores import web_server
from tests.tinyrun import proof, read_log, stop_at, tiny_swav, train_here, weights


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["forbidden", "new_version"])
def test_a_run_that_its_store_ends_has_saved_its_last_step(synthetic_shards, tmp_path, fault):
    """Fifty steps were lost, although the message said that the run goes on where it was."""
    config = tiny_swav(num_steps=14, save_every=1000)
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    with web_server(synthetic_shards) as address, fault_proxy(address) as proxy:
        names = ",".join(sorted(path.name for path in synthetic_shards.glob("*.tar")))
        data = f"{proxy.address}/{{{names}}}"
        train_here(config, data, unbroken)
        late = stop_at(broken, 4)
        proxy.plan = lambda _: fault if late() else None
        with pytest.raises(ShardUnreadable) as ended:
            train_here(config, data, broken)
        step = read_log(broken)[-1]["step"]
        assert 4 <= step < 14
        assert checkpoint.list_checkpoints(broken)[-1].name == f"step-{step:08d}"
        assert notes(ended.value) == [
            f"step {step} is saved; the same command continues from there"
        ]
        proxy.plan = lambda _: None
        proxy.lasting.clear()
        train_here(config, data, broken)
    assert proof(broken) == proof(unbroken)
    assert weights(broken, 14) == weights(unbroken, 14)


def test_a_run_is_stopped_at_once_while_its_store_asks_for_fewer_requests(
    synthetic_shards, tmp_path
):
    """One Ctrl-C would wait for minutes, with the readers."""
    config, out = tiny_swav(num_steps=30, save_every=1000), tmp_path / "run"
    with web_server(synthetic_shards) as address, fault_proxy(address) as proxy:
        names = ",".join(sorted(path.name for path in synthetic_shards.glob("*.tar")))
        late = stop_at(out, 4)
        proxy.plan = lambda _: "status_429" if late() else None
        data = f"{proxy.address}/{{{names}}}"
        summary = train_here(config, data, out, stop=lambda: proxy.counts["status_429"] > 2)
    assert not summary.finished and summary.step == read_log(out)[-1]["step"]
    assert summary.checkpoint.name == f"step-{summary.step:08d}"
