/* What a board does: objects come in pieces, a session trains on them, an update is read. */
#include "trainer.h"

#include <string.h>

#include "board.h"
#include "sfd_parse.h"

void trainer_start(struct trainer *trainer, void *memory, uint32_t memory_bytes)
{
    memset(trainer, 0, sizeof *trainer);
    trainer->memory = memory;
    trainer->memory_bytes = memory_bytes;
}

static void put_u32(struct trainer_answer *answer, uint32_t value)
{
    sfd_store_u32(answer->payload + answer->size, value);
    answer->size += 4u;
}

static void put_u64(struct trainer_answer *answer, uint64_t value)
{
    put_u32(answer, (uint32_t)value);
    put_u32(answer, (uint32_t)(value >> 32));
}

static void put_f32(struct trainer_answer *answer, float value)
{
    sfd_store_f32(answer->payload + answer->size, value);
    answer->size += 4u;
}

/* Where what the block ends with begins: the artifact, and examples below it. */
static uint32_t artifact_offset(const struct trainer *trainer)
{
    const struct trainer_object *artifact = &trainer->object[SERIAL_OBJECT_ARTIFACT];

    return artifact->bytes == 0u ? trainer->memory_bytes : artifact->offset;
}

static uint32_t examples_offset(const struct trainer *trainer)
{
    const struct trainer_object *examples = &trainer->object[SERIAL_OBJECT_EXAMPLES];

    return examples->bytes == 0u ? artifact_offset(trainer) : examples->offset;
}

static void forget(struct trainer *trainer, uint32_t object)
{
    memset(&trainer->object[object], 0, sizeof trainer->object[object]);
    trainer->incoming = NULL;
}

/* Forget an object, what was made of it, and what may lie in its way. */
static void forget_all_of(struct trainer *trainer, uint32_t object)
{
    const int keeps_session = object == SERIAL_OBJECT_EXAMPLES && trainer->session != NULL;

    forget(trainer, object);
    forget(trainer, SERIAL_OBJECT_UPDATE);
    if (object == SERIAL_OBJECT_ARTIFACT)
        forget(trainer, SERIAL_OBJECT_EXAMPLES);
    if (keeps_session)
        return;
    forget(trainer, SERIAL_OBJECT_STATE);
    trainer->session = NULL;
}

static int may_begin(const struct trainer *trainer, uint32_t object)
{
    switch (object) {
    case SERIAL_OBJECT_ARTIFACT:
        return SERIAL_STATUS_OK;
    case SERIAL_OBJECT_STATE:
    case SERIAL_OBJECT_EXAMPLES:
        return trainer->object[SERIAL_OBJECT_ARTIFACT].is_whole ? SERIAL_STATUS_OK
                                                                : SERIAL_STATUS_MISSING;
    default:
        return SERIAL_STATUS_RANGE;
    }
}

/* Find the place of an object: a state below the examples, those below the artifact, but above a
 * session. Returns 0, with *room, if there is not so much. */
static int find_place(const struct trainer *trainer, uint32_t number, uint32_t bytes,
                      uint32_t *offset, uint32_t *room)
{
    const uint32_t top =
        (number == SERIAL_OBJECT_STATE ? examples_offset(trainer) : artifact_offset(trainer)) / 4u *
        4u;

    *room = top - (trainer->session == NULL ? 0u : trainer->reserved_from);
    if (bytes > *room)
        return 0;
    *offset = (top - bytes) / 4u * 4u;
    return 1;
}

/* object u32, bytes u32, crc u32 -> received u32, or the room for it. What is there already stays. */
static void begin(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                  struct trainer_answer *answer)
{
    const uint32_t number = sfd_load_u32(request), wanted = sfd_load_u32(request + 4u);
    const uint32_t crc = sfd_load_u32(request + 8u);
    struct trainer_object *object;
    uint32_t offset, room;

    (void)bytes;
    answer->status = wanted == 0u ? SERIAL_STATUS_RANGE : may_begin(trainer, number);
    if (answer->status != SERIAL_STATUS_OK)
        return;
    object = &trainer->object[number];
    if (object->bytes != wanted || object->crc != crc) {
        forget_all_of(trainer, number);
        if (!find_place(trainer, number, wanted, &offset, &room)) {
            answer->status = SERIAL_STATUS_MEMORY;
            put_u32(answer, room);
            return;
        }
        object->offset = offset;
        object->bytes = wanted;
        object->crc = crc;
    }
    trainer->incoming = object;
    put_u32(answer, object->received);
}

