/* Floats as int8. */
#include "sfd_math.h"

/* Adding and taking away leaves the nearest integer, ties to even, of what is small beside it. */
#define TO_INTEGER 12582912.0f /* 1.5 * 2^23 */
#define FAR 512.0f

static int8_t quantized(float x, float scale, int32_t zero_point)
{
    float steps = x / scale;
    int32_t number;

    if (steps > FAR) /* also where the quotient overflows */
        steps = FAR;
    if (steps < -FAR)
        steps = -FAR;
    number = (int32_t)(steps + TO_INTEGER - TO_INTEGER) + zero_point;
    if (number < INT8_MIN)
        return INT8_MIN;
    return number > INT8_MAX ? INT8_MAX : (int8_t)number;
}

int sfd_quantize(const float *x, size_t count, float scale, int32_t zero_point, int8_t *out)
{
    size_t i;

    if (x == NULL || out == NULL || !(scale > 0.0f && scale < SFD_INFINITY) ||
        zero_point < INT8_MIN || zero_point > INT8_MAX)
        return SFD_ERR_ARGUMENT;
    if (!sfd_all_finite(x, count))
        return SFD_ERR_INPUT;
    for (i = 0u; i < count; ++i)
        out[i] = quantized(x[i], scale, zero_point);
    return SFD_OK;
}
