/* What all Cortex-M boards share. */
#ifndef CORTEX_M_H
#define CORTEX_M_H

/* Sleep until an interrupt, unless the line has a byte: LINE_INTERRUPT is the one that it raises. */
void cortex_m_sleep_unless(int (*has_byte)(void));
void cortex_m_reset(void) __attribute__((noreturn));

#endif
