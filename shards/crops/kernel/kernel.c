/* The functions that Python calls, and the choice of the instruction set. */
#include "scratch.h"

typedef int CropView(Scratch *, const Picture *, const View *);
CropView crop_view_1;
#if defined(__x86_64__)
#include <cpuid.h>
CropView crop_view_2, crop_view_3, crop_view_4;
static CropView *const LEVELS[] = {crop_view_1, crop_view_2, crop_view_3, crop_view_4};

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
static CropView *const LEVELS[] = {crop_view_1};
int streamssl_best_level(void) { return 1; }
#endif

/* Of the sources that this library was built from. */
const char *streamssl_source_digest(void) { return SOURCE_DIGEST; }

Scratch *streamssl_new_scratch(void) { return calloc(1, sizeof(Scratch)); }

void streamssl_free_scratch(Scratch *scratch) {
    for (int i = 0; scratch && i < NUM_BUFFERS; i++) release(scratch, i);
    free(scratch);
}

/* Comparisons with what is no number are false, so it is refused. */
static int is_in(double x, double low, double high) { return low <= x && x <= high; }

static int is_allowed(const Picture *picture, const View *view) {
    const double *box = view->box;
    const float *row = view->parameters;
    return view->size >= 1 && view->size <= MAX_SIZE && is_in(box[0], 0, box[2]) && box[0] < box[2]
           && box[2] <= picture->height && is_in(box[1], 0, box[3]) && box[1] < box[3] && box[3] <= picture->width
           && is_in(row[FLIP], 0, 1) && is_in(row[ORDER], 0, NUM_ORDERS - 1) && is_in(row[BRIGHTNESS], 0, MAX_FACTOR)
           && is_in(row[CONTRAST], 0, MAX_FACTOR) && is_in(row[SATURATION], 0, MAX_FACTOR) && is_in(row[HUE], -0.5, 0.5)
           && is_in(row[GREY], 0, 1) && is_in(row[BLUR], 0, MAX_DEVIATION) && is_in(row[SOLARISE], 0, 1);
}

/* Crop all views of a picture of `height` x `width` x 3 bytes.
 *
 * boxes (num_views, 4) in pixels of the picture; parameters (num_views, NUM_PARAMETERS); sizes
 * (num_views,); outs[v] has room for sizes[v] x sizes[v] x 3 bytes. Returns 0; -1 without memory;
 * -2, before anything is written, for an argument that is not allowed. */
int streamssl_crop_views(int level, Scratch *scratch, const uint8_t *pixels, int32_t height, int32_t width,
                         const double *boxes, const float *parameters, const int32_t *sizes,
                         uint8_t *const *outs, int32_t num_views) {
    Picture picture = {pixels, height, width};
    int is_good = level >= 1 && level <= streamssl_best_level() && height >= 1 && height <= MAX_SIDE && width >= 1
                  && width <= MAX_SIDE && num_views >= 0;
    for (int pass = 0; pass < 2; pass++)
        for (int v = 0; is_good && v < num_views; v++) {
            View view = {boxes + 4 * v, parameters + NUM_PARAMETERS * v, sizes[v], outs[v]};
            if (pass == 0)
                is_good = is_allowed(&picture, &view);
            else if (LEVELS[level - 1](scratch, &picture, &view) != DONE)
                return NO_MEMORY;
        }
    return is_good ? DONE : BAD_ARGUMENT;
}
