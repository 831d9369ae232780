/* Counts the memory that a process asks for, while it is told to. Loaded by LD_PRELOAD; glibc. */
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static size_t limit, large, total;
static int counting;

static void note(size_t size)
{
    if (!counting)
        return;
    total += size;
    large += size >= limit;
}

void allocation_counter_start(size_t large_from)
{
    limit = large_from;
    large = total = 0;
    counting = 1;
}

void allocation_counter_stop(void)
{
    counting = 0;
}

size_t allocation_counter_large(void)
{
    return large;
}

size_t allocation_counter_bytes(void)
{
    return total;
}

void *malloc(size_t size)
{
    note(size);
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    note(count * size);
    return __libc_calloc(count, size);
}

void *realloc(void *block, size_t size)
{
    note(size);
    return __libc_realloc(block, size);
}

void *memalign(size_t alignment, size_t size)
{
    note(size);
    return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return memalign(alignment, size);
}

int posix_memalign(void **block, size_t alignment, size_t size)
{
    *block = memalign(alignment, size);
    return *block ? 0 : 12; /* ENOMEM */
}

void *mmap(void *address, size_t size, int protection, int flags, int file, off_t offset)
{
    note(size);
    return (void *)syscall(SYS_mmap, address, size, protection, flags, file, offset);
}
