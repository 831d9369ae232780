# Cortex-M3 without floating-point unit
TOOLS := arm-none-eabi-
CPU := -mcpu=cortex-m3 -mthumb -mfloat-abi=soft
DEVICES := -DCMSDK_UART=0x40004000u -DCLOCK_HZ=25000000u -DLINE_INTERRUPT=0u
SOURCES := cortex_m/start.c cortex_m/systick.c drivers/cmsdk_uart.c drivers/stack.c
