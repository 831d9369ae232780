/* A session: open, step, evaluate, read out. */
#include "sfd_session.h"

#define PAINT UINT32_C(0x7fb5c3d1) /* a signalling NaN: no arithmetic writes it */

static void load_parameters(struct sfd_session *session, const struct sfd_container_view *state)
{
    struct sfd_entry entry;
    uint32_t i, k;

    sfd_container_entry_first(state, &entry);
    for (i = 0u; i < session->parameter_count; ++i) {
        const struct sfd_slot *slot = &session->slots[i];
        float *value = sfd_region_data(session, slot->value);
        for (k = 0u; k < slot->count; ++k)
            value[k] = sfd_load_f32(state->bytes + entry.value_offset + (size_t)k * 4u);
        if (slot->gradient < session->persistent_count)
            memset(sfd_slot_gradient(session, slot), 0, (size_t)slot->count * sizeof *value);
        if (slot->kind == SFD_PARAMETER_WEIGHT) {
            uint32_t *row_pointer = sfd_region_data(session, slot->index);
            void *column = row_pointer + slot->rows + 1u;
            if (slot->index_width == 2u && slot->count % 2u != 0u)
                ((uint16_t *)column)[slot->count] = 0u;
            for (k = 0u; k <= slot->rows; ++k)
                row_pointer[k] =
                    sfd_load_u32(state->bytes + entry.row_pointer_offset + (size_t)k * 4u);
            for (k = 0u; k < slot->count; ++k) {
                uint32_t at = sfd_container_column(state->bytes, &entry, k);
                if (slot->index_width == 2u)
                    ((uint16_t *)column)[k] = (uint16_t)at;
                else
                    ((uint32_t *)column)[k] = at;
            }
        }
        if (i + 1u < session->parameter_count)
            sfd_container_entry_next(state, i + 1u, &entry);
    }
}

int sfd_open(const void *workspace, const uint8_t *state, size_t state_bytes, void *arena,
             size_t arena_bytes, struct sfd_session **session, struct sfd_problem *problem)
{
    const struct sfd_session *planned = workspace;
    struct sfd_container_view state_view;
    struct sfd_session *opened;
    uint8_t *team;
    int error;

    if (session == NULL || !sfd_is_aligned(workspace) || !sfd_is_aligned(arena) ||
        planned->arena_bytes == 0u)
        return sfd_fail(problem, SFD_ERR_ARGUMENT, 0u, 0u, 0u);
    if (planned->arena_bytes > arena_bytes)
        return sfd_fail_for_memory(problem, SFD_ERR_ARENA, (uint32_t)arena_bytes,
                                   (uint32_t)planned->arena_bytes);
    error = sfd_container_open(state, state_bytes, &state_view, problem);
    if (error != SFD_OK)
        return error;
    if (!sfd_tables_match(planned, &state_view))
        return sfd_fail(problem, SFD_ERR_MISMATCH, 0u, 0u, 0u);
    opened = sfd_tables_move(planned, arena);
    /* the team follows the tables, in their region, which is the first */
    team = (uint8_t *)arena + opened->regions[0].bytes - sfd_team_bytes(opened->threads);
    error = sfd_team_start(team, opened->threads, &opened->team);
    if (error != SFD_OK)
        return sfd_fail(problem, error, 0u, opened->threads, 0u);
    opened->round = state_view.round;
    load_parameters(opened, &state_view);
    *session = opened;
    return SFD_OK;
}

void sfd_close(struct sfd_session *session)
{
    if (session == NULL)
        return;
    sfd_team_end(session->team);
    session->team = NULL;
}

static int check_labels(const void *y, enum sfd_target target, uint32_t n, uint32_t classes)
{
    uint32_t i;

    for (i = 0u; i < n; ++i) {
        int64_t label =
            target == SFD_TARGET_INT64 ? ((const int64_t *)y)[i] : ((const int32_t *)y)[i];
        if ((uint64_t)label >= classes) /* a negative one is a large number */
            return SFD_ERR_LABEL;
    }
    return SFD_OK;
}

