/* How much of a painted stack was touched. */
#include "drivers/stack.h"

#include "board.h"

extern uint32_t stack_bottom[], stack_top[];

uint32_t board_stack_bytes(void)
{
    return (uint32_t)((uintptr_t)stack_top - (uintptr_t)stack_bottom);
}

uint32_t board_stack_touched(void)
{
    const volatile uint32_t *word = stack_bottom;

    while (word < stack_top && *word == STACK_PAINT)
        ++word;
    return (uint32_t)((uintptr_t)stack_top - (uintptr_t)word);
}
