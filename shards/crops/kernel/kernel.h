/* The crop kernel: all views of one decoded image, in integers, the same bits on every CPU.
 *
 * `recipe.py` defines what a row of parameters means; `native.py` calls these functions.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include <stddef.h>
#include <stdint.h>

/* Columns of a row of parameters; the first four, the relative box, are not read here. */
enum { FLIP = 4, ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, BLUR, SOLARISE, NUM_PARAMETERS };
/* Steps of a factor from 0 to 1, and of the hue in one turn. */
enum { FACTOR_STEPS = 4096, HUE_STEPS = 192 };
/* Bounds of what is accepted: pixels of a crop and of an image along one side, a factor, and the standard
 * deviation of a blur. A recipe stays within them. */
enum { MAX_SIZE = 4096, MAX_SIDE = 1 << 22, MAX_FACTOR = 128, MAX_DEVIATION = 170 };
enum { NUM_ORDERS = 24 };

enum { DONE = 0, NO_MEMORY = -1, BAD_ARGUMENT = -2 };

/* An upright image of `height` x `width` x 3 bytes. */
typedef struct {
    const uint8_t *pixels;
    int32_t height, width;
} Picture;

/* One view: its box in pixels, which may end between pixels; its row of parameters; and the place
 * of its `size` x `size` x 3 bytes. */
typedef struct {
    const double *box; /* y0 x0 y1 x1 */
    const float *parameters;
    int32_t size;
    uint8_t *out;
} View;

typedef struct Scratch Scratch;

#endif
