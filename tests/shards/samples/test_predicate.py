"""The user's own word on a sample: found before any work, asked once a sample, never trusted."""

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


def forgets_to_answer(metadata, image):
    metadata.clear()


def takes_one(metadata):
    return True


class Unclear:
    def __bool__(self):
        raise RuntimeError("neither yes nor no")


def unclear(metadata, image):
    return Unclear()


def leaves(metadata, image):
    raise KeyError("no \x1b[31m colour")


NOT_A_FUNCTION = 7


def keep_a(metadata, image):
    return metadata["__key__"].endswith("a")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at.all:keep", r"ModuleNotFoundError.*installed, or lies on PYTHONPATH, wherever"),
        (f"{HERE}:nothing", r"cannot be imported \(AttributeError"),
        (f"{HERE}:NOT_A_FUNCTION", r"is a int; it must be a function of \(metadata, image\)"),
        (f"{HERE}:takes_one", r"takes \(metadata\); it must take \(metadata, image\)"),
        ("no_colon", r"it must name"),
    ],
)
def test_a_predicate_that_cannot_be_asked_is_refused_before_any_work(name, message):
    """Not after the first thousand samples were rejected one by one."""
    with pytest.raises(ConfigError, match=message):
        resolve_predicate(name)


def test_a_job_knows_its_predicate_when_it_is_made_and_where_it_runs():
    """A node without the user's module must say so itself: a job arrives there by pickle."""
    with pytest.raises(ConfigError, match="cannot be imported"):
        killer_job(admission=AdmissionConfig(predicate="nowhere_at_all:keep"))
    job = killer_job(admission=AdmissionConfig(predicate=f"{HERE}:keep_a"))
    assert pickle.loads(pickle.dumps(job)).admission == job.admission


def judge(function, fields, key="k"):
    image = read_image_header(png(0))
    return apply_predicate(resolve_predicate(f"{HERE}:{function}"), Sample(0, 0, key, fields), image)


@pytest.mark.parametrize(
    ("function", "fields", "verdict"),
    [
        ("large_and_liked", {"json": b'{"score": 0.7}'}, None),
        ("large_and_liked", {"json": b'{"score": 0.3}'}, ("predicate", "it said False")),
        ("large_and_liked", {}, ("predicate_failed", "KeyError: 'score'")),
        ("large_and_liked", {"json": b"[]"}, ("predicate_failed", "no object but a list")),
        ("large_and_liked", {"json": b"[" * 9999}, ("predicate_failed", "RecursionError")),
        ("large_and_liked", {"json": b" " * (2 << 20)}, ("predicate_failed", "more than 1048576")),
        (
            "large_and_liked",
            {"json": b'{"score": "x"}'},
            ("predicate_failed", "TypeError: '>' not"),
        ),
        ("forgets_to_answer", {}, ("predicate", "it said None")),
        ("unclear", {}, ("predicate_failed", "RuntimeError: neither")),
        ("leaves", {}, ("predicate_failed", "KeyError: 'no \\x1b[31m")),
    ],
)
def test_no_and_failure_are_different_reasons(function, fields, verdict):
    """Whoever looks at the table must see whether the data or the function is to blame."""
    found = judge(function, fields)
    if verdict is None:
        assert found is None
    else:
        assert found[0] == verdict[0] and verdict[1] in found[1] and len(found[1]) <= 300


def test_a_function_is_told_the_key_whatever_the_metadata_say():
    """Metadata of strangers must not pass for the name of a sample."""
    assert judge("keep_a", {"json": b'{"__key__": "b"}'}, key="x/a") is None


def test_what_it_refuses_is_counted_and_moves_nobody_else(tmp_path):
    """It is asked after the header was checked and before anything is decoded."""
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
