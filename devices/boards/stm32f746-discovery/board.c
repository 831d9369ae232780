/* 32F746GDISCOVERY: clock and line (RM0385: 3 flash, 4 PWR, 5 RCC, 6 GPIO, 31 USART; UM1907 for the pins). The
 * line is USART1 on PA9 and PB7, which the board's ST-LINK has as a virtual COM port. */
#include "board.h"
#include "cortex_m.h"

#define FLASH_ACCESS_CONTROL UINT32_C(0x40023c00)
#define SEVEN_WAIT_STATES 7u /* 2.7 V and more, over 210 MHz */
#define FLASH_ACCELERATOR ((UINT32_C(1) << 8) | (UINT32_C(1) << 9)) /* prefetch, ART */

#define POWER UINT32_C(0x40007000)
#define POWER_CONTROL 0x00u
#define POWER_STATE 0x04u
#define OVER_DRIVE (UINT32_C(1) << 16) /* over 180 MHz; in control and state */
#define OVER_DRIVE_SWITCH (UINT32_C(1) << 17)

#define CLOCKS UINT32_C(0x40023800)
#define CLOCK_CONTROL 0x00u
#define PLL_SETTINGS 0x04u
#define CLOCK_CHOICE 0x08u
#define AHB1_ENABLE 0x30u
#define APB1_ENABLE 0x40u
#define APB2_ENABLE 0x44u
#define CRYSTAL_ON (UINT32_C(1) << 16) /* 25 MHz */
#define CRYSTAL_READY (UINT32_C(1) << 17)
#define PLL_ON (UINT32_C(1) << 24)
#define PLL_READY (UINT32_C(1) << 25)
/* of the crystal: 25 MHz / 25 * 432 / 2; Q, for USB, must be 2 at least */
#define PLL_216_MHZ (25u | (432u << 6) | (0u << 16) | (UINT32_C(1) << 22) | (9u << 24))
#define BUS_DIVIDERS ((5u << 10) | (4u << 13)) /* APB1 by 4: 54 MHz, APB2 by 2: 108 MHz */
#define USE_PLL 2u
#define USES_PLL (2u << 2)
#define BUS_CLOCK_HZ (CLOCK_HZ / 2u) /* of USART1, on APB2 */

#define ENABLE_PORTS_A_AND_B 3u          /* AHB1 */
#define ENABLE_POWER (UINT32_C(1) << 28) /* APB1 */
#define ENABLE_USART1 (UINT32_C(1) << 4) /* APB2 */

#define PORT_A UINT32_C(0x40020000)
#define PORT_B UINT32_C(0x40020400)
#define PORT_MODE 0x00u
#define PORT_ALTERNATE 0x20u /* and 0x24 for pins 8 to 15 */
#define ALTERNATE_MODE 2u
#define ALTERNATE_USART1 7u

#define USART1 UINT32_C(0x40011000)
#define USART_CONTROL 0x00u
#define USART_RATE 0x0cu
#define USART_STATE 0x1cu
#define USART_CLEAR 0x20u
#define USART_RECEIVED 0x24u
#define USART_TRANSMIT 0x28u
#define USART_ENABLE 0x2du /* itself, receiver, transmitter, the receiver's interrupt */
#define OVERRUN (UINT32_C(1) << 3)
#define RECEIVER_FULL (UINT32_C(1) << 5)
#define TRANSMISSION_COMPLETE (UINT32_C(1) << 6)
#define TRANSMITTER_EMPTY (UINT32_C(1) << 7)
#define BITS_PER_SECOND 115200u

#define INSTRUCTION_CACHE_INVALIDATE 0xf50u /* ICIALLU */
#define CACHE_CONTROL 0xd14u                /* CCR */
#define INSTRUCTION_CACHE_ON (UINT32_C(1) << 17)

static volatile uint32_t *device_register(uint32_t device, uint32_t offset)
{
    return (volatile uint32_t *)(device + offset);
}

