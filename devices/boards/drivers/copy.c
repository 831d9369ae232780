/* The copy of the C library is 300 bytes for what boards copy little of: words where both ends allow
 * it, else bytes. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes)
{
    uint8_t *out = to;
    const uint8_t *in = from;

    if (((uintptr_t)to | (uintptr_t)from) % sizeof(uint32_t) == 0u)
        for (; bytes >= sizeof(uint32_t); bytes -= sizeof(uint32_t), out += 4, in += 4)
            *(uint32_t *)(void *)out = *(const uint32_t *)(const void *)in;
    for (; bytes > 0u; --bytes)
        *out++ = *in++;
    return to;
}
