# Cortex-M4 with single precision
TOOLS := arm-none-eabi-
CPU := -mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard
DEVICES := -DCMSDK_UART=0x40004000u -DCLOCK_HZ=25000000u -DLINE_INTERRUPT=0u
SOURCES := cortex_m/start.c cortex_m/systick.c drivers/cmsdk_uart.c drivers/stack.c
