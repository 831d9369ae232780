/* Start-up of a Cortex-M: vectors, floating-point unit, sections, painted stack (Armv7-M ARM,
 * DDI 0403, B1.5 and B3.2; Armv8-M ARM, DDI 0553). */
#include <string.h>

#include "board.h"
#include "cortex_m.h"
#include "drivers/stack.h"

#define SYSTICK_CONTROL 0x010u
#define SYSTICK_RELOAD 0x014u
#define SYSTICK_CURRENT 0x018u
#define INTERRUPT_ENABLE 0x100u
#define INTERRUPT_DISABLE 0x180u
#define RESET_CONTROL 0xd0cu
#define COPROCESSOR_ACCESS 0xd88u

#define SYSTICK_RUN 7u /* processor's clock, interrupt, enabled */
#define FULL_ACCESS_TO_FLOATING_POINT (UINT32_C(0xf) << 20)
#define RESET_REQUEST UINT32_C(0x05fa0004)

extern uint32_t stack_bottom[], stack_top[];
extern const uint8_t data_load_start[];

int main(void);
void reset_handler(void);

static void stop_handler(void)
{
    cortex_m_reset(); /* a fault: the host sees a board that lost its model */
}

static volatile uint32_t *line_interrupt(uint32_t enable_or_disable)
{
    return control_register(enable_or_disable + LINE_INTERRUPT / 32u * 4u);
}

/* It has done its work by waking the processor. */
static void line_handler(void)
{
    *line_interrupt(INTERRUPT_DISABLE) = UINT32_C(1) << LINE_INTERRUPT % 32u;
}

typedef void (*vector)(void);

__attribute__((section(".vectors"),
               used)) static const vector vectors[16u + LINE_INTERRUPT + 1u] = {
    (vector)(uintptr_t)stack_top,
    reset_handler,
    stop_handler, /* not maskable */
    stop_handler, /* hard fault */
    stop_handler, /* memory management */
    stop_handler, /* bus fault */
    stop_handler, /* usage fault */
    [15] = cortex_m_tick,
    [16u + LINE_INTERRUPT] = line_handler,
};

static void paint_stack(void)
{
    volatile uint32_t *word;

    /* up to what this function itself may use */
    for (word = stack_bottom; word < (uint32_t *)__builtin_frame_address(0) - 16; ++word)
        *word = STACK_PAINT;
}

void reset_handler(void)
{
    *control_register(COPROCESSOR_ACCESS) |= FULL_ACCESS_TO_FLOATING_POINT;
    __asm__ volatile("dsb\n\tisb" ::: "memory");
    paint_stack();
    memcpy(board_data_start, data_load_start, (size_t)(board_data_end - board_data_start));
    memset(board_bss_start, 0, (size_t)(board_bss_end - board_bss_start));
    (void)main();
}

void cortex_m_start_systick(void)
{
    *control_register(SYSTICK_CONTROL) = 0u;
    *control_register(SYSTICK_RELOAD) = SYSTICK_CYCLES - 1u;
    *control_register(SYSTICK_CURRENT) = 0u;
    *control_register(SYSTICK_CONTROL) = SYSTICK_RUN;
}

uint32_t cortex_m_systick_left(void)
{
    return *control_register(SYSTICK_CURRENT);
}

uint32_t board_ticks_per_second(void)
{
    return CLOCK_HZ;
}

/* A byte that comes between the look and the sleep leaves its interrupt pending, which ends the sleep
 * though interrupts are masked. */
void board_sleep(void)
{
    __asm__ volatile("cpsid i" ::: "memory");
    if (!board_has_byte()) {
        *line_interrupt(INTERRUPT_ENABLE) = UINT32_C(1) << LINE_INTERRUPT % 32u;
        __asm__ volatile("dsb\n\twfi" ::: "memory");
    }
    __asm__ volatile("cpsie i\n\tisb" ::: "memory");
}

void cortex_m_reset(void)
{
    *control_register(RESET_CONTROL) = RESET_REQUEST;
    for (;;)
        ;
}