static void wait_for(uint32_t device, uint32_t offset, uint32_t bits)
{
    while ((*device_register(device, offset) & bits) != bits)
        ;
}

/* The order is that of RM0385, 4.1.4, "Entering over-drive mode". */
static void start_clock(void)
{
    *device_register(CLOCKS, APB1_ENABLE) |= ENABLE_POWER;
    *device_register(CLOCKS, CLOCK_CONTROL) |= CRYSTAL_ON;
    wait_for(CLOCKS, CLOCK_CONTROL, CRYSTAL_READY);
    *device_register(CLOCKS, PLL_SETTINGS) = PLL_216_MHZ;
    *device_register(CLOCKS, CLOCK_CONTROL) |= PLL_ON;
    *device_register(POWER, POWER_CONTROL) |= OVER_DRIVE;
    wait_for(POWER, POWER_STATE, OVER_DRIVE);
    *device_register(POWER, POWER_CONTROL) |= OVER_DRIVE_SWITCH;
    wait_for(POWER, POWER_STATE, OVER_DRIVE_SWITCH);
    *device_register(FLASH_ACCESS_CONTROL, 0u) = SEVEN_WAIT_STATES | FLASH_ACCELERATOR;
    wait_for(FLASH_ACCESS_CONTROL, 0u, SEVEN_WAIT_STATES);
    wait_for(CLOCKS, CLOCK_CONTROL, PLL_READY);
    *device_register(CLOCKS, CLOCK_CHOICE) = BUS_DIVIDERS | USE_PLL;
    wait_for(CLOCKS, CLOCK_CHOICE, USES_PLL);
}

static void start_instruction_cache(void)
{
    *control_register(INSTRUCTION_CACHE_INVALIDATE) = 0u;
    __asm__ volatile("dsb\n\tisb" ::: "memory");
    *control_register(CACHE_CONTROL) |= INSTRUCTION_CACHE_ON;
    __asm__ volatile("dsb\n\tisb" ::: "memory");
}

static void connect_pin(uint32_t port, uint32_t pin)
{
    volatile uint32_t *mode = device_register(port, PORT_MODE);
    volatile uint32_t *alternate = device_register(port, PORT_ALTERNATE + pin / 8u * 4u);

    *alternate = (*alternate & ~(UINT32_C(15) << pin % 8u * 4u)) | ALTERNATE_USART1
                                                                       << pin % 8u * 4u;
    *mode = (*mode & ~(UINT32_C(3) << pin * 2u)) | ALTERNATE_MODE << pin * 2u;
}

void board_start(void)
{
    start_clock();
    start_instruction_cache();
    *device_register(CLOCKS, AHB1_ENABLE) |= ENABLE_PORTS_A_AND_B;
    *device_register(CLOCKS, APB2_ENABLE) |= ENABLE_USART1;
    (void)*device_register(CLOCKS, APB2_ENABLE); /* a clock takes two cycles to arrive */
    connect_pin(PORT_A, 9u);
    connect_pin(PORT_B, 7u);
    *device_register(USART1, USART_RATE) = (BUS_CLOCK_HZ + BITS_PER_SECOND / 2u) / BITS_PER_SECOND;
    *device_register(USART1, USART_CONTROL) = USART_ENABLE;
}

/* What came while the board computed is lost, and the receiver must be told that this is known. */
int board_has_byte(void)
{
    const uint32_t state = *device_register(USART1, USART_STATE);

    if ((state & OVERRUN) != 0u)
        *device_register(USART1, USART_CLEAR) = OVERRUN;
    return (state & RECEIVER_FULL) != 0u;
}

uint8_t board_receive(void)
{
    return (uint8_t)*device_register(USART1, USART_RECEIVED);
}

void board_send(uint8_t byte)
{
    wait_for(USART1, USART_STATE, TRANSMITTER_EMPTY);
    *device_register(USART1, USART_TRANSMIT) = byte;
}

void board_reset(void)
{
    wait_for(USART1, USART_STATE, TRANSMISSION_COMPLETE);
    cortex_m_reset();
}
