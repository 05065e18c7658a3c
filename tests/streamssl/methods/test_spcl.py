"""SpCL as a whole: the loss against a plain one, the memory, reliable clusters, and a window."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.config.methods.spcl_config import SpCLConfig
from streamssl.methods.spcl import SpCL, cluster_contrast, follow_
from streamssl.modules.sample_memory import sample_keys
from streamssl.modules.self_paced import self_paced_labels
from tests.streamssl.epochs import classes_apart, in_epochs, patterned, run, who
from tests.streamssl.tiny import TinyBackbone, built

# Half of what the paper has for neighbours: there are 32 samples.
CONFIG = SpCLConfig(memory=32, k1=12, k2=3, cluster_steps=4, fill_steps=4)
WINDOW = SpCLConfig(memory=12, k1=6, k2=2, cluster_steps=4, fill_steps=1)
DOMAINS = SpCLConfig(memory=32, k1=12, k2=3, cluster_steps=4, fill_steps=4, source_classes=4)


def build(config: SpCLConfig = CONFIG, seed: int = 0, num_views: int = 1) -> SpCL:
    torch.manual_seed(seed)
    return built(config, TinyBackbone(), num_views=(num_views,), seed=seed)


def views(numbers: list[int], step: int) -> list[Tensor]:
    return [patterned(numbers, 1, 16, step)]


def in_source(number: int) -> int:
    """Every other sample has the label of its class."""
    return number % 4 if number % 8 < 4 else -1


def train(method: SpCL, steps: range, lr: float = 0.05) -> list[float]:
    label = in_source if method.config.source_classes else None
    return run(method, steps, views=views, numbers=in_epochs(32, 8), lr=lr, label=label)


def units(num: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num, dim, generator=generator).double(), dim=1)


def test_the_loss_is_cross_entropy_with_class_means() -> None:
    """Up to the two constants of 1e-6 of the authors' code; unused labels do not count."""
    x, memory = units(5, 4, 0), units(9, 4, 1)
    labels = torch.tensor([0, 0, 1, 1, 1, 3, 4, 0, 5])  # no sample has label 2
    targets = torch.tensor([0, 1, 3, 5, 4])
    kept = labels.unique()
    means = torch.stack([memory[labels == label].mean(dim=0) for label in kept])
    places = torch.stack([(kept == target).nonzero()[0, 0] for target in targets])
    expected = F.cross_entropy(x @ means.T / 0.2, places)
    found = cluster_contrast(x, targets, memory, labels, 0.2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_gradients_of_the_loss_and_no_overflow() -> None:
    """In float64; the authors' code takes exponentials of unbounded scores."""
    memory, labels, targets = units(9, 4, 1), torch.arange(9) // 2, torch.tensor([0, 3, 1])

    def loss(x: Tensor) -> Tensor:
        return cluster_contrast(x, targets, memory, labels, 0.05)

    assert torch.autograd.gradcheck(loss, (units(3, 4, 2).requires_grad_(),))
    sharp = cluster_contrast(units(3, 4, 2), targets, memory, labels, 1e-3)
    assert sharp.isfinite()


def test_a_repeated_sample_updates_its_memory_repeatedly() -> None:
    """A sample that is in a batch twice must count twice, in order."""
    memory, x = units(4, 3, 0), units(5, 3, 1)
    expected, slots = memory.clone(), torch.tensor([2, 0, 2, 2, 0])
    for row, slot in zip(x, slots, strict=True):
        expected[slot] = F.normalize(0.2 * expected[slot] + 0.8 * row, dim=0)
    follow_(memory, slots, x, 0.2)
    torch.testing.assert_close(memory, expected)


def test_only_reliable_members_stay_in_a_cluster() -> None:
    """Samples that the criteria join or split off become classes of their own."""
    clusters = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, -1])
    tight = np.array([0, 0, 0, -1, 1, 1, 1, 2, 2, 2, -1])  # splits sample 3 off
    loose = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, -1])  # joins 1 and 2
    found = self_paced_labels(clusters, tight, loose, threshold=0.1)
    kept, lost = found.labels[:3], found.labels[3:]
    assert kept.tolist() == [0, 0, 0] and len(set(lost)) == 8 and 0 not in lost
    generous = self_paced_labels(clusters, tight, loose, threshold=0.6).labels
    assert generous[4:10].tolist() == [1, 1, 1, 2, 2, 2]


def test_the_threshold_is_set_once() -> None:
    """Nine in ten clusters of the first clustering pass; later ones use its threshold."""
    method = build()
    train(method, range(4))
    assert float(method.threshold) < 0
    train(method, range(4, 5))
    first = float(method.threshold)
    train(method, range(5, 13))
    assert first >= 0 and float(method.threshold) == first


def test_labels_are_numbered_densely_at_every_clustering() -> None:
    """In the authors' code unreliable samples get ever larger numbers."""
    method = build()
    train(method, range(5))
    labels = method.labels[method.memory.oldest_first()]
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1))


