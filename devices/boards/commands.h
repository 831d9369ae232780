/* What the commands of a trainer share. */
#ifndef COMMANDS_H
#define COMMANDS_H

#include "board.h"
#include "sfd_parse.h"
#include "trainer.h"

/* A command: takes `bytes` of request, as many as trainer.c lets through, and fills the answer, whose
 * status is OK and which is empty. */
typedef void trainer_command(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                             struct trainer_answer *answer);

/* objects.c */
trainer_command trainer_begin, trainer_take_data;

/* Where what the block ends with begins: the artifact, and examples below it. */
uint32_t trainer_artifact_offset(const struct trainer *trainer);
uint32_t trainer_examples_offset(const struct trainer *trainer);

void trainer_forget(struct trainer *trainer, uint32_t object);

/* What lies between the inputs of so many examples and their targets, which begin at a multiple of 4. */
static inline uint32_t trainer_padding(const struct trainer *trainer, uint32_t count)
{
    return SFD_HAS_INPUT(INT8) ? (0u - count * trainer->input_bytes) % 4u : 0u;
}

static inline uint64_t trainer_examples_bytes(const struct trainer *trainer, uint32_t count)
{
    return (uint64_t)count * (trainer->input_bytes + trainer->target_bytes) +
           trainer_padding(trainer, count);
}

/* opening.c */
trainer_command trainer_open;

/* steps.c */
trainer_command trainer_train, trainer_evaluate;

/* collecting.c */
trainer_command trainer_collect;

/* Whether the examples are a ring that the board fills itself. */
static inline int trainer_has_ring(const struct trainer *trainer)
{
    return BOARD_HAS_SENSORS && trainer->ring.capacity > 0u;
}

/* results.c */
trainer_command trainer_encode, trainer_read, trainer_profile;

static inline void answer_u32(struct trainer_answer *answer, uint32_t value)
{
    sfd_store_u32(answer->payload + answer->size, value);
    answer->size += 4u;
}

static inline void answer_u64(struct trainer_answer *answer, uint64_t value)
{
    answer_u32(answer, (uint32_t)value);
    answer_u32(answer, (uint32_t)(value >> 32));
}

static inline void answer_multiply_adds(struct trainer_answer *answer,
                                        const struct sfd_multiply_adds *work)
{
    answer_u64(answer, work->forward);
    answer_u64(answer, work->d_input);
    answer_u64(answer, work->d_weight);
    answer_u64(answer, work->recomputed);
}

static inline void answer_f32(struct trainer_answer *answer, float value)
{
    sfd_store_f32(answer->payload + answer->size, value);
    answer->size += 4u;
}

#endif
