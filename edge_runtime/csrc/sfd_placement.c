/* Where each region lies: persistent ones first, then those that share memory over time. */
#include "sfd_internal.h"

/* Persistent regions are many and small. In the others a vectorised kernel wants every pixel of a
 * full block, 64 bytes, on a cache line of its own. */
#define PERSISTENT_ALIGNMENT 16u

/* Without a budget, a fast plan may compute again what costs one part in so many of a forward, a
 * small plan as much as a forward. */
#define FAST_SHARE 8u
#define SMALL_SHARE 1u
#define BUDGET_ATTEMPTS 4u

static uint64_t region_end(const struct sfd_region *region)
{
    return (uint64_t)region->offset + region->bytes;
}

static uint64_t align(uint64_t bytes, uint64_t alignment)
{
    return (bytes + alignment - 1u) / alignment * alignment;
}

static int is_persistent(const struct sfd_region *region)
{
    return region->kind <= SFD_BUFFER_DENSE;
}

/* Persistent regions lie one after the other. Returns where the transient ones may begin. */
static uint64_t place_persistent(struct sfd_session *session)
{
    uint64_t cursor = 0u;
    uint32_t i;

    for (i = 0u; i < session->region_count; ++i) {
        struct sfd_region *region = &session->regions[i];
        if (!is_persistent(region))
            continue;
        region->offset = cursor > SFD_ARENA_LIMIT ? SFD_ARENA_LIMIT : (uint32_t)cursor;
        cursor = align(cursor + region->bytes, PERSISTENT_ALIGNMENT);
    }
    return align(cursor, SFD_ALIGNMENT);
}

/* Put one region into the lowest gap that is free while it is alive. The list of placed regions is
 * ordered by offset. */
static int place_region(struct sfd_session *session, uint32_t index, uint64_t base, uint16_t *head)
{
    struct sfd_region *region = &session->regions[index];
    uint64_t cursor = base;
    uint16_t i, *link;

    for (i = *head; i != SFD_NONE; i = session->regions[i].next) {
        const struct sfd_region *other = &session->regions[i];
        if (other->last_step < region->first_step || region->last_step < other->first_step)
            continue;
        if (cursor + region->bytes <= other->offset)
            break;
        if (cursor < region_end(other))
            cursor = align(region_end(other), SFD_ALIGNMENT);
    }
    if (cursor + region->bytes > SFD_ARENA_LIMIT)
        return SFD_ERR_LIMIT;
    region->offset = (uint32_t)cursor;
    region->placed = 1u;
    for (link = head; *link != SFD_NONE && session->regions[*link].offset <= region->offset;)
        link = &session->regions[*link].next;
    region->next = *link;
    *link = (uint16_t)index;
    return SFD_OK;
}

enum placement_order { BY_SIZE, BY_LIFETIME };

/* Whether `a` is placed before `b`: the larger first, or the longer-lived and then the larger. */
static int comes_first(const struct sfd_region *a, const struct sfd_region *b,
                       enum placement_order order)
{
    uint32_t life_a = (uint32_t)a->last_step - a->first_step;
    uint32_t life_b = (uint32_t)b->last_step - b->first_step;

    if (order == BY_LIFETIME && life_a != life_b)
        return life_a > life_b;
    return a->bytes > b->bytes;
}

/* Greedy: region after region in this order, each at the lowest place where it fits. *end is where
 * the last one ends. */
static int place_transient(struct sfd_session *session, uint64_t base, enum placement_order order,
                           uint64_t *end)
{
    uint16_t head = SFD_NONE;
    uint32_t i;

    for (i = 0u; i < session->region_count; ++i)
        session->regions[i].placed = 0u;
    *end = 0u;
    for (;;) {
        uint32_t next = SFD_NONE;
        int error;
        for (i = 0u; i < session->region_count; ++i) {
            const struct sfd_region *region = &session->regions[i];
            if (!is_persistent(region) && !region->placed &&
                (next == SFD_NONE || comes_first(region, &session->regions[next], order)))
                next = i;
        }
        if (next == SFD_NONE)
            return SFD_OK;
        error = place_region(session, next, base, &head);
        if (error != SFD_OK)
            return error;
        if (*end < region_end(&session->regions[next]))
            *end = region_end(&session->regions[next]);
    }
}

