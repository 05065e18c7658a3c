/* Memory for the crop kernel under a checker: a new block at each call, of exactly `size` bytes, full of
 * a pattern. ASan guards it; without ASan, a page follows it that may not be touched. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, ALIGNMENT = 64 };

static size_t rounded(size_t size, size_t to) { return (size + to - 1) / to * to; }

void *checked_block(void *old, size_t old_size, size_t size) {
#ifdef __SANITIZE_ADDRESS__
    void *block = NULL;
    (void)old_size, (void)rounded;
    free(old);
    if (size == 0) return NULL;
    if (posix_memalign(&block, ALIGNMENT, size)) return NULL;
#else
    size_t used = rounded(size, ALIGNMENT), pages = rounded(used, PAGE), before = (uintptr_t)old % PAGE;
    if (old) munmap((uint8_t *)old - before, before + rounded(old_size, ALIGNMENT) + PAGE);
    if (size == 0) return NULL;
    uint8_t *start = mmap(NULL, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(start + pages, PAGE, PROT_NONE)) return NULL;
    uint8_t *block = start + pages - used;
#endif
    return memset(block, 0xa5, size);
}
