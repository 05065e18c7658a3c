"""Rule of keys: the shards show it, and the usual rule stays where it loses nothing."""

import pytest

from shards.records import Chunk
from shards.samples.key_rule import detect_key_rule
from shards.tars.cutter import cut_chunk
from tests.tars import make_tar


def samples_of(names):
    data = make_tar([(name, b"x") for name in names])
    return cut_chunk(lambda a, b: data[a:b], len(data), Chunk(0, 0, len(data))).found


def named(template, *ends, num=40):
    return [template.format(i=i, s=i // 4, f=i % 4 * 25) + end for i in range(num) for end in ends]


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (named("a/{i:05}", ".jpg", ".cls"), "first_dot"),
        (named("a.b/{i:05}", ".jpg"), "first_dot"),
        (named("{i:05}", ".image.png", ".mask.png", ".cls"), "first_dot"),
        (named("{i:05}", ".left.jpg", ".right.jpg"), "first_dot"),
        (named("{i:05}", ".0.jpg", ".1.jpg", ".cls"), "first_dot"),  # views with one label
        (named("{i:05}.jpg", ".png"), "first_dot"),
        (["0.jpg", "1.v2.jpg"], "first_dot"),
        (named("cam/163302{s}.{f:06}", ".png", ".cls"), "last_dot"),
        (named("shot.v2.{i:06}", ".png"), "last_dot"),
        (named("Screenshot at 12.{s:02}.{f:02}", ".png", ".txt"), "last_dot"),
        (named("www.example.com_{i}", ".jpg"), "last_dot"),
        (named("IMG_2021-09-30T12.45.{i:02}Z", ".JPG", ".json"), "last_dot"),
        (named("163302{i}.500000", ".png", ".cls"), "last_dot"),  # its label is not "500000.cls"
    ],
)
def test_the_rule_follows_from_the_names(names, rule):
    """Three of four images would be lost, or a mask would be trained on."""
    assert detect_key_rule(samples_of(names)) == rule
