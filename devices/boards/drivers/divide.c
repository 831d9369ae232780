/* Division of 64 bits, which compilers call by this name. That of the compiler's library is 700 bytes;
 * here numbers of 32 bits, as nearly all are, take one instruction, and others a loop. */
#include <stdint.h>

uint64_t __udivmoddi4(uint64_t number, uint64_t divisor, uint64_t *remainder);

uint64_t __udivmoddi4(uint64_t number, uint64_t divisor, uint64_t *remainder)
{
    uint64_t quotient = 0u, rest = 0u;
    uint32_t bit;

    if ((number | divisor) >> 32 == 0u) {
        quotient = (uint32_t)number / (uint32_t)divisor;
        rest = (uint32_t)number % (uint32_t)divisor;
    } else {
        for (bit = 64u; bit-- > 0u;) {
            const int overflows = (int64_t)rest < 0;
            rest = rest << 1 | number >> 63;
            number <<= 1;
            quotient <<= 1;
            if (overflows || rest >= divisor) {
                rest -= divisor;
                quotient |= 1u;
            }
        }
    }
    if (remainder != 0)
        *remainder = rest;
    return quotient;
}
