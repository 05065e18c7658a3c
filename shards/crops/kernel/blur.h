/* Gaussian blur of a view: weights of 16 bits, and one product for the two pixels at a distance.
 *
 * Levels are in Q8 between the passes, in Q7 where they are stored. e^x is computed here, by + - * /
 * alone: libraries differ in its last bit.
 */
#ifndef BLUR_H
#define BLUR_H

#include "resize.h"

enum { MAX_RADIUS = 3 * MAX_DEVIATION };

static double exponential(double x) { /* x <= 0 */
    if (x < -50.0) return 0.0;
    double y = x / 256.0, e = 1.0;
    for (int i = 6; i > 0; i--) e = 1.0 + y / i * e;
    for (int i = 0; i < 8; i++) e *= e;
    return e;
}

/* Fill weights[0..radius]: of the pixel itself, then of both pixels at each distance; return the radius. */
static int gaussian(double sigma, uint16_t weights[MAX_RADIUS + 1]) {
    double sum = 0.5;
    int radius = (int)ceil(3.0 * sigma), left = 65536;
    for (int k = 1; k <= radius; k++) sum += exponential(-0.5 * k * k / (sigma * sigma));
    for (int k = 1; k <= radius; k++) {
        weights[k] = (uint16_t)(exponential(-0.5 * k * k / (sigma * sigma)) * 65536.0 / sum + 0.5);
        left -= weights[k];
    }
    weights[0] = (uint16_t)(left < 65535 ? left : 65535);
    return radius;
}

/* Half a unit for each product, and a whole one for the weight of 1 that does not fit. Beyond a radius
 * of some 250 that and white need more than 16 bits, and white is held. */
static inline int lost_by(int radius) { return radius / 2 + 1; }
static inline U put_back_lost(U sum, int lost) {
    U most = splat_unsigned(65535 - lost);
    if (lost > 65535 - 255 * 256) sum = (U)pick((V)(sum > most), (V)most, (V)sum);
    return sum + (uint16_t)lost;
}

/* The index in [0, size) that mirrors i at the borders without repeating their pixels. */
static inline int mirrored(int i, int size) {
    if (i >= 0 && i < size) return i;
    int period = size > 1 ? 2 * (size - 1) : 1;
    i = abs(i) % period;
    return i < size ? i : period - i;
}

/* Blur one strip along x: `columns` (size + 2 radius) x 3 of whole levels, whose borders are filled in
 * here, to L rows of Q7 levels that are `stride` lanes apart. */
static void blur_strip(V *columns, int size, int radius, const uint16_t *weights, int16_t *rows,
                       size_t stride) {
    V *centre = columns + 3 * radius;
    U blurred[8];
    for (int k = 1; k <= radius; k++) {
        memcpy(centre - 3 * k, centre + 3 * mirrored(-k, size), 3 * sizeof(V));
        memcpy(centre + 3 * (size - 1 + k), centre + 3 * mirrored(size - 1 + k, size), 3 * sizeof(V));
    }
    for (int x = 0; x < 3 * size; x += 8) {
        for (int i = 0; i < 8; i++) { /* the last few lie in the padding of the strip */
            const V *p = centre + x + i;
            U sum = mulhi_unsigned((U)p[0] << 8, splat_unsigned(weights[0]));
            for (int k = 1; k <= radius; k++)
                sum += mulhi_unsigned((U)(p[-3 * k] + p[3 * k]) << 7, splat_unsigned(weights[k]));
            blurred[i] = put_back_lost(sum, lost_by(radius)) >> 1;
        }
        for (int r = 0; r < L; r += 8) {
            S8 block[8];
            transpose((int16_t *)blurred + r, L, block);
            for (int i = 0; i < 8; i++) memcpy(rows + (r + i) * stride + x, &block[i], sizeof block[i]);
        }
    }
}

/* Blur along y, from the rows of `blur_strip` to rows of `row_bytes` >= L bytes. */
static void blur_rows(const int16_t *rows, size_t stride, int size, int radius, const uint16_t *weights,
                      int solarise, int row_bytes, uint8_t *out) {
    for (int y = 0; y < size; y++, out += row_bytes) {
        const int16_t *above[MAX_RADIUS + 1], *below[MAX_RADIUS + 1];
        for (int k = 0; k <= radius; k++) {
            above[k] = rows + mirrored(y - k, size) * stride;
            below[k] = rows + mirrored(y + k, size) * stride;
        }
        for (int c = 0; c < row_bytes; c += L) {
            if (c + L > row_bytes) c = row_bytes - L;
            U sum = mulhi_unsigned(load(above[0] + c) << 1, splat_unsigned(weights[0]));
            for (int k = 1; k <= radius; k++)
                sum += mulhi_unsigned(load(above[k] + c) + load(below[k] + c), splat_unsigned(weights[k]));
            sum = put_back_lost(sum, lost_by(radius) + 128) >> 8;
            store_bytes(out + c, solarise ? (U)least((V)sum, 255 - (V)sum) : sum);
        }
    }
}

/* One strip that is not blurred: `columns` of whole levels to `rows` <= L rows of `row_bytes` >= 16
 * bytes. Two columns share the halves of a lane, so that one transpose gives 8 rows of 16 bytes. */
static void write_strip(const V *columns, int rows, int solarise, int row_bytes, uint8_t *out) {
    for (int c = 0; c < row_bytes; c += 16) {
        if (c + 16 > row_bytes) c = row_bytes - 16;
        V pairs[8];
        for (int i = 0; i < 8; i++) {
            V even = columns[c + 2 * i], odd = columns[c + 2 * i + 1];
            if (solarise) even = least(even, 255 - even), odd = least(odd, 255 - odd);
            pairs[i] = even | odd << 8;
        }
        for (int r = 0; r < rows; r += 8) {
            S8 block[8];
            transpose((int16_t *)pairs + r, L, block);
            for (int i = 0; i < 8 && r + i < rows; i++)
                memcpy(out + (r + i) * (size_t)row_bytes + c, &block[i], sizeof block[i]);
        }
    }
}

#endif
