/* Examples for boards without sensors, to test with: always one is ready, the same after each start. */
#include <stddef.h>

#include "board.h"
#include "sfd.h"

static float pattern(uint32_t example, uint32_t place)
{
    return (float)((example * 31u + place * 17u) % 64u) / 32.0f - 1.0f;
}

int board_sense(const struct board_example *example)
{
    static uint32_t number;
    uint32_t i;

    for (i = 0u; i < example->inputs; ++i) {
        const float measured = pattern(number, i);
        if (example->input != NULL)
            example->input[i] = measured;
        else
            (void)sfd_quantize(&measured, 1u, example->scale, example->zero_point,
                               &example->input_int8[i]);
    }
    if (example->label != NULL)
        *example->label = (int32_t)(number % 2u);
    else
        for (i = 0u; i < example->targets; ++i)
            example->target[i] = pattern(number, example->inputs + i);
    ++number;
    return 1;
}
