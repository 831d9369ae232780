/* Examples that the board collects itself: a ring in the room that a session keeps for examples. */
#include "commands.h"

#include "board.h"

int trainer_sense(struct trainer *trainer)
{
    struct trainer_ring *ring = &trainer->ring;
    struct board_example example = {0};
    uint8_t *start, *input;

    if (ring->wanted == 0u)
        return 0;
    start = trainer->memory + trainer->object[SERIAL_OBJECT_EXAMPLES].offset;
    input = start + ring->next * trainer->input_bytes;
    example.inputs = trainer->input_bytes / sfd_input_element_bytes(&trainer->input);
    example.targets = trainer->target_bytes / 4u;
    if (example.inputs == trainer->input_bytes) {
        example.input_int8 = (int8_t *)input;
        example.scale = trainer->input.scale;
        example.zero_point = trainer->input.zero_point;
    } else {
        example.input = (float *)(void *)input;
    }
    example.target = (float *)(void *)(start + ring->capacity * trainer->input_bytes +
                                       trainer_padding(trainer, ring->capacity)) +
                     ring->next * example.targets;
    example.label = trainer->target == SFD_TARGET_INT32 ? (int32_t *)(void *)example.target : NULL;
    if (!board_sense(&example))
        return 0;
    ring->next = ring->next + 1u == ring->capacity ? 0u : ring->next + 1u;
    ring->held += ring->held < ring->capacity;
    ++ring->collected;
    --ring->wanted;
    return 1;
}

/* In the place of examples that were sent. */
static int begin_ring(struct trainer *trainer)
{
    struct trainer_object *examples = &trainer->object[SERIAL_OBJECT_EXAMPLES];

    if (trainer->session == NULL)
        return SERIAL_STATUS_MISSING;
    if (trainer->room_examples == 0u)
        return SERIAL_STATUS_RANGE;
    trainer_forget(trainer, SERIAL_OBJECT_EXAMPLES);
    trainer_forget(trainer, SERIAL_OBJECT_UPDATE);
    examples->offset = trainer->reserved_from;
    examples->data = trainer->memory + examples->offset;
    examples->bytes = (uint32_t)trainer_examples_bytes(trainer, trainer->room_examples);
    examples->received = examples->bytes;
    examples->is_whole = 1u;
    trainer->ring.capacity = trainer->room_examples;
    return SERIAL_STATUS_OK;
}

/* examples to collect from now on u32, or nothing to ask -> held u32, collected u32, still to be collected
 * u32, room for u32. */
void trainer_collect(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                     struct trainer_answer *answer)
{
    struct trainer_ring *ring = &trainer->ring;
    uint32_t wanted;

    if (bytes % 4u != 0u) {
        answer->status = SERIAL_STATUS_LENGTH;
        return;
    }
    wanted = bytes == 0u ? ring->wanted : sfd_load_u32(request);
    if (ring->capacity == 0u)
        answer->status = wanted == 0u ? SERIAL_STATUS_MISSING : begin_ring(trainer);
    if (answer->status != SERIAL_STATUS_OK)
        return;
    ring->wanted = wanted;
    answer_u32(answer, ring->held);
    answer_u32(answer, ring->collected);
    answer_u32(answer, ring->wanted);
    answer_u32(answer, ring->capacity);
}
