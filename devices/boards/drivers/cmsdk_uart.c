/* The UART of Arm's Cortex-M System Design Kit (DDI 0479, APB UART), as on the MPS2 and MPS3
 * boards. CMSDK_UART is its address. */
#include "board.h"
#include "cortex_m.h"

#define DATA 0x00u
#define STATE 0x04u
#define CONTROL 0x08u
#define INTERRUPT_CLEAR 0x0cu
#define DIVIDER 0x10u

#define TRANSMITTER_FULL 1u
#define RECEIVER_FULL 2u
#define ENABLE 0x0bu /* both directions, and the receiver's interrupt */
#define RECEIVER_INTERRUPT 2u
#define BITS_PER_SECOND 115200u

static volatile uint32_t *device_register(uint32_t offset)
{
    return (volatile uint32_t *)(CMSDK_UART + offset);
}

void board_start(void)
{
    *device_register(DIVIDER) = CLOCK_HZ / BITS_PER_SECOND;
    *device_register(CONTROL) = ENABLE;
}

int board_has_byte(void)
{
    return (*device_register(STATE) & RECEIVER_FULL) != 0u;
}

uint8_t board_receive(void)
{
    const uint8_t byte = (uint8_t)*device_register(DATA);

    *device_register(INTERRUPT_CLEAR) = RECEIVER_INTERRUPT;
    return byte;
}

void board_send(uint8_t byte)
{
    while ((*device_register(STATE) & TRANSMITTER_FULL) != 0u)
        ;
    *device_register(DATA) = byte;
}

void board_reset(void)
{
    while ((*device_register(STATE) & TRANSMITTER_FULL) != 0u)
        ;
    cortex_m_reset();
}
