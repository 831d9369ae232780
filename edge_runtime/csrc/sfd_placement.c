/* Where each region lies: persistent ones first, then those that share memory over time. */
#include "sfd_planning.h"

/* Persistent regions are many and small. In the others a vectorised kernel wants every pixel of a
 * full block, 64 bytes, on a cache line of its own. */
#define PERSISTENT_ALIGNMENT 16u

#define PLACEMENT_ATTEMPTS 100u
#define PLACEMENT_WORK (UINT32_C(1) << 26)

/* Ends never pass SFD_ARENA_LIMIT, which is a multiple of all alignments: 32 bits hold them. */
static uint32_t region_end(const struct sfd_region *region)
{
    return region->offset + region->bytes;
}

static uint32_t align(uint32_t bytes, uint32_t alignment)
{
    return (bytes + alignment - 1u) & ~(alignment - 1u);
}

int sfd_place_persistent(struct sfd_session *session, uint32_t *end)
{
    uint32_t cursor = 0u, i;

    for (i = 0u; i < session->persistent_count; ++i) {
        struct sfd_region *region = &session->regions[i];
        region->offset = cursor;
        if (region->bytes > SFD_ARENA_LIMIT - cursor)
            return SFD_ERR_LIMIT;
        cursor = align(cursor + region->bytes, PERSISTENT_ALIGNMENT);
    }
    *end = align(cursor, SFD_ALIGNMENT);
    return SFD_OK;
}

/* Put one region into the lowest gap that is free while it is alive. The list of placed regions is
 * ordered by offset. */
static int place_region(struct sfd_session *session, uint32_t index, uint32_t base, uint16_t *head)
{
    struct sfd_region *region = &session->regions[index];
    struct sfd_lifetime *lifetimes = session->lifetimes, *lifetime = &lifetimes[index];
    uint32_t cursor = base;
    uint16_t i, *link;

    for (i = *head; i != SFD_NONE; i = lifetimes[i].next) {
        const struct sfd_region *other = &session->regions[i];
        if (sfd_are_apart(&lifetimes[i], lifetime))
            continue;
        if (cursor <= other->offset && region->bytes <= other->offset - cursor)
            break;
        if (cursor < region_end(other))
            cursor = align(region_end(other), SFD_ALIGNMENT);
    }
    if (region->bytes > SFD_ARENA_LIMIT - cursor)
        return SFD_ERR_LIMIT;
    region->offset = cursor;
    for (link = head; *link != SFD_NONE && session->regions[*link].offset <= region->offset;)
        link = &lifetimes[*link].next;
    lifetime->next = *link;
    *link = (uint16_t)index;
    return SFD_OK;
}

enum placement_order { BY_SIZE, BY_LIFETIME };

/* Whether `one` is placed before `other`: the larger first, or the longer-lived and then the larger. */
static int comes_first(const struct sfd_session *session, uint32_t one, uint32_t other,
                       enum placement_order order)
{
    const struct sfd_lifetime *a = &session->lifetimes[one], *b = &session->lifetimes[other];
    uint32_t life_a = (uint32_t)a->last_step - a->first_step;
    uint32_t life_b = (uint32_t)b->last_step - b->first_step;

    if (order == BY_LIFETIME && life_a != life_b)
        return life_a > life_b;
    return session->regions[one].bytes > session->regions[other].bytes;
}

/* List the regions in this order; the earlier ones first among equals. */
static uint16_t sort_regions(struct sfd_session *session, enum placement_order order)
{
    struct sfd_lifetime *lifetimes = session->lifetimes;
    uint16_t first = SFD_NONE, *link;
    uint32_t i;

    for (i = session->persistent_count; i < session->region_count; ++i) {
        for (link = &first; *link != SFD_NONE && !comes_first(session, i, *link, order);)
            link = &lifetimes[*link].later;
        lifetimes[i].later = *link;
        *link = (uint16_t)i;
    }
    return first;
}

/* Place this one before all others next time. */
static void move_to_front(struct sfd_session *session, uint16_t index, uint16_t *first)
{
    struct sfd_lifetime *lifetimes = session->lifetimes;
    uint16_t *link;

    for (link = first; *link != index;)
        link = &lifetimes[*link].later;
    *link = lifetimes[index].later;
    lifetimes[index].later = *first;
    *first = index;
}

/* Greedy: region after region of a list, each at the lowest place where it fits. *highest is the one
 * that ends last. */
static int place_all(struct sfd_session *session, uint32_t base, uint16_t first, uint16_t *highest)
{
    const struct sfd_region *regions = session->regions;
    uint16_t head = SFD_NONE, i;

    *highest = first;
    for (i = first; i != SFD_NONE; i = session->lifetimes[i].later) {
        const int error = place_region(session, i, base, &head);
        if (error != SFD_OK)
            return error;
        if (region_end(&regions[*highest]) < region_end(&regions[i]))
            *highest = i;
    }
    return SFD_OK;
}

/* Few where there are many regions: the time of one attempt grows with their square. */
static uint32_t attempts(const struct sfd_session *session)
{
    const uint32_t count = PLACEMENT_WORK / session->region_count / session->region_count;

    return count > PLACEMENT_ATTEMPTS ? PLACEMENT_ATTEMPTS : 1u + count;
}

static void keep_offsets(struct sfd_session *session)
{
    uint32_t i;

    for (i = session->persistent_count; i < session->region_count; ++i)
        session->lifetimes[i].best_offset = session->regions[i].offset;
}

/* From both orders, several attempts: the region that ended highest comes first in the next one. The
 * attempt that ends lowest is taken; none ends below the most that is alive. */
int sfd_place_transient(struct sfd_session *session, uint32_t base, uint32_t *end)
{
    const uint64_t least = base + (uint64_t)sfd_lifetimes_peak(session) * SFD_ALIGNMENT;
    uint32_t count = attempts(session), order, attempt, i, best = UINT32_MAX;
    uint16_t first, highest;

    *end = base;
    if (session->region_count == session->persistent_count)
        return SFD_OK;
    for (order = BY_SIZE; order <= BY_LIFETIME; ++order) {
        first = sort_regions(session, (enum placement_order)order);
        for (attempt = 0u; attempt < count && best > least; ++attempt) {
            if (place_all(session, base, first, &highest) != SFD_OK)
                break;
            if (region_end(&session->regions[highest]) < best) {
                best = region_end(&session->regions[highest]);
                keep_offsets(session);
            }
            move_to_front(session, highest, &first);
        }
    }
    for (i = session->persistent_count; i < session->region_count; ++i)
        session->regions[i].offset = session->lifetimes[i].best_offset;
    *end = best;
    return best == UINT32_MAX ? SFD_ERR_LIMIT : SFD_OK;
}
