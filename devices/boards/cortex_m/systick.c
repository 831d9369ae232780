/* Ticks by SysTick: cycles, or under emulation that counts them, instructions. */
#include "board.h"
#include "cortex_m.h"

static volatile uint64_t ticks_before; /* of whole runs of the counter */

void cortex_m_tick(void)
{
    ticks_before += SYSTICK_CYCLES;
}

void board_start_ticks(void)
{
    ticks_before = 0u;
    cortex_m_start_systick();
}

/* The counter counts down. */
uint64_t board_ticks(void)
{
    uint64_t before, now;
    uint32_t left;

    do {
        before = ticks_before;
        left = cortex_m_systick_left();
        now = ticks_before;
    } while (before != now);
    return before + (SYSTICK_CYCLES - left) % SYSTICK_CYCLES;
}
