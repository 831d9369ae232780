/* Which tensors stay between forward and backward, and which are computed again.
 *
 * A search with a target of memory starts with all that the backward reads being kept. Each round
 * tries every single change and applies the best one: what lowers the memory over the target, summed
 * over all steps, most for the work that it costs. Where no change helps, the one that harms least is
 * taken, a few times, and what was changed is left alone for some rounds, so that the search can
 * leave a dead end. Once the plan fits, changes that save work and still fit are taken. All this is
 * deterministic, and bounded by the number of steps that plans may have together. */
#include "sfd_planning.h"

#define ROUNDS_SETTLED 8u
#define HARMFUL_ROUNDS 24u
#define ALIKE 0.7f

struct search {
    struct sfd_session *session;
    uint32_t target;
    uint64_t work_limit;
    uint32_t round, harmful;
    struct sfd_measure now;
};

/* Of one image: writing the result of an operation. */
static uint64_t element_work(const struct sfd_session *session, uint32_t node)
{
    return sfd_kernels_of(session)->element_work *
           (uint64_t)session->values[sfd_result(session, node)].size;
}

/* From the number of nonzeros, not from their places: states of the same sizes have the same plan. */
static uint64_t node_work(const struct sfd_session *session, uint32_t node)
{
    const struct sfd_operation *operation = &session->nodes[node].operation;
    const struct sfd_value *result = &session->values[sfd_result(session, node)];
    uint64_t each = element_work(session, node);

    if (operation->kind == SFD_OPERATION_CONVOLUTION)
        each += (uint64_t)session->slots[operation->weight].count * result->height * result->width;
    else if (operation->kind == SFD_OPERATION_LINEAR)
        each += session->slots[operation->weight].count;
    return each * session->batch;
}

/* Interleaving the caller's images. */
static uint64_t input_work(const struct sfd_session *session)
{
    return (uint64_t)sfd_kernels_of(session)->element_work * sfd_batch_elements(session, 0u);
}

uint64_t sfd_search_forward_work(const struct sfd_session *session)
{
    uint64_t work = 0u;
    uint32_t i;

    for (i = 0u; i < session->operation_count; i = sfd_result(session, i))
        work += node_work(session, i);
    return work;
}

uint64_t sfd_search_element_work(const struct sfd_session *session)
{
    uint64_t work = 0u;
    uint32_t i;

    for (i = 0u; i < session->operation_count; i = sfd_result(session, i))
        work += element_work(session, i);
    return work * session->batch;
}

static void spend(struct sfd_session *session, uint32_t steps)
{
    session->search_left -= steps < session->search_left ? steps : session->search_left;
}

int sfd_search_measure(struct sfd_session *session, uint32_t target, struct sfd_measure *measure)
{
    uint32_t i;
    int possible;

    memset(measure, 0, sizeof *measure);
    if (session->search_left == 0u)
        return 0;
    possible = sfd_schedule_build(session);
    spend(session, session->step_count + session->scanned);
    if (!possible)
        return 0;
    sfd_lifetimes_sum(session, SFD_ALIGNMENT);
    for (i = 0u; i < session->step_count; ++i) {
        const struct sfd_step *step = &session->steps[i];
        if (step->live > target)
            measure->excess += step->live - target;
        if (step->action == SFD_ACTION_RESTORE)
            measure->work += node_work(session, step->node);
        if (step->loads && i > session->forward_steps)
            measure->work += input_work(session);
    }
    return 1;
}

void sfd_search_exchange(struct sfd_session *session, struct sfd_change *change)
{
    uint8_t *choice = change->is_packing
                          ? &session->plans[change->node].packs_late
                          : &session->values[sfd_result(session, change->node)].retention;
    uint8_t before = *choice;

    *choice = change->choice;
    change->choice = before;
}

static uint16_t *settled_until(struct sfd_session *session, const struct sfd_change *change)
{
    return change->is_packing ? &session->plans[change->node].settled
                              : &session->values[sfd_result(session, change->node)].settled;
}

/* How good it is to come from one measure to another: first the rank, then the value, then less
 * work. Rank 0 is out of the question. */
struct score {
    uint32_t rank;
    float value;
    uint64_t work;
};

#define RANK_HARMFUL 1u
#define RANK_AT_A_PRICE 2u
#define RANK_FREE 3u

/* Not a conversion of 64 bits, which a board would link for this alone. */
static float as_float(uint64_t number)
{
    return (float)(uint32_t)(number >> 32) * 4294967296.0f + (float)(uint32_t)number;
}

static struct score score_of(const struct search *search, const struct sfd_measure *after)
{
    const struct sfd_measure *now = &search->now;
    struct score score = {0u, 0.0f, after->work};

    if (after->work > search->work_limit)
        return score;
    if (now->excess == 0u) {
        score.rank = after->excess == 0u && after->work < now->work ? RANK_FREE : 0u;
        score.value = as_float(now->work) - as_float(after->work);
    } else if (after->excess >= now->excess) {
        score.rank = RANK_HARMFUL;
        score.value = -as_float(after->excess - now->excess);
    } else if (after->work <= now->work) {
        score.rank = RANK_FREE;
        score.value = as_float(now->excess - after->excess);
    } else {
        score.rank = RANK_AT_A_PRICE;
        score.value = as_float(now->excess - after->excess) / as_float(after->work - now->work);
    }
    return score;
}

