/* Which operations run with the batch norm before them: an addition, a rectifier, or both, one after
 * the other. They become one pass over each channel, forward and backward, which happens in the
 * steps of the norm. */
#include "sfd_internal.h"

/* Inputs that are this tensor; an operation that takes it twice counts twice. */
static uint32_t uses(const struct sfd_session *session, uint32_t tensor)
{
    uint32_t i, count = 0u;

    for (i = 0u; i < session->operation_count; ++i) {
        count += session->nodes[i].operation.input0 == tensor;
        count += session->nodes[i].operation.input1 == tensor;
    }
    return count;
}

/* Whether the operation is the only one that wants the result of the one before it, and needs a
 * backward where the norm does. */
static int follows_alone(const struct sfd_session *session, uint32_t index,
                         const struct sfd_node *norm)
{
    const struct sfd_node *node = &session->nodes[index];

    return index < session->operation_count && index != session->output &&
           (node->operation.input0 == index || node->operation.input1 == index) &&
           uses(session, index) == 1u && node->has_backward == norm->has_backward;
}

static int joins_as_rectifier(const struct sfd_session *session, uint32_t index,
                              const struct sfd_node *norm)
{
    const struct sfd_node *node = &session->nodes[index];

    return follows_alone(session, index, norm) && (node->operation.kind == SFD_OPERATION_RELU ||
                                                   node->operation.kind == SFD_OPERATION_RELU6);
}

/* The gradient of the other operand is written in the same pass: it must not be added to. */
static int joins_as_addition(const struct sfd_session *session, uint32_t index,
                             const struct sfd_node *norm)
{
    const struct sfd_node *node = &session->nodes[index];

    return follows_alone(session, index, norm) && node->operation.kind == SFD_OPERATION_ADD &&
           node->delivery0 != SFD_DELIVER_ACCUMULATE && node->delivery1 != SFD_DELIVER_ACCUMULATE;
}

static void lives_from(struct sfd_session *session, uint32_t region, uint32_t step)
{
    if (region != SFD_NONE && session->regions[region].first_step > step)
        session->regions[region].first_step = (uint16_t)step;
}

static void lives_until(struct sfd_session *session, uint32_t region, uint32_t step)
{
    if (region != SFD_NONE && session->regions[region].last_step < step)
        session->regions[region].last_step = (uint16_t)step;
}

/* What an absorbed operation uses, it uses in the steps of the norm. */
static void absorb(struct sfd_session *session, uint32_t norm, uint32_t index)
{
    struct sfd_node *node = &session->nodes[index];
    const struct sfd_operation *operation = &node->operation;
    uint32_t backward = sfd_backward_step(session, norm);

    node->absorbed = 1u;
    lives_from(session, session->values[operation->output].storage, norm);
    lives_from(session, node->mask, norm);
    lives_until(session, node->mask, backward);
    if (!node->has_backward)
        return;
    lives_until(session, session->values[operation->output].gradient, backward);
    lives_until(session, session->values[operation->input0].gradient, backward);
    if (operation->input1 != SFD_NONE)
        lives_until(session, session->values[operation->input1].gradient, backward);
}

void sfd_fusion_plan(struct sfd_session *session)
{
    uint32_t i, next;

    for (i = 0u; i < session->operation_count; ++i) {
        struct sfd_node *norm = &session->nodes[i];
        if (norm->operation.kind != SFD_OPERATION_BATCH_NORM)
            continue;
        next = i + 1u;
        if (joins_as_addition(session, next, norm))
            absorb(session, i, next++);
        if (joins_as_rectifier(session, next, norm))
            absorb(session, i, next++);
        norm->fused = (uint8_t)(next - i - 1u);
    }
}
