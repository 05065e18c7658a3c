"""The kernel of views on a GPU gives the bits of the kernel in C."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from shards.crops import dali
from shards.crops.recipe import ORDERS, ColourJitter, CropRecipe, Parameter, ViewGroup
from shards.crops.view_finisher import NativeFinisher, ResizedViews
from shards.images.image_header import read_image_header
from tests.shards.crops.made import drawn, encoded, made_pixels

JITTER = ColourJitter(brightness=1.0, contrast=1.0, saturation=2.0, hue=0.5)
# More and fewer bytes than a block has; solarised and blurred, blurred far beyond the side.
RECIPE = CropRecipe(
    (
        ViewGroup(
            num_views=3,
            size=19,
            scale=(0.1, 1.0),
            jitter=JITTER,
            blur_probability=0.5,
            solarise_probability=0.3,
        ),
        ViewGroup(num_views=1, size=1, scale=(0.1, 1.0), jitter=JITTER, blur_probability=0.5),
        ViewGroup(num_views=2, size=8, scale=(0.1, 1.0)),
    )
)


# Deviations of blurs: none, narrow ones, and one that is wider than the smaller sides.
NARROW, WIDE = (0.0, 0.0, 0.1, 0.4, 1.0, 1.9, 4.0), (0.0, 0.3, 1.9, 40.0, 100.0, 170.0)


def made_views(num_images, deviations):
    """Return views of every order, turn and step; some are white, black or one colour."""
    rng = np.random.default_rng(0)
    shape = num_images, RECIPE.num_views, len(Parameter)
    parameters = np.zeros(shape, np.float32)
    parameters[..., Parameter.FLIP] = rng.random(shape[:2]) < 0.5
    orders = np.arange(num_images * 4) % len(ORDERS)  # of the views with jitter
    parameters[:, :4, Parameter.ORDER] = orders.reshape(num_images, 4)
    parameters[..., Parameter.BRIGHTNESS : Parameter.GREY] = JITTER.factors(
        rng.random((*shape[:2], 4))
    )
    plain = rng.random(shape[:2]) < 0.2
    plain[:, 4:] = True  # of the group without jitter
    parameters[plain, Parameter.BRIGHTNESS : Parameter.GREY] = (1, 1, 1, 0)
    parameters[..., Parameter.GREY] = rng.random(shape[:2]) < 0.2
    for first, group in ((0, RECIPE.groups[0]), (3, RECIPE.groups[1])):
        mine = slice(first, first + group.num_views)
        parameters[:, mine, Parameter.BLUR] = rng.choice(deviations, (num_images, group.num_views))
        solarised = rng.random((num_images, group.num_views)) < group.solarise_probability
        parameters[:, mine, Parameter.SOLARISE] = solarised
    groups = []
    for group in RECIPE.groups:
        views = [
            made_pixels(seed, group.size, group.size)
            for seed in range(num_images * group.num_views)
        ]
        views[:4] = [np.full_like(views[0], level) for level in (0, 255, 128, 127)]
        groups.append(np.stack(views).reshape(num_images, group.num_views, *views[0].shape))
    orientations = [1 + image % 8 for image in range(num_images)]
    places = rng.permutation(num_images)
    return ResizedViews(
        groups=groups, parameters=parameters, orientations=orientations, images=places
    )


def assert_bits_of_the_kernel_in_c(finisher, device, views):
    native = NativeFinisher(RECIPE)
    expected = native.allocate(len(views.images))
    native.finish(views, expected)
    there = [torch.from_numpy(group).to(device) for group in views.groups]
    found = finisher.allocate(len(views.images))
    finisher.finish(
        ResizedViews(
            groups=there,
            parameters=views.parameters,
            orientations=views.orientations,
            images=views.images,
        ),
        found,
    )
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other.cpu().numpy())
    finisher.place([group[3:4] for group in expected], 5, found)
    for one, other in zip(expected, finisher.select(found, np.array([5, 0])), strict=True):
        np.testing.assert_array_equal(one[[3, 0]], other.cpu().numpy())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_kernel_gives_the_bits_of_the_kernel_in_c():
    """A run on a GPU would train on other crops than those that are tested on a CPU.

    Triton decides as it is imported to interpret kernels, so this takes a process of its own.
    """
    module = "tests.shards.dataloader.test_view_kernel"
    code = f"from {module} import in_the_interpreter; in_the_interpreter()"
    environment = {"TRITON_INTERPRET": "1", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def in_the_interpreter():
    from shards.dataloader.torch_finisher import TorchFinisher

    assert_bits_of_the_kernel_in_c(TorchFinisher(RECIPE, "cpu"), "cpu", made_views(6, NARROW))
    if dali.Pipeline is None:
        return
    recipe = CropRecipe((ViewGroup(num_views=2, size=8, scale=(0.2, 1.0), jitter=JITTER),))
    files = [encoded(made_pixels(seed, 40, 50), kind) for seed, kind in enumerate(("JPEG", "PNG"))]
    images = [read_image_header(file) for file in (*files, files[0], files[1])]
    images[2] = replace(images[2], data=files[0][:600] + b"\xff\xd9")
    parameters = drawn(recipe, images)
    ours, theirs = (
        dali.DaliEngine(recipe, 2, 1, finisher).crop(images, parameters)
        for finisher in (None, TorchFinisher(recipe, "cpu"))
    )
    assert ours.ok.tolist() == theirs.ok.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(ours.crops[0], theirs.on_host()[0])


# Types of the arguments of each kernel, as Triton derives them from the tensors.
SIGNATURES = {
    "add_greys": "pixels:*u8 table:*i32 sums:*i64",
    "colour": "pixels:*u8 table:*i32 sums:*i64 coloured:*u8 out:*u8 num_views:i32 num_images:i32",
    "blur_rows": "coloured:*u8 table:*i32 weights:*i32 rows:*i16 num_weights:i32",
    "blur_columns": "rows:*i16 table:*i32 weights:*i32 out:*u8 num_views:i32 num_images:i32 "
    "num_weights:i32",
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90], ids=["A100", "H200"])
def test_the_kernel_compiles_for_gpus_that_are_not_here(monkeypatch, tmp_path, capability):
    """The interpreter accepts what the compiler does not: a run on a GPU would end as it begins."""
    triton = pytest.importorskip("triton", reason="Triton exists for Linux only")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from shards.dataloader import view_kernel

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    for name, signature in SIGNATURES.items():
        types = dict(argument.split(":") for argument in signature.split())
        types |= {"SIZE": "constexpr", "BLOCK": "constexpr"}
        source = ASTSource(getattr(view_kernel, name), types, {"SIZE": 224, "BLOCK": 1024})
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options={"enable_fp_fusion": False})
        assert compiled.asm["cubin"]


@pytest.mark.gpu
def test_the_compiled_kernel_gives_the_bits_of_the_kernel_in_c():
    """The compiler could make other numbers of the same source than the interpreter."""
    from shards.dataloader.torch_finisher import TorchFinisher

    assert_bits_of_the_kernel_in_c(TorchFinisher(RECIPE), "cuda", made_views(96, WIDE))
