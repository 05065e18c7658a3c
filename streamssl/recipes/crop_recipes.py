"""Views of papers that `shards.crops.recipe` does not have."""

from dataclasses import replace

from shards.crops.recipe import ColourJitter, CropRecipe, ViewGroup, byol


def simclr(*, size: int = 224, scale: tuple[float, float] = (0.08, 1.0)) -> CropRecipe:
    """Return SimCLR's pair (arXiv:2002.05709, appendix A) at its full colour strength.

    Brightness is a factor, as in the authors' second version; their first one added it.
    """
    jitter = ColourJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    group = ViewGroup(num_views=2, size=size, scale=scale, jitter=jitter, blur_probability=0.5)
    return CropRecipe((group,))


def simclr_multi_crop() -> CropRecipe:
    """Return SimCLR's views in SwAV's comparison: 2x160 + 4x96 (arXiv:2006.09882, section 4.3)."""
    large = simclr(size=160, scale=(0.14, 1.0)).groups[0]
    small = replace(large, num_views=4, size=96, scale=(0.05, 0.14))
    return CropRecipe((large, small))


def byol_small(*, size: int = 32, scale: tuple[float, float] = (0.2, 1.0)) -> CropRecipe:
    """Return BYOL's asymmetric pair without blur, which removes too much of 32 pixels."""
    pair = byol(size=size, scale=scale).groups
    return CropRecipe(tuple(replace(group, blur_probability=0.0) for group in pair))


def plain(*, size: int = 224, scale: tuple[float, float] = (0.08, 1.0)) -> CropRecipe:
    """Return one view, only cropped and mirrored, for learning from labels."""
    return CropRecipe((ViewGroup(num_views=1, size=size, scale=scale, grey_probability=0.0),))


def nearly_whole(*, size: int = 224) -> CropRecipe:
    """Return one view with small changes, for re-identification (SpCL's code)."""
    view = ViewGroup(
        num_views=1, size=size, scale=(0.85, 1.0), ratio=(0.9, 1.1), grey_probability=0.0
    )
    return CropRecipe((view,))


def patchmix_pair(*, size: int = 224, scale: tuple[float, float] = (0.35, 1.0)) -> CropRecipe:
    """Return BYOL's asymmetric pair with the scales of PatchMix (arXiv:2306.12243)."""
    return byol(size=size, scale=scale)


def patchmix(*, num_small: int = 8) -> CropRecipe:
    """Return PatchMix's pair and small crops, half of which are blurred."""
    pair = patchmix_pair().groups
    small = replace(pair[0], num_views=num_small, size=96, scale=(0.05, 0.35), blur_probability=0.5)
    return CropRecipe((*pair, small))
