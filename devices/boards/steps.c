/* Steps on the examples that are there. */
#include "commands.h"

#include <string.h>

#include "board.h"

/* Inputs and targets, each in one piece. */
struct batch {
    const void *x, *y;
};

/* How many examples there are. None without a session, which alone knows how large one is. */
static uint32_t examples_held(const struct trainer *trainer)
{
    const struct trainer_object *examples = &trainer->object[SERIAL_OBJECT_EXAMPLES];

    if (trainer->session == NULL || !examples->is_whole)
        return 0u;
    if (trainer_has_ring(trainer))
        return trainer->ring.held;
    /* what lies between inputs and targets is less than an example */
    return examples->bytes / (trainer->input_bytes + trainer->target_bytes);
}

static const uint8_t *input_at(const struct trainer *trainer, uint32_t example)
{
    return trainer->memory + trainer->object[SERIAL_OBJECT_EXAMPLES].offset +
           example * trainer->input_bytes;
}

/* All inputs come first. */
static const uint8_t *target_at(const struct trainer *trainer, uint32_t example)
{
    const uint32_t inputs =
        trainer_has_ring(trainer) ? trainer->ring.capacity : examples_held(trainer);

    return input_at(trainer, inputs) + trainer_padding(trainer, inputs) +
           example * trainer->target_bytes;
}

static int find_batch(const struct trainer *trainer, uint32_t first, uint32_t count,
                      struct batch *batch)
{
    const uint32_t held = examples_held(trainer);

    if (held == 0u)
        return SERIAL_STATUS_MISSING;
    if (first > held || count > held - first)
        return SERIAL_STATUS_RANGE;
    batch->x = input_at(trainer, first);
    batch->y = target_at(trainer, first);
    return SERIAL_STATUS_OK;
}

/* The examples of a list of places u16: where they lie if they follow one another, else copied. */
static int gather_batch(struct trainer *trainer, const uint8_t *places, uint32_t count,
                        struct batch *batch)
{
    const uint32_t held = examples_held(trainer);
    uint8_t *x, *y;
    uint32_t i, in_order = 1u;

    for (i = 1u; i < count; ++i)
        in_order += sfd_load_u16(places + 2u * i) == sfd_load_u16(places) + i;
    if (in_order == count)
        return find_batch(trainer, sfd_load_u16(places), count, batch);
    if (held == 0u)
        return SERIAL_STATUS_MISSING;
    if (count > trainer->gathered_most)
        return SERIAL_STATUS_RANGE;
    x = trainer->memory + trainer->arena_end;
    y = x + count * trainer->input_bytes + trainer_padding(trainer, count);
    for (i = 0u; i < count; ++i) {
        const uint32_t place = sfd_load_u16(places + 2u * i);
        if (place >= held)
            return SERIAL_STATUS_RANGE;
        memcpy(x + i * trainer->input_bytes, input_at(trainer, place), trainer->input_bytes);
        memcpy(y + i * trainer->target_bytes, target_at(trainer, place), trainer->target_bytes);
    }
    batch->x = x;
    batch->y = y;
    return SERIAL_STATUS_OK;
}

static uint32_t steps_done(const struct trainer *trainer)
{
    struct sfd_counters counters;

    if (sfd_counters(trainer->session, &counters) != SFD_OK)
        return 0u;
    return (uint32_t)counters.steps;
}

/* What ran until now was another part. */
static void begin_part(void *context, enum sfd_part part)
{
    struct trainer *trainer = context;
    const uint64_t now = board_ticks();

    trainer->ticks[TRAINER_PARTS + trainer->part] += now - trainer->part_began;
    trainer->part = part;
    trainer->part_began = now;
}

static int measured_step(struct trainer *trainer, const struct batch *batch, uint32_t count,
                         float learning_rate, float weight_decay, float *loss)
{
    const struct sfd_watcher watcher = {begin_part, trainer};
    int error;

    memset(&trainer->ticks[TRAINER_PARTS], 0, SFD_PART_COUNT * sizeof trainer->ticks[0]);
    trainer->part = SFD_PART_FORWARD;
    trainer->part_began = 0u;
    sfd_watch(trainer->session, &watcher);
    board_start_ticks();
    error = sfd_step(trainer->session, batch->x, batch->y, trainer->target, count, learning_rate,
                     weight_decay, loss);
    begin_part(trainer, SFD_PART_FORWARD);
    trainer->ticks[TRAINER_STEP] = trainer->part_began;
    sfd_watch(trainer->session, NULL);
    return error;
}

/* steps done before u32, learning rate f32, weight decay f32, batch u32, places u16 of examples
 * -> steps done u32, the loss of each step f32. Each `batch` of the places are one step, the last one
 * may have fewer. With an error the losses are those of the steps before it. */
void trainer_train(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                   struct trainer_answer *answer)
{
    const uint32_t most = sfd_load_u32(request + 12u), places = (bytes - 16u) / 2u;
    const uint32_t done = steps_done(trainer);
    uint32_t first, count;
    struct batch batch;
    float loss = 0.0f;

    trainer_forget(trainer, SERIAL_OBJECT_UPDATE);
    answer_u32(answer, done);
    if (trainer->session == NULL)
        answer->status = SERIAL_STATUS_MISSING;
    else if (done != sfd_load_u32(request))
        answer->status = SERIAL_STATUS_ORDER;
    else if (most == 0u || (places + most - 1u) / most > (SERIAL_MAX_PAYLOAD - 4u) / 4u)
        answer->status = SERIAL_STATUS_RANGE;
    for (first = 0u; first < places && answer->status == SERIAL_STATUS_OK; first += count) {
        count = places - first < most ? places - first : most;
        answer->status = gather_batch(trainer, request + 16u + 2u * first, count, &batch);
        if (answer->status != SERIAL_STATUS_OK)
            return;
        answer->status = measured_step(trainer, &batch, count, sfd_load_f32(request + 4u),
                                       sfd_load_f32(request + 8u), &loss);
        if (answer->status == SERIAL_STATUS_OK)
            answer_f32(answer, loss);
        sfd_store_u32(answer->payload, steps_done(trainer));
    }
}

/* first u32, count u32 -> loss f32, right answers u32. The model stays as it is. */
void trainer_evaluate(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                      struct trainer_answer *answer)
{
    const uint32_t count = sfd_load_u32(request + 4u);
    uint32_t correct = 0u;
    struct batch batch;
    float loss = 0.0f;

    (void)bytes;
    trainer_forget(trainer, SERIAL_OBJECT_UPDATE);
    answer->status = find_batch(trainer, sfd_load_u32(request), count, &batch);
    if (answer->status != SERIAL_STATUS_OK)
        return;
    board_start_ticks();
    answer->status =
        sfd_evaluate(trainer->session, batch.x, batch.y, trainer->target, count, &loss, &correct);
    trainer->ticks[TRAINER_EVALUATE] = board_ticks();
    answer_f32(answer, loss);
    answer_u32(answer, correct);
}
