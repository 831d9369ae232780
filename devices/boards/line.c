#include "line.h"

#include <string.h>

#include "board.h"
#include "sfd_parse.h"

static uint32_t size_between(const uint8_t *start, const uint8_t *end)
{
    return (uint32_t)((uintptr_t)end - (uintptr_t)start);
}

/* -> facts u32, then the name of the board. */
static void say_hello(const struct trainer *trainer, struct trainer_answer *answer)
{
    static const char name[] = BOARD_NAME;
    const uint32_t facts[] = {
        SERIAL_VERSION,
        SERIAL_MAX_PAYLOAD,
        trainer->memory_bytes,
        board_stack_bytes(),
        size_between(board_text_start, board_text_end),
        size_between(board_data_start, board_data_end),
        size_between(board_bss_start, board_bss_end),
        board_ticks_per_second(),
        SFD_OPERATIONS,
        trainer->flash[SERIAL_OBJECT_ARTIFACT].bytes,
        trainer->flash[SERIAL_OBJECT_ARTIFACT].crc,
        trainer->flash[SERIAL_OBJECT_STATE].bytes,
        trainer->flash[SERIAL_OBJECT_STATE].crc,
    };
    uint32_t i;

    for (i = 0u; i < sizeof facts / sizeof facts[0]; ++i)
        sfd_store_u32(answer->payload + 4u * i, facts[i]);
    memcpy(answer->payload + sizeof facts, name, sizeof name - 1u);
    answer->size = sizeof facts + sizeof name - 1u;
}

static void send_answer(struct line *line)
{
    frame_send(line->answer, line->answer_bytes, board_send);
}

/* The bytes that came were no frame; the answer that is kept stays. */
static void complain(void)
{
    uint8_t frame[SERIAL_HEADER_BYTES + SERIAL_CHECKSUM_BYTES] = {
        SERIAL_COMPLAIN | SERIAL_ANSWER, SERIAL_STATUS_DAMAGED, 0u, 0u, 0u, 0u};

    frame_send(frame, SERIAL_HEADER_BYTES, board_send);
}

static void carry_out(struct line *line, struct trainer *trainer)
{
    const uint8_t *request = line->receiver.bytes;
    const uint32_t command = request[0], bytes = line->receiver.size - SERIAL_HEADER_BYTES;
    struct trainer_answer answer = {SERIAL_STATUS_OK, 0u, line->answer + SERIAL_HEADER_BYTES};

    if (command == SERIAL_HELLO)
        say_hello(trainer, &answer);
    else if (command != SERIAL_RESET)
        trainer_answer(trainer, command, request + SERIAL_HEADER_BYTES, bytes, &answer);
    memcpy(line->answer, request, SERIAL_HEADER_BYTES);
    line->answer[0] |= SERIAL_ANSWER;
    line->answer[1] = (uint8_t)answer.status;
    line->answer_bytes = SERIAL_HEADER_BYTES + answer.size;
}

void line_take(struct line *line, struct trainer *trainer, uint8_t byte)
{
    const enum frame_event event = frame_receive(&line->receiver, byte);
    uint32_t checksum;

    if (event == FRAME_DAMAGED)
        complain();
    if (event != FRAME_READY)
        return;
    checksum = sfd_load_u32(line->receiver.bytes + line->receiver.size);
    if (line->answer_bytes == 0u || line->answered != checksum) {
        carry_out(line, trainer);
        line->answered = checksum;
    }
    send_answer(line);
    if (line->receiver.bytes[0] == SERIAL_RESET)
        board_reset();
}
