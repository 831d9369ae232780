/* Start-up: floating-point unit, stack, then C. */
#include "drivers/stack.h"

    .section .start, "ax"
    .global start
start:
    li t0, 0x6000           /* mstatus.FS: the floating-point unit is on */
    csrs mstatus, t0
    la t0, start            /* a fault starts the program again */
    csrw mtvec, t0
    la sp, stack_top
    la t0, stack_bottom
    li t1, STACK_PAINT
paint:
    sw t1, 0(t0)
    addi t0, t0, 4
    bltu t0, sp, paint
    la t0, board_bss_start
    la t1, board_bss_end
clear:
    bgeu t0, t1, run
    sw zero, 0(t0)
    addi t0, t0, 4
    j clear
run:
    call main
    j start
