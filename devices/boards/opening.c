/* Opening a session on the state that came. */
#include "commands.h"

#include "board.h"

static void fail(struct trainer_answer *answer, int status, uint32_t position, uint32_t got,
                 uint32_t wanted)
{
    answer->status = status;
    answer_u32(answer, position);
    answer_u32(answer, got);
    answer_u32(answer, wanted);
}

/* Check the artifact; bytes of one example and of its target, and the type of targets. */
static int measure_examples(struct trainer *trainer, struct sfd_problem *problem)
{
    const struct trainer_object *artifact = &trainer->object[SERIAL_OBJECT_ARTIFACT];
    struct sfd_artifact_view view;
    struct sfd_tensor input, output;
    int error = sfd_artifact_open(artifact->data, artifact->bytes, &view, problem);

    if (error != SFD_OK)
        return error;
    sfd_artifact_tensor(&view, 0u, &input);
    sfd_artifact_tensor(&view, view.output, &output);
    if (SFD_HAS_INPUT(INT8))
        sfd_artifact_input(&view, &trainer->input);
    trainer->input_bytes = input.size * sfd_input_element_bytes(&trainer->input); /* at most 2^28 */
    trainer->target = view.loss == SFD_LOSS_CROSS_ENTROPY ? SFD_TARGET_INT32 : SFD_TARGET_FLOAT32;
    trainer->target_bytes = trainer->target == SFD_TARGET_INT32 ? 4u : output.size * 4u;
    return SFD_OK;
}

/* Make room below the artifact for examples, and below those for a batch that is gathered from them.
 * There the arena has to end. */
static int reserve(struct trainer *trainer, uint32_t examples, uint32_t gathered,
                   struct sfd_problem *problem)
{
    const uint64_t room = trainer_examples_bytes(trainer, examples);
    const uint64_t more = trainer_examples_bytes(trainer, gathered), all = room + more;
    const uint32_t top = trainer_artifact_offset(trainer);

    if (more > top || room > top || all >= top)
        return sfd_fail_for_memory(problem, SERIAL_STATUS_MEMORY, top,
                                   all < UINT32_MAX ? (uint32_t)all : UINT32_MAX);
    if (trainer_examples_offset(trainer) < top - (uint32_t)room ||
        (trainer_has_ring(trainer) && trainer->ring.capacity != examples))
        trainer_forget(trainer, SERIAL_OBJECT_EXAMPLES);
    trainer->reserved_from = (top - (uint32_t)room) / 4u * 4u;
    trainer->room_examples = examples;
    trainer->gathered_most = gathered;
    trainer->arena_end = trainer->reserved_from - (uint32_t)more;
    return SFD_OK;
}

/* Plan by the layout, in the memory below it. What a session writes before its first step must end below
 * the state, which it reads meanwhile. */
static int plan(struct trainer *trainer, uint32_t batch, struct sfd_problem *problem)
{
    const struct trainer_object *artifact = &trainer->object[SERIAL_OBJECT_ARTIFACT];
    const struct trainer_object *state = &trainer->object[SERIAL_OBJECT_STATE];
    const struct trainer_object *layout = &trainer->object[SERIAL_OBJECT_LAYOUT];
    const struct sfd_options options = {.kernels = SFD_KERNELS_PORTABLE,
                                        .arena_bytes = trainer->arena_end,
                                        .layout = layout->data,
                                        .layout_bytes = layout->bytes};
    uint64_t persistent;
    int error;

    board_start_ticks();
    error = sfd_plan(artifact->data, artifact->bytes, state->data, state->bytes, batch, &options,
                     trainer->memory, layout->offset, &trainer->plan, problem);
    trainer->ticks[TRAINER_PLAN] = board_ticks();
    if (error != SFD_OK)
        return error;
    persistent = trainer->plan.arena_bytes - trainer->plan.transient_bytes;
    if (persistent > state->offset)
        return sfd_fail_for_memory(problem, SERIAL_STATUS_MEMORY, state->offset,
                                   (uint32_t)persistent);
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
    error = sfd_open(trainer->memory, state.data, state.bytes, trainer->memory, trainer->arena_end,
                     &session, problem);
    trainer->ticks[TRAINER_OPEN] = board_ticks();
    trainer_forget(trainer, SERIAL_OBJECT_STATE);
    trainer_forget(trainer, SERIAL_OBJECT_UPDATE);
    trainer->session = session;
    if (error == SFD_OK)
        sfd_arena_paint(trainer->memory + trainer->persistent_bytes,
                        trainer->arena_end - trainer->persistent_bytes);
    return error;
}

static void put_plan(const struct trainer *trainer, struct trainer_answer *answer)
{
    const struct sfd_plan *planned = &trainer->plan;

    answer_u32(answer, (uint32_t)planned->arena_bytes);
    answer_u32(answer, (uint32_t)planned->transient_bytes);
    answer_u32(answer, trainer->input_bytes);
    answer_u32(answer, trainer->target_bytes);
    answer_multiply_adds(answer, &planned->step);
}

/* batch u32, examples u32 and gathered u32 to have room for -> the plan; with an error where a file is
 * wrong, what was got, what is wanted. */
void trainer_open(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                  struct trainer_answer *answer)
{
    struct sfd_problem problem = {0u, 0u, 0u};
    int error;

    (void)bytes;
    if (!trainer->object[SERIAL_OBJECT_LAYOUT].is_whole) {
        answer->status = SERIAL_STATUS_MISSING;
        return;
    }
    trainer->session = NULL;
    error = measure_examples(trainer, &problem);
    if (error == SFD_OK)
        error = reserve(trainer, sfd_load_u32(request + 4u), sfd_load_u32(request + 8u), &problem);
    if (error == SFD_OK)
        error = plan(trainer, sfd_load_u32(request), &problem);
    if (error == SFD_OK)
        error = start_session(trainer, &problem);
    if (error == SFD_OK)
        put_plan(trainer, answer);
    else
        fail(answer, error, problem.position, problem.got, problem.wanted);
}
