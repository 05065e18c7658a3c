/* The functions that Python calls, and the choice of the instruction set. */
#include "scratch.h"

typedef int CropViews(Scratch *, const Picture *, const View *, int);
CropViews crop_views_1;
#if defined(__x86_64__)
#include <cpuid.h>
CropViews crop_views_2, crop_views_3, crop_views_4;
static CropViews *const LEVELS[] = {crop_views_1, crop_views_2, crop_views_3, crop_views_4};

/* The CPU is asked here: `__builtin_cpu_supports` answers no to everything in some linked libraries. */
int streamssl_best_level(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 19 & 1)) return 1; /* SSE4.1 */
    if (!(c >> 27 & 1)) return 2;                                    /* the system saves wide registers */
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b >> 5 & 1)) return 2; /* AVX2 */
    return (low & 0xe6) == 0xe6 && (b >> 16 & 1) && (b >> 17 & 1) && (b >> 28 & 1) && (b >> 30 & 1) && (b >> 31 & 1)
               ? 4 /* AVX-512 F, DQ, CD, BW and VL, which the compiler may use at this level */
               : 3;
}
#else
static CropViews *const LEVELS[] = {crop_views_1};
int streamssl_best_level(void) { return 1; }
#endif

/* Of the sources that this library was built from. */
const char *streamssl_source_digest(void) { return SOURCE_DIGEST; }

Scratch *streamssl_new_scratch(void) { return calloc(1, sizeof(Scratch)); }

void streamssl_free_scratch(Scratch *scratch) {
    for (int i = 0; scratch && i < NUM_BUFFERS; i++) free(scratch->at[i]);
    free(scratch);
}

/* Crop all views of a picture of `height` x `width` x 3 bytes, in this order one after the other.
 *
 * boxes (num_views, 4) in pixels of the picture; parameters (num_views, NUM_PARAMETERS); sizes
 * (num_views,); outs[v] has room for sizes[v] x sizes[v] x 3 bytes. `level` is at most the best level.
 * Returns 0, -1 without memory, -2 for a box or a size that is not allowed. */
int streamssl_crop_views(int level, Scratch *scratch, const uint8_t *pixels, int32_t height, int32_t width,
                         const double *boxes, const float *parameters, const int32_t *sizes,
                         uint8_t *const *outs, int32_t num_views) {
    Picture picture = {pixels, height, width};
    for (int v = 0; v < num_views; v++) {
        View view = {boxes + 4 * v, parameters + NUM_PARAMETERS * v, sizes[v], outs[v]};
        int result = LEVELS[level - 1](scratch, &picture, &view, 1);
        if (result != DONE) return result;
    }
    return DONE;
}