static int check_batch(const struct sfd_session *session, const void *x, const void *y,
                       enum sfd_target target, uint32_t n)
{
    const struct sfd_value *output;
    uint32_t element_bytes;

    if (session == NULL || x == NULL || y == NULL)
        return SFD_ERR_ARGUMENT;
    element_bytes = sfd_input_element_bytes(&session->input_form);
    if ((uintptr_t)x % element_bytes != 0u ||
        (uintptr_t)y % (target == SFD_TARGET_INT64 ? 8u : 4u) != 0u)
        return SFD_ERR_ARGUMENT;
    if (session->has_failed)
        return SFD_ERR_DIVERGED;
    output = &session->values[session->output];
    if (n == 0u || n > session->batch)
        return SFD_ERR_BATCH;
    if (element_bytes == sizeof(float) && !sfd_all_finite(x, (uint64_t)n * session->values[0].size))
        return SFD_ERR_INPUT;
    if (SFD_HAS_LOSS(MEAN_SQUARED_ERROR) && session->loss == SFD_LOSS_MEAN_SQUARED_ERROR) {
        if (target != SFD_TARGET_FLOAT32)
            return SFD_ERR_ARGUMENT;
        return sfd_all_finite(y, (uint64_t)n * output->size) ? SFD_OK : SFD_ERR_INPUT;
    }
    if (target != SFD_TARGET_INT32 && target != SFD_TARGET_INT64)
        return SFD_ERR_ARGUMENT;
    return check_labels(y, target, n, output->size);
}

static float output_loss(const struct sfd_session *session, const void *y, enum sfd_target target,
                         uint32_t n, float *gradient, uint32_t *correct)
{
    const struct sfd_value *value = &session->values[session->output];
    const struct sfd_step *step = &session->steps[session->forward_steps];
    const float *output = sfd_tensor_data(session, step->input0);

    *correct = 0u;
    if (SFD_HAS_LOSS(MEAN_SQUARED_ERROR) && session->loss == SFD_LOSS_MEAN_SQUARED_ERROR)
        return sfd_mean_squared_error(output, y, n, value->size, gradient);
    if (SFD_HAS_LOSS(CROSS_ENTROPY))
        return sfd_cross_entropy(output, y, target, n, value->size, gradient, correct);
    return 0.0f;
}

static int gradients_are_finite(const struct sfd_session *session)
{
    uint32_t i;

    for (i = 0u; i < session->parameter_count; ++i) {
        const struct sfd_slot *slot = &session->slots[i];
        const float *gradient = sfd_slot_gradient(session, slot);
        if (gradient != NULL && !sfd_all_finite(gradient, slot->count))
            return 0;
    }
    return 1;
}

/* The gradients of a batch, whatever they are, and its loss. With rates the layers are updated on the
 * way. */
static int compute_gradients(struct sfd_session *session, const void *x, const void *y,
                             enum sfd_target target, uint32_t n, const struct sfd_rates *rates,
                             float *loss)
{
    uint32_t region, correct;
    float *gradient, value;
    int error = check_batch(session, x, y, target, n);

    if (error != SFD_OK)
        return error;
    if (loss == NULL)
        return SFD_ERR_ARGUMENT;
    sfd_begin_part(session, SFD_PART_FORWARD);
    sfd_forward(session, x, n, 1);
    region = session->values[session->output].gradient;
    gradient = region == SFD_NONE ? NULL : sfd_region_data(session, region);
    value = output_loss(session, y, target, n, gradient, &correct);
    if (!sfd_all_finite(&value, 1u))
        return SFD_ERR_DIVERGED;
    sfd_begin_part(session, SFD_PART_BACKWARD);
    error = sfd_backward(session, n, rates);
    *loss = value;
    return error;
}

int sfd_gradients(struct sfd_session *session, const void *x, const void *y, enum sfd_target target,
                  uint32_t n, float *loss)
{
    int error;

    if (session != NULL && session->working == SFD_WORKING_LAYERWISE)
        return SFD_ERR_ARGUMENT;
    error = compute_gradients(session, x, y, target, n, NULL, loss);
    if (error != SFD_OK)
        return error;
    return gradients_are_finite(session) ? SFD_OK : SFD_ERR_DIVERGED;
}

