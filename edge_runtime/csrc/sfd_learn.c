/* The change of the model: all of it once a step's gradients are there, or layer by layer. */
#include "sfd_session.h"

static float stepped(float value, float gradient, const struct sfd_rates *rates)
{
    return value - rates->learning_rate * (gradient + rates->weight_decay * value);
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
        if (!SFD_HAS(BATCH_NORM) || operation->kind != SFD_OPERATION_BATCH_NORM ||
            operation->mean == SFD_NONE)
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

int sfd_learn_statistics(struct sfd_session *session, uint32_t n)
{
    if (!running_statistics(session, n, 0)) {
        session->has_failed = session->working == SFD_WORKING_LAYERWISE;
        return SFD_ERR_DIVERGED;
    }
    (void)running_statistics(session, n, 1);
    return SFD_OK;
}

#define STEP_RUN 64u

/* A change of parameters, as threads share it: first they all look whether everything stays finite.
 * It does not where a gradient is not: whatever that is multiplied by, no number comes out. */
struct update_work {
    const struct sfd_session *session;
    const struct sfd_slot *slots;
    uint32_t count;
    struct sfd_rates rates;
    int diverges[SFD_MAX_THREADS];
};

static int stays_finite(const float *value, const float *gradient, uint32_t count,
                        const struct sfd_rates *rates)
{
    uint32_t start, k;

    for (start = 0u; start < count; start += STEP_RUN, value += STEP_RUN, gradient += STEP_RUN) {
        const uint32_t run = count - start < STEP_RUN ? count - start : STEP_RUN;
        float next[STEP_RUN];
        for (k = 0u; k < run; ++k)
            next[k] = stepped(value[k], gradient[k], rates);
        if (!sfd_all_finite(next, run))
            return 0;
    }
    return 1;
}

static void check_share(void *context, uint32_t index, uint32_t count)
{
    struct update_work *work = context;
    uint32_t i;

    for (i = 0u; i < work->count && !work->diverges[index]; ++i) {
        const struct sfd_slot *slot = &work->slots[i];
        const float *gradient = sfd_slot_gradient(work->session, slot);
        const float *value = sfd_region_data(work->session, slot->value);
        const uint32_t first = sfd_run_share(slot->count, index, count);
        const uint32_t last = sfd_run_share(slot->count, index + 1u, count);
        if (gradient != NULL)
            work->diverges[index] =
                !stays_finite(value + first, gradient + first, last - first, &work->rates);
    }
}

static void apply_step(float *value, const float *gradient, uint32_t count,
                       const struct sfd_rates *rates)
{
    uint32_t k;

    for (k = 0u; k < count; ++k)
        value[k] = stepped(value[k], gradient[k], rates);
}

static void update_share(void *context, uint32_t index, uint32_t count)
{
    const struct update_work *work = context;
    uint32_t i;

    for (i = 0u; i < work->count; ++i) {
        const struct sfd_slot *slot = &work->slots[i];
        const float *gradient = sfd_slot_gradient(work->session, slot);
        float *value = sfd_region_data(work->session, slot->value);
        const uint32_t first = sfd_run_share(slot->count, index, count);
        const uint32_t last = sfd_run_share(slot->count, index + 1u, count);
        if (gradient != NULL)
            apply_step(value + first, gradient + first, last - first, &work->rates);
    }
}

static int check_parameters(const struct sfd_session *session, struct update_work *work)
{
    uint32_t i;

    sfd_team_run(session->team, check_share, work);
    for (i = 0u; i < SFD_MAX_THREADS; ++i)
        if (work->diverges[i])
            return SFD_ERR_DIVERGED;
    return SFD_OK;
}

int sfd_learn(struct sfd_session *session, uint32_t n, const struct sfd_rates *rates)
{
    struct update_work work = {session, session->slots, session->parameter_count, *rates, {0}};
    int error = check_parameters(session, &work);

    if (error == SFD_OK)
        error = sfd_learn_statistics(session, n);
    if (error == SFD_OK)
        sfd_team_run(session->team, update_share, &work);
    return error;
}

int sfd_learn_operation(struct sfd_session *session, const struct sfd_operation *operation,
                        const struct sfd_rates *rates)
{
    const uint32_t parameters[2] = {operation->weight, operation->bias};
    uint32_t i;

    for (i = 0u; i < 2u; ++i) {
        struct update_work work = {session, NULL, 1u, *rates, {0}};
        if (parameters[i] == SFD_NONE)
            continue;
        work.slots = &session->slots[parameters[i]];
        if (check_parameters(session, &work) != SFD_OK)
            return SFD_ERR_DIVERGED;
        sfd_team_run(session->team, update_share, &work);
    }
    return SFD_OK;
}
