/* Where each region lies: persistent ones first, then those that share memory over time. */
#include "sfd_planning.h"

/* Persistent regions are many and small. In the others a vectorised kernel wants every pixel of a
 * full block, 64 bytes, on a cache line of its own. */
#define PERSISTENT_ALIGNMENT 16u

#define PLACEMENT_ATTEMPTS 100u
#define PLACEMENT_WORK (UINT64_C(1) << 26)

static uint64_t region_end(const struct sfd_region *region)
{
    return (uint64_t)region->offset + region->bytes;
}

static uint64_t align(uint64_t bytes, uint64_t alignment)
{
    return (bytes + alignment - 1u) / alignment * alignment;
}

uint64_t sfd_place_persistent(struct sfd_session *session)
{
    uint64_t cursor = 0u;
    uint32_t i;

    for (i = 0u; i < session->persistent_count; ++i) {
        struct sfd_region *region = &session->regions[i];
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

/* Whether `a` is placed before `b`: the more urgent first, then the larger, or the longer-lived and
 * then the larger. */
static int comes_first(const struct sfd_region *a, const struct sfd_region *b,
                       enum placement_order order)
{
    uint32_t life_a = (uint32_t)a->last_step - a->first_step;
    uint32_t life_b = (uint32_t)b->last_step - b->first_step;

    if (a->urgency != b->urgency)
        return a->urgency > b->urgency;
    if (order == BY_LIFETIME && life_a != life_b)
        return life_a > life_b;
    return a->bytes > b->bytes;
}

/* Greedy: region after region in this order, each at the lowest place where it fits. *highest is the
 * one that ends last. */
static int place_transient(struct sfd_session *session, uint64_t base, enum placement_order order,
                           uint32_t *highest)
{
    struct sfd_region *regions = session->regions;
    uint32_t first = session->persistent_count, i;
    uint16_t head = SFD_NONE;

    for (i = first; i < session->region_count; ++i)
        regions[i].placed = 0u;
    for (*highest = SFD_NONE;;) {
        uint32_t next = SFD_NONE;
        int error;
        for (i = first; i < session->region_count; ++i)
            if (!regions[i].placed &&
                (next == SFD_NONE || comes_first(&regions[i], &regions[next], order)))
                next = i;
        if (next == SFD_NONE)
            return SFD_OK;
        error = place_region(session, next, base, &head);
        if (error != SFD_OK)
            return error;
        if (*highest == SFD_NONE || region_end(&regions[*highest]) < region_end(&regions[next]))
            *highest = next;
    }
}

/* Few where there are many regions: the time of one attempt grows with their square. */
static uint32_t attempts(const struct sfd_session *session)
{
    uint64_t regions = session->region_count;
    uint64_t count = PLACEMENT_WORK / (regions * regions);

    return count > PLACEMENT_ATTEMPTS ? PLACEMENT_ATTEMPTS : 1u + (uint32_t)count;
}

static void keep_offsets(struct sfd_session *session)
{
    uint32_t i;

    for (i = session->persistent_count; i < session->region_count; ++i)
        session->regions[i].best_offset = session->regions[i].offset;
}

/* From both orders, several attempts: the region that ended highest comes first in the next one. The
 * attempt that ends lowest is taken; none ends below the most that is alive. */
int sfd_place_transient(struct sfd_session *session, uint64_t base, uint64_t *end)
{
    const uint64_t least = base + sfd_lifetimes_peak(session);
    uint32_t count = attempts(session), order, attempt, i, highest;
    uint64_t best = UINT64_MAX;

    *end = base;
    for (order = BY_SIZE; order <= BY_LIFETIME; ++order) {
        for (i = session->persistent_count; i < session->region_count; ++i)
            session->regions[i].urgency = 0u;
        for (attempt = 1u; attempt <= count && best > least; ++attempt) {
            if (place_transient(session, base, (enum placement_order)order, &highest) != SFD_OK)
                break;
            if (highest == SFD_NONE)
                return SFD_OK;
            if (region_end(&session->regions[highest]) < best) {
                best = region_end(&session->regions[highest]);
                keep_offsets(session);
            }
            session->regions[highest].urgency = (uint8_t)attempt;
        }
    }
    for (i = session->persistent_count; i < session->region_count; ++i)
        session->regions[i].offset = session->regions[i].best_offset;
    *end = best;
    return best == UINT64_MAX ? SFD_ERR_LIMIT : SFD_OK;
}