/* Neither order is always the better one: take the one that ends lower. */
static int place_best(struct sfd_session *session, uint64_t base)
{
    uint64_t by_size, by_lifetime;
    int error = place_transient(session, base, BY_SIZE, &by_size);
    int other = place_transient(session, base, BY_LIFETIME, &by_lifetime);

    if (other == SFD_OK && (error != SFD_OK || by_lifetime <= by_size))
        return SFD_OK;
    return place_transient(session, base, BY_SIZE, &by_size);
}

/* The lists are exact now: no sum of what is alive is more than the arena. */
static void measure_live_peak(struct sfd_session *session, struct sfd_plan *plan)
{
    uint32_t i;

    sfd_lifetimes_sum(session, 1u);
    plan->live_peak_bytes = 0u;
    for (i = 0u; i < session->step_count; ++i)
        if (session->steps[i].live > plan->live_peak_bytes) {
            plan->live_peak_bytes = session->steps[i].live;
            plan->live_peak_step = i;
        }
}

static void plan_work(struct sfd_session *session, struct sfd_plan *plan)
{
    uint32_t i;

    plan->step = session->planned;
    for (i = 0u; i < session->step_count; ++i)
        if (session->steps[i].action == SFD_ACTION_RESTORE)
            plan->step.recomputed +=
                session->nodes[session->steps[i].node].multiply_adds * session->batch;
}

/* Place the regions of the choices just made, and say what came of it. */
static int place_all(struct sfd_session *session, uint64_t base, struct sfd_plan *plan)
{
    uint32_t i;
    int error = place_best(session, base);

    if (error != SFD_OK)
        return error;
    plan->arena_bytes = 0u;
    for (i = 0u; i < session->region_count; ++i)
        if (session->regions[i].bytes > 0u && region_end(&session->regions[i]) > plan->arena_bytes)
            plan->arena_bytes = region_end(&session->regions[i]);
    plan->transient_bytes = plan->arena_bytes > base ? plan->arena_bytes - base : 0u;
    plan->buffer_count = session->region_count;
    plan->step_count = session->step_count;
    measure_live_peak(session, plan);
    plan_work(session, plan);
    return SFD_OK;
}

/* The least work whose regions end within the budget. Placed regions may take more than what is
 * alive: then the search is told to leave that much free. Returns whether the budget is kept. */
static int place_within(struct sfd_session *session, uint64_t base, uint64_t budget,
                        struct sfd_plan *plan)
{
    uint64_t target = budget > base ? budget - base : 0u;
    uint32_t attempt;

    for (attempt = 0u; attempt < BUDGET_ATTEMPTS; ++attempt) {
        if (!sfd_search_within(session, target) || place_all(session, base, plan) != SFD_OK)
            return 0;
        if (plan->arena_bytes <= budget)
            return 1;
        if (plan->arena_bytes - budget > target)
            return 0;
        target -= plan->arena_bytes - budget;
    }
    return 0;
}

int sfd_memory_plan(struct sfd_session *session, uint64_t tables_bytes,
                    const struct sfd_options *options, struct sfd_plan *plan)
{
    uint64_t base;
    uint32_t i;

    memset(plan, 0, sizeof *plan);
    for (i = 0u; i < session->tensor_count; ++i)
        if (sfd_batch_elements(session, i) * 4u > SFD_ARENA_LIMIT)
            return SFD_ERR_LIMIT;
    sfd_tables_measure(session);
    sfd_fusion_plan(session);
    sfd_lifetimes_persistent(session, tables_bytes);
    base = place_persistent(session);
    if (base > SFD_ARENA_LIMIT)
        return SFD_ERR_LIMIT;
    sfd_search_begin(session);
    if (options->memory == SFD_MEMORY_FAST && options->arena_bytes > 0u &&
        place_within(session, base, options->arena_bytes, plan))
        return SFD_OK;
    sfd_search_least(session, options->memory == SFD_MEMORY_FAST && options->arena_bytes == 0u
                                  ? FAST_SHARE
                                  : SMALL_SHARE);
    return place_all(session, base, plan);
}
