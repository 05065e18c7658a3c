"""The view kernel: what follows the resize of a view, for all views of a group in four launches.

The definition is that of `shards.crops.recipe`; the bits are those of the kernel in C, whose
comments explain the arithmetic. All of it is in integers, so no order of additions matters.
Only a process that crops on a GPU imports this module.

A program works on `BLOCK` pixels, or bytes, of one view. `table` has one row of `view_table` for
every view; `pixels` and `coloured` are uint8 (M, S, S, 3), `rows` is int16 (M, S, S, 3), `out` is
uint8 (V, N, S, S, 3). A kernel is compiled for each size of crops, and once for all batches.
"""

import triton
import triton.language as tl

from shards.crops.recipe import COLOUR_OPERATIONS, FACTOR_STEPS, HUE_STEPS, Parameter
from shards.crops.view_table import NO_CONTRAST, NUM_COLUMNS, Column

_COLUMNS = tl.constexpr(NUM_COLUMNS)
_OPERATION, _AMOUNT = tl.constexpr(int(Column.OPERATION)), tl.constexpr(int(Column.AMOUNT))
_CONTRAST_PLACE = tl.constexpr(int(Column.CONTRAST_PLACE))
_GREY, _SOLARISE = tl.constexpr(int(Column.GREY)), tl.constexpr(int(Column.SOLARISE))
_TRANSPOSE = tl.constexpr(int(Column.TRANSPOSE))
_FLIP_ROWS, _FLIP_COLUMNS = (
    tl.constexpr(int(Column.FLIP_ROWS)),
    tl.constexpr(int(Column.FLIP_COLUMNS)),
)
_RADIUS, _LOST = tl.constexpr(int(Column.RADIUS)), tl.constexpr(int(Column.LOST))
_IMAGE = tl.constexpr(int(Column.IMAGE))
_NUM_OPERATIONS = tl.constexpr(len(COLOUR_OPERATIONS))
_NO_CONTRAST = tl.constexpr(NO_CONTRAST)
_CONTRAST = tl.constexpr(COLOUR_OPERATIONS.index(Parameter.CONTRAST))
_SATURATION = tl.constexpr(COLOUR_OPERATIONS.index(Parameter.SATURATION))
_HUE = tl.constexpr(COLOUR_OPERATIONS.index(Parameter.HUE))
_SHIFT = tl.constexpr(FACTOR_STEPS.bit_length() - 1)
_SECTOR = tl.constexpr(HUE_STEPS // 6)


@triton.jit
def add_greys(pixels, table, sums, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Add the grey levels that the contrast of each view sees to `sums` (M,) int64."""
    view = tl.program_id(0)
    row = table + view * _COLUMNS
    num_pixels = SIZE * SIZE
    place = tl.load(row + _CONTRAST_PLACE)
    if place < _NO_CONTRAST:
        index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = index < num_pixels
        start = pixels + view.to(tl.int64) * num_pixels * 3
        red, green, blue = _load(start, index, inside)
        for step in range(place):
            red, green, blue = _operate(red, green, blue, row, step, 0)
        levels = tl.where(inside, _grey(red, green, blue), 0)
        tl.atomic_add(sums + view, tl.sum(levels, axis=0).to(tl.int64))


@triton.jit(do_not_specialize=["num_views", "num_images"])
def colour(
    pixels,
    table,
    sums,
    coloured,
    out,
    num_views,
    num_images,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Turn, mirror and colour each view: to `out`, or to `coloured` if it is to be blurred."""
    view = tl.program_id(0)
    row = table + view * _COLUMNS
    num_pixels = SIZE * SIZE
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_pixels
    y, x = index // SIZE, index % SIZE
    y = tl.where(tl.load(row + _FLIP_ROWS) != 0, SIZE - 1 - y, y)
    x = tl.where(tl.load(row + _FLIP_COLUMNS) != 0, SIZE - 1 - x, x)
    source = tl.where(tl.load(row + _TRANSPOSE) != 0, x * SIZE + y, y * SIZE + x)
    start = view.to(tl.int64) * num_pixels * 3
    red, green, blue = _load(pixels + start, source, inside)
    total = tl.load(sums + view)
    mean = ((2 * total + num_pixels) // (2 * num_pixels)).to(tl.int32)
    for step in range(_NUM_OPERATIONS):
        red, green, blue = _operate(red, green, blue, row, step, mean)
    if tl.load(row + _GREY) != 0:
        red = _grey(red, green, blue)
        green = red
        blue = red
    if tl.load(row + _RADIUS) != 0:
        _store(coloured + start, index, inside, red, green, blue)
    else:
        solarise = tl.load(row + _SOLARISE)
        place = out + _place(row, view, num_views, num_images) * num_pixels * 3
        _store(
            place,
            index,
            inside,
            _solarised(red, solarise),
            _solarised(green, solarise),
            _solarised(blue, solarise),
        )


@triton.jit(do_not_specialize=["num_weights"])
def blur_rows(coloured, table, weights, rows, num_weights, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Blur each view along x, to levels in 1 / 128."""
    view = tl.program_id(0)
    row = table + view * _COLUMNS
    radius = tl.load(row + _RADIUS)
    if radius > 0:
        index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = index < SIZE * SIZE * 3
        start = view.to(tl.int64) * SIZE * SIZE * 3
        first = weights + view * num_weights
        line = index // (3 * SIZE) * (3 * SIZE)
        x, channel = index % (3 * SIZE) // 3, index % 3
        level = tl.load(coloured + start + index, mask=inside, other=0).to(tl.uint32)
        total = _high_half(level << 8, tl.load(first)) + tl.load(row + _LOST).to(tl.uint32)
        for k in range(1, radius + 1):
            left = line + 3 * _mirrored(x - k, SIZE) + channel
            right = line + 3 * _mirrored(x + k, SIZE) + channel
            pair = tl.load(coloured + start + left, mask=inside, other=0).to(tl.uint32)
            pair += tl.load(coloured + start + right, mask=inside, other=0).to(tl.uint32)
            total += _high_half(pair << 7, tl.load(first + k))
        tl.store(rows + start + index, (total >> 1).to(tl.int16), mask=inside)


@triton.jit(do_not_specialize=["num_views", "num_images", "num_weights"])
def blur_columns(
    rows,
    table,
    weights,
    out,
    num_views,
    num_images,
    num_weights,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Blur the result of `blur_rows` along y, and solarise, to `out`."""
    view = tl.program_id(0)
    row = table + view * _COLUMNS
    radius = tl.load(row + _RADIUS)
    if radius > 0:
        num_bytes = SIZE * SIZE * 3
        index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = index < num_bytes
        start = view.to(tl.int64) * num_bytes
        first = weights + view * num_weights
        y, column = index // (3 * SIZE), index % (3 * SIZE)
        level = tl.load(rows + start + index, mask=inside, other=0).to(tl.uint32)
        total = _high_half(level << 1, tl.load(first))
        total += (tl.load(row + _LOST) + 128).to(tl.uint32)
        for k in range(1, radius + 1):
            above = _mirrored(y - k, SIZE) * (3 * SIZE) + column
            below = _mirrored(y + k, SIZE) * (3 * SIZE) + column
            pair = tl.load(rows + start + above, mask=inside, other=0).to(tl.uint32)
            pair += tl.load(rows + start + below, mask=inside, other=0).to(tl.uint32)
            total += _high_half(pair, tl.load(first + k))
        levels = _solarised((total >> 8).to(tl.int32), tl.load(row + _SOLARISE))
        place = out + _place(row, view, num_views, num_images) * num_bytes
        tl.store(place + index, levels.to(tl.uint8), mask=inside)


@triton.jit
def _operate(red, green, blue, row, step, mean):
    """Apply the operation number `step`; `mean` is the grey that a contrast scales from."""
    operation, amount = tl.load(row + _OPERATION + step), tl.load(row + _AMOUNT + step)
    if operation == _HUE:
        red, green, blue = _turned(red, green, blue, amount)
    elif operation == _SATURATION:
        level = _grey(red, green, blue)
        red = _scaled(red, level, amount)
        green = _scaled(green, level, amount)
        blue = _scaled(blue, level, amount)
    else:
        base = tl.where(operation == _CONTRAST, mean, 0)
        red = _scaled(red, base, amount)
        green = _scaled(green, base, amount)
        blue = _scaled(blue, base, amount)
    return red, green, blue


@triton.jit
def _scaled(level, base, factor):
    scaled = base + ((level - base) * factor >> _SHIFT)
    return tl.minimum(tl.maximum(scaled, 0), 255)


@triton.jit
def _grey(red, green, blue):
    return (299 * red + 587 * green + 114 * blue + 500) // 1000


@triton.jit
def _turned(red, green, blue, turn):
    """Turn the hue on the hexcone. The hue times the chroma is a whole number of steps."""
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    from_blue = red - green + 4 * chroma
    from_green = blue - red + 2 * chroma
    hue = tl.where(value == green, from_green, from_blue)
    hue = tl.where(value == red, green - blue, hue) * _SECTOR + chroma * turn
    sector = chroma * _SECTOR
    return (
        _channel(value, sector, hue + 5 * sector),
        _channel(value, sector, hue + 3 * sector),
        _channel(value, sector, hue + sector),
    )


@triton.jit
def _channel(value, sector, place):
    """Return a channel from its place on the circle, which is -3 to 13 sectors."""
    place = tl.where(place < 0, place + 6 * sector, place)
    place = tl.where(place >= 12 * sector, place - 6 * sector, place)
    place = tl.where(place >= 6 * sector, place - 6 * sector, place)
    less = tl.maximum(tl.minimum(tl.minimum(place, 4 * sector - place), sector), 0)
    return (value * _SECTOR - less + _SECTOR // 2) // _SECTOR


@triton.jit
def _solarised(level, solarise):
    return tl.where((solarise != 0) & (level >= 128), 255 - level, level)


@triton.jit
def _high_half(level, weight):
    """Return the upper half of a product of 16 x 16 bits."""
    return level * weight.to(tl.uint32) >> 16


@triton.jit
def _mirrored(place, size):
    """Return the index in [0, size) that mirrors `place` at the borders, once each."""
    period = 2 * size - 2 if size > 1 else 1
    folded = tl.abs(place) % period
    return tl.where(folded < size, folded, period - folded)


@triton.jit
def _place(row, view, num_views, num_images):
    """Return the number of a view in the output, where all images of a view lie side by side."""
    return (view % num_views).to(tl.int64) * num_images + tl.load(row + _IMAGE)


@triton.jit
def _load(start, index, inside):
    red = tl.load(start + 3 * index, mask=inside, other=0).to(tl.int32)
    green = tl.load(start + 3 * index + 1, mask=inside, other=0).to(tl.int32)
    blue = tl.load(start + 3 * index + 2, mask=inside, other=0).to(tl.int32)
    return red, green, blue


@triton.jit
def _store(start, index, inside, red, green, blue):
    tl.store(start + 3 * index, red.to(tl.uint8), mask=inside)
    tl.store(start + 3 * index + 1, green.to(tl.uint8), mask=inside)
    tl.store(start + 3 * index + 2, blue.to(tl.uint8), mask=inside)