/* offset u32, then bytes of the object that was begun -> received u32. */
static void take_data(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                      struct trainer_answer *answer)
{
    struct trainer_object *object = trainer->incoming;
    const uint32_t size = bytes - 4u;

    if (object == NULL) {
        answer->status = SERIAL_STATUS_MISSING;
        return;
    }
    if (sfd_load_u32(request) != object->received) {
        answer->status = SERIAL_STATUS_ORDER;
    } else if (size > object->bytes - object->received) {
        answer->status = SERIAL_STATUS_RANGE;
    } else {
        uint8_t *start = trainer->memory + object->offset;
        memcpy(start + object->received, request + 4u, size);
        object->received += size;
        object->is_whole =
            object->received == object->bytes && sfd_crc32(0u, start, object->bytes) == object->crc;
        if (object->received == object->bytes && !object->is_whole) {
            object->received = 0u;
            answer->status = SERIAL_STATUS_CHECKSUM;
        }
    }
    put_u32(answer, object->received);
}

static void fail(struct trainer_answer *answer, int status, uint32_t position, uint32_t got,
                 uint32_t wanted)
{
    answer->status = status;
    put_u32(answer, position);
    put_u32(answer, got);
    put_u32(answer, wanted);
}

/* Check the artifact; bytes of one example and of its target, and the type of targets. */
static int measure_examples(struct trainer *trainer, struct sfd_problem *problem)
{
    const struct trainer_object *artifact = &trainer->object[SERIAL_OBJECT_ARTIFACT];
    struct sfd_artifact_view view;
    struct sfd_tensor input, output;
    int error =
        sfd_artifact_open(trainer->memory + artifact->offset, artifact->bytes, &view, problem);

    if (error != SFD_OK)
        return error;
    sfd_artifact_tensor(&view, 0u, &input);
    sfd_artifact_tensor(&view, view.output, &output);
    trainer->input_bytes = input.size * 4u; /* at most 2^28 */
    trainer->target = view.loss == SFD_LOSS_CROSS_ENTROPY ? SFD_TARGET_INT32 : SFD_TARGET_FLOAT32;
    trainer->target_bytes = trainer->target == SFD_TARGET_INT32 ? 4u : output.size * 4u;
    return SFD_OK;
}

/* Make room below the artifact for examples, and below those for a batch that is gathered from them.
 * There the arena has to end. */
static int reserve(struct trainer *trainer, uint32_t examples, uint32_t gathered,
                   struct sfd_problem *problem)
{
    const uint64_t each = (uint64_t)trainer->input_bytes + trainer->target_bytes;
    const uint64_t room = each * examples, all = room + each * gathered;
    const uint32_t top = artifact_offset(trainer);

    if (each * gathered > top || room > top || all >= top)
        return sfd_fail(problem, SERIAL_STATUS_MEMORY, 0u, top,
                        all < UINT32_MAX ? (uint32_t)all : UINT32_MAX);
    if (examples_offset(trainer) < top - (uint32_t)room)
        forget(trainer, SERIAL_OBJECT_EXAMPLES);
    trainer->reserved_from = (top - (uint32_t)room) / 4u * 4u;
    trainer->gathered_most = gathered;
    trainer->arena_end = trainer->reserved_from - (uint32_t)(each * gathered);
    return SFD_OK;
}

/* Plan in the memory below the state. What a session writes before its first step must end there,
 * since it reads the state meanwhile. */
static int plan(struct trainer *trainer, uint32_t batch, const struct sfd_options *options,
                struct sfd_problem *problem)
{
    const struct trainer_object *artifact = &trainer->object[SERIAL_OBJECT_ARTIFACT];
    const struct trainer_object *state = &trainer->object[SERIAL_OBJECT_STATE];
    const uint8_t *memory = trainer->memory;
    uint64_t persistent;
    int error;

    board_start_ticks();
    error =
        sfd_plan(memory + artifact->offset, artifact->bytes, memory + state->offset, state->bytes,
                 batch, options, trainer->memory, state->offset, &trainer->plan, problem);
    trainer->ticks.plan = board_ticks();
    if (error != SFD_OK)
        return error;
    persistent = trainer->plan.arena_bytes - trainer->plan.transient_bytes;
    if (persistent > state->offset)
        return sfd_fail(problem, SERIAL_STATUS_MEMORY, 0u, state->offset, (uint32_t)persistent);
    trainer->persistent_bytes = (uint32_t)persistent;
    return SFD_OK;
}