static int is_better(const struct score *a, const struct score *b)
{
    if (a->rank != b->rank)
        return a->rank > b->rank;
    if (a->value != b->value)
        return a->value > b->value;
    return a->work < b->work;
}

/* What a change would lead to. Rank 0 where it is not possible, or settled. */
static struct score try_change(struct search *search, struct sfd_change change,
                               struct sfd_measure *after)
{
    struct score score = {0u, 0.0f, 0u};
    int possible;

    if (search->now.excess > 0u && *settled_until(search->session, &change) > search->round)
        return score;
    sfd_search_exchange(search->session, &change);
    possible = sfd_search_measure(search->session, search->target, after);
    sfd_search_exchange(search->session, &change);
    return possible ? score_of(search, after) : score;
}

static void accept(struct search *search, struct sfd_change change, const struct sfd_measure *after)
{
    if (search->now.excess > 0u)
        *settled_until(search->session, &change) = (uint16_t)(search->round + ROUNDS_SETTLED + 1u);
    sfd_search_exchange(search->session, &change);
    search->now = *after;
}

uint32_t sfd_search_retentions(const struct sfd_session *session, uint32_t node)
{
    return session->tries_channels && sfd_can_restore_by_channel(session, node)
               ? SFD_RETENTION_COUNT
               : SFD_RESTORE_BY_CHANNEL;
}

/* Step through all changes. Begins with {0, 0, 0}; 0: there are no more. */
static int next_change(const struct sfd_session *session, struct sfd_change *change)
{
    const struct sfd_node_plan *plan = &session->plans[change->node];

    if (!change->is_packing && change->choice + 1u < sfd_search_retentions(session, change->node)) {
        ++change->choice;
    } else if (!change->is_packing && plan->packed_bytes > 0u &&
               (session->reloads || session->nodes[change->node].operation.input0 != 0u)) {
        change->is_packing = 1u;
        change->choice = !plan->packs_late;
    } else {
        change->node = (uint16_t)sfd_result(session, change->node);
        change->is_packing = change->choice = 0u;
    }
    return change->node < session->operation_count;
}

/* The best change at each operation, and the best of all. */
static struct score find_best(struct search *search, struct sfd_change *best,
                              struct sfd_measure *measure)
{
    struct sfd_change change = {0u, 0u, 0u};
    struct score score, best_score = {0u, 0.0f, 0u};
    struct sfd_measure after;

    do {
        struct sfd_promise *promise = &search->session->plans[change.node].promise;
        if (!change.is_packing && change.choice == 0u)
            memset(promise, 0, sizeof *promise);
        score = try_change(search, change, &after);
        if (score.rank > promise->rank ||
            (score.rank == promise->rank && score.value > promise->value)) {
            promise->value = score.value;
            promise->rank = (uint8_t)score.rank;
            promise->is_packing = change.is_packing;
            promise->choice = change.choice;
        }
        if (score.rank > 0u && is_better(&score, &best_score)) {
            best_score = score;
            *best = change;
            *measure = after;
        }
    } while (next_change(search->session, &change));
    return best_score;
}

/* Changes at other operations that were nearly as good as the best one, and still are. A deep model
 * has many alike. */
static void accept_alike(struct search *search, const struct score *best)
{
    uint32_t i;

    for (i = 0u; i < search->session->operation_count; i = sfd_result(search->session, i)) {
        const struct sfd_promise *promise = &search->session->plans[i].promise;
        struct sfd_change change = {(uint16_t)i, promise->is_packing, promise->choice};
        struct sfd_measure after;
        struct score score;
        if (promise->rank != best->rank || promise->value < ALIKE * best->value)
            continue;
        score = try_change(search, change, &after);
        if (score.rank == best->rank && score.value >= ALIKE * best->value)
            accept(search, change, &after);
    }
}

/* All that the backward reads is kept. What it does not read is computed again if that is wanted
 * nevertheless. */
static void reset_choices(struct sfd_session *session)
{
    uint32_t i;

    for (i = 0u; i < session->tensor_count; ++i) {
        session->values[i].retention = SFD_RESTORE_ONCE;
        session->values[i].settled = 0u;
    }
    for (i = 0u; i < session->operation_count; ++i) {
        struct sfd_node_plan *plan = &session->plans[i];
        plan->packs_late = 0u;
        plan->settled = 0u;
        if (plan->reads_input)
            session->values[session->nodes[i].operation.input0].retention = SFD_KEEP;
    }
}

int sfd_search(struct sfd_session *session, uint32_t target, uint64_t work_limit, uint64_t *work)
{
    struct search search = {.session = session, .target = target, .work_limit = work_limit};
    struct sfd_change best;
    struct sfd_measure after;
    struct score score;

    reset_choices(session);
    if (!sfd_search_measure(session, search.target, &search.now))
        return 0;
    for (;; ++search.round) {
        score = find_best(&search, &best, &after);
        *work = search.now.work;
        if (score.rank == 0u)
            return search.now.excess == 0u && sfd_schedule_build(session);
        if (score.rank == RANK_HARMFUL && ++search.harmful > HARMFUL_ROUNDS)
            return 0;
        accept(&search, best, &after);
        if (score.rank != RANK_HARMFUL)
            accept_alike(&search, &score);
    }
}
