/* Unit tests of the byte-level parts: checksum, text, loads and stores, error texts.
 * Prints nothing and exits with 0 if all is well. */
#include <stdio.h>

#include "sfd_parse.h"

static int failures;

#define EXPECT(condition)                                                   \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            failures++;                                                     \
        }                                                                   \
    } while (0)

static void test_crc32(void)
{
    static const uint8_t digits[] = "123456789";
    static const uint8_t with_field[12] = {1, 2, 3, 4, 0xaa, 0xbb, 0xcc, 0xdd, 5, 6, 7, 8};
    static const uint8_t with_zeros[12] = {1, 2, 3, 4, 0, 0, 0, 0, 5, 6, 7, 8};

    EXPECT(sfd_crc32(0, digits, 0) == 0);
    EXPECT(sfd_crc32(0, digits, 9) == 0xcbf43926u);
    EXPECT(sfd_crc32(sfd_crc32(0, digits, 4), digits + 4, 5) == 0xcbf43926u);
    EXPECT(sfd_crc32_without(with_field, 12, 4) == sfd_crc32(0, with_zeros, 12));
    EXPECT(sfd_crc32_without(with_field, 12, 4) != sfd_crc32(0, with_field, 12));
}

/* Each bit of each byte counts: no two of the single-bit messages share a checksum. */
static void test_crc32_sees_every_bit(void)
{
    uint32_t seen[64];
    uint8_t message[8];

    for (uint32_t bit = 0; bit < 64u; bit++) {
        memset(message, 0, sizeof message);
        message[bit / 8u] = (uint8_t)(1u << bit % 8u);
        seen[bit] = sfd_crc32(0, message, sizeof message);
        for (uint32_t before = 0; before < bit; before++) {
            EXPECT(seen[before] != seen[bit]);
        }
    }
}

static int is_text(const char *text)
{
    return sfd_text_check((const uint8_t *)text, strlen(text), NULL) == strlen(text);
}

static void test_text(void)
{
    uint32_t lines = 0;

    EXPECT(is_text(""));
    EXPECT(is_text("layer1.0.conv.weight"));
    EXPECT(is_text("\xc2\x80 \xdf\xbf \xe0\xa0\x80 \xed\x9f\xbf \xee\x80\x80 \xef\xbf\xbf"));
    EXPECT(is_text("\xf0\x90\x80\x80 \xf4\x8f\xbf\xbf"));
    EXPECT(!is_text("\x80"));             /* continuation alone */
    EXPECT(!is_text("\xc0\xaf"));         /* overlong, two bytes */
    EXPECT(!is_text("\xc1\xbf"));         /* overlong, two bytes */
    EXPECT(!is_text("\xe0\x9f\xbf"));     /* overlong, three bytes */
    EXPECT(!is_text("\xf0\x8f\xbf\xbf")); /* overlong, four bytes */
    EXPECT(!is_text("\xed\xa0\x80"));     /* surrogate */
    EXPECT(!is_text("\xf4\x90\x80\x80")); /* past U+10FFFF */
    EXPECT(!is_text("\xf5\x80\x80\x80")); /* no lead byte */
    EXPECT(!is_text("\xe2\x82"));         /* cut off */
    EXPECT(!is_text("\xe2\x82"
                    "a")); /* broken in the middle */
    EXPECT(!is_text("a\nb"));
    EXPECT(!is_text("a\x1b[31m"));
    EXPECT(!is_text("\x7f"));
    EXPECT(sfd_text_check((const uint8_t *)"a\0b", 3, NULL) == 1);
    EXPECT(sfd_text_check((const uint8_t *)"a\nb\n\xff", 5, &lines) == 4 && lines == 2);
}

static void test_loads_and_stores(void)
{
    uint8_t bytes[8] = {0};

    sfd_store_u32(bytes + 1, 0x89abcdefu); /* no alignment is needed */
    EXPECT(bytes[1] == 0xef && bytes[4] == 0x89 && bytes[0] == 0 && bytes[5] == 0);
    EXPECT(sfd_load_u32(bytes + 1) == 0x89abcdefu);
    sfd_store_u16(bytes + 1, 0x12345678u);
    EXPECT(sfd_load_u32(bytes + 1) == 0x89ab5678u && sfd_load_u16(bytes + 1) == 0x5678u);
    sfd_store_f32(bytes + 3, -1.5f);
    EXPECT(sfd_load_u32(bytes + 3) == 0xbfc00000u);
    EXPECT(sfd_load_f32(bytes + 3) <= -1.5f && sfd_load_f32(bytes + 3) >= -1.5f);
}

static void test_error_strings(void)
{
    for (int code = SFD_OK; code >= SFD_ERR_CAPACITY; code--) {
        EXPECT(strcmp(sfd_error_string(code), sfd_error_string(1)) != 0);
        for (int before = SFD_OK; before > code; before--) {
            EXPECT(strcmp(sfd_error_string(code), sfd_error_string(before)) != 0);
        }
    }
    EXPECT(strcmp(sfd_error_string(-1000), sfd_error_string(1)) == 0);
}

static void test_missing_data(void)
{
    struct sfd_problem problem = {0, 0, 0};

    EXPECT(sfd_artifact_check(NULL, 100, &problem) == SFD_ERR_ARGUMENT);
    EXPECT(sfd_container_check(NULL, 100, &problem) == SFD_ERR_ARGUMENT);
    EXPECT(sfd_artifact_check(NULL, 0, &problem) == SFD_ERR_LENGTH);
    EXPECT(problem.got == 0 && problem.wanted == SFD_ARTIFACT_HEADER_BYTES);
    EXPECT(sfd_container_check(NULL, 0, NULL) == SFD_ERR_LENGTH);
    EXPECT(sfd_update_check(NULL, 0, NULL, 0, NULL) == SFD_ERR_LENGTH);
    EXPECT(sfd_state_check(NULL, 0, NULL, 0, NULL) == SFD_ERR_LENGTH);
}

int main(void)
{
    test_crc32();
    test_crc32_sees_every_bit();
    test_text();
    test_loads_and_stores();
    test_error_strings();
    test_missing_data();
    return failures == 0 ? 0 : 1;
}
