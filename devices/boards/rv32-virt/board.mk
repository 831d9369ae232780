# RISC-V, 32 bits with single precision: QEMU's machine "virt" (docs/system/riscv/virt.rst)
TOOLS := riscv64-unknown-elf-
CPU := -march=rv32imafc -mabi=ilp32f -mcmodel=medany --specs=picolibc.specs
SOURCES := rv32-virt/start.S rv32-virt/board.c drivers/stack.c
