/* What start-up paints the stack with: for C and assembler. */
#ifndef STACK_H
#define STACK_H

#define STACK_PAINT 0xa5a5a5a5

#endif