/* By the plan that lies where the arena begins. The state is read, and its memory given to the session. */
static int start_session(struct trainer *trainer, struct sfd_problem *problem)
{
    const struct trainer_object state = trainer->object[SERIAL_OBJECT_STATE];
    struct sfd_session *session = NULL;
    int error;

    board_start_ticks();
    error = sfd_open(trainer->memory, trainer->memory + state.offset, state.bytes, trainer->memory,
                     trainer->arena_end, &session, problem);
    trainer->ticks.open = board_ticks();
    forget(trainer, SERIAL_OBJECT_STATE);
    forget(trainer, SERIAL_OBJECT_UPDATE);
    trainer->session = session;
    if (error == SFD_OK)
        sfd_arena_paint(trainer->memory + trainer->persistent_bytes,
                        trainer->arena_end - trainer->persistent_bytes);
    return error;
}

static void put_plan(const struct trainer *trainer, struct trainer_answer *answer)
{
    const struct sfd_plan *planned = &trainer->plan;

    put_u32(answer, (uint32_t)planned->arena_bytes);
    put_u32(answer, (uint32_t)planned->transient_bytes);
    put_u32(answer, trainer->input_bytes);
    put_u32(answer, trainer->target_bytes);
    put_u64(answer, planned->step.forward);
    put_u64(answer, planned->step.d_input);
    put_u64(answer, planned->step.d_weight);
    put_u64(answer, planned->step.recomputed);
}

/* batch u32, memory u32 (enum sfd_memory), examples u32 and gathered u32 to have room for -> the plan;
 * with an error where a file is wrong, what was got, what is wanted. */
static void open_session(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                         struct trainer_answer *answer)
{
    const uint32_t batch = sfd_load_u32(request);
    struct sfd_options options = {SFD_KERNELS_PORTABLE, 1u, (int32_t)sfd_load_u32(request + 4u),
                                  0u};
    struct sfd_problem problem = {0u, 0u, 0u};
    int error;

    (void)bytes;
    if (!trainer->object[SERIAL_OBJECT_STATE].is_whole) {
        answer->status = SERIAL_STATUS_MISSING;
        return;
    }
    trainer->session = NULL;
    error = measure_examples(trainer, &problem);
    if (error == SFD_OK)
        error = reserve(trainer, sfd_load_u32(request + 8u), sfd_load_u32(request + 12u), &problem);
    options.arena_bytes = trainer->arena_end;
    if (error == SFD_OK)
        error = plan(trainer, batch, &options, &problem);
    if (error == SFD_OK)
        error = start_session(trainer, &problem);
    if (error == SFD_OK)
        put_plan(trainer, answer);
    else
        fail(answer, error, problem.position, problem.got, problem.wanted);
}

/* Inputs and targets, each in one piece. */
struct batch {
    const float *x;
    const void *y;
};

/* How many examples there are: all their inputs, then all their targets. */
static uint32_t examples_held(const struct trainer *trainer)
{
    const struct trainer_object *examples = &trainer->object[SERIAL_OBJECT_EXAMPLES];

    return examples->is_whole ? examples->bytes / (trainer->input_bytes + trainer->target_bytes)
                              : 0u;
}

static const uint8_t *input_at(const struct trainer *trainer, uint32_t example)
{
    return trainer->memory + trainer->object[SERIAL_OBJECT_EXAMPLES].offset +
           example * trainer->input_bytes;
}

static const uint8_t *target_at(const struct trainer *trainer, uint32_t example)
{
    return input_at(trainer, examples_held(trainer)) + example * trainer->target_bytes;
}

static int find_batch(const struct trainer *trainer, uint32_t first, uint32_t count,
                      struct batch *batch)
{
    const uint32_t held = examples_held(trainer);

    if (trainer->session == NULL || held == 0u)
        return SERIAL_STATUS_MISSING;
    if (first > held || count > held - first)
        return SERIAL_STATUS_RANGE;
    batch->x = (const float *)(const void *)input_at(trainer, first);
    batch->y = target_at(trainer, first);
    return SERIAL_STATUS_OK;
}

/* The examples of a list of places u16: where they lie if they follow one another, else copied. */
static int gather_batch(struct trainer *trainer, const uint8_t *places, uint32_t count,
                        struct batch *batch)
{
    uint8_t *x = trainer->memory + trainer->arena_end, *y = x + count * trainer->input_bytes;
    const uint32_t held = examples_held(trainer);
    uint32_t i, in_order = 1u;

