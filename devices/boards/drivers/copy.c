/* The copy and the fill of the C library are 470 bytes for what boards do little of: words where the
 * addresses allow it, else bytes. */
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

void *memset(void *to, int value, size_t bytes)
{
    const uint32_t word = (uint8_t)value * UINT32_C(0x01010101);
    uint8_t *out = to;

    if ((uintptr_t)to % sizeof word == 0u) {
        uint32_t *words = to;
        for (; bytes >= 4u * sizeof word; bytes -= 4u * sizeof word, words += 4) {
            words[0] = word;
            words[1] = word;
            words[2] = word;
            words[3] = word;
        }
        out = (uint8_t *)words;
    }
    for (; bytes > 0u; --bytes)
        *out++ = (uint8_t)value;
    return to;
}
