"""Steps of methods that need sample ids: samples with a colour or a pattern of their class."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from streamssl.distributed.collectives import all_reduce_sum, rank, world_size
from streamssl.methods.base import Method, SampleInfo
from tests.streamssl.tiny import images

Label = Callable[[int], int]


def who(numbers: Iterable[int], label: Label | None = None) -> SampleInfo:
    """Return samples by number, with labels if `label` is given."""
    known = list(numbers)
    offsets = torch.tensor(known, dtype=torch.int64) * 512
    ids = torch.stack([torch.zeros_like(offsets), offsets], dim=1)
    labels = None if label is None else torch.tensor([label(number) for number in known])
    return SampleInfo(ids, torch.zeros_like(offsets), labels)


def in_epochs(num_samples: int, batch: int) -> Callable[[int], list[int]]:
    """Return a function from step to samples, which return in another order each epoch."""

    def of_step(step: int) -> list[int]:
        epoch, place = divmod(step * batch, num_samples)
        order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(epoch))
        return order[place : place + batch].tolist()

    return of_step


def coloured(numbers: list[int], num_views: int, size: int, step: int, classes: int = 4) -> Tensor:
    """Return crops (V * B, 3, S, S) of noise on the colour of the sample's class."""
    generator = torch.Generator().manual_seed(99)
    colours = 2.0 * torch.randn(classes, 3, 1, 1, generator=generator)
    own = colours[torch.tensor(numbers) % classes].repeat(num_views, 1, 1, 1)
    return images(len(own), size, 1000 + step) + own


def patterned(numbers: list[int], num_views: int, size: int, step: int, classes: int = 4) -> Tensor:
    """Return crops (V * B, 3, S, S) of the class's pattern with random tint and noise."""
    generator = torch.Generator().manual_seed(98)
    patterns = torch.randn(classes, 3, 2, 2, generator=generator)
    patterns = patterns - patterns.mean(dim=(2, 3), keepdim=True)
    own = nn.functional.interpolate(patterns[torch.tensor(numbers) % classes], size=size)
    generator.manual_seed(2000 + step)
    tint = 2.0 * torch.randn(num_views * len(numbers), 3, 1, 1, generator=generator)
    return images(len(tint), size, 1000 + step) + tint + own.repeat(num_views, 1, 1, 1)


@torch.no_grad()
def classes_apart(encode: Callable[[Tensor], Tensor], classes: int = 4) -> float:
    """Return the mean cosine of features of equal patterns minus that of others."""
    numbers = list(range(64))
    z = nn.functional.normalize(encode(patterned(numbers, 1, 16, 4321, classes)), dim=1)
    same = torch.tensor(numbers)[:, None] % classes == torch.tensor(numbers) % classes
    cosines = z @ z.T
    return float(cosines[same].mean() - cosines[~same].mean())


def mine(numbers: list[int], group: ProcessGroup | None) -> list[int]:
    """Return this rank's part of a global batch."""
    num = len(numbers) // world_size(group)
    return numbers[rank(group) * num : (rank(group) + 1) * num]


def run(
    method: Method,
    steps: range,
    *,
    views: Callable[[list[int], int], list[Tensor]],
    numbers: Callable[[int], list[int]],
    lr: float = 0.1,
    label: Label | None = None,
) -> list[float]:
    """Train as the trainer does, with gradients averaged over ranks; return the mean losses."""
    parameters, losses = method.parameters_to_optimise(), []
    for step in steps:
        for parameter in parameters:
            parameter.grad = None
        own = mine(numbers(step), method.group)
        crops = split_views(views(numbers(step), step), numbers(step), method.group)
        output = method.loss(crops, step=step, samples=who(own, label))
        output.loss.backward()
        average_gradients(method)
        method.after_backward(step)
        descend(parameters, lr)
        method.after_step(step)
        mean = all_reduce_sum(output.loss.detach(), method.group) / world_size(method.group)
        losses.append(float(mean))
    return losses


@torch.no_grad()
def descend(parameters: list[nn.Parameter], lr: float) -> None:
    """Update parameters that have a gradient by plain descent with decay."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter -= lr * (parameter.grad + 1e-4 * parameter)


def average_gradients(method: Method) -> None:
    """Average all gradients over ranks at once, as the trainer does."""
    gradients = [p.grad for p in method.parameters_to_optimise() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    mean = all_reduce_sum(flat, method.group) / world_size(method.group)
    for gradient, part in zip(
        gradients, mean.split([each.numel() for each in gradients]), strict=True
    ):
        gradient.copy_(part.view_as(gradient))


def split_views(
    views: list[Tensor], numbers: list[int], group: ProcessGroup | None
) -> list[Tensor]:
    """Return this rank's crops of every view."""
    num, place = len(numbers) // world_size(group), rank(group)
    return [
        torch.cat([view[place * num : (place + 1) * num] for view in crops.split(len(numbers))])
        for crops in views
    ]
