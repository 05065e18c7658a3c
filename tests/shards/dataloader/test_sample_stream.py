"""SampleStream: order, positions and rejects of a run, and real webdataset pipelines."""

import json
import threading
from dataclasses import replace
from itertools import islice, takewhile

import cv2
import numpy as np
import pytest
import torch
import webdataset as wds

from shards.crops.recipe import cifar
from shards.dataloader.open_data import ReadConfig, StreamPosition
from shards.dataloader.sample_stream import SampleStream
from shards.errors import BudgetExceeded, ConfigError, CursorMismatch
from shards.records import Sample
from shards.samples.admission_config import AdmissionConfig
from shards.samples.subset_file import load_subset
from shards.stores.range_reader import RangeReader
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.manifest_listing import open_manifest
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from tests.noise import noise
from tests.shards.jobs import crop_job
from tests.tars import make_tar, samples_by_tarfile

RECIPE = cifar(counts=(1,), sizes=(8,))
SMALL = StreamConfig(batch_size=4, chunk_bytes=4096, chunks_per_block=5)
CONFIG = ReadConfig(stream=SMALL)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Three shards with 60 good samples and bad ones; one image fails only in the decoder."""
    folder = tmp_path_factory.mktemp("mixed")
    hidden = noise(50, 50)
    bad = [
        *(("b0.jpg", b""), ("b1.jpg", b"<html>"), ("b2.jpg", noise(50, 50, ".jpg")[:-300])),
        *(("b3.png", noise(4, 50)), ("b4.txt", b"words")),
        ("b5.png", hidden[:200] + bytes(60) + hidden[260:]),
    ]
    for shard in range(3):
        good = [
            (f"{shard}{i:03d}.{name}", data)
            for i in range(20)
            for name, data in (("jpg", noise(40, 40, ".jpg", i)), ("cls", str(i).encode()))
        ]
        (folder / f"{shard}.tar").write_bytes(make_tar([*good[:20], *bad, *good[20:]]))
    return folder


def refuse(loader, message):
    """Expect every worker to refuse; read all of them, or torch waits seconds for each."""
    batches = iter(loader)
    with pytest.raises(ConfigError, match=message):
        next(batches)
    while True:
        try:
            next(batches)
        except ConfigError:
            continue
        except StopIteration:
            return


def place(placed):
    return (placed.epoch, placed.sample.shard, placed.sample.offset)


def take(stream, num):
    return list(islice(stream, num))


def batches(folder, num, config=SMALL, seed=0, cursor=None):
    """Return batches of crops of the same data, as in a run."""
    manifest = open_manifest(str(folder), RangeReader())
    order = build_order(manifest, config, seed)
    with ThreadReaders(manifest, crop_job(RECIPE, seed)) as readers:
        stream = BatchStream(order, config, AdmissionConfig(), readers.submit, cursor)
        return take(stream, num)


def rows(found):
    return [
        (epoch, *ids)
        for batch in found
        for epoch, ids in zip(batch.epochs.tolist(), batch.ids.tolist(), strict=True)
    ]


def test_samples_come_in_the_order_of_a_run(synthetic_shards):
    """Nobody could tell which samples a run had seen."""
    placed = take(SampleStream(str(synthetic_shards), CONFIG), 120)
    assert [place(p) for p in placed] == rows(batches(synthetic_shards, 30))


def test_samples_equal_the_members_of_the_tars(synthetic_shards):
    """A sample of an epoch would be lost, doubled or changed."""
    stream = SampleStream(str(synthetic_shards), CONFIG)
    first = list(takewhile(lambda placed: placed.epoch == 0, stream))
    expected = {
        key: fields
        for shard in sorted(synthetic_shards.glob("*.tar"))
        for key, fields in samples_by_tarfile(shard.read_bytes())
    }
    assert len(first) == 96
    assert {p.sample.key: dict(p.sample.fields) for p in first} == expected
    assert all(p.uri.endswith(f"shard-{p.sample.shard:06d}.tar") for p in first)


@pytest.mark.parametrize("num_readers", [1, 5])
def test_every_position_can_be_resumed_with_any_readers(mixed, num_readers):
    """A stop would lose or repeat samples."""
    whole = take(SampleStream(str(mixed), CONFIG), 90)
    config = replace(CONFIG, num_readers=num_readers)
    for index in range(0, 80, 8):
        saved = json.loads(json.dumps(whole[index].position.state()))
        again = take(SampleStream(str(mixed), config, saved), 5)
        assert [place(p) for p in again] == [place(p) for p in whole[index + 1 : index + 6]]
        assert [p.position for p in again] == [p.position for p in whole[index + 1 : index + 6]]


def test_positions_of_runs_and_sample_streams_are_the_same(synthetic_shards):
    """Nobody could inspect the next samples of a stopped run."""
    found = batches(synthetic_shards, 20)
    state = StreamPosition(found[7].cursor).state()
    stream = SampleStream(str(synthetic_shards), CONFIG, state)
    assert [place(p) for p in take(stream, 48)] == rows(found[8:])
    placed = take(SampleStream(str(synthetic_shards), CONFIG), 32)
    again = batches(synthetic_shards, 12, cursor=placed[31].position.cursor)
    assert rows(again) == rows(found[8:])


def test_admission_is_that_of_a_run(mixed):
    """Samples of a run and of a stream would differ; only decoder errors are left to the caller."""
    stream = SampleStream(str(mixed), CONFIG)
    first = list(takewhile(lambda placed: placed.epoch == 0, stream))
    assert len(first) == 63  # 20 good samples per shard, and b5, which only a decoder refuses
    assert sorted(p.sample.key for p in first if p.sample.key.startswith("b")) == ["b5"] * 3
    reasons = first[-1].position.cursor.reject_reasons
    assert sum(reasons.values()) <= 15 and set(reasons) <= {
        *("empty", "not_an_image", "truncated", "too_small", "no_image")
    }
    later = next(placed for placed in SampleStream(str(mixed), CONFIG) if placed.epoch == 1)
    assert sum(later.position.cursor.reject_reasons.values()) >= 15


def even(metadata, image):
    """Select keys that end in an even digit."""
    return metadata["__key__"][-1] in "02468"


def test_predicate_and_entropy_reject_as_in_a_run(synthetic_shards, tmp_path):
    """Settings of the user would be ignored, or counted under other reasons."""
    blank = cv2.imencode(".png", np.full((40, 40, 3), 200, np.uint8))[1].tobytes()
    members = [(f"{i:03d}.png", blank if i % 3 else noise(40, 40, seed=i)) for i in range(40)]
    (tmp_path / "0.tar").write_bytes(make_tar(members))
    admission = AdmissionConfig(
        min_entropy=2.0,
        predicate="tests.shards.dataloader.test_sample_stream:even",
        max_reject_fraction=1.0,
    )
    stream = SampleStream(str(tmp_path), replace(CONFIG, admission=admission))
    first = list(takewhile(lambda placed: placed.epoch == 0, stream))
    assert sorted(p.sample.key for p in first) == [f"{i:03d}" for i in range(0, 40, 6)]
    last = next(placed for placed in stream if placed.epoch == 2).position.cursor.reject_reasons
    assert last["predicate"] >= 40 and last["blank"] >= 26 and set(last) == {"predicate", "blank"}


def test_a_subset_leaves_out_other_samples(synthetic_shards, tmp_path):
    """Samples outside the list would be trained on, or counted as rejects."""
    keys = [p.sample.key for p in take(SampleStream(str(synthetic_shards), CONFIG), 96)]
    wanted = sorted(keys)[::3]
    (tmp_path / "list.txt").write_text("\n".join(wanted))
    subset = load_subset(str(tmp_path / "list.txt"))
    stream = SampleStream(str(synthetic_shards), replace(CONFIG, subset=subset))
    first = list(takewhile(lambda placed: placed.epoch == 0, stream))
    assert sorted(p.sample.key for p in first) == wanted
    later = next(placed for placed in stream if placed.epoch == 1)
    assert later.position.cursor.num_unselected >= 64 and not later.position.cursor.reject_reasons


def test_data_without_images_ends_with_the_reasons(tmp_path):
    """The stream would read for ever."""
    (tmp_path / "0.tar").write_bytes(make_tar([(f"{i}.txt", b"words") for i in range(30)]))
    with pytest.raises(BudgetExceeded, match="no_image"):
        next(iter(SampleStream(str(tmp_path))))


@pytest.mark.parametrize(
    ("members", "config", "first"),
    [
        (("a/B.7.JPG", b"<html>"), {}, r"key 'a/B\.7', member 'a/B\.7\.JPG': an HTML"),
        (("a/1.jpg", b""), {}, r"key 'a/1', member 'a/1\.jpg': "),
        (("plain", noise(4, 50)), {}, r"key 'plain', member 'plain': 50x4"),
        (("1.b.png", noise(4, 50)), {"image_member": "b"}, r"key '1', member '1\.b\.png': 50x4"),
        (
            ("1.jpg", noise(50, 50, ".jpg")),
            {"min_entropy": 8.0},
            r"key '1', member '1\.jpg': 7\..* bits",
        ),
        (("1.txt", b"words"), {}, r"key '1': members: txt"),
    ],
)
def test_the_first_reject_of_a_reason_names_its_member(tmp_path, members, config, first):
    """A user would search a shard of a thousand members for the bad one, by a byte number."""
    (tmp_path / "0.tar").write_bytes(make_tar([members]))
    admission = AdmissionConfig(probation=1, max_reject_fraction=0.0, **config)
    with pytest.raises(BudgetExceeded, match=rf"0\.tar, byte 0, {first}"):
        next(iter(SampleStream(str(tmp_path), replace(CONFIG, admission=admission))))


def test_a_webdataset_pipeline_decodes_and_batches_the_stream(synthetic_shards):
    """Stages of webdataset could not be used."""
    stream = SampleStream(str(synthetic_shards), CONFIG)
    pipeline = wds.DataPipeline(
        stream, wds.decode("rgb8"), wds.to_tuple("__key__", "jpg", "cls"), wds.batched(8)
    )
    expected = take(stream, 48)
    for index, (keys, images, labels) in enumerate(islice(pipeline, 6)):
        part = expected[8 * index : 8 * index + 8]
        assert list(keys) == [p.sample.key for p in part]
        assert images.shape == (8, 32, 32, 3) and images.dtype == np.uint8
        assert [int(label) for label in labels] == [int(p.sample.fields["cls"]) for p in part]


def test_a_pipeline_resumes_after_the_latest_used_sample(synthetic_shards):
    """Samples in the buffers of a stopped pipeline would be lost."""

    def pipeline(state):
        stream = SampleStream(str(synthetic_shards), CONFIG, state)
        return wds.DataPipeline(stream, wds.decode("pil"), wds.batched(8, collation_fn=None))

    whole = [sample["__key__"] for batch in islice(pipeline(None), 12) for sample in batch]
    used = take(pipeline(None), 5)
    saved = json.loads(json.dumps(used[-1][-1]["__position__"].state()))
    rest = [sample["__key__"] for batch in islice(pipeline(saved), 7) for sample in batch]
    assert whole[40:] == rest and used[0][0]["jpg"].size == (32, 32)


def test_a_dataloader_of_several_workers_is_refused(synthetic_shards):
    """Each worker would return every sample."""

    def loader(num_workers):
        pipeline = wds.DataPipeline(
            SampleStream(str(synthetic_shards), CONFIG), wds.to_tuple("__key__")
        )
        return torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=num_workers)

    alone = take(loader(0), 20)
    assert take(loader(1), 20) == alone
    refuse(loader(2), r"num_workers=2, but (?s:.*)num_workers=0 or 1")


def test_the_signature_of_an_address_is_removed(synthetic_shards):
    """Pipelines log the addresses of samples."""
    placed = next(iter(SampleStream(str(synthetic_shards), CONFIG)))
    signed = replace(placed, uri="https://host/a.tar?sig=secret")
    assert signed.to_dict()["__url__"] == "https://host/a.tar"
    assert set(placed.to_dict()) == {
        *("__key__", "__url__", "__epoch__", "__position__"), *("jpg", "cls"),
    }  # fmt: skip


def test_a_position_in_other_data_is_refused(synthetic_shards, mixed):
    """The stream would continue with other samples."""
    state = take(SampleStream(str(synthetic_shards), CONFIG), 3)[-1].position.state()
    with pytest.raises(CursorMismatch, match="belongs to other data"):
        SampleStream(str(mixed), CONFIG, state)
    with pytest.raises(CursorMismatch, match="belongs to another order"):
        SampleStream(str(synthetic_shards), replace(CONFIG, seed=1), state)
    with pytest.raises(CursorMismatch, match=r"the state has the fields cursor, not those"):
        SampleStream(str(synthetic_shards), CONFIG, {"cursor": state["cursor"]})
    with pytest.raises(CursorMismatch, match=r"journal in this state cannot be read"):
        SampleStream(str(synthetic_shards), CONFIG, {**state, "journal": ["{}"]})
    with pytest.raises(ConfigError, match="num_readers=0; it must be at least 1"):
        ReadConfig(num_readers=0)


def test_a_mixture_resumes_with_its_weights(synthetic_shards, mixed):
    """The shares of sources would change silently."""
    config = replace(CONFIG, weights=(3, 1))
    patterns = [str(synthetic_shards), str(mixed)]
    whole = take(SampleStream(patterns, config), 300)
    of_first = sum("synthetic" in placed.uri for placed in whole)
    assert 0 < of_first < 300
    state = json.loads(json.dumps(whole[200].position.state()))
    again = take(SampleStream(patterns, config, state), 90)
    assert [place(p) for p in again] == [place(p) for p in whole[201:291]]
    with pytest.raises(ConfigError, match="2 weights for 1 patterns; each pattern needs one"):
        SampleStream(patterns[0], config)


def test_an_irregular_shard_is_known_after_a_resume(tmp_path):
    """A tar inside a tar would be read as samples again."""
    inner = make_tar([(f"in{i}.jpg", noise(40, 40, ".jpg", i)) for i in range(40)])
    for shard in range(3):
        good = [(f"{shard}{i:03d}.jpg", noise(40, 40, ".jpg", i)) for i in range(20)]
        (tmp_path / f"{shard}.tar").write_bytes(
            make_tar([*good[:10], (f"n{shard}.jpg", inner), (f"n{shard}.txt", b"."), *good[10:]])
        )
    config = replace(CONFIG, admission=AdmissionConfig(max_reject_fraction=1.0))
    whole = take(SampleStream(str(tmp_path), config), 240)
    assert whole[-1].position.entries
    for index in range(0, 210, 40):
        saved = json.loads(json.dumps(whole[index].position.state()))
        again = take(SampleStream(str(tmp_path), config, saved), 20)
        assert [place(p) for p in again] == [place(p) for p in whole[index + 1 : index + 21]]
    last = [p for p in whole if p.epoch == whole[-1].epoch - 1]
    assert not any(p.sample.key.startswith("in") for p in last)


def test_an_abandoned_iterator_stops_its_readers(synthetic_shards):
    """Threads would read after the last use."""
    before = threading.active_count()
    iterator = iter(SampleStream(str(synthetic_shards), CONFIG))
    assert isinstance(next(iterator).sample, Sample) and threading.active_count() > before
    iterator.close()
    assert threading.active_count() == before
