/* All views of one picture, for one instruction set.
 *
 * A view is made in strips of L output rows, L = 16-bit lanes of a vector:
 *   1. resize vertically; input rows lie contiguously, so lanes are columns (`resize_rows`)
 *   2. transpose: from here on a lane is a row, and a column of pixels is three vectors R, G, B. No
 *      channel is ever shuffled apart, and "along x" means "from vector to vector"
 *   3. resize horizontally, and apply the colour operations on registers. The contrast needs the mean
 *      grey of the whole view, so it and what follows it are a second pass
 *   4. blur along x, transpose back, blur along y; solarise; write
 */
#include "blur.h"
#include "colours.h"

/* Of rows of an output that are shorter than a vector: enough for L lanes of any level. */
enum { SHORTEST_ROW = 32, PADDING = 32 };

#define NAMED(name, level) name##level
#define AT_LEVEL(name, level) NAMED(name, level)

/* Crop one view, whose arguments are allowed; return DONE or NO_MEMORY. */
int AT_LEVEL(crop_view_, LEVEL)(Scratch *scratch, const Picture *picture, const View *view) {
    int size = view->size, height = picture->height, width = picture->width;
    const float *row = view->parameters;
    double y0 = view->box[0], x0 = view->box[1], y1 = view->box[2], x1 = view->box[3];

    Operation operations[MAX_OPERATIONS];
    int contrast, num_operations = list_operations(row, operations, &contrast);
    int num_first = contrast < 0 ? num_operations : contrast;
    uint16_t weights[MAX_RADIUS + 1];
    int radius = row[BLUR] > 0 ? gaussian(row[BLUR], weights) : 0, solarise = row[SOLARISE] > 0;

    /* The columns of the box; at least a chunk of them, in a copy of a narrower box. */
    int left = (int)x0, right = (int)ceil(x1), n = 3 * (right - left);
    const uint8_t *pixels = picture->pixels + 3 * (size_t)left;
    size_t stride = 3 * (size_t)width;
    if (n < CHUNK) {
        int top = (int)y0, bottom = (int)ceil(y1);
        uint8_t *copy = reserve(scratch, NARROW, (size_t)(bottom - top) * CHUNK);
        if (!copy) return NO_MEMORY;
        for (int y = top; y < bottom; y++) {
            uint8_t *to = copy + (size_t)(y - top) * CHUNK;
            memcpy(to, pixels + y * stride, n);
            memset(to + n, 0, CHUNK - n);
        }
        pixels = copy - (ptrdiff_t)top * CHUNK, stride = n = CHUNK;
    }

    int strips = (size + L - 1) / L, row_bytes = 3 * size > SHORTEST_ROW ? 3 * size : SHORTEST_ROW;
    size_t strip = 3 * ((size_t)size + 2 * radius) + PADDING, row_stride = ((size_t)row_bytes + 39) & ~(size_t)31;
    const Taps *taps_y = triangle(scratch, TAPS_Y, y0, y1, height, size, 0);
    const Taps *taps_x = triangle(scratch, TAPS_X, x0, x1, width, size, row[FLIP] > 0);
    V *input = reserve(scratch, INPUT, n * sizeof(V));
    V *columns = reserve(scratch, COLUMNS, (contrast < 0 ? 1 : strips) * strip * sizeof(V));
    int16_t *rows = radius ? reserve(scratch, ROWS, strips * L * row_stride * sizeof(int16_t)) : NULL;
    uint8_t *out = row_bytes == 3 * size ? view->out : reserve(scratch, SMALL, (size_t)size * row_bytes);
    if (!taps_y || !taps_x || !input || !columns || (radius && !rows) || !out) return NO_MEMORY;
    int wide_y = is_wide(y0, y1, size), wide_x = is_wide(x0, x1, size);

    uint64_t total = 0; /* of the grey levels that the contrast sees */
    for (int pass = contrast < 0 ? 1 : 0; pass < 2; pass++)
        for (int s = 0; s < strips; s++) {
            V *start = columns + (contrast < 0 ? 0 : s * strip), *column = start + 3 * radius, sum = splat(0);
            int valid = size - s * L < L ? size - s * L : L;
            if (pass == 0 || contrast < 0) {
                resize_rows(pixels, stride, n, taps_y + s * L, valid, wide_y, input);
                for (int x = 0; x < size; x++) {
                    const V *from = input + 3 * (taps_x[x].first - left);
                    Pixels p = wide_x ? resize_column_wide(from, taps_x + x) : resize_column(from, taps_x + x);
                    p = colour(p, operations, num_first);
                    column[3 * x] = p.r, column[3 * x + 1] = p.g, column[3 * x + 2] = p.b;
                    if (contrast < 0) continue;
                    sum += grey(p);
                    if (x % 128 == 127 || x == size - 1) { /* before 16 bits overflow */
                        for (int i = 0; i < valid; i++) total += (uint16_t)sum[i];
                        sum = splat(0);
                    }
                }
            } else {
                for (int x = 0; x < size; x++) {
                    Pixels p = {column[3 * x], column[3 * x + 1], column[3 * x + 2]};
                    p = colour(p, operations + contrast, num_operations - contrast);
                    column[3 * x] = p.r, column[3 * x + 1] = p.g, column[3 * x + 2] = p.b;
                }
            }
            if (pass == 0) {
                uint64_t area = (uint64_t)size * size;
                if (s == strips - 1) operations[contrast].base = splat((int)((2 * total + area) / (2 * area)));
            } else if (radius) {
                blur_strip(start, size, radius, weights, rows + s * L * row_stride, row_stride);
            } else {
                write_strip(column, valid, solarise, row_bytes, out + (size_t)s * L * row_bytes);
            }
        }
    if (radius) blur_rows(rows, row_stride, size, radius, weights, solarise, row_bytes, out);
    if (out != view->out)
        for (int y = 0; y < size; y++) memcpy(view->out + 3 * (size_t)y * size, out + (size_t)y * row_bytes, 3 * size);
    return DONE;
}
