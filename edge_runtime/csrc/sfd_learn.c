/* The change of the model: all of it once a step's gradients are there, or layer by layer. */
#include "sfd_session.h"

/* running <- (1 - momentum) running + momentum batch, with the unbiased batch variance, as PyTorch
 * does. Returns whether all stays finite; changes the session only when told to. */
static int move_statistics(struct sfd_session *session, uint32_t node, uint32_t n, int apply)
{
    const struct sfd_operation *operation = &session->nodes[node].operation;
    const struct sfd_value *value = &session->values[operation->input0];
    const float *moments;
    float *running[2], count, scale[2];
    uint32_t c;

    if (!SFD_HAS(BATCH_NORM) || operation->kind != SFD_OPERATION_BATCH_NORM ||
        operation->mean == SFD_NONE)
        return 1;
    moments = sfd_region_data(session, session->nodes[node].moments);
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
    return 1;
}

/* Those that the backward of their norm has not moved. */
static int move_remaining_statistics(struct sfd_session *session, uint32_t n, int apply)
{
    uint32_t i;

    for (i = 0u; i < session->operation_count; ++i)
        if (!sfd_learns_early(session, i) && !move_statistics(session, i, n, apply))
            return 0;
    return 1;
}

int sfd_learn_statistics(struct sfd_session *session, uint32_t n)
{
    if (!move_remaining_statistics(session, n, 0)) {
        session->has_failed = session->working == SFD_WORKING_LAYERWISE;
        return SFD_ERR_DIVERGED;
    }
    (void)move_remaining_statistics(session, n, 1);
    return SFD_OK;
}

/* A change of parameters, as threads share it: first they all put the new values in the place of the
 * gradients, and look whether they are finite. They are not where a gradient is not: whatever that is
 * multiplied by, no number comes out. */
struct update_work {
    const struct sfd_session *session;
    const struct sfd_slot *slots;
    uint32_t count;
    struct sfd_rates rates;
    int diverges[SFD_MAX_THREADS];
};

/* A thread's share of a parameter. */
struct share {
    float *value, *gradient; /* NULL: it does not change */
    uint32_t count;
};

static struct share share_of(const struct update_work *work, uint32_t slot, uint32_t index,
                             uint32_t count)
{
    const uint32_t size = work->slots[slot].count, first = sfd_run_share(size, index, count);
    struct share share;

    share.value = (float *)sfd_region_data(work->session, work->slots[slot].value) + first;
    share.gradient = sfd_slot_gradient(work->session, &work->slots[slot]);
    if (share.gradient != NULL)
        share.gradient += first;
    share.count = sfd_run_share(size, index + 1u, count) - first;
    return share;
}

/* Returns whether all new values, one at least, are finite. */
static SFD_HOT int step_values(const float *restrict value, float *restrict gradient,
                               uint32_t count, const struct sfd_rates *rates)
{
    const float learning_rate = rates->learning_rate, weight_decay = rates->weight_decay;
    uint32_t beyond = 0u, k = 0u; /* no branch: the loop takes vectors */

    do {
        gradient[k] = value[k] - learning_rate * (gradient[k] + weight_decay * value[k]);
        beyond |= sfd_beyond_finite(gradient[k]);
    } while (++k < count);
    return beyond >> 31 == 0u;
}

static void step_share(void *context, uint32_t index, uint32_t count)
{
    struct update_work *work = context;
    uint32_t i;

    for (i = 0u; i < work->count && !work->diverges[index]; ++i) {
        const struct share share = share_of(work, i, index, count);
        if (share.gradient != NULL && share.count > 0u)
            work->diverges[index] =
                !step_values(share.value, share.gradient, share.count, &work->rates);
    }
}

static void update_share(void *context, uint32_t index, uint32_t count)
{
    const struct update_work *work = context;
    uint32_t i;

    for (i = 0u; i < work->count; ++i) {
        const struct share share = share_of(work, i, index, count);
        if (share.gradient != NULL)
            memcpy(share.value, share.gradient, share.count * sizeof *share.value);
    }
}

static int step_parameters(const struct sfd_session *session, struct update_work *work)
{
    uint32_t i;

    sfd_team_run(session->team, step_share, work);
    for (i = 0u; i < SFD_MAX_THREADS; ++i)
        if (work->diverges[i])
            return SFD_ERR_DIVERGED;
    return SFD_OK;
}

int sfd_learn(struct sfd_session *session, uint32_t n, const struct sfd_rates *rates)
{
    struct update_work work = {session, session->slots, session->parameter_count, *rates, {0}};
    int error = step_parameters(session, &work);

    if (error == SFD_OK)
        error = sfd_learn_statistics(session, n);
    if (error == SFD_OK)
        sfd_team_run(session->team, update_share, &work);
    return error;
}

int sfd_learn_operation(struct sfd_session *session, uint32_t node, uint32_t n,
                        const struct sfd_rates *rates)
{
    const struct sfd_operation *operation = &session->nodes[node].operation;
    const uint32_t parameters[2] = {operation->weight, operation->bias};
    uint32_t i;

    if (!move_statistics(session, node, n, 0))
        return SFD_ERR_DIVERGED;
    (void)move_statistics(session, node, n, 1);
    for (i = 0u; i < 2u; ++i) {
        struct update_work work = {session, NULL, 1u, *rates, {0}};
        if (parameters[i] == SFD_NONE)
            continue;
        work.slots = &session->slots[parameters[i]];
        if (step_parameters(session, &work) != SFD_OK)
            return SFD_ERR_DIVERGED;
        sfd_team_run(session->team, update_share, &work);
    }
    return SFD_OK;
}
