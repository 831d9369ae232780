/* The firmware: takes what comes on the serial line, does it, and answers. */
#include "board.h"
#include "line.h"

int main(void)
{
    static struct line line;
    static struct trainer trainer;

    board_start();
    trainer_start(&trainer, board_memory_start,
                  (uint32_t)((uintptr_t)board_memory_end - (uintptr_t)board_memory_start));
    for (;;)
        line_take(&line, &trainer, board_receive());
}
