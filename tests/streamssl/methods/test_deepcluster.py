"""DeepCluster-v2 as a whole: clusters of the last epoch are the classes of this one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from streamssl.config.methods.deepcluster_config import DeepClusterConfig
from streamssl.methods.deepcluster import DeepCluster, balanced_label_loss, label_loss
from streamssl.modules.losses import assigned_cross_entropy
from streamssl.modules.sample_memory import NO_LABEL, sample_keys
from tests.streamssl.epochs import (
    classes_apart,
    coloured,
    in_epochs,
    patterned,
    run,
    who,
)
from tests.streamssl.tiny import TinyBackbone, built

SMALL = {"num_prototypes": (4, 3), "dim": 6, "hidden_dim": 16}
EPOCHS = DeepClusterConfig(**SMALL, memory=32, cluster_steps=4)  # type: ignore[arg-type]
STREAM = DeepClusterConfig(**SMALL, mode="stream", memory=32, cluster_steps=4)  # type: ignore[arg-type]
MODES = pytest.mark.parametrize("config", [EPOCHS, STREAM], ids=["epochs", "stream"])
BATCH = 8


def build(config: DeepClusterConfig = EPOCHS, seed: int = 0) -> DeepCluster:
    torch.manual_seed(seed)
    return built(config, TinyBackbone(), num_views=(2, 1), seed=seed)


def views(numbers: list[int], step: int) -> list[Tensor]:
    return [coloured(numbers, 2, 16, step), coloured(numbers, 1, 8, 500 + step)]


def train(method: DeepCluster, steps: range, lr: float = 0.1) -> list[float]:
    return run(method, steps, views=views, numbers=in_epochs(32, BATCH), lr=lr)


@MODES
def test_nothing_is_learned_before_the_first_clusters(config: DeepClusterConfig) -> None:
    """The first epoch only fills the memory: no step, no momentum, no decay."""
    method = build(config)
    before = [parameter.clone() for parameter in method.parameters_to_optimise()]
    assert train(method, range(4)) == [0.0] * 4
    for parameter, old in zip(method.parameters_to_optimise(), before, strict=True):
        assert torch.equal(parameter, old)
    assert int(method.memory.num_filled) == 32 and int(method.num_clusterings) == 0
    assert train(method, range(4, 5))[0] > 0 and int(method.num_clusterings) == 1


def test_labels_belong_to_samples_for_an_epoch() -> None:
    """Labels must not belong to places in the memory."""
    method, numbers = build(), in_epochs(32, BATCH)
    train(method, range(4))
    method.cluster(4)
    first_bank = method.memory.rows[0].clone()
    labels = {
        int(key): int(method.heads[0](row[None]).argmax())
        for key, row in zip(method.memory.keys, first_bank, strict=True)
    }
    train(method, range(5, 8))  # overwrites most of the memory, in another order
    asked = who(numbers(6))
    found = method.labels.look_up(sample_keys(asked.ids))[0]
    assert found.tolist() == [labels[int(key)] for key in sample_keys(asked.ids)]


def test_head_h_clusters_the_features_of_crop_h() -> None:
    """Heads alternate between the assigned crops, as published."""
    method = build()
    train(method, range(4))
    method.cluster(4)
    for number, head in enumerate(method.heads):
        rows = method.memory.rows[number % 2]
        own = head(rows).argmax(dim=1)
        means = torch.stack([rows[own == k].mean(dim=0) for k in own.unique()])
        assert torch.allclose(F.normalize(means, dim=1), head.centroids[own.unique()], atol=0.2)
    assert torch.equal(method.labels.labels[1].sort().values, own.sort().values)


def test_crops_without_a_label_do_not_count() -> None:
    """As published: a label of -100 is excluded from the mean."""
    scores, labels = torch.randn(6, 4), torch.tensor([0, -100, 3, 1, -100, 2])
    known = labels >= 0
    expected = F.cross_entropy(scores[known] / 0.1, labels[known])
    torch.testing.assert_close(assigned_cross_entropy(scores, labels, 0.1), expected)
    nothing = assigned_cross_entropy(scores, torch.full((6,), NO_LABEL), 0.1)
    assert nothing == 0.0
    uniform = assigned_cross_entropy(torch.zeros(6, 4), labels, 0.1)
    torch.testing.assert_close(uniform, torch.tensor(4.0).log())


def test_gradients_of_the_loss() -> None:
    """Compared with differences in float64, over all heads."""
    centroids = [F.normalize(torch.randn(k, 3).double(), dim=1) for k in (4, 2)]
    targets = [torch.tensor([0, 3, NO_LABEL, 1]), torch.tensor([1, 0, 1, NO_LABEL])]

    def loss(features: Tensor) -> Tensor:
        z = F.normalize(features, dim=1)
        return label_loss([z @ c.T for c in centroids], targets, 0.1)

    features = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (features,))


def test_in_a_stream_the_label_comes_from_another_crop() -> None:
    """A crop must not predict its own label, and new samples must have labels."""
    method = build(STREAM)
    train(method, range(5))
    numbers = list(range(100, 108))
    method.eval()
    features = method.projection(torch.cat([method.backbone(v) for v in views(numbers, 9)]))
    z = F.normalize(features, dim=1).detach()
    gathered = torch.stack([z[:8], z[8:16]])
    expected = [method.heads[h](z[8 * h : 8 * h + 8]).argmax(dim=1) for h in range(2)]
    targets = method._targets(z, sample_keys(who(numbers).ids), gathered)
    for head, labels in enumerate(targets):
        labels = labels.view(3, 8)
        assert (labels[head] == NO_LABEL).all()
        others = [crop for crop in range(3) if crop != head]
        assert all(torch.equal(labels[crop], expected[head]) for crop in others)


@MODES
def test_it_learns_to_separate_patterns(config: DeepClusterConfig) -> None:
    """Crops of one class must become similar, for any colour."""
    method = build(config)

    def encode(crops: Tensor) -> Tensor:
        return method.projection(method.backbone(crops))

    def of(numbers: list[int], step: int) -> list[Tensor]:
        return [patterned(numbers, 2, 16, step), patterned(numbers, 1, 8, 500 + step)]

    before = classes_apart(encode)
    run(method, range(120), views=of, numbers=in_epochs(32, 8), lr=0.05)
    assert classes_apart(encode) > before + 0.1


def test_in_a_stream_clusters_have_equal_weights() -> None:
    """A large cluster would have most of the gradient, and absorb the rest."""
    scores = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 0, 1, NO_LABEL, 3])
    losses = F.cross_entropy(scores / 0.1, labels, reduction="none", ignore_index=NO_LABEL)
    expected = (losses[:4].mean() + losses[4] + losses[6]) / 3
    torch.testing.assert_close(balanced_label_loss([scores], [labels], 0.1), expected)
    equal = torch.tensor([2, 2, 1, 1, 0, 0, NO_LABEL])
    torch.testing.assert_close(
        balanced_label_loss([scores], [equal], 0.1), label_loss([scores], [equal], 0.1)
    )
    unlabelled = torch.full((7,), NO_LABEL)
    assert float(balanced_label_loss([scores, scores], [unlabelled, unlabelled], 0.1)) == 0
