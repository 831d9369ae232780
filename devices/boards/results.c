/* What is read out: the update, values, what was measured. */
#include "commands.h"

#include <string.h>

#include "board.h"

/* How much of the arena was touched, unless an update lies there. */
static void note_touched(struct trainer *trainer)
{
    const uint8_t *transient = trainer->memory + trainer->persistent_bytes;

    if (trainer->object[SERIAL_OBJECT_UPDATE].is_whole)
        return;
    trainer->touched_bytes =
        trainer->persistent_bytes +
        (uint32_t)sfd_arena_touched(transient, trainer->arena_end - trainer->persistent_bytes);
}

/* Encode behind the counts, in memory up to `end`. */
static int encode_below(struct trainer *trainer, const uint32_t *keep, uint32_t counts,
                        uint32_t round, uint32_t end, size_t *size)
{
    const uint32_t start = trainer->persistent_bytes + counts * 4u;

    if (start > end)
        return SFD_ERR_CAPACITY;
    return sfd_update_encode(trainer->session, keep, counts, round, trainer->memory + start,
                             end - start, size);
}

/* round u32, counts u32 (one, or one a parameter) -> bytes u32, crc u32 of the update. It takes the
 * memory of activations and, where that is not enough, of the examples. */
void trainer_encode(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                    struct trainer_answer *answer)
{
    struct trainer_object *update = &trainer->object[SERIAL_OBJECT_UPDATE];
    const uint32_t counts = (bytes - 4u) / 4u, round = sfd_load_u32(request);
    uint32_t *keep = (uint32_t *)(void *)(trainer->memory + trainer->persistent_bytes), i;
    size_t size = 0u;

    if (bytes % 4u != 0u)
        answer->status = SERIAL_STATUS_LENGTH;
    else if (trainer->session == NULL)
        answer->status = SERIAL_STATUS_MISSING;
    else if (counts * 4u > trainer->arena_end - trainer->persistent_bytes)
        answer->status = SERIAL_STATUS_MEMORY;
    if (answer->status != SERIAL_STATUS_OK)
        return;
    note_touched(trainer);
    trainer_forget(trainer, SERIAL_OBJECT_UPDATE);
    for (i = 0u; i < counts; ++i)
        keep[i] = sfd_load_u32(request + 4u + 4u * i);
    board_start_ticks();
    answer->status =
        encode_below(trainer, keep, counts, round, trainer_examples_offset(trainer), &size);
    if (answer->status == SFD_ERR_CAPACITY) {
        trainer_forget(trainer, SERIAL_OBJECT_EXAMPLES);
        answer->status =
            encode_below(trainer, keep, counts, round, trainer_artifact_offset(trainer), &size);
    }
    trainer->ticks[TRAINER_ENCODE] = board_ticks();
    if (answer->status != SFD_OK)
        return;
    update->offset = trainer->persistent_bytes + counts * 4u;
    update->bytes = update->received = (uint32_t)size;
    update->crc = sfd_crc32(0u, trainer->memory + update->offset, size);
    update->is_whole = 1u;
    answer_u32(answer, update->bytes);
    answer_u32(answer, update->crc);
}

/* Values of all parameters, one after the other, from `offset` on, as many as `length` bytes take. */
static void put_values(const struct trainer *trainer, uint32_t offset, uint32_t length,
                       struct trainer_answer *answer)
{
    struct sfd_parameter_view view;
    uint32_t index, k;

    for (index = 0u; sfd_parameter(trainer->session, index, &view) == SFD_OK; ++index) {
        for (k = offset / 4u; k < view.count && answer->size < length; ++k)
            answer_f32(answer, view.value[k]);
        offset -= offset / 4u < view.count ? offset : view.count * 4u;
    }
}

/* object u32 (UPDATE or VALUES), offset u32, length u32 -> as many of its bytes, fewer at the end. */
void trainer_read(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                  struct trainer_answer *answer)
{
    const struct trainer_object *update = &trainer->object[SERIAL_OBJECT_UPDATE];
    const uint32_t object = sfd_load_u32(request), offset = sfd_load_u32(request + 4u);
    const uint32_t length = sfd_load_u32(request + 8u);

    (void)bytes;
    if (length > SERIAL_MAX_PAYLOAD || offset % 4u != 0u || length % 4u != 0u) {
        answer->status = SERIAL_STATUS_RANGE;
    } else if (object == SERIAL_OBJECT_VALUES && trainer->session != NULL) {
        put_values(trainer, offset, length, answer);
    } else if (object == SERIAL_OBJECT_UPDATE && update->is_whole) {
        const uint32_t left = offset < update->bytes ? update->bytes - offset : 0u;
        answer->size = length < left ? length : left;
        memcpy(answer->payload, trainer->memory + update->offset + offset, answer->size);
    } else {
        answer->status = SERIAL_STATUS_MISSING;
    }
}

/* -> what the board has measured with the session that is open: zeros where nothing has run. */
void trainer_profile(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                     struct trainer_answer *answer)
{
    struct sfd_counters counters;
    uint32_t i;

    (void)request;
    (void)bytes;
    if (sfd_counters(trainer->session, &counters) != SFD_OK) {
        answer->status = SERIAL_STATUS_MISSING;
        return;
    }
    note_touched(trainer);
    answer_u32(answer, (uint32_t)counters.steps);
    answer_u32(answer, (uint32_t)trainer->plan.arena_bytes);
    answer_u32(answer, trainer->touched_bytes);
    answer_u32(answer, board_stack_touched());
    for (i = 0u; i < TRAINER_MEASURED_COUNT; ++i)
        answer_u64(answer, trainer->ticks[i]);
    answer_multiply_adds(answer, &counters.done);
}
