/* Colour operations on whole levels from 0 to 255: exact, since their amounts are fixed-point numbers.
 *
 * A factor is F / FACTOR_STEPS. With f 2^k = high + low / 2^16, floor(f d) is
 * (high d + (low d >> 16)) >> k: both parts fit into 16 bits, and nothing is rounded.
 */
#ifndef COLOURS_H
#define COLOURS_H

#include "resize.h"

enum { MAX_OPERATIONS = 5 };

typedef struct {
    int kind;
    int shift;     /* k of a factor */
    V high, low;   /* the parts of a factor; `high` is also the turn of a hue, in 1/32 sectors */
    V base;        /* what a factor scales the distance from */
    int thirds;    /* thirds of a turn, -1 to 1 */
} Operation;

/* floor(0.299 R + 0.587 G + 0.114 B + 0.5): 77 R + 150 G + 29 B is 256 times the grey but for
 * (34 (G - R) + 23 (B - R)) / 125, which is added together with the half that rounds. */
static inline V grey(Pixels p) {
    V rest = p.g * 34 + p.b * 23 - p.r * 57 + 16000;
    V sum = p.r * 77 + p.g * 150 + p.b * 29 + (V)(mulhi_unsigned((U)rest, splat_unsigned(33555)) >> 6);
    return (V)((U)sum >> 8);
}

static inline V scale_from(V x, V base, const Operation *o) {
    V distance = x - base;
    V scaled = (distance * o->high + mulhi(distance, o->low)) >> o->shift;
    return clamp(base + scaled, splat(0), splat(255));
}

/* Turn the hue on the hexcone without a division. Hue times chroma, w from -3 C to 3 C, is a difference
 * of channels. Turned by t sectors it is w + C t, and each channel is a clamped distance from its own
 * place on the circle. A sector has 32 steps, so that 3 * 32 * 255 fits into 16 bits. Turns by thirds
 * only exchange the channels. */
static inline Pixels turn_hue(Pixels p, const Operation *o) {
    V high = largest(largest(p.r, p.g), p.b), low = least(least(p.r, p.g), p.b);
    V c = high - low, c2 = c + c, c32 = c << 5, c96 = c32 + c32 + c32;
    V w = pick(p.r == high, p.g - p.b, pick(p.g == high, p.b - p.r + c2, p.r - p.g - c2)) << 5;
    w += c * o->high;
    w -= (w > c96) & (c96 + c96);
    w += (w < -c96) & (c96 + c96);
    V floor = (low << 5) + 16, roof = (high << 5) + 16, lift = floor - c32;
    V right = w + c32, left = w - c32;
    V red = clamp(floor + c32 + c32 - largest(w, -w), floor, roof) >> 5;
    V green = clamp(lift + largest(right, -right), floor, roof) >> 5;
    V blue = clamp(lift + largest(left, -left), floor, roof) >> 5;
    if (o->thirds == 0) return (Pixels){red, green, blue};
    return o->thirds > 0 ? (Pixels){blue, red, green} : (Pixels){green, blue, red};
}

static inline __attribute__((always_inline)) Pixels colour(Pixels p, const Operation *o, int n) {
    for (; n > 0; n--, o++) {
        V g;
        switch (o->kind) {
        case BRIGHTNESS:
        case CONTRAST:
            p = (Pixels){scale_from(p.r, o->base, o), scale_from(p.g, o->base, o), scale_from(p.b, o->base, o)};
            break;
        case SATURATION:
            g = grey(p);
            p = (Pixels){scale_from(p.r, g, o), scale_from(p.g, g, o), scale_from(p.b, g, o)};
            break;
        case HUE: p = turn_hue(p, o); break;
        case GREY:
            g = grey(p);
            p = (Pixels){g, g, g};
            break;
        }
    }
    return p;
}

static int in_steps(float amount, int steps) { return (int)rint((double)amount * steps); }

static Operation factor(int kind, float amount) {
    int steps = in_steps(amount, FACTOR_STEPS), shift = 6;
    while (((int64_t)steps << shift) > MAX_FACTOR * FACTOR_STEPS) shift--;
    int scaled = steps << shift, high = (scaled + FACTOR_STEPS / 2) / FACTOR_STEPS;
    int low = (scaled - high * FACTOR_STEPS) * (65536 / FACTOR_STEPS);
    return (Operation){.kind = kind, .shift = shift, .high = splat(high), .low = splat(low)};
}

static Operation turn(float amount) {
    int steps = in_steps(amount, HUE_STEPS), third = HUE_STEPS / 3;
    int thirds = steps > third / 2 ? 1 : steps < -third / 2 ? -1 : 0;
    return (Operation){.kind = HUE, .high = splat(steps - thirds * third), .thirds = thirds};
}

/* The i-th of the n-th of itertools.permutations of the four operations. */
static int operation_at(int n, int i) {
    int left[4] = {BRIGHTNESS, CONTRAST, SATURATION, HUE};
    static const int shares[4] = {6, 2, 1, 1};
    for (int k = 0;; n %= shares[k++]) {
        int taken = n / shares[k] % (4 - k);
        if (k == i) return left[taken];
        for (int j = taken; j < 3; j++) left[j] = left[j + 1];
    }
}

/* Fill `operations` from a row of parameters, without those that change nothing; return their number,
 * and in `contrast` the place of the contrast, or -1. */
static int list_operations(const float *row, Operation operations[MAX_OPERATIONS], int *contrast) {
    int n = 0, order = (int)row[ORDER];
    *contrast = -1;
    for (int i = 0; i < 4; i++) {
        int kind = operation_at(order, i);
        Operation o = kind == HUE ? turn(row[HUE]) : factor(kind, row[kind]);
        if (kind == HUE ? !o.thirds && o.high[0] == 0 : o.high[0] == 1 << o.shift && o.low[0] == 0) continue;
        if (kind == CONTRAST) *contrast = n;
        operations[n++] = o;
    }
    if (row[GREY] > 0) operations[n++] = (Operation){.kind = GREY};
    return n;
}

#endif
