#define _POSIX_C_SOURCE 200112L

#include "mutate.h"

#include <stdio.h>
#include <stdlib.h>

#define MAX_EDITS 4u
#define MAX_GROWTH 64u

uint64_t next_random(uint64_t *random)
{
    /* splitmix64 */
    uint64_t z = *random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

size_t below(uint64_t *random, size_t bound)
{
    return bound == 0 ? 0 : (size_t)(next_random(random) % bound);
}

void *allocate(size_t size)
{
    void *memory = NULL;
    if (posix_memalign(&memory, SFD_ALIGNMENT, size > 0 ? size : 1) != 0) {
        fprintf(stderr, "out of memory: %zu bytes\n", size);
        exit(2);
    }
    return memory;
}

static struct bytes exact_copy(const uint8_t *data, size_t size)
{
    struct bytes copy = {malloc(size > 0 ? size : 1), size};
    if (copy.data == NULL) {
        fprintf(stderr, "out of memory: %zu bytes\n", size);
        exit(2);
    }
    memcpy(copy.data, data, size);
    return copy;
}

static const uint32_t edge_values[] = {
    0u,          1u,          2u,          3u,          4u,          7u,          8u,
    0x7fu,       0x80u,       0xffu,       0x100u,      0x1000u,     0x1001u,     0x7fffu,
    0xffffu,     0x10000u,    0x10001u,    0x3ffffffu,  0x4000000u,  0x4000001u,  0x7fffffffu,
    0x80000000u, 0xfffffffcu, 0xffffffffu, 0x3f800000u, 0x41800000u, 0x7f7fffffu, 0x7f800000u,
    0xff7fffffu, 0x00000001u, 0x7fc00000u, 0xff800000u,
};

/* Half of the edits of a field go to the front, where headers and records are. */
static size_t place(uint64_t *random, size_t size, size_t width)
{
    const size_t bound = size < width ? 0 : size - width + 1;
    const size_t front = bound < 512 ? bound : 512;
    return below(random, below(random, 2) == 0 ? front : bound) & ~(width - 1);
}

static void edit_bytes(struct bytes *input, uint64_t *random)
{
    const size_t at = below(random, input->size);
    uint32_t value;

    if (input->size < 4) {
        return;
    }
    switch (below(random, 5)) {
    case 0:
        input->data[at] = (uint8_t)(input->data[at] ^ 1u << below(random, 8));
        break;
    case 1:
        input->data[at] = (uint8_t)next_random(random);
        break;
    case 2:
        value = edge_values[below(random, sizeof edge_values / sizeof edge_values[0])];
        sfd_store_u32(input->data + place(random, input->size, 4), value);
        break;
    case 3: {
        uint8_t *field = input->data + place(random, input->size, 2);
        sfd_store_u16(field, sfd_load_u16(field) + (below(random, 2) == 0 ? 1u : 0xffffu));
        break;
    }
    default:
        value = (uint32_t)below(random, 10);
        sfd_store_u16(input->data + place(random, input->size, 2), value);
        break;
    }
}

/* Cuts the end off, adds to it, or copies, inserts or removes a piece. The block has room. */
static void edit_length(struct bytes *input, uint64_t *random)
{
    const size_t piece = 1 + below(random, MAX_GROWTH);
    const size_t from = below(random, input->size), to = below(random, input->size);

    if (input->size < 2 * MAX_GROWTH || from + piece > input->size || to + piece > input->size) {
        return;
    }
    switch (below(random, 5)) {
    case 0:
        input->size = from;
        break;
    case 1:
        for (size_t i = 0; i < piece; i++) {
            input->data[input->size++] = (uint8_t)next_random(random);
        }
        break;
    case 2:
        memmove(input->data + to, input->data + from, piece);
        break;
    case 3:
        memmove(input->data + to + piece, input->data + to, input->size - to);
        input->size += piece;
        break;
    default:
        memmove(input->data + to, input->data + to + piece, input->size - to - piece);
        input->size -= piece;
        break;
    }
}

/* Makes length and checksum right again, so that the checks behind them see the damage. */
static void repair(struct bytes *input, enum file which)
{
    const size_t field = which == ARTIFACT ? 12 : 36;

    if (input->size < SFD_ARTIFACT_HEADER_BYTES) {
        return;
    }
    if (which == ARTIFACT) {
        sfd_store_u32(input->data + 8, (uint32_t)input->size);
    }
    sfd_store_u32(input->data + field, sfd_crc32_without(input->data, input->size, field));
}

struct bytes mutate(const struct bytes *original, enum file which, uint64_t *random)
{
    struct bytes work = {allocate(original->size + MAX_EDITS * MAX_GROWTH), original->size};
    struct bytes exact;
    size_t edits = below(random, 2) == 0 ? 1 : 1 + below(random, MAX_EDITS);

    memcpy(work.data, original->data, original->size);
    while (edits-- > 0) {
        if (below(random, 6) > 0) {
            edit_bytes(&work, random);
        } else {
            edit_length(&work, random);
        }
    }
    if (below(random, 2) == 0) {
        repair(&work, which);
    }
    exact = exact_copy(work.data, work.size);
    free(work.data);
    return exact;
}
