/* Resize by a triangle filter as wide as the reduction; levels leave it in Q8 (times 256).
 *
 * Weights are computed in doubles by + - * / alone, which every CPU rounds alike, and sum to 1
 * exactly. Up to `MAX_STEP` input pixels an output pixel they have 16 bits: a product is the upper
 * half of 16 x 16 bits, and half a unit a product is put back for what the truncations take. Beyond,
 * so many truncations would show, and weights have `WIDE_BITS` bits in 32-bit sums: slower, and rare.
 */
#ifndef RESIZE_H
#define RESIZE_H

#include <math.h>

#include "lanes.h"
#include "scratch.h"

enum { CHUNK = 128, MAX_STEP = 32, WIDE_BITS = 22 };

/* The inputs of one output: `count` weights, from the input `first` on. */
typedef struct {
    int32_t first, count;
    const uint32_t *weights;
} Taps;

static inline int is_wide(double low, double high, int size) { return high - low > (double)MAX_STEP * size; }

/* The taps of `size` outputs over [low, high) of `limit` inputs, in reverse if `mirror`. */
static const Taps *triangle(Scratch *scratch, int buffer, double low, double high, int limit, int size,
                            int mirror) {
    double step = (high - low) / size, support = step > 1.0 ? step : 1.0, slope = 1.0 / support;
    int most = (int)support * 2 + 3, begin = (int)low, end = (int)ceil(high);
    int one = 1 << (is_wide(low, high, size) ? WIDE_BITS : 16);
    Taps *taps = reserve(scratch, buffer, size * (sizeof(Taps) + most * sizeof(uint32_t)));
    double *shares = reserve(scratch, SHARES, most * sizeof(double));
    if (!taps || !shares) return NULL;
    uint32_t *weights = (uint32_t *)(taps + size);
    if (end > limit) end = limit;
    for (int i = 0; i < size; i++, weights += most) {
        double centre = low + (i + 0.5) * step, sum = 0.0;
        int from = (int)(centre - support + 0.5), to = (int)(centre + support + 0.5);
        if (from < begin) from = begin;
        if (to > end) to = end;
        for (int j = from; j < to; j++) {
            double share = 1.0 - fabs(j + 0.5 - centre) * slope;
            shares[j - from] = share > 0.0 ? share : 0.0;
            sum += shares[j - from];
        }
        double scale = one / sum;
        int32_t left = one; /* the middle weight takes what rounding leaves */
        for (int j = from; j < to; j++) {
            weights[j - from] = (uint32_t)(shares[j - from] * scale + 0.5);
            left -= (int32_t)weights[j - from];
        }
        weights[((int)centre < to ? (int)centre : to - 1) - from] += (uint32_t)left;
        uint32_t *used = weights; /* without weights of zero at the ends */
        while (to - from > 1 && used[0] == 0) from++, used++;
        while (to - from > 1 && used[to - from - 1] == 0) to--;
        taps[mirror ? size - 1 - i : i] = (Taps){from, to - from, used};
    }
    return taps;
}

/* A weight of 1 does not fit into 16 bits. One unit less is the same here: the half unit that is put
 * back for a product, rounded up, makes up for it. */
static inline U weight16(uint32_t weight) { return splat_unsigned(weight < 65536 ? (int)weight : 65535); }
static inline int put_back(int count) { return count == 1 ? 1 : count / 2; }

/* One output row of `CHUNK` bytes from c on, to 16-bit lanes. */
static inline void resize_chunk(const uint8_t *from, size_t stride, const Taps *taps, uint16_t *to) {
    U sum[CHUNK / L];
    for (int j = 0; j < CHUNK / L; j++) sum[j] = splat_unsigned(put_back(taps->count));
    for (int t = 0; t < taps->count; t++, from += stride) {
        U weight = weight16(taps->weights[t]);
        for (int j = 0; j < CHUNK / L; j += 2) {
            U bytes = load(from + j * L);
            sum[j] += mulhi_unsigned(low_bytes(bytes), weight);
            sum[j + 1] += mulhi_unsigned(high_bytes(bytes), weight);
        }
    }
    memcpy(to, sum, sizeof sum);
}
/* The same with weights of `WIDE_BITS` bits. The order of the lanes is that of `low_bytes` and
 * `high_bytes`: of each vector of bytes, the lower halves of its 16-byte blocks, then the upper. */
