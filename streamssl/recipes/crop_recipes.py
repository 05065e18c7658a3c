"""The views of each paper that `shards.crops.recipe` does not have itself."""

from dataclasses import replace

from shards.crops.recipe import ColourJitter, CropRecipe, ViewGroup, byol


def simclr(*, size: int = 224, scale: tuple[float, float] = (0.08, 1.0)) -> CropRecipe:
    """SimCLR's pair (arXiv:2002.05709, appendix A) at its full colour strength.

    Brightness is a factor, as in the authors' second version; their first one added it.
    """
    jitter = ColourJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    group = ViewGroup(num_views=2, size=size, scale=scale, jitter=jitter, blur_probability=0.5)
    return CropRecipe((group,))


def simclr_multi_crop() -> CropRecipe:
    """SimCLR's views in SwAV's comparison: 2x160 + 4x96 (arXiv:2006.09882, section 4.3)."""
    large = simclr(size=160, scale=(0.14, 1.0)).groups[0]
    small = replace(large, num_views=4, size=96, scale=(0.05, 0.14))
    return CropRecipe((large, small))


def byol_small(*, size: int = 32, scale: tuple[float, float] = (0.2, 1.0)) -> CropRecipe:
    """BYOL's uneven pair without blur, which hides what little an image of 32 pixels shows."""
    pair = byol(size=size, scale=scale).groups
    return CropRecipe(tuple(replace(group, blur_probability=0.0) for group in pair))


def plain(*, size: int = 224, scale: tuple[float, float] = (0.08, 1.0)) -> CropRecipe:
    """One view, cropped and mirrored and no more: what classes are learned from."""
    return CropRecipe((ViewGroup(num_views=1, size=size, scale=scale, grey_probability=0.0),))


def nearly_whole(*, size: int = 224) -> CropRecipe:
    """One view with hardly any change, for telling vehicles or people apart (SpCL's code)."""
    view = ViewGroup(
        num_views=1, size=size, scale=(0.85, 1.0), ratio=(0.9, 1.1), grey_probability=0.0
    )
    return CropRecipe((view,))


def patchmix_pair(*, size: int = 224, scale: tuple[float, float] = (0.35, 1.0)) -> CropRecipe:
    """BYOL's uneven pair, of the scales that PatchMix has (arXiv:2306.12243)."""
    return byol(size=size, scale=scale)


def patchmix(*, num_small: int = 8) -> CropRecipe:
    """PatchMix's pair and eight small crops, which are blurred half the time."""
    pair = patchmix_pair().groups
    small = replace(pair[0], num_views=num_small, size=96, scale=(0.05, 0.35), blur_probability=0.5)
    return CropRecipe((*pair, small))
