# Cortex-M7 with single precision: ST's 32F746GDISCOVERY. Built, never run: QEMU has no such machine.
TOOLS := arm-none-eabi-
CPU := -mcpu=cortex-m7 -mthumb -mfpu=fpv5-sp-d16 -mfloat-abi=hard
DEVICES := -DCLOCK_HZ=216000000u -DLINE_INTERRUPT=37u
SOURCES := cortex_m/start.c cortex_m/cycle_counter.c stm32f746-discovery/board.c drivers/stack.c
