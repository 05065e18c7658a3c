"""A cluster whose store ends the run: the steps before are saved, and the same command goes on."""

from pathlib import Path

import pytest

from streamssl import checkpoint
from tests.drills.cluster_runs import stop
from tests.drills.processes import started
from tests.fault_proxy import fault_proxy
from tests.stores import web_server
from tests.tinyrun import proof, read_log, tiny_swav, train_here, weights

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.mark.parametrize("num_trainers", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_a_cluster_that_its_store_ends_has_saved_its_last_step(
    shards_folder: Path, tmp_path: Path, num_trainers: int
) -> None:
    """Trainers that raise the error of the data would take their state with them."""
    config = tiny_swav(num_steps=200, save_every=1000)
    out = tmp_path / "run"
    with web_server(shards_folder) as address, fault_proxy(address) as proxy:
        names = ",".join(sorted(path.name for path in shards_folder.glob("*.tar")))
        data = f"{proxy.address}/{{{names}}}"
        options = ("--cluster", "local", "--trainers", num_trainers)
        with started(config, data, out, *options) as run:
            run.wait_for_step(5)
            proxy.plan = lambda _: "forbidden"
            assert run.end() == 1, run.text
            step = run.last_step
            assert 5 <= step < 200
            assert checkpoint.list_checkpoints(out)[-1].name == f"step-{step:08d}"
            assert "was refused" in run.text and "renew them" in run.text
            assert f"step {step} is saved; the same command continues from there" in run.text
            assert "Traceback" not in run.text
        proxy.plan = lambda _: None
        proxy.lasting.clear()
        with started(config, data, out, *options) as run:
            if num_trainers > 1:
                run.wait_for_step(step + 10)
                stop(run)
            else:
                assert run.end() == 0, run.text
        last = run.last_step
        assert [fields["step"] for fields in read_log(out)] == list(range(1, last + 1))
        if num_trainers == 1:
            alone = tmp_path / "alone"
            train_here(config, data, alone)
            assert proof(out) == proof(alone)
            assert weights(out, 200) == weights(alone, 200)
