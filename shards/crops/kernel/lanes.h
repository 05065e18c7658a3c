/* Vectors of 16-bit lanes, as wide as the CPU has them that this file is compiled for.
 *
 * V has signed lanes, U unsigned ones. LEVEL numbers the instruction sets. Plain C is level 1: every
 * CPU without a level of its own takes it, and tests compare the other levels with it.
 */
#ifndef LANES_H
#define LANES_H

#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the crop kernel needs a little-endian CPU"
#endif

#if defined(__AVX512BW__)
#define LEVEL 4
#define BYTES 64
#define MM(name) _mm512_##name
#elif defined(__AVX2__)
#define LEVEL 3
#define BYTES 32
#define MM(name) _mm256_##name
#elif defined(__SSE4_1__)
#define LEVEL 2
#define BYTES 16
#define MM(name) _mm_##name
#else
#define LEVEL 1
#define BYTES 16
#endif

enum { L = BYTES / 2 }; /* lanes */
typedef int16_t V __attribute__((vector_size(BYTES)));
typedef uint16_t U __attribute__((vector_size(BYTES)));
typedef uint8_t HalfBytes __attribute__((vector_size(L)));

#ifdef MM
#include <immintrin.h>
typedef long long M __attribute__((vector_size(BYTES)));
#define DEFINE(name, intrinsic, T) \
    static inline T name(T a, T b) { return (T)MM(intrinsic)((M)a, (M)b); }
DEFINE(mulhi, mulhi_epi16, V)
DEFINE(mulhi_unsigned, mulhi_epu16, U)
DEFINE(least, min_epi16, V)
DEFINE(largest, max_epi16, V)
DEFINE(bytes_low, unpacklo_epi8, U)
DEFINE(bytes_high, unpackhi_epi8, U)
/* The bytes of one half of every 16 bytes, times 256. */
static inline U low_bytes(U x) { return bytes_low((U){0}, x); }
static inline U high_bytes(U x) { return bytes_high((U){0}, x); }
#else
#define DEFINE(name, T, expression) \
    static inline T name(T a, T b) { \
        T result; \
        for (int i = 0; i < L; i++) result[i] = expression; \
        return result; \
    }
DEFINE(mulhi, V, (int16_t)(((int32_t)a[i] * b[i]) >> 16))
DEFINE(mulhi_unsigned, U, (uint16_t)(((uint32_t)a[i] * b[i]) >> 16))
DEFINE(least, V, a[i] < b[i] ? a[i] : b[i])
DEFINE(largest, V, a[i] > b[i] ? a[i] : b[i])
static inline U half_of_bytes(U x, int first) {
    uint8_t bytes[BYTES];
    U result;
    memcpy(bytes, &x, sizeof x);
    for (int i = 0; i < L; i++) result[i] = (uint16_t)(bytes[first + i] << 8);
    return result;
}
static inline U low_bytes(U x) { return half_of_bytes(x, 0); }
static inline U high_bytes(U x) { return half_of_bytes(x, L); }
#endif
#undef DEFINE

static inline V splat(int x) { return (V){0} + (int16_t)x; }
static inline U splat_unsigned(int x) { return (U){0} + (uint16_t)x; }
static inline V clamp(V x, V low, V high) { return least(largest(x, low), high); }
static inline V pick(V mask, V yes, V no) { return (yes & mask) | (no & ~mask); }
static inline U load(const void *from) {
    U x;
    memcpy(&x, from, sizeof x);
    return x;
}
static inline void store_bytes(uint8_t *to, U x) {
    HalfBytes bytes = __builtin_convertvector(x, HalfBytes);
    memcpy(to, &bytes, sizeof bytes);
}

/* Transpose of 8 x 8 lanes, from rows that are `stride` lanes apart. */
typedef int16_t S8 __attribute__((vector_size(16)));
typedef int32_t S4 __attribute__((vector_size(16)));
typedef int64_t S2 __attribute__((vector_size(16)));
#define LOW16(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH16(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#define LOW32(a, b) (S8) __builtin_shufflevector((S4)(a), (S4)(b), 0, 4, 1, 5)
#define HIGH32(a, b) (S8) __builtin_shufflevector((S4)(a), (S4)(b), 2, 6, 3, 7)
#define LOW64(a, b) (S8) __builtin_shufflevector((S2)(a), (S2)(b), 0, 2)
#define HIGH64(a, b) (S8) __builtin_shufflevector((S2)(a), (S2)(b), 1, 3)
static inline __attribute__((always_inline)) void transpose(const void *from, size_t stride, S8 to[8]) {
    S8 a[8], b[8];
    for (int i = 0; i < 8; i++) memcpy(&a[i], (const int16_t *)from + i * stride, sizeof a[i]);
    for (int i = 0; i < 8; i += 2) {
        b[i] = LOW16(a[i], a[i + 1]);
        b[i + 1] = HIGH16(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i] = LOW32(b[i], b[i + 2]);
        a[i + 1] = HIGH32(b[i], b[i + 2]);
        a[i + 2] = LOW32(b[i + 1], b[i + 3]);
        a[i + 3] = HIGH32(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        to[2 * i] = LOW64(a[i], a[i + 4]);
        to[2 * i + 1] = HIGH64(a[i], a[i + 4]);
    }
}

#endif
