/* Where each region lies: persistent ones first, then those that share memory over time. */
#include "sfd_internal.h"

/* Persistent regions are many and small. In the others a vectorised kernel wants every pixel of a
 * full block, 64 bytes, on a cache line of its own. */
#define PERSISTENT_ALIGNMENT 16u

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

static void measure_live_peak(const struct sfd_session *session, struct sfd_plan *plan)
{
    uint32_t step, i;

    for (step = 0u; step <= sfd_last_step(session); ++step) {
        uint64_t live = 0u;
        for (i = 0u; i < session->region_count; ++i) {
            const struct sfd_region *region = &session->regions[i];
            if (!is_persistent(region) && region->first_step <= step && step <= region->last_step)
                live += region->bytes;
        }
        if (live > plan->live_peak_bytes) {
            plan->live_peak_bytes = live;
            plan->live_peak_step = step;
        }
    }
}

int sfd_memory_plan(struct sfd_session *session, uint64_t tables_bytes, struct sfd_plan *plan)
{
    uint64_t base;
    uint32_t i;
    int error;

    memset(plan, 0, sizeof *plan);
    for (i = 0u; i < session->tensor_count; ++i)
        if (sfd_batch_elements(session, i) * 4u > SFD_ARENA_LIMIT)
            return SFD_ERR_LIMIT;
    sfd_lifetimes_plan(session, tables_bytes);
    base = place_persistent(session);
    if (base > SFD_ARENA_LIMIT)
        return SFD_ERR_LIMIT;
    error = place_best(session, base);
    if (error != SFD_OK)
        return error;
    for (i = 0u; i < session->region_count; ++i)
        if (session->regions[i].bytes > 0u && region_end(&session->regions[i]) > plan->arena_bytes)
            plan->arena_bytes = region_end(&session->regions[i]);
    plan->transient_bytes = plan->arena_bytes > base ? plan->arena_bytes - base : 0u;
    plan->buffer_count = session->region_count;
    plan->step = session->planned;
    measure_live_peak(session, plan);
    return SFD_OK;
}