static int is_rate(float number)
{
    return number >= 0.0f && number < SFD_INFINITY;
}

int sfd_step(struct sfd_session *session, const void *x, const void *y, enum sfd_target target,
             uint32_t n, float learning_rate, float weight_decay, float *loss)
{
    const struct sfd_rates rates = {learning_rate, weight_decay};
    int is_layerwise, error;

    if (session == NULL || !is_rate(learning_rate) || !is_rate(weight_decay))
        return SFD_ERR_ARGUMENT;
    is_layerwise = session->working == SFD_WORKING_LAYERWISE;
    error = compute_gradients(session, x, y, target, n, is_layerwise ? &rates : NULL, loss);
    sfd_begin_part(session, SFD_PART_UPDATE);
    if (error == SFD_OK)
        error = is_layerwise ? sfd_learn_statistics(session, n) : sfd_learn(session, n, &rates);
    if (error == SFD_OK)
        ++session->counters.steps;
    return error;
}

int sfd_evaluate(struct sfd_session *session, const void *x, const void *y, enum sfd_target target,
                 uint32_t n, float *loss, uint32_t *correct)
{
    int error = check_batch(session, x, y, target, n);

    if (error != SFD_OK)
        return error;
    if (loss == NULL || correct == NULL)
        return SFD_ERR_ARGUMENT;
    sfd_forward(session, x, n, 0);
    *loss = output_loss(session, y, target, n, NULL, correct);
    return sfd_all_finite(loss, 1u) ? SFD_OK : SFD_ERR_DIVERGED;
}

int sfd_watch(struct sfd_session *session, const struct sfd_watcher *watcher)
{
    if (session == NULL)
        return SFD_ERR_ARGUMENT;
    session->watcher = watcher;
    return SFD_OK;
}

uint32_t sfd_input_size(const struct sfd_session *session)
{
    return session == NULL ? 0u : session->values[0].size;
}

uint32_t sfd_parameter_count(const struct sfd_session *session)
{
    return session == NULL ? 0u : session->parameter_count;
}

int sfd_parameter(const struct sfd_session *session, uint32_t index,
                  struct sfd_parameter_view *view)
{
    const struct sfd_slot *slot;

    if (session == NULL || view == NULL || index >= session->parameter_count)
        return SFD_ERR_ARGUMENT;
    if (session->has_failed)
        return SFD_ERR_DIVERGED;
    slot = &session->slots[index];
    memset(view, 0, sizeof *view);
    view->value = sfd_region_data(session, slot->value);
    if (session->working != SFD_WORKING_LAYERWISE)
        view->gradient = sfd_slot_gradient(session, slot);
    view->rows = slot->rows;
    view->columns = slot->columns;
    view->count = slot->count;
    view->index_width = slot->index_width;
    view->kind = slot->kind;
    if (slot->kind == SFD_PARAMETER_WEIGHT) {
        struct sfd_support support;
        sfd_slot_support(session, slot, &support);
        view->row_pointer = support.row_pointer;
        view->column = support.column;
    }
    return SFD_OK;
}

int sfd_counters(const struct sfd_session *session, struct sfd_counters *counters)
{
    if (session == NULL || counters == NULL)
        return SFD_ERR_ARGUMENT;
    *counters = session->counters;
    return SFD_OK;
}

void sfd_arena_paint(void *arena, size_t arena_bytes)
{
    const uint32_t paint = PAINT;
    uint8_t *byte = arena;
    size_t i;

    for (i = 0u; i + sizeof paint <= arena_bytes; i += sizeof paint)
        memcpy(byte + i, &paint, sizeof paint);
}

size_t sfd_arena_touched(const void *arena, size_t arena_bytes)
{
    const uint8_t *byte = arena;
    size_t end = arena_bytes / sizeof(uint32_t) * sizeof(uint32_t);

    for (; end > 0u; end -= sizeof(uint32_t)) {
        uint32_t word;
        memcpy(&word, byte + end - sizeof word, sizeof word);
        if (word != PAINT)
            break;
    }
    return end;
}
