/* Where a driver of sensors begins: they never have an example. SENSORS of your board.mk names your copy. */
#include "board.h"

int board_sense(const struct board_example *example)
{
    (void)example;
    return 0;
}
