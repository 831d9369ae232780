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
        if (slot->kind == SFD_PARAMETER_DENSE)
            memset(value + slot->count, 0, (size_t)slot->count * sizeof *value);
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
            memset(sfd_region_data(session, slot->working), 0, (size_t)slot->count * sizeof *value);
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
        return sfd_fail(problem, SFD_ERR_ARENA, 0u, (uint32_t)arena_bytes,
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
        if (label < 0 || label >= (int64_t)classes)
            return SFD_ERR_LABEL;
    }
    return SFD_OK;
}

static int check_batch(const struct sfd_session *session, const float *x, const void *y,
                       enum sfd_target target, uint32_t n)
{
    const struct sfd_value *output;

    if (session == NULL || x == NULL || y == NULL || (uintptr_t)x % sizeof *x != 0u ||
        (uintptr_t)y % (target == SFD_TARGET_INT64 ? 8u : 4u) != 0u)
        return SFD_ERR_ARGUMENT;
    output = &session->values[session->output];
    if (n == 0u || n > session->batch)
        return SFD_ERR_BATCH;
    if (!sfd_all_finite(x, (uint64_t)n * session->values[0].size))
        return SFD_ERR_INPUT;
    if (session->loss == SFD_LOSS_MEAN_SQUARED_ERROR) {
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

    if (session->loss == SFD_LOSS_CROSS_ENTROPY)
        return sfd_cross_entropy(output, y, target, n, value->size, gradient, correct);
    *correct = 0u;
    return sfd_mean_squared_error(output, y, n, value->size, gradient);
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

/* The gradients of a batch, whatever they are, and its loss. */
static int compute_gradients(struct sfd_session *session, const float *x, const void *y,
                             enum sfd_target target, uint32_t n, float *loss)
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
    sfd_backward(session, n);
    *loss = value;
    return SFD_OK;
}

int sfd_gradients(struct sfd_session *session, const float *x, const void *y,
                  enum sfd_target target, uint32_t n, float *loss)
{
    int error = compute_gradients(session, x, y, target, n, loss);

