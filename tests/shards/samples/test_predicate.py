"""User predicate: resolved before any work, applied once per sample, never trusted."""

import pickle

import pytest

from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.sample_cropper import CropJob
from shards.errors import ConfigError
from shards.images.image_header import read_image_header
from shards.records import Chunk, Sample, Turn
from shards.samples.admission_config import AdmissionConfig
from shards.samples.predicate import apply_predicate, resolve_predicate
from shards.stores.range_reader import RangeReader
from shards.stores.shard_listing import list_shards
from tests.shards.killers import killer_job, png
from tests.tars import make_tar

HERE = "tests.shards.samples.test_predicate"


def large_and_liked(metadata, image):
    return metadata["score"] > 0.5 and image.width >= 24


def returns_nothing(metadata, image):
    metadata.clear()


def takes_one(metadata):
    return True


class Unclear:
    def __bool__(self):
        raise RuntimeError("neither yes nor no")


def unclear(metadata, image):
    return Unclear()


def raises(metadata, image):
    raise KeyError("no \x1b[31m colour")


NOT_A_FUNCTION = 7


def keep_a(metadata, image):
    return metadata["__key__"].endswith("a")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at.all:keep", r"ModuleNotFoundError.*installed, or is on PYTHONPATH, on every"),
        (f"{HERE}:nothing", r"cannot be imported \(AttributeError"),
        (f"{HERE}:NOT_A_FUNCTION", r"is a int; it must be a function of \(metadata, image\)"),
        (f"{HERE}:takes_one", r"takes \(metadata\); it must take \(metadata, image\)"),
        ("no_colon", r"it must name"),
    ],
)
def test_unusable_predicate_is_refused_before_any_work(name, message):
    """Every sample would be rejected before the user learns the cause."""
    with pytest.raises(ConfigError, match=message):
        resolve_predicate(name)


def test_job_resolves_its_predicate_when_it_is_built_and_unpickled():
    """A node without the user module would reject all samples."""
    with pytest.raises(ConfigError, match="cannot be imported"):
        killer_job(admission=AdmissionConfig(predicate="nowhere_at_all:keep"))
    job = killer_job(admission=AdmissionConfig(predicate=f"{HERE}:keep_a"))
    assert pickle.loads(pickle.dumps(job)).admission == job.admission


def apply(function, fields, key="k"):
    image = read_image_header(png(0))
    predicate = resolve_predicate(f"{HERE}:{function}")
    return apply_predicate(predicate, Sample(0, 0, key, fields), image)


@pytest.mark.parametrize(
    ("function", "fields", "verdict"),
    [
        ("large_and_liked", {"json": b'{"score": 0.7}'}, None),
        ("large_and_liked", {"json": b'{"score": 0.3}'}, ("predicate", "it returned False")),
        ("large_and_liked", {}, ("predicate_failed", "KeyError: 'score'")),
        ("large_and_liked", {"json": b"[]"}, ("predicate_failed", "is a list, not an object")),
        ("large_and_liked", {"json": b"[" * 9999}, ("predicate_failed", "RecursionError")),
        ("large_and_liked", {"json": b" " * (2 << 20)}, ("predicate_failed", "more than 1048576")),
        (
            "large_and_liked",
            {"json": b'{"score": "x"}'},
            ("predicate_failed", "TypeError: '>' not"),
        ),
        ("returns_nothing", {}, ("predicate", "it returned None")),
        ("unclear", {}, ("predicate_failed", "RuntimeError: neither")),
        ("raises", {}, ("predicate_failed", "KeyError: 'no \\x1b[31m")),
    ],
)
def test_refusal_and_failure_are_different_reasons(function, fields, verdict):
    """The table of rejects would hide a bug in the predicate."""
    found = apply(function, fields)
    if verdict is None:
        assert found is None
    else:
        assert found[0] == verdict[0] and verdict[1] in found[1] and len(found[1]) <= 300


def test_metadata_cannot_replace_the_key():
    """Untrusted metadata would replace the key of a sample."""
    assert apply("keep_a", {"json": b'{"__key__": "b"}'}, key="x/a") is None


def test_refused_samples_are_counted_and_others_unchanged(tmp_path):
    """A refused sample would change the rows of others, or be decoded for nothing."""
    members = []
    for number, score in enumerate((0.9, 0.1, 0.8, 0.2)):
        data = png(number, 24) if number != 2 else png(number, 24)[:-40]
        members += [(f"{number}.png", data), (f"{number}.json", b'{"score": %g}' % score)]
    members += [("4.png", png(4, 24)), ("5.png", png(5, 4))]
    (tmp_path / "0.tar").write_bytes(make_tar(members))
    (shard,) = list_shards(str(tmp_path / "0.tar"))
    turn = Turn(Chunk(0, 0, shard.num_bytes), 0)

    def crop(job: CropJob):
        return ChunkCropper(job, RangeReader()).crop(shard, turn)

    plain = crop(killer_job())
    asked = crop(killer_job(admission=AdmissionConfig(predicate=f"{HERE}:large_and_liked")))
    assert asked.offsets.tolist() == plain.offsets.tolist()
    assert [(reject.key, reject.reason) for reject in asked.rejects] == [
        ("1", "predicate"),
        ("2", "truncated"),
        ("3", "predicate"),
        ("4", "predicate_failed"),
        ("5", "too_small"),
    ]
    assert (asked.crops[0] == plain.crops[0][:1]).all()
