/* Sums over runs of floats, in several accumulators and in pieces: long sums lose digits. */
#ifndef SFD_FAST_SUMS_H
#define SFD_FAST_SUMS_H

#include "fast_bits.h"

#define ACCUMULATORS 4u
#define STRIDE (ACCUMULATORS * SFD_LANES)
#define PIECE (128u * STRIDE) /* elements summed before they join the total */

SFD_INLINE float accumulators_sum(const vector *part)
{
    return vector_sum((part[0] + part[1]) + (part[2] + part[3]));
}

/* Sum of x - shift, or of its square, over one run. */
SFD_INLINE float run_sum(const float *x, uint32_t count, float shift, int squared)
{
    const vector centre = vector_all(shift);
    float total = 0.0f;
    uint32_t start, i, j;

    for (start = 0u; start < count; start += PIECE) {
        const uint32_t length = count - start < PIECE ? count - start : PIECE;
        const float *in = x + start;
        vector part[ACCUMULATORS] = {{0.0f}};
        for (i = 0u; i + STRIDE <= length; i += STRIDE)
            for (j = 0u; j < ACCUMULATORS; ++j) {
                vector d = vector_load(in + i + j * SFD_LANES) - centre;
                part[j] += squared ? d * d : d;
            }
        for (; i + SFD_LANES <= length; i += SFD_LANES) {
            vector d = vector_load(in + i) - centre;
            part[0] += squared ? d * d : d;
        }
        total += accumulators_sum(part);
        for (; i < length; ++i)
            total += squared ? (in[i] - shift) * (in[i] - shift) : in[i] - shift;
    }
    return total;
}

#endif
