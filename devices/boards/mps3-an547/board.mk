# Cortex-M55 with Helium
HAS_VECTORS := 1
TOOLS := arm-none-eabi-
CPU := -mcpu=cortex-m55 -mthumb -mfloat-abi=hard
DEVICES := -DCMSDK_UART=0x59303000u -DCLOCK_HZ=32000000u -DLINE_INTERRUPT=33u
SOURCES := cortex_m/start.c cortex_m/systick.c drivers/cmsdk_uart.c drivers/stack.c
