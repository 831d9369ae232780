/* Ticks by the cycle counter of the debug unit (Armv7-M ARM, DDI 0403, C1.8), which most real processors
 * have and emulated ones do not. Its 32 bits overflow within seconds: SysTick looks at it often enough. */
#include "board.h"
#include "cortex_m.h"

#define DEBUG_CONTROL 0xdfcu /* DEMCR */
#define ENABLE_TRACE (UINT32_C(1) << 24)
#define CYCLE_COUNTER UINT32_C(0xe0001000)
#define CONTROL 0x000u
#define COUNT 0x004u
#define LOCK 0xfb0u
#define UNLOCK UINT32_C(0xc5acce55)
#define ENABLE_COUNT 1u

static uint64_t counted;
static uint32_t seen;

static volatile uint32_t *counter_register(uint32_t offset)
{
    return (volatile uint32_t *)(CYCLE_COUNTER + offset);
}

static uint64_t count(void)
{
    const uint32_t now = *counter_register(COUNT);

    counted += now - seen;
    seen = now;
    return counted;
}

void cortex_m_tick(void)
{
    count();
}

void board_start_ticks(void)
{
    *control_register(DEBUG_CONTROL) |= ENABLE_TRACE;
    *counter_register(LOCK) = UNLOCK; /* a Cortex-M7 wants it */
    *counter_register(CONTROL) |= ENABLE_COUNT;
    cortex_m_start_systick();
    __asm__ volatile("cpsid i" ::: "memory");
    seen = *counter_register(COUNT);
    counted = 0u;
    __asm__ volatile("cpsie i" ::: "memory");
}

uint64_t board_ticks(void)
{
    uint64_t ticks;

    __asm__ volatile("cpsid i" ::: "memory");
    ticks = count();
    __asm__ volatile("cpsie i" ::: "memory");
    return ticks;
}
