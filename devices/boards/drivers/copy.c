/* The copy and the fill of the C library are 470 bytes for what boards do little of: some words at a
 * time where the addresses allow it, else bytes. A structure is not copied here: that may be a call of
 * this very function. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes)
{
    uint8_t *out = to;
    const uint8_t *in = from;

    if (((uintptr_t)to | (uintptr_t)from) % sizeof(uint32_t) == 0u)
        for (; bytes >= 16u; bytes -= 16u, out += 16, in += 16) {
            const uint32_t *source = (const uint32_t *)(const void *)in;
            uint32_t *words = (uint32_t *)(void *)out;
            const uint32_t a = source[0], b = source[1], c = source[2], d = source[3];
            words[0] = a;
            words[1] = b;
            words[2] = c;
            words[3] = d;
        }
    for (; bytes > 0u; --bytes)
        *out++ = *in++;
    return to;
}

void *memset(void *to, int value, size_t bytes)
{
    const uint32_t word = (uint8_t)value * UINT32_C(0x01010101);
    uint8_t *out = to, *const end = out + bytes;

    if ((uintptr_t)to % sizeof word == 0u)
        for (; bytes >= 32u; bytes -= 32u, out += 32) {
            uint32_t *words = (uint32_t *)(void *)out;
            words[0] = words[1] = words[2] = words[3] = word;
            words[4] = words[5] = words[6] = words[7] = word;
        }
    while (out < end)
        *out++ = (uint8_t)value;
    return to;
}
