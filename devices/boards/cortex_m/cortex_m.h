/* What all Cortex-M boards share. */
#ifndef CORTEX_M_H
#define CORTEX_M_H

#include <stdint.h>

/* A register of the system control space (Armv7-M ARM, DDI 0403, B3.2). */
static inline volatile uint32_t *control_register(uint32_t offset)
{
    return (volatile uint32_t *)(UINT32_C(0xe000e000) + offset);
}

/* Interrupts: LINE_INTERRUPT is the one that a byte of the line raises, and ends a sleep. */
void cortex_m_reset(void) __attribute__((noreturn));

/* SysTick counts the processor's cycles, and calls cortex_m_tick after each SYSTICK_CYCLES. */
#define SYSTICK_CYCLES UINT32_C(0x01000000)
void cortex_m_start_systick(void);
uint32_t cortex_m_systick_left(void); /* of them; 0 where it begins and ends */
void cortex_m_tick(void);

#endif
