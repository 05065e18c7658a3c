"""Records: frozen digests, cursors as JSON, pickles."""

import pickle

import numpy as np
import pytest

from shards.errors import CursorMismatch
from shards.records import Chunk, ChunkCrops, CropBatch, Cursor, Reject

CURSOR = Cursor(manifest="m", order="o", block=2, slot=3, reject_reasons={"empty": 4})


def make_batch(epochs=(0, 0, 1), ids=((0, 0), (1, 512), (0, 1024))):
    crops = (np.zeros((len(ids), 2, 4, 4, 3), np.uint8),)
    return CropBatch(crops, np.array(ids), np.array(epochs), CURSOR)


def test_the_digest_of_a_batch_is_frozen():
    """Logs of old runs could not be compared with a replay."""
    assert make_batch().digest == "d82ad13016a6724f08d2f2caa97cff0e"


def test_the_digest_changes_with_samples_epochs_and_order():
    """It could not prove which samples were trained on, and when."""
    batches = [
        make_batch(),
        make_batch(epochs=(0, 1, 1)),
        make_batch(ids=((0, 0), (1, 512), (0, 1536))),
        make_batch(ids=((1, 512), (0, 0), (0, 1024))),
    ]
    assert len({batch.digest for batch in batches}) == 4 and len(batches[0]) == 3


@pytest.mark.parametrize("saved", [{}, {"manifest": "m"}, {**CURSOR.to_json(), "shard": 3}])
def test_a_cursor_of_another_version_is_refused(saved):
    """An old checkpoint would end in a TypeError."""
    with pytest.raises(CursorMismatch, match="not those of this version; resume with the version"):
        Cursor.from_json(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": None}, "block=None, which must be a whole number, so the file is damaged"),
        ({"slot": 1.5}, "slot=1.5, "),
        ({"num_samples": "7"}, "num_samples='7'"),
        ({"reject_reasons": {"empty": None}}, "empty=None"),
        ({"reject_reasons": [3]}, "reject_reasons=None"),
    ],
)
def test_a_damaged_cursor_is_refused(changes, message):
    """A resume would end in a TypeError in the middle of the stream."""
    with pytest.raises(CursorMismatch, match=message):
        Cursor.from_json({**CURSOR.to_json(), **changes})
    with pytest.raises(CursorMismatch, match="has the fields None, not those"):
        Cursor.from_json(None)


def test_chunk_crops_can_be_pickled():
    """They travel between processes."""
    crops = (np.ones((1, 1, 4, 4, 3), np.uint8),)
    sent = ChunkCrops(
        Chunk(1, 0, 4096),
        2,
        np.array([0, 512]),
        np.array([True, False]),
        crops,
        (Reject(1, 512, "k", "empty", "0 bytes"),),
    )
    got = pickle.loads(pickle.dumps(sent))
    assert (got.chunk, got.epoch, got.rejects) == (sent.chunk, sent.epoch, sent.rejects)
    assert np.array_equal(got.crops[0], crops[0]) and got.num_bytes == 48
