/* Frames on a serial line: COBS between zero bytes, with a CRC-32 at the end (docs/serial.md). */
#ifndef FRAME_H
#define FRAME_H

#include <stdint.h>

#include "protocol.h"

enum frame_event {
    FRAME_NOTHING, /* the frame goes on, or there was none between two zero bytes */
    FRAME_READY,   /* `bytes` and `size` hold a frame, its checksum checked and taken off */
    FRAME_DAMAGED  /* what ended here was no whole frame */
};

/* Takes a line byte by byte. Zeros are its state at the beginning. */
struct frame_receiver {
    uint32_t size;
    uint8_t left;       /* bytes of the group until the next code byte */
    uint8_t owes_zero;  /* the group stands for a zero byte after it, unless the frame ends there */
    uint8_t is_started; /* a byte has come since the last zero */
    uint8_t is_damaged; /* the rest of the frame is skipped */
    uint8_t bytes[SERIAL_MAX_FRAME];
};

enum frame_event frame_receive(struct frame_receiver *receiver, uint8_t byte);

/* Send `size` bytes, at most SERIAL_MAX_FRAME - SERIAL_CHECKSUM_BYTES, and their checksum, which is
 * put behind them. */
void frame_send(uint8_t *bytes, uint32_t size, void (*send)(uint8_t byte));

#endif
