/* Consistent Overhead Byte Stuffing (Cheshire and Baker, 1999): a frame has no zero bytes inside, so
 * that a zero ends it and a receiver that came late, or lost bytes, is back in step with the next. */
#include "frame.h"

#include "sfd_parse.h"

static void append(struct frame_receiver *receiver, uint8_t byte)
{
    if (receiver->size == sizeof receiver->bytes)
        receiver->is_damaged = 1u;
    else
        receiver->bytes[receiver->size++] = byte;
}

static enum frame_event finish(struct frame_receiver *receiver)
{
    const int is_empty = !receiver->is_started;
    const int is_whole = !receiver->is_damaged && receiver->left == 0u &&
                         receiver->size >= SERIAL_HEADER_BYTES + SERIAL_CHECKSUM_BYTES;
    const uint32_t size = receiver->size - SERIAL_CHECKSUM_BYTES;

    receiver->size = 0u;
    receiver->left = receiver->owes_zero = receiver->is_started = receiver->is_damaged = 0u;
    if (is_empty)
        return FRAME_NOTHING;
    if (!is_whole || sfd_crc32(0u, receiver->bytes, size) != sfd_load_u32(receiver->bytes + size))
        return FRAME_DAMAGED;
    receiver->size = size;
    return FRAME_READY;
}

enum frame_event frame_receive(struct frame_receiver *receiver, uint8_t byte)
{
    if (byte == 0u)
        return finish(receiver);
    if (!receiver->is_started) {
        receiver->size = 0u; /* of the frame before */
        receiver->is_started = 1u;
    }
    if (receiver->is_damaged)
        return FRAME_NOTHING;
    if (receiver->left > 0u) {
        append(receiver, byte);
        --receiver->left;
        return FRAME_NOTHING;
    }
    if (receiver->owes_zero)
        append(receiver, 0u);
    receiver->left = (uint8_t)(byte - 1u);
    receiver->owes_zero = byte != 0xffu;
    return FRAME_NOTHING;
}

void frame_send(uint8_t *bytes, uint32_t size, void (*send)(uint8_t byte))
{
    const uint32_t end = size + SERIAL_CHECKSUM_BYTES;
    uint32_t at = 0u, run;
    int is_zero;

    sfd_store_u32(bytes + size, sfd_crc32(0u, bytes, size));
    send(0u); /* ends what noise may have begun */
    do {
        for (run = 0u; run < 254u && at + run < end && bytes[at + run] != 0u; ++run)
            ;
        is_zero = run < 254u && at + run < end; /* the code stands for it, too */
        send((uint8_t)(run + 1u));
        for (; run > 0u; --run)
            send(bytes[at++]);
        at += (uint32_t)is_zero;
    } while (is_zero || at < end);
    send(0u);
}
