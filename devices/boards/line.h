/* The serial line of a board: frames in, answers out. */
#ifndef LINE_H
#define LINE_H

#include "frame.h"
#include "trainer.h"

/* A request is carried out once: the same frame again gets the same answer again, so that a host
 * may ask again whenever none came. Zeros are its state at the beginning. */
struct line {
    uint32_t answer_bytes; /* 0: nothing was answered */
    uint32_t answered;     /* checksum of the request that it answers */
    struct frame_receiver receiver;
    uint8_t answer[SERIAL_MAX_FRAME];
};

/* Take a byte; answer what it completes. */
void line_take(struct line *line, struct trainer *trainer, uint8_t byte);

#endif
