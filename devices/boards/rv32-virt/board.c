/* The virt machine: a 16550 UART, the interrupt controller that wakes the processor for it, and
 * instructions retired as the counter. */
#include "board.h"

#define UART UINT32_C(0x10000000)
#define UART_DATA 0u
#define UART_INTERRUPTS 1u
#define UART_FIFO 2u
#define UART_LINE_CONTROL 3u
#define UART_LINE_STATUS 5u
#define DIVIDER_ACCESS 0x80u
#define EIGHT_BITS 0x03u
#define FIFO_OF_8 0x81u
#define RECEIVED 0x01u
#define MAY_SEND 0x20u

#define PLIC UINT32_C(0x0c000000)
#define UART_SOURCE 10u
#define PLIC_ENABLE 0x2000u
#define PLIC_CLAIM 0x200004u
#define EXTERNAL_INTERRUPT (UINT32_C(1) << 11)

#define TEST_DEVICE UINT32_C(0x00100000)
#define TEST_RESET 0x7777u

#define TICKS_PER_SECOND UINT32_C(1000000000) /* of QEMU's -icount shift=0: one an instruction */

static volatile uint8_t *uart_register(uint32_t offset)
{
    return (volatile uint8_t *)(UART + offset);
}

static volatile uint32_t *plic_register(uint32_t offset)
{
    return (volatile uint32_t *)(PLIC + offset);
}

/* Interrupts end a sleep, and are never taken: mstatus.MIE stays 0. */
void board_start(void)
{
    *uart_register(UART_LINE_CONTROL) = DIVIDER_ACCESS;
    *uart_register(UART_DATA) = 1u;
    *uart_register(UART_INTERRUPTS) = 0u;
    *uart_register(UART_LINE_CONTROL) = EIGHT_BITS;
    *uart_register(UART_FIFO) = FIFO_OF_8;
    *uart_register(UART_INTERRUPTS) = RECEIVED;
    *plic_register(4u * UART_SOURCE) = 1u;
    *plic_register(PLIC_ENABLE) = UINT32_C(1) << UART_SOURCE;
    __asm__ volatile("csrs mie, %0" : : "r"(EXTERNAL_INTERRUPT));
}

int board_has_byte(void)
{
    return (*uart_register(UART_LINE_STATUS) & RECEIVED) != 0u;
}

uint8_t board_receive(void)
{
    return *uart_register(UART_DATA);
}

/* A byte that came since the last look has its interrupt pending, which ends the sleep at once. */
void board_sleep(void)
{
    uint32_t source;

    __asm__ volatile("wfi" ::: "memory");
    source = *plic_register(PLIC_CLAIM);
    *plic_register(PLIC_CLAIM) = source;
}

void board_send(uint8_t byte)
{
    while ((*uart_register(UART_LINE_STATUS) & MAY_SEND) == 0u)
        ;
    *uart_register(UART_DATA) = byte;
}

void board_reset(void)
{
    *(volatile uint32_t *)TEST_DEVICE = TEST_RESET;
    for (;;)
        ;
}

static uint64_t instructions_retired(void)
{
    uint32_t low, high, again;

    do {
        __asm__ volatile("csrr %0, minstreth" : "=r"(high));
        __asm__ volatile("csrr %0, minstret" : "=r"(low));
        __asm__ volatile("csrr %0, minstreth" : "=r"(again));
    } while (high != again);
    return (uint64_t)high << 32 | low;
}

static uint64_t started;

void board_start_ticks(void)
{
    started = instructions_retired();
}

uint64_t board_ticks(void)
{
    return instructions_retired() - started;
}

uint32_t board_ticks_per_second(void)
{
    return TICKS_PER_SECOND;
}
