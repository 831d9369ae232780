/* What a board gives to the firmware: its folder holds a linker script and names the drivers. */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

/* Ready the serial line. Called once, before all others. */
void board_start(void);

/* Whether a byte of the line waits; the next one, which must be there. */
int board_has_byte(void);
uint8_t board_receive(void);

/* Wait for an interrupt, such as that of a byte or a sensor. */
void board_sleep(void);

void board_send(uint8_t byte);

/* Start the program again, once what was sent is on the line. */
void board_reset(void) __attribute__((noreturn));

/* Whether the board has sensors of its own: SENSORS of board.mk. */
#if !defined(BOARD_HAS_SENSORS)
#define BOARD_HAS_SENSORS 1
#endif

/* Where an example of them goes. */
struct board_example {
    float *input; /* NULL for a model that takes int8 */
    int8_t *
        input_int8; /* of such a model: q for scale * (q - zero_point), as sfd_quantize makes them */
    float scale;
    int32_t zero_point;
    uint32_t inputs;
    int32_t *label; /* NULL for a model that learns targets */
    float *target;
    uint32_t targets;
};

/* Of firmware with sensors: fill in the next example that they have made. 0: none is ready, and nothing was
 * written. */
int board_sense(const struct board_example *example);

/* A counter, and what it has counted since it was started: cycles of the processor or, under
 * emulation that counts them, instructions. The same work gives the same number. */
void board_start_ticks(void);
uint64_t board_ticks(void);
uint32_t board_ticks_per_second(void);

/* Most bytes of the stack that were in use at one time, and the bytes that it has. */
uint32_t board_stack_touched(void);
uint32_t board_stack_bytes(void);

/* The memory left to models and data: from the linker script, aligned to SFD_ALIGNMENT. */
extern uint8_t board_memory_start[], board_memory_end[];

/* Ends of the sections, from the linker script, for the sizes that the firmware reports. */
extern uint8_t board_text_start[], board_text_end[];
extern uint8_t board_data_start[], board_data_end[];
extern uint8_t board_bss_start[], board_bss_end[];

#endif
