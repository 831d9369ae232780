/* A board without sensors of its own. Yours has a file like this, and SOURCES of its board.mk name it. */
#include "board.h"

int board_sense(const struct board_example *example)
{
    (void)example;
    return 0;
}
