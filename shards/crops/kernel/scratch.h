/* Memory that a kernel keeps between calls. Each thread has its own. */
#ifndef SCRATCH_H
#define SCRATCH_H

#include <stdlib.h>

#include "kernel.h"

enum { INPUT, COLUMNS, ROWS, TAPS_Y, TAPS_X, SHARES, NARROW, SMALL, NUM_BUFFERS };

struct Scratch {
    void *at[NUM_BUFFERS];
    size_t size[NUM_BUFFERS];
};

#ifdef CHECKED_SCRATCH
/* Of the drills: a new block at each call, of exactly this size, beside which nothing may be touched;
 * of no bytes it is NULL. */
void *checked_block(void *old, size_t old_size, size_t size);
#endif

/* At least `size` bytes, aligned for every vector; NULL if there is no memory. */
static inline void *reserve(Scratch *scratch, int buffer, size_t size) {
#ifdef CHECKED_SCRATCH
    scratch->at[buffer] = checked_block(scratch->at[buffer], scratch->size[buffer], size);
    scratch->size[buffer] = size;
    return scratch->at[buffer];
#endif
    if (size > scratch->size[buffer]) {
        free(scratch->at[buffer]);
        size = (size + size / 2 + 4095) & ~(size_t)4095;
        scratch->at[buffer] = aligned_alloc(4096, size);
        scratch->size[buffer] = scratch->at[buffer] ? size : 0;
    }
    return scratch->at[buffer];
}

static inline void release(Scratch *scratch, int buffer) {
#ifdef CHECKED_SCRATCH
    checked_block(scratch->at[buffer], scratch->size[buffer], 0);
#else
    free(scratch->at[buffer]);
#endif
}

#endif
