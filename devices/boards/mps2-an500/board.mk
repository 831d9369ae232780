# Cortex-M7 with single precision
TOOLS := arm-none-eabi-
CPU := -mcpu=cortex-m7 -mthumb -mfpu=fpv5-sp-d16 -mfloat-abi=hard
DEVICES := -DCMSDK_UART=0x40004000u -DCLOCK_HZ=25000000u -DLINE_INTERRUPT=0u
SOURCES := cortex_m/start.c cortex_m/systick.c drivers/cmsdk_uart.c drivers/stack.c
