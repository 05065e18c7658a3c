"""The document "From a laptop to a hundred nodes" has valid commands and computed numbers."""

import contextlib
import io
import math
import re
import shlex

import click
import pytest
import tyro
from ray.dashboard.modules.job.cli import submit
from ray.scripts.scripts import cli as ray_commands

from cluster.actors.restart_policy import RestartConfig
from cluster.control.sequencer import SequencerConfig
from cluster.membership.failure_detector import MembershipConfig
from cluster.membership.world_sizes import check_trainers
from cluster.readers.reader_config import ReaderConfig
from cluster.trainers.batch_feed import FeedConfig
from streamssl.commands.argument_parser import parse
from streamssl.commands.inspect import Stats
from streamssl.commands.pretrain import parse_pretrain, placement_of
from streamssl.monitoring.catalogue import METRICS
from streamssl.runs.placement import Placement
from tests.bench.input import Options
from tests.cluster.deployed import ROOT

DOCUMENT = (ROOT / "docs" / "from-a-laptop-to-a-hundred-nodes.md").read_text()
LINES = [
    line
    for block in re.findall(r"^```\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
OURS = [match[0] for line in LINES if (match := re.search(r"(?:^|(?<= -- ))streamssl .*", line))]


@pytest.fixture(scope="module")
def program():
    """Names and output of the Python program of the document."""
    names: dict[str, object] = {"__name__": "page"}
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(re.search(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)[1], names)
    return names, output.getvalue().splitlines()


@pytest.mark.parametrize("line", OURS)
def test_every_command_of_the_document_is_valid(line):
    """A user who copies it has paid for the node on which it fails."""
    _, *words = shlex.split(line)
    if words[0] == "pretrain":
        parsed = parse_pretrain(words[1:])
        check_trainers(parsed.run.stream.batch_size, placement_of(parsed).trainers)
    else:
        assert words[:2] == ["shards", "stats"]
        parse(Stats, "streamssl shards stats", words[2:])


def test_the_document_has_commands_for_every_step():
    """The test above would pass for a document without commands."""
    assert {re.search(r"--cluster (\S+)", line)[1] for line in OURS if "--cluster" in line} == {
        "local",
        "auto",
    }
    assert len(OURS) >= 4
    for address in re.findall(r"--cluster (ray://[\w:]+)", DOCUMENT):
        Placement(cluster=address)


def test_ray_accepts_its_commands_of_the_document():
    """An unknown option would fail before the first node starts."""
    found = [shlex.split(line.partition(" -- ")[0])[1:] for line in LINES if line[:4] == "ray "]
    assert {words[0] for words in found} >= {"up", "dashboard", "job", "get-auth-token"}
    for words in found:
        if words[:2] == ["job", "submit"]:
            parser = submit.make_parser(click.Context(submit))
            options, _, _ = parser.parse_args([*words[2:], "--", "true"])
            # A job without requests runs on the head node.
            assert not [
                name for name in options if name.replace("-", "_").startswith("entrypoint_")
            ]
        else:
            assert words[0] in ray_commands.commands


def test_files_of_the_document_exist():
    """A wrong path stops the user at once."""
    named = set(re.findall(r"cluster/deploy/[\w.-]+", DOCUMENT))
    assert len(named) >= 7
    assert [name for name in named if not (ROOT / name).is_file()] == []
    bench = re.search(r"`python -m tests\.bench\.input (.*?)`", DOCUMENT)[1]
    tyro.cli(Options, args=shlex.split(bench))


def test_metrics_of_the_document_are_served():
    """A query without an answer looks like a value of nothing."""
    served = {name for metric in METRICS for name in (metric.exposed, *metric.exposed_names)}
    asked = set(re.findall(r"\bstreamssl_[a-z_]+", DOCUMENT))
    assert len(asked) >= 5 and asked - served == set()


def test_the_table_of_costs_is_the_output_of_the_program(program):
    """A number that no program computes stays wrong."""
    _, printed = program
    assert len(printed) == 6
    assert [line for line in printed if f"\n{line}\n" not in DOCUMENT] == []


def test_the_measured_rate_is_in_the_benchmarks(program):
    """The numbers of the document follow from it."""
    names, _ = program
    rows = (ROOT / "BENCHMARKS.md").read_text().splitlines()
    rate = round(2 * names["IMAGES_PER_CORE"])
    assert any("tests.bench.input" in row and "--readers 2" in row and f"| {rate} |" in row
               for row in rows)  # fmt: skip
    assert f"**{rate} images/s with two readers on two cores**" in DOCUMENT


def test_the_network_is_computed_from_the_measured_rate(program):
    """Users would pay for readers that no network can carry."""
    names, _ = program
    rate, crops, image = (names[name] for name in ("IMAGES_PER_CORE", "CROP_BYTES", "IMAGE_BYTES"))
    assert f"| images | {rate:.0f} |" in DOCUMENT or f"| images | {math.floor(rate)} |" in DOCUMENT
    assert f"| {rate * image / 1e6:.1f} MB ({rate * image * 8e-9:.2f} Gbit/s) |" in DOCUMENT
    assert f"| {rate * crops / 1e6:.0f} MB ({rate * crops * 8e-9:.2f} Gbit/s)" in DOCUMENT
    for gigabits in (10, 25, 100):
        most = gigabits * 1e9 / 8 / crops
        assert f"| {gigabits} Gbit/s | {most:,.0f} | {most / rate:.0f} |" in DOCUMENT


def test_the_memory_of_readers_in_the_document_is_their_limit():
    """On smaller nodes reader after reader would be killed."""
    [line] = [line for line in OURS if "--cluster auto" in line]
    parsed = parse_pretrain(shlex.split(line)[2:])
    readers = placement_of(parsed).max_readers
    held = SequencerConfig(num_readers=readers).max_bytes(parsed.run.stream)
    assert f"({held / 1e9:.1f} GB for the {readers} readers above)" in DOCUMENT
    assert f"{held // readers >> 20} MiB each" in DOCUMENT
    assert f"up to {FeedConfig().max_bytes >> 30} GiB of" in DOCUMENT
    assert ReaderConfig().num_ahead == 3


def test_the_waiting_times_in_the_document_are_those_of_control():
    """A user who waits for a GPU must know for how long."""
    assert RestartConfig().start_seconds == 900 and "a quarter of an hour" in DOCUMENT
    assert MembershipConfig().gather_seconds == 60 and "a minute after they were ready" in DOCUMENT
