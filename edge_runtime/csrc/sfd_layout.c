/* A layout: the choices of a plan and the places of its buffers, as bytes. Who has made a plan hands it
 * to a board, which need not search for one. Nothing in it is trusted: what is alive when is computed
 * anew, and no two regions may share memory at a time.
 *
 * u8 where the working copies are, u8 whether images are interleaved again, then a u8 for each operation:
 * the retention of its result, and from LATE on that its input is packed late. Then a u32 for each region
 * that shares memory: its offset in the arena, without the tables. */
#include "sfd_parse.h"
#include "sfd_planning.h"

#define HEADER_BYTES 2u
#define LATE 4u
#define OFFSET_BYTES 4u

static uint32_t layout_bytes(const struct sfd_session *session)
{
    return HEADER_BYTES + session->operation_count +
           OFFSET_BYTES * (session->region_count - session->persistent_count);
}

static void write_layout(const struct sfd_session *session, uint8_t *layout)
{
    const uint32_t tables = session->regions[0].bytes;
    uint8_t *place = layout + HEADER_BYTES;
    uint32_t i;

    layout[0] = session->working;
    layout[1] = session->reloads;
    for (i = 0u; i < session->operation_count; ++i)
        *place++ = (uint8_t)(session->values[i + 1u].retention +
                             (session->plans[i].packs_late ? LATE : 0u));
    for (i = session->persistent_count; i < session->region_count; ++i, place += OFFSET_BYTES)
        sfd_store_u32(place, session->regions[i].offset - tables);
}

int sfd_layout_choose(struct sfd_session *session, const uint8_t *layout, uint32_t bytes)
{
    uint32_t i;

    if (bytes < HEADER_BYTES + session->operation_count || layout[0] > SFD_WORKING_LAYERWISE ||
        layout[1] > 1u)
        return SFD_ERR_STRUCTURE;
    session->working = layout[0];
    session->reloads = layout[1];
    for (i = 0u; i < session->operation_count; ++i) {
        const uint32_t choice = layout[HEADER_BYTES + i];
        const uint8_t retention = choice % LATE;
        if (choice >= 2u * LATE ||
            (retention == SFD_RESTORE_BY_CHANNEL && !sfd_can_restore_by_channel(session, i)))
            return SFD_ERR_STRUCTURE;
        session->values[i + 1u].retention = retention;
        session->plans[i].packs_late = choice >= LATE;
    }
    return SFD_OK;
}

/* Whether no region that lies before this one is in its way. */
static int is_free(const struct sfd_session *session, uint32_t index)
{
    const struct sfd_region *region = &session->regions[index], *other;
    uint32_t i;

    for (i = session->persistent_count; i < index; ++i) {
        other = &session->regions[i];
        if (!sfd_are_apart(&session->lifetimes[i], &session->lifetimes[index]) &&
            other->offset < region->offset + region->bytes &&
            region->offset < other->offset + other->bytes)
            return 0;
    }
    return 1;
}

int sfd_layout_place(struct sfd_session *session, const uint8_t *layout, uint32_t bytes,
                     uint32_t base, uint32_t *end)
{
    const uint8_t *place = layout + HEADER_BYTES + session->operation_count;
    uint32_t i;

    if (bytes != layout_bytes(session))
        return SFD_ERR_STRUCTURE;
    *end = base;
    for (i = session->persistent_count; i < session->region_count; ++i, place += OFFSET_BYTES) {
        struct sfd_region *region = &session->regions[i];
        region->offset = sfd_load_u32(place);
        if (region->offset % SFD_ALIGNMENT != 0u || region->offset < base ||
            region->offset > SFD_ARENA_LIMIT || region->bytes > SFD_ARENA_LIMIT - region->offset ||
            !is_free(session, i))
            return SFD_ERR_STRUCTURE;
        if (*end < region->offset + region->bytes)
            *end = region->offset + region->bytes;
    }
    return SFD_OK;
}

int sfd_plan_layout(const void *workspace, uint8_t *layout, uint64_t room, uint64_t *bytes)
{
    const struct sfd_session *session = workspace;

    if (!sfd_is_aligned(workspace) || bytes == NULL || session->arena_bytes == 0u)
        return SFD_ERR_ARGUMENT;
    *bytes = layout_bytes(session);
    if (layout == NULL || room < *bytes)
        return SFD_ERR_CAPACITY;
    write_layout(session, layout);
    return SFD_OK;
}
