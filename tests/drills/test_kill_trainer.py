"""A trainer is killed at random moments: the resumed run is bit-equal to an undisturbed one."""

import json
import random
from pathlib import Path

import pytest

from streamssl import checkpoint
from streamssl.config.run_config import RunConfig
from tests.drills.processes import started
from tests.tinyrun import proof, read_log, tiny_moco, tiny_swav, train_here, weights

pytestmark = pytest.mark.slow

NUM_STEPS = 70


@pytest.mark.parametrize(
    ("config", "seed"),
    [
        (tiny_swav(num_steps=NUM_STEPS, save_every=7, precision="bf16"), 1),
        pytest.param(tiny_moco(num_steps=NUM_STEPS, save_every=7), 2, marks=pytest.mark.nightly),
    ],
    ids=["swav with a queue in bf16", "moco in fp32"],
)
def test_a_killed_trainer_resumes_bit_equal(
    config: RunConfig, seed: int, shards_folder: Path, tmp_path: Path
) -> None:
    """A kill in a step, in a checkpoint or soon after a start must lose nothing."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train_here(config, shards_folder, unbroken)
    rng = random.Random(seed)
    reached = 0
    for moment in ("step", "checkpoint", "step"):
        with started(config, shards_folder, broken) as run:
            run.wait_for_step(reached + rng.randint(4, 18))
            if moment == "checkpoint":
                run.wait_for_draft()
            run.kill()
        reached = read_log(broken)[-1]["step"]
        assert reached < NUM_STEPS, "it was killed too late to show anything"
        for place in checkpoint.list_checkpoints(broken):
            assert checkpoint.load_tensors(place) and checkpoint.read_fields(place)
    with started(config, shards_folder, broken) as run:
        assert run.end() == 0, run.text
    assert [fields["step"] for fields in read_log(broken)] == list(range(1, NUM_STEPS + 1))
    assert proof(broken) == proof(unbroken)
    assert weights(broken, NUM_STEPS) == weights(unbroken, NUM_STEPS)
    cursors = [
        json.loads((out / "checkpoints" / f"step-{NUM_STEPS:08d}" / "state.json").read_text())
        for out in (broken, unbroken)
    ]
    assert cursors[0] == cursors[1]
    assert run.text.count("resuming at step") >= 2
    left = [path.name for path in (broken / "checkpoints").iterdir()]
    assert len(left) == config.keep and all(place.startswith("step-") for place in left)
