/* Which operations run with the batch norm before them: an addition, a rectifier, or both, one after
 * the other. They become one pass over each channel, forward and backward; what lies between them is
 * never a tensor in memory. */
#include "sfd_planning.h"

/* Inputs of operations from `first` on that are this tensor; one that takes it twice counts twice. */
static uint32_t uses(const struct sfd_session *session, uint32_t tensor, uint32_t first)
{
    uint32_t i, count = 0u;

    for (i = first; i < session->operation_count; ++i) {
        count += session->nodes[i].operation.input0 == tensor;
        count += session->nodes[i].operation.input1 == tensor;
    }
    return count;
}

/* Of the operands of an addition the one that is not `tensor`. */
static uint32_t other_operand(const struct sfd_operation *add, uint32_t tensor)
{
    return add->input0 == tensor ? add->input1 : add->input0;
}

uint32_t sfd_second_input(const struct sfd_session *session, uint32_t node)
{
    const struct sfd_node *first = &session->nodes[node];

    if (!SFD_HAS(ADD))
        return SFD_NONE;
    if (first->fused > 0u && first[1].operation.kind == SFD_OPERATION_ADD)
        return other_operand(&first[1].operation, node + 1u);
    return first->operation.input1;
}

/* Whether the operation is the only one that wants the result of the one before it, and needs a
 * backward where the norm does. */
static int follows_alone(const struct sfd_session *session, uint32_t index,
                         const struct sfd_node *norm)
{
    const struct sfd_node *node = &session->nodes[index];

    return index < session->operation_count && index != session->output &&
           (node->operation.input0 == index || node->operation.input1 == index) &&
           uses(session, index, index) == 1u && node->has_backward == norm->has_backward;
}

static int joins_as_rectifier(const struct sfd_session *session, uint32_t index,
                              const struct sfd_node *norm)
{
    const struct sfd_node *node = &session->nodes[index];

    return follows_alone(session, index, norm) && (node->operation.kind == SFD_OPERATION_RELU ||
                                                   node->operation.kind == SFD_OPERATION_RELU6);
}

/* The gradient of the other operand is written in the same pass: it must be the first one, and a
 * later reader would have given one before. It may be the norm's own input, whose gradient then takes
 * dy before the norm adds to it, element by element. */
static int joins_as_addition(const struct sfd_session *session, uint32_t index,
                             const struct sfd_node *norm)
{
    const struct sfd_node *node = &session->nodes[index];

    return SFD_HAS(ADD) && follows_alone(session, index, norm) &&
           node->operation.kind == SFD_OPERATION_ADD &&
           uses(session, other_operand(&node->operation, index), index + 1u) == 0u;
}

void sfd_fusion_plan(struct sfd_session *session)
{
    uint32_t i, next;

    for (i = 0u; i < session->operation_count; ++i) {
        struct sfd_node *norm = &session->nodes[i];
        if (!SFD_HAS(BATCH_NORM) || norm->operation.kind != SFD_OPERATION_BATCH_NORM)
            continue;
        next = i + 1u;
        if (joins_as_addition(session, next, norm))
            ++next;
        if (joins_as_rectifier(session, next, norm))
            ++next;
        norm->fused = (uint8_t)(next - i - 1u);
        while (--next > i)
            session->nodes[next].absorbed = (uint8_t)(next - i);
    }
}