    for (i = 1u; i < count; ++i)
        in_order += sfd_load_u16(places + 2u * i) == sfd_load_u16(places) + i;
    if (in_order == count)
        return find_batch(trainer, sfd_load_u16(places), count, batch);
    if (trainer->session == NULL || held == 0u)
        return SERIAL_STATUS_MISSING;
    if (count > trainer->gathered_most)
        return SERIAL_STATUS_RANGE;
    for (i = 0u; i < count; ++i) {
        const uint32_t place = sfd_load_u16(places + 2u * i);
        if (place >= held)
            return SERIAL_STATUS_RANGE;
        memcpy(x + i * trainer->input_bytes, input_at(trainer, place), trainer->input_bytes);
        memcpy(y + i * trainer->target_bytes, target_at(trainer, place), trainer->target_bytes);
    }
    batch->x = (const float *)(const void *)x;
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

/* steps done before u32, learning rate f32, weight decay f32, batch u32, places u16 of examples
 * -> steps done u32, the loss of each step f32. Each `batch` of the places are one step, the last one
 * may have fewer. With an error the losses are those of the steps before it. */
static void train(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                  struct trainer_answer *answer)
{
    const uint32_t most = sfd_load_u32(request + 12u), places = (bytes - 16u) / 2u;
    uint32_t first, count;
    struct batch batch;
    float loss;

    forget(trainer, SERIAL_OBJECT_UPDATE);
    put_u32(answer, steps_done(trainer));
    if (trainer->session == NULL)
        answer->status = SERIAL_STATUS_MISSING;
    else if (steps_done(trainer) != sfd_load_u32(request))
        answer->status = SERIAL_STATUS_ORDER;
    else if (most == 0u || (places + most - 1u) / most > (SERIAL_MAX_PAYLOAD - 4u) / 4u)
        answer->status = SERIAL_STATUS_RANGE;
    for (first = 0u; first < places && answer->status == SERIAL_STATUS_OK; first += count) {
        count = places - first < most ? places - first : most;
        answer->status = gather_batch(trainer, request + 16u + 2u * first, count, &batch);
        if (answer->status != SERIAL_STATUS_OK)
            return;
        board_start_ticks();
        answer->status = sfd_step(trainer->session, batch.x, batch.y, trainer->target, count,
                                  sfd_load_f32(request + 4u), sfd_load_f32(request + 8u), &loss);
        trainer->ticks.step = board_ticks();
        if (answer->status == SERIAL_STATUS_OK)
            put_f32(answer, loss);
        sfd_store_u32(answer->payload, steps_done(trainer));
    }
}

/* what u32 (enum serial_computation), first u32, count u32 -> loss f32, right answers u32. The model
 * stays as it is. */
static void compute(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                    struct trainer_answer *answer)
{
    const uint32_t what = sfd_load_u32(request), count = sfd_load_u32(request + 8u);
    uint32_t correct = 0u;
    struct batch batch;
    float loss = 0.0f;

    (void)bytes;
    forget(trainer, SERIAL_OBJECT_UPDATE);
    answer->status = find_batch(trainer, sfd_load_u32(request + 4u), count, &batch);
    if (answer->status != SERIAL_STATUS_OK)
        return;
    board_start_ticks();
    switch (what) {
    case SERIAL_COMPUTE_EVALUATE:
        answer->status = sfd_evaluate(trainer->session, batch.x, batch.y, trainer->target, count,
                                      &loss, &correct);
        trainer->ticks.evaluate = board_ticks();
        break;
    case SERIAL_COMPUTE_GRADIENTS:
        answer->status =
            sfd_gradients(trainer->session, batch.x, batch.y, trainer->target, count, &loss);
        trainer->ticks.gradients = board_ticks();
        break;
    default:
        answer->status = SERIAL_STATUS_RANGE;
        break;
    }
    put_f32(answer, loss);
    put_u32(answer, correct);
}

static uint32_t arena_touched(const struct trainer *trainer)
{
    const uint8_t *transient = trainer->memory + trainer->persistent_bytes;

    return trainer->persistent_bytes +
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
static void encode(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                   struct trainer_answer *answer)
{
    struct trainer_object *update = &trainer->object[SERIAL_OBJECT_UPDATE];
    const uint32_t counts = (bytes - 4u) / 4u, round = sfd_load_u32(request);
    uint32_t *keep = (uint32_t *)(void *)(trainer->memory + trainer->persistent_bytes), i;
    size_t size = 0u;

    if (trainer->session == NULL || bytes % 4u != 0u) {
        answer->status = bytes % 4u != 0u ? SERIAL_STATUS_LENGTH : SERIAL_STATUS_MISSING;
        return;
    }
    if (!update->is_whole)
        trainer->touched_bytes = arena_touched(trainer);
    forget(trainer, SERIAL_OBJECT_UPDATE);
    if (counts * 4u > trainer->arena_end - trainer->persistent_bytes) {
        answer->status = SERIAL_STATUS_MEMORY;
        return;
    }
    for (i = 0u; i < counts; ++i)
        keep[i] = sfd_load_u32(request + 4u + 4u * i);
    board_start_ticks();
    answer->status = encode_below(trainer, keep, counts, round, examples_offset(trainer), &size);
    if (answer->status == SFD_ERR_CAPACITY) {
        forget(trainer, SERIAL_OBJECT_EXAMPLES);
        answer->status =
            encode_below(trainer, keep, counts, round, artifact_offset(trainer), &size);
    }
    trainer->ticks.encode = board_ticks();
    if (answer->status != SFD_OK)
        return;
    update->offset = trainer->persistent_bytes + counts * 4u;
    update->bytes = update->received = (uint32_t)size;
    update->crc = sfd_crc32(0u, trainer->memory + update->offset, size);
    update->is_whole = 1u;
    put_u32(answer, update->bytes);
    put_u32(answer, update->crc);
}

/* Values of all parameters, one after the other, from `offset` on, as many as `length` bytes take. */
static void put_values(const struct trainer *trainer, uint32_t offset, uint32_t length,
                       struct trainer_answer *answer)
{
    struct sfd_parameter_view view;
    uint32_t index, k;

    for (index = 0u; sfd_parameter(trainer->session, index, &view) == SFD_OK; ++index) {
        for (k = offset / 4u; k < view.count && answer->size < length; ++k)
            put_f32(answer, view.value[k]);
        offset -= offset / 4u < view.count ? offset : view.count * 4u;
    }
}

/* object u32 (UPDATE or VALUES), offset u32, length u32 -> as many of its bytes, fewer at the end. */
static void read_object(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
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

/* -> what the board has measured: zeros where nothing has run. */
static void profile(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                    struct trainer_answer *answer)
{
    struct sfd_counters counters;

    (void)request;
    (void)bytes;
    memset(&counters, 0, sizeof counters);
    if (trainer->session != NULL) {
        (void)sfd_counters(trainer->session, &counters);
        if (!trainer->object[SERIAL_OBJECT_UPDATE].is_whole)
            trainer->touched_bytes = arena_touched(trainer);
    }
    put_u32(answer, (uint32_t)counters.steps);
    put_u32(answer, (uint32_t)trainer->plan.arena_bytes);
    put_u32(answer, trainer->touched_bytes);
    put_u32(answer, board_stack_touched());
    put_u64(answer, trainer->ticks.plan);
    put_u64(answer, trainer->ticks.open);
    put_u64(answer, trainer->ticks.step);
    put_u64(answer, trainer->ticks.evaluate);
    put_u64(answer, trainer->ticks.gradients);
    put_u64(answer, trainer->ticks.encode);
    put_u64(answer, counters.done.forward);
    put_u64(answer, counters.done.d_input);
    put_u64(answer, counters.done.d_weight);
    put_u64(answer, counters.done.recomputed);
}

struct command {
    void (*run)(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                struct trainer_answer *answer);
    uint16_t least, most; /* bytes of the payload */
};

void trainer_answer(struct trainer *trainer, uint32_t command, const uint8_t *request,
                    uint32_t request_bytes, struct trainer_answer *answer)
{
    static const struct command commands[] = {
        [SERIAL_BEGIN] = {begin, 12u, 12u},
        [SERIAL_DATA] = {take_data, 5u, SERIAL_MAX_PAYLOAD},
        [SERIAL_OPEN] = {open_session, 16u, 16u},
        [SERIAL_TRAIN] = {train, 18u, SERIAL_MAX_PAYLOAD},
        [SERIAL_COMPUTE] = {compute, 12u, 12u},
        [SERIAL_ENCODE] = {encode, 8u, SERIAL_MAX_PAYLOAD},
        [SERIAL_READ] = {read_object, 12u, 12u},
        [SERIAL_PROFILE] = {profile, 0u, 0u},
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
