/* Checks on plain bytes: CRC-32 and UTF-8. */
#include "sfd_parse.h"

/* Bits of one step of the checksum: 8, or 4 where the table has to be small. */
#if !defined(SFD_CRC_BITS)
#define SFD_CRC_BITS 8
#endif

/* The table is linear over XOR: an entry is the XOR of the entries of the bits of its index, so one
 * constant for each bit gives all. */
#define CRC_1(x) (x), ((x) ^ (SFD_CRC_BITS == 8 ? 0x77073096u : 0x1db71064u))
#define CRC_2(x) CRC_1(x), CRC_1((x) ^ (SFD_CRC_BITS == 8 ? 0xee0e612cu : 0x3b6e20c8u))
#define CRC_3(x) CRC_2(x), CRC_2((x) ^ (SFD_CRC_BITS == 8 ? 0x076dc419u : 0x76dc4190u))
#define CRC_4(x) CRC_3(x), CRC_3((x) ^ (SFD_CRC_BITS == 8 ? 0x0edb8832u : 0xedb88320u))
#define CRC_5(x) CRC_4(x), CRC_4((x) ^ 0x1db71064u)
#define CRC_6(x) CRC_5(x), CRC_5((x) ^ 0x3b6e20c8u)
#define CRC_7(x) CRC_6(x), CRC_6((x) ^ 0x76dc4190u)
#define CRC_8(x) CRC_7(x), CRC_7((x) ^ 0xedb88320u)

#if SFD_CRC_BITS == 8
static const uint32_t crc_table[256] = {CRC_8(UINT32_C(0))};
#else
static const uint32_t crc_table[16] = {CRC_4(UINT32_C(0))};
#endif

uint32_t sfd_crc32(uint32_t crc, const uint8_t *data, size_t size)
{
    crc = ~crc;
    for (size_t i = 0; i < size; ++i) {
        crc ^= data[i];
        for (uint32_t bits = 0u; bits < 8u; bits += SFD_CRC_BITS)
            crc = crc >> SFD_CRC_BITS ^ crc_table[crc & ((1u << SFD_CRC_BITS) - 1u)];
    }
    return ~crc;
}

uint32_t sfd_crc32_without(const uint8_t *data, size_t size, size_t field)
{
    static const uint8_t zero[4] = {0, 0, 0, 0};
    uint32_t crc = sfd_crc32(0, data, field);
    crc = sfd_crc32(crc, zero, sizeof zero);
    return sfd_crc32(crc, data + field + 4u, size - field - 4u);
}

/* Bytes of the well-formed sequence (Unicode, table 3-7) that `text` begins with, or 0. */
static size_t sequence_bytes(const uint8_t *text, size_t size)
{
    const uint32_t lead = text[0];
    uint32_t low = 0x80u, high = 0xbfu;
    size_t bytes;

    if (lead < 0x80u)
        return 1;
    if (lead < 0xc2u || lead > 0xf4u)
        return 0;
    bytes = lead < 0xe0u ? 2 : lead < 0xf0u ? 3 : 4;
    if (size < bytes)
        return 0;
    if (lead == 0xe0u)
        low = 0xa0u;
    else if (lead == 0xedu)
        high = 0x9fu;
    else if (lead == 0xf0u)
        low = 0x90u;
    else if (lead == 0xf4u)
        high = 0x8fu;
    if (text[1] < low || text[1] > high)
        return 0;
    for (size_t i = 2; i < bytes; ++i)
        if ((text[i] & 0xc0u) != 0x80u)
            return 0;
    return bytes;
}

size_t sfd_text_check(const uint8_t *text, size_t size, uint32_t *lines)
{
    size_t at = 0;

    while (at < size) {
        const size_t bytes = sequence_bytes(text + at, size - at);
        if (bytes == 0)
            return at;
        if (text[at] == '\n' && lines != NULL)
            *lines += 1;
        else if (text[at] < 0x20u || text[at] == 0x7fu)
            return at;
        at += bytes;
    }
    return size;
}
