/* What a board does, command by command. */
#include <string.h>

#include "commands.h"

void trainer_start(struct trainer *trainer, void *memory, uint32_t memory_bytes)
{
    memset(trainer, 0, sizeof *trainer);
    trainer->memory = memory;
    trainer->memory_bytes = memory_bytes;
}

void trainer_keep_constant(struct trainer *trainer, uint32_t object, const uint8_t *data,
                           uint32_t bytes)
{
    struct trainer_constant *constant = &trainer->flash[object];

    constant->data = data;
    constant->bytes = bytes;
    constant->crc = sfd_crc32(0u, data, bytes);
}

struct command {
    trainer_command *run;
    uint16_t least, most; /* bytes of the payload */
};

void trainer_answer(struct trainer *trainer, uint32_t command, const uint8_t *request,
                    uint32_t request_bytes, struct trainer_answer *answer)
{
    static const struct command commands[] = {
        [SERIAL_BEGIN] = {trainer_begin, 12u, 12u},
        [SERIAL_DATA] = {trainer_take_data, 5u, SERIAL_MAX_PAYLOAD},
        [SERIAL_OPEN] = {trainer_open, 12u, 12u},
        [SERIAL_TRAIN] = {trainer_train, 18u, SERIAL_MAX_PAYLOAD},
        [SERIAL_EVALUATE] = {trainer_evaluate, 8u, 8u},
        [SERIAL_ENCODE] = {trainer_encode, 8u, SERIAL_MAX_PAYLOAD},
        [SERIAL_READ] = {trainer_read, 12u, 12u},
        [SERIAL_PROFILE] = {trainer_profile, 0u, 0u},
#if BOARD_HAS_SENSORS
        [SERIAL_COLLECT] = {trainer_collect, 0u, 4u},
#endif
    };
    const uint32_t count = sizeof commands / sizeof commands[0];
    const struct command *known = &commands[command < count ? command : SERIAL_COMPLAIN];

    answer->status = SERIAL_STATUS_OK;
    answer->size = 0u;
    if (known->run == NULL)
        answer->status = SERIAL_STATUS_COMMAND;
    else if (request_bytes < known->least || request_bytes > known->most)
        answer->status = SERIAL_STATUS_LENGTH;
    else
        known->run(trainer, request, request_bytes, answer);
}