    if (error != SFD_OK)
        return error;
    return gradients_are_finite(session) ? SFD_OK : SFD_ERR_DIVERGED;
}

static float stepped(float value, float gradient, float learning_rate, float weight_decay)
{
    return value - learning_rate * (gradient + weight_decay * value);
}

/* running <- (1 - momentum) running + momentum batch, with the unbiased batch variance, as PyTorch
 * does. Returns whether all stays finite; changes the session only when told to. */
static int running_statistics(struct sfd_session *session, uint32_t n, int apply)
{
    uint32_t i, c;

    for (i = 0u; i < session->operation_count; ++i) {
        const struct sfd_operation *operation = &session->nodes[i].operation;
        const struct sfd_value *value = &session->values[operation->input0];
        const float *moments;
        float *running[2], count, scale[2];
        if (operation->kind != SFD_OPERATION_BATCH_NORM || operation->mean == SFD_NONE)
            continue;
        moments = sfd_region_data(session, session->nodes[i].moments);
        running[0] = sfd_region_data(session, session->slots[operation->mean].value);
        running[1] = sfd_region_data(session, session->slots[operation->variance].value);
        count = (float)n * (float)value->height * (float)value->width;
        scale[0] = 1.0f;
        scale[1] = count > 1.0f ? count / (count - 1.0f) : 1.0f;
        for (c = 0u; c < 2u * value->channels; ++c) {
            uint32_t which = c / value->channels;
            float *target = &running[which][c % value->channels];
            float next = *target + operation->momentum * (moments[c] * scale[which] - *target);
            if (!sfd_all_finite(&next, 1u))
                return 0;
            if (apply)
                *target = next;
        }
    }
    return 1;
}

#define STEP_RUN 64u

/* An update of the parameters, as threads share it: first they all look whether everything stays
 * finite. It does not where a gradient is not: whatever that is multiplied by, no number comes
 * out. */
struct update_work {
    struct sfd_session *session;
    float learning_rate, weight_decay;
    int diverges[SFD_MAX_THREADS];
};

static int stays_finite(const float *value, const float *gradient, uint32_t count,
                        float learning_rate, float weight_decay)
{
    uint32_t start, k;

    for (start = 0u; start < count; start += STEP_RUN, value += STEP_RUN, gradient += STEP_RUN) {
        const uint32_t run = count - start < STEP_RUN ? count - start : STEP_RUN;
        float next[STEP_RUN];
        for (k = 0u; k < run; ++k)
            next[k] = stepped(value[k], gradient[k], learning_rate, weight_decay);
        if (!sfd_all_finite(next, run))
            return 0;
    }
    return 1;
}

static void check_share(void *context, uint32_t index, uint32_t count)
{
    struct update_work *work = context;
    uint32_t i;

    for (i = 0u; i < work->session->parameter_count && !work->diverges[index]; ++i) {
        const struct sfd_slot *slot = &work->session->slots[i];
        const float *gradient = sfd_slot_gradient(work->session, slot);
        const float *value = sfd_region_data(work->session, slot->value);
        const uint32_t first = sfd_run_share(slot->count, index, count);
        const uint32_t last = sfd_run_share(slot->count, index + 1u, count);
        if (gradient != NULL)
            work->diverges[index] = !stays_finite(value + first, gradient + first, last - first,
                                                  work->learning_rate, work->weight_decay);
    }
}

static void apply_step(float *value, const float *gradient, uint32_t count, float learning_rate,
                       float weight_decay)
{
    uint32_t k;

    for (k = 0u; k < count; ++k)
        value[k] = stepped(value[k], gradient[k], learning_rate, weight_decay);
}

static void update_share(void *context, uint32_t index, uint32_t count)
{
    const struct update_work *work = context;
    uint32_t i;

    for (i = 0u; i < work->session->parameter_count; ++i) {
        const struct sfd_slot *slot = &work->session->slots[i];
        const float *gradient = sfd_slot_gradient(work->session, slot);
        float *value = sfd_region_data(work->session, slot->value);
        const uint32_t first = sfd_run_share(slot->count, index, count);
        const uint32_t last = sfd_run_share(slot->count, index + 1u, count);
        if (gradient != NULL)
            apply_step(value + first, gradient + first, last - first, work->learning_rate,
                       work->weight_decay);
    }
}

/* SFD_ERR_DIVERGED, and nothing has changed, where a number would not stay finite. */
static int update(struct sfd_session *session, uint32_t n, float learning_rate, float weight_decay)
{
    struct update_work work = {session, learning_rate, weight_decay, {0}};
    uint32_t i;

    sfd_team_run(session->team, check_share, &work);
    for (i = 0u; i < SFD_MAX_THREADS; ++i)
        if (work.diverges[i])
            return SFD_ERR_DIVERGED;
    if (!running_statistics(session, n, 0))
        return SFD_ERR_DIVERGED;
    sfd_team_run(session->team, update_share, &work);
    running_statistics(session, n, 1);
    return SFD_OK;
}

int sfd_step(struct sfd_session *session, const float *x, const void *y, enum sfd_target target,
             uint32_t n, float learning_rate, float weight_decay, float *loss)
{
    int error;

    if (!(learning_rate >= 0.0f && learning_rate < SFD_INFINITY) ||
        !(weight_decay >= 0.0f && weight_decay < SFD_INFINITY))
        return SFD_ERR_ARGUMENT;
    error = compute_gradients(session, x, y, target, n, loss);
    if (error != SFD_OK)
        return error;
    sfd_begin_part(session, SFD_PART_UPDATE);
    error = update(session, n, learning_rate, weight_decay);
    if (error != SFD_OK)
        return error;
    ++session->counters.steps;
    return SFD_OK;
}

int sfd_evaluate(struct sfd_session *session, const float *x, const void *y, enum sfd_target target,
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
    slot = &session->slots[index];
    memset(view, 0, sizeof *view);
    view->value = sfd_region_data(session, slot->value);
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
