"""Demo, shortened: images -> shards -> Ray readers -> SwAV -> table of k-NN accuracy."""

import re
import shlex
from pathlib import Path

import pytest

from shards.errors import ConfigError
from streamssl.cli import main
from streamssl.demo import DemoConfig
from tests.tinyrun import read_log


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(200)
def test_the_demo_prints_scores_and_next_commands(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The demo is the first command of a newcomer; the commands that it prints must work."""
    out = tmp_path / "demo"
    arguments = ["demo", "--out", str(out), "--num-train", "512", "--num-test", "100"]
    assert main([*arguments, "--steps", "2"]) == 0
    text = capsys.readouterr().out
    assert "512 images of 10 classes drawn and packed: 1 shards in" in text
    assert "k-NN accuracy on 100 images that were not trained on:" in text
    row = r"│ (raw pixels|untrained|trained) +│ +(\d+\.\d) % │ +(\d+\.\d) % │"
    scores = {name: (float(near), float(far)) for name, near, far in re.findall(row, text)}
    assert list(scores) == ["raw pixels", "untrained", "trained"]
    assert all(0 <= value <= 100 for pair in scores.values() for value in pair)
    assert re.search(r"512 images trained on, \d+ images/s, data wait \d+\.\d%", text)
    assert [fields["step"] for fields in read_log(out / "swav")] == [1, 2]
    # The last command that it prints must work as it stands.
    command = text.split("every checkpoint while it trains):\n")[1].strip()
    program, *words = shlex.split(command)
    assert program == "streamssl" and main([*words, "--ks", "20", "200"]) == 0
    again = capsys.readouterr().out
    for name, (near, far) in scores.items():
        assert re.search(rf"│ {name} +│ +{near} │ +{far} │", again)


@pytest.mark.slow
def test_a_demo_is_resumed_or_started_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A stopped demo is resumed; a finished one starts again with the same images."""
    arguments = ["demo", "--out", str(tmp_path), "--num-train", "512", "--num-test", "200"]
    arguments += ["--cluster", "none"]
    new = "from random weights"
    for steps, beginning in (
        (1, f"1 steps {new}"),
        (2, "resuming at step 1"),
        (2, f"2 steps {new}"),
    ):
        assert main([*arguments, "--steps", str(steps)]) == 0
        text = capsys.readouterr().out
        assert f", {beginning}, into" in text
    assert "512 images of 10 classes found" in text


def test_too_few_images_are_refused() -> None:
    """The accuracy on a handful of images means nothing."""
    with pytest.raises(ConfigError, match="at least 512 and 100 images"):
        DemoConfig(num_test=99)