static void resize_chunk_wide(const uint8_t *from, size_t stride, const Taps *taps, uint16_t *to) {
    uint32_t sum[CHUNK];
    for (int i = 0; i < CHUNK; i++) sum[i] = 1u << (WIDE_BITS - 9);
    for (int t = 0; t < taps->count; t++, from += stride)
        for (int i = 0; i < CHUNK; i++) sum[i] += taps->weights[t] * from[i];
    for (int i = 0; i < CHUNK; i++) {
        int block = i % BYTES / 16, half = i % 16 / 8;
        to[i / BYTES * BYTES + half * L + block * 8 + i % 8] = (uint16_t)(sum[i] >> (WIDE_BITS - 8));
    }
}

/* Resize `rows` <= L output rows vertically. `n` >= CHUNK bytes of each input row become `n` vectors
 * of L lanes, one for each column and channel: from here on, a lane is a row. */
static void resize_rows(const uint8_t *from, size_t stride, int n, const Taps *taps, int rows, int wide,
                        V *columns) {
    uint16_t tile[L * CHUNK] __attribute__((aligned(64)));
    if (rows < L) memset(tile, 0, sizeof tile);
    for (int c = 0; c < n; c += CHUNK) {
        if (c + CHUNK > n) c = n - CHUNK; /* the last chunk overlaps the one before */
        for (int r = 0; r < rows; r++) {
            const uint8_t *first = from + taps[r].first * (ptrdiff_t)stride + c;
            (wide ? resize_chunk_wide : resize_chunk)(first, stride, taps + r, tile + r * CHUNK);
        }
        for (int j = 0; j < CHUNK / 8; j++) {
            int vector = j / (L / 8), place = j % (L / 8);
            int column = c + vector / 2 * BYTES + place * 16 + vector % 2 * 8;
            for (int r = 0; r < L; r += 8) {
                S8 block[8];
                transpose(tile + r * CHUNK + 8 * j, CHUNK, block);
                for (int i = 0; i < 8; i++)
                    memcpy((int16_t *)(columns + column + i) + r, &block[i], sizeof block[i]);
            }
        }
    }
}

typedef struct {
    V r, g, b;
} Pixels; /* L pixels of one column */

/* One output column, from the columns of `resize_rows`, rounded to whole levels. */
static inline Pixels resize_column(const V *from, const Taps *taps) {
    U r = splat_unsigned(put_back(taps->count) + 128), g = r, b = r;
    for (int t = 0; t < taps->count; t++, from += 3) {
        U weight = weight16(taps->weights[t]);
        r += mulhi_unsigned((U)from[0], weight);
        g += mulhi_unsigned((U)from[1], weight);
        b += mulhi_unsigned((U)from[2], weight);
    }
    return (Pixels){(V)(r >> 8), (V)(g >> 8), (V)(b >> 8)};
}
static Pixels resize_column_wide(const V *from, const Taps *taps) {
    uint64_t sum[3][L];
    V result[3];
    for (int i = 0; i < 3 * L; i++) sum[i / L][i % L] = 1u << (WIDE_BITS + 7);
    for (int t = 0; t < taps->count; t++, from += 3)
        for (int i = 0; i < 3 * L; i++)
            sum[i / L][i % L] += (uint64_t)taps->weights[t] * (uint16_t)from[i / L][i % L];
    for (int i = 0; i < 3 * L; i++) result[i / L][i % L] = (int16_t)(sum[i / L][i % L] >> (WIDE_BITS + 8));
    return (Pixels){result[0], result[1], result[2]};
}

#endif
