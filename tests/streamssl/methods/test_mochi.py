"""MoCHi: which keys are hard, what is mixed of them, and who is left out."""

import torch
from torch.nn import functional as F

from streamssl.config.methods.moco_config import MoCoConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.methods.base import step_generator
from streamssl.methods.mochi import draw, find_hardest, mix, mixed_info_nce
from tests.streamssl.tiny import TinyBackbone, built
from tests.streamssl.tiny_methods import NUM_SAMPLES, TINY, build, samples_of, train, views_of

GENERATOR = torch.Generator().manual_seed(0)


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=GENERATOR, dtype=torch.float64), dim=-1)


def test_the_hardest_are_the_nearest_that_are_not_excluded() -> None:
    """A key of the same image would be the hardest."""
    cosines = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.4, 0.3, 0.2, 0.1]])
    excluded = torch.zeros(2, 4, dtype=torch.bool)
    excluded[0, 1] = True
    assert [sorted(row) for row in find_hardest(cosines, 2).tolist()] == [[1, 3], [0, 1]]
    assert [sorted(row) for row in find_hardest(cosines, 2, excluded).tolist()] == [[2, 3], [0, 1]]


def test_mixtures_are_unit_vectors_between_their_parts() -> None:
    """A share of 1 is the first part, of 0 the second."""
    one, other = unit(2, 3, 6), unit(2, 3, 6)
    torch.testing.assert_close(mix(one, other, torch.ones(2, 3)), one)
    torch.testing.assert_close(mix(one, other, torch.zeros(2, 3)), other)
    halves = mix(one, other, torch.full((2, 3), 0.5))
    torch.testing.assert_close(halves, F.normalize(one + other, dim=2))


def test_gradients_of_the_loss() -> None:
    """Only through the compared query; in float64."""
    q, k, queue, mixed = unit(3, 6).requires_grad_(), unit(3, 6), unit(8, 6), unit(3, 4, 6)
    excluded = torch.zeros(3, 8, dtype=torch.bool)
    excluded[1, 5] = True
    for left_out in (None, excluded):
        assert torch.autograd.gradcheck(
            lambda x, left_out=left_out: mixed_info_nce(x, k, queue, mixed, 0.3, left_out)[0], q
        )


def test_draws_are_made_for_the_global_batch() -> None:
    """A sample must get the same ones on any rank."""
    config = TINY["mochi"][0]
    draws = draw(step_generator(0, 3, "mochi"), 64, config)
    assert draws.first.shape == draws.second.shape == draws.share.shape == (64, 5)
    assert draws.third.shape == draws.query_share.shape == (64, 3)
    assert set(draws.first.unique().tolist()) == set(range(config.num_hardest))
    assert 0.9 < draws.share.max() <= 1 and 0.4 < draws.query_share.max() < 0.5
    torch.testing.assert_close(
        draws.rows(slice(8, 16), torch.device("cpu")).share, draws.share[8:16]
    )


def test_mixtures_come_after_the_start_step_and_never_enter_the_queue() -> None:
    """Logits grow by S + T; the queue has only keys."""
    method = build("mochi")
    widths = []
    contrast = method._contrast

    def watched(*arguments: object) -> object:
        found = contrast(*arguments)
        widths.append(found.logits.shape[1])
        torch.testing.assert_close(method.queue.newest_first().flip(0)[-NUM_SAMPLES:], found.k)
        return found

    method._contrast = watched
    train("mochi", method, range(4))
    capacity = 4 * NUM_SAMPLES
    assert widths == [1 + capacity, 1 + capacity, 9 + capacity, 9 + capacity]


def test_before_its_start_it_is_moco() -> None:
    """The same loss bit by bit, if no image returns."""
    mochi = build("mochi")
    config = MoCoConfig(dim=6, momentum=0.9, queue=QueueConfig(capacity=4 * NUM_SAMPLES))
    moco = built(config, TinyBackbone(), num_views=(1, 1)).double().eval()
    moco.load_state_dict(mochi.state_dict(), strict=False)
    moco.backbone.norm = mochi.backbone.norm
    moco.key_encoder.network[0].norm = mochi.key_encoder.network[0].norm
    for step in range(2):
        views = views_of("mochi", step)
        assert torch.equal(mochi.loss(views, step=step).loss, moco.loss(views, step=step).loss)


def test_an_image_that_returns_is_no_negative_of_itself() -> None:
    """Its old key, by the id of its sample, must not count."""
    method = build("mochi")
    for step in range(2):
        method.loss(views_of("mochi", step), step=step, samples=samples_of(step))
    half = NUM_SAMPLES // 2
    assert method.queue_ids[: 2 * NUM_SAMPLES, 1].tolist() == [
        *range(NUM_SAMPLES),
        *range(half, half + NUM_SAMPLES),
    ]
    output = method.loss(views_of("mochi", 1), step=1, samples=samples_of(1))
    assert float(output.readings["contrast_accuracy"]) <= 1
    assert torch.isfinite(torch.as_tensor(output.readings["negative_cosine"]))
