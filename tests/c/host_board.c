/* A board on this host: its line is standard input and output, its memory a block whose ends
 * sanitizers watch. The linker is told where that ends (tests/board_firmware.py). */
#define _POSIX_C_SOURCE 200809L
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "board.h"
#include "sfd.h"

uint8_t board_memory_start[MEMORY_BYTES] __attribute__((aligned(SFD_ALIGNMENT)));

void board_start(void)
{
    static char output[2048];

    setvbuf(stdout, output, _IOFBF, sizeof output);
}

static uint8_t input[2048];
static ssize_t held, at;

static void take_input(void)
{
    at = 0;
    held = read(STDIN_FILENO, input, sizeof input);
    if (held <= 0)
        exit(0);
}

int board_has_byte(void)
{
    struct pollfd line = {STDIN_FILENO, POLLIN, 0};

    if (at < held)
        return 1;
    fflush(stdout);
    if (poll(&line, 1, 0) > 0)
        take_input();
    return at < held;
}

uint8_t board_receive(void)
{
    return input[at++];
}

void board_sleep(void)
{
    take_input();
}

void board_send(uint8_t byte)
{
    putchar(byte);
}

/* The program begins again, on the same line. */
void board_reset(void)
{
    fflush(stdout);
    execl("/proc/self/exe", "firmware", (char *)NULL);
    abort();
}

static uint64_t ticks;

void board_start_ticks(void)
{
    ticks = 0u;
}

uint64_t board_ticks(void)
{
    return ++ticks;
}

uint32_t board_ticks_per_second(void)
{
    return 1000000000u;
}

uint32_t board_stack_touched(void)
{
    return 0u;
}

uint32_t board_stack_bytes(void)
{
    return 0u;
}