def test_the_first_pass_only_fills_the_memory() -> None:
    """No step, no momentum, no decay, and a slot for every sample."""
    method = build()
    before = [parameter.clone() for parameter in method.parameters_to_optimise()]
    train(method, range(4))
    for parameter, old in zip(method.parameters_to_optimise(), before, strict=True):
        assert torch.equal(parameter, old)
    assert int(method.memory.num_filled) == 32
    assert (method.memory.find(sample_keys(who(range(32)).ids)) >= 0).all()


def test_the_memory_is_written_after_backward() -> None:
    """Backward must see the memory of the loss."""
    method = build()
    train(method, range(4))
    before = method.memory.rows.clone()
    output = method.loss(views([1, 2], 9), step=5, samples=who([1, 2]))
    output.loss.backward()
    assert torch.equal(method.memory.rows, before)
    method.after_backward(5)
    moved = (method.memory.rows != before).any(dim=2).sum()
    assert int(moved) == 2


def test_a_window_keeps_its_size_and_holds_the_batch() -> None:
    """New samples replace the oldest, even those of the same batch."""
    method = build(WINDOW)
    losses = train(method, range(20))
    assert all(np.isfinite(losses)) and int(method.memory.num_filled) == 12
    old = method.memory.keys[method.memory.oldest_first()[:3]] >> 9
    numbers = [*range(100, 109), *old.tolist()]
    output = method.loss(views(numbers, 50), step=21, samples=who(numbers))
    assert output.loss.isfinite() and output.readings["new_samples"] >= 9 / 12
    assert (method.memory.find(sample_keys(who(numbers).ids)) >= 0).all()


def test_a_new_sample_joins_the_cluster_that_contains_it() -> None:
    """In one pass over a stream every sample is new."""
    method = build()
    width = method.memory.rows.shape[2]
    rows = torch.zeros(8, width)
    rows[:4, 0], rows[4:, 1] = 1.0, 1.0
    rows[:4, 2] = torch.tensor([0.1, -0.1, 0.2, -0.2])
    rows = F.normalize(rows, dim=1)
    slots = method.memory.push(torch.arange(8), rows[None])
    method.labels[slots] = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4])
    method._measure_reach(slots)
    asked = torch.zeros(3, width)
    asked[0, 0], asked[1, 0], asked[2, 1] = 1.0, 1.0, 1.0
    asked[1, 2] = 1.0
    found = method._nearest_reach(F.normalize(asked, dim=1))
    assert found.tolist() == [0, -1, -1]


def test_the_loss_of_two_domains_adds_their_means() -> None:
    """Each row is compared with the classes of both domains."""
    method = build(DOMAINS)
    train(method, range(6))
    numbers = [0, 1, 4, 5, 6]  # two are labelled
    crops = views(numbers, 9)
    with torch.no_grad():
        x = F.normalize(method.norm(method.backbone(crops[0])), dim=1)
    assert method.source is not None
    slots, classes = method.memory.oldest_first(), method.source.oldest_first()
    memory = torch.cat([method.memory.rows[0][slots], method.source.rows[0][classes]])
    names = [("target", int(label)) for label in method.labels[slots]]
    names += [("source", int(key)) for key in method.source.keys[classes]]
    different = sorted(set(names))
    found_at = method.labels[method.memory.find(sample_keys(who(numbers[2:]).ids))]
    wanted = [("source", 0), ("source", 1), *(("target", int(label)) for label in found_at)]
    labels, targets = (
        torch.tensor([different.index(name) for name in each]) for each in (names, wanted)
    )
    expected = sum(
        cluster_contrast(x[rows], targets[rows], memory, labels, method.config.temperature)
        for rows in (slice(0, 2), slice(2, 5))
    )
    found = method.loss(crops, step=9, samples=who(numbers, in_source)).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_labelled_sample_updates_only_its_class() -> None:
    """Source samples must take no place in the memory of the target."""
    method = build(DOMAINS)
    train(method, range(8))
    assert method.source is not None
    assert int(method.source.num_filled) == 4 and int(method.memory.num_filled) == 16
    source, target = method.source.rows.clone(), method.memory.rows.clone()
    output = method.loss(views([0, 8], 9), step=9, samples=who([0, 8], in_source))
    output.loss.backward()
    method.after_backward(9)
    assert torch.equal(method.memory.rows, target)
    assert ((method.source.rows != source).any(dim=2)[0]).sum() == 1


def test_too_many_source_classes_are_refused() -> None:
    """A dropped class would make the loss depend on the order of samples."""
    method = build(SpCLConfig(memory=32, k1=12, k2=3, fill_steps=4, source_classes=3))
    with pytest.raises(ConfigError, match="have 4 classes or more, and source_classes is 3"):
        train(method, range(8))


def test_it_learns_to_separate_patterns() -> None:
    """Samples of one class must become similar, for any colour."""
    method = build()

    def encode(crops: Tensor) -> Tensor:
        return method.norm(method.backbone(crops))

    before = classes_apart(encode)
    train(method, range(160), lr=0.1)
    assert classes_apart(encode) > before + 0.1
