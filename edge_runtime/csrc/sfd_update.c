/* The update: the Top-K of |v| over the support, encoded as docs/format.md section 2, codec csr. */
#include "sfd_session.h"

/* Which entries are kept: those above the threshold and the first `ties` that equal it. */
struct selector {
    uint32_t threshold;
    uint32_t ties;
};

static uint32_t count_nonzero(const float *value, uint32_t count)
{
    uint32_t i, nonzero = 0u;

    for (i = 0u; i < count; ++i)
        nonzero += sfd_magnitude(value[i]) != 0u;
    return nonzero;
}

/* Find the selector over slots [first, last): one layer, or all of them. */
static struct selector select_over(struct sfd_session *session, uint32_t first, uint32_t last,
                                   uint32_t keep)
{
    uint32_t histogram[SFD_HISTOGRAM_BINS];
    struct sfd_selection selection;
    struct selector selector = {1u, 0xffffffffu}; /* all that is not zero */
    uint32_t i, nonzero = 0u;

    for (i = first; i < last; ++i)
        if (session->slots[i].kind == SFD_PARAMETER_WEIGHT)
            nonzero += count_nonzero(sfd_region_data(session, session->slots[i].value),
                                     session->slots[i].count);
    if (nonzero <= keep)
        return selector;
    if (keep == 0u) {
        selector.threshold = 0xffffffffu;
        return selector;
    }
    sfd_selection_begin(&selection, keep, histogram);
    do {
        sfd_selection_pass(&selection);
        for (i = first; i < last; ++i)
            if (session->slots[i].kind == SFD_PARAMETER_WEIGHT)
                sfd_selection_count(&selection, sfd_region_data(session, session->slots[i].value),
                                    session->slots[i].count);
    } while (sfd_selection_narrow(&selection));
    selector.threshold = selection.prefix;
    selector.ties = selection.remaining;
    return selector;
}

static int selector_takes(struct selector *selector, float value)
{
    uint32_t magnitude = sfd_magnitude(value);

    if (magnitude != selector->threshold || selector->ties == 0u)
        return magnitude > selector->threshold;
    --selector->ties;
    return 1;
}

/* Where the sections of the update begin, found by counting what is kept. */
struct layout {
    uint32_t nonzeros;
    size_t index_bytes, value_bytes;
};

/* A cursor that writes only when there is a buffer. */
struct writer {
    uint8_t *out;
    size_t at;
};

static void put_u32(struct writer *writer, uint32_t value)
{
    if (writer->out)
        sfd_store_u32(writer->out + writer->at, value);
    writer->at += 4u;
}

static void put_column(struct writer *writer, uint32_t value, uint32_t width)
{
    if (writer->out && width == 2u)
        sfd_store_u16(writer->out + writer->at, value);
    else if (writer->out)
        sfd_store_u32(writer->out + writer->at, value);
    writer->at += width;
}

static void put_f32(struct writer *writer, float value)
{
    if (writer->out)
        sfd_store_f32(writer->out + writer->at, value);
    writer->at += 4u;
}

/* One sparse layer: row pointers and columns to `index`, values to `values`. Returns the number
 * kept. */
static uint32_t put_layer(const struct sfd_session *session, const struct sfd_slot *slot,
                          struct selector *selector, struct writer *index, struct writer *values)
{
    const float *value = sfd_region_data(session, slot->value);
    struct sfd_support support;
    struct writer rows = *index, columns = *index;
    uint32_t row, k, kept = 0u;

    sfd_slot_support(session, slot, &support);
    columns.at += ((size_t)slot->rows + 1u) * 4u;
    put_u32(&rows, 0u);
    for (row = 0u; row < slot->rows; ++row) {
        for (k = support.row_pointer[row]; k < support.row_pointer[row + 1u]; ++k)
            if (selector_takes(selector, value[k])) {
                put_column(&columns, sfd_column(&support, k), slot->index_width);
                put_f32(values, value[k]);
                ++kept;
            }
        put_u32(&rows, kept);
    }
    if (columns.at % 4u != 0u)
        put_column(&columns, 0u, 2u);
    *index = columns;
    return kept;
}

static void put_table_entry(const struct sfd_slot *slot, uint32_t count, uint8_t *entry)
{
    entry[0] = (uint8_t)slot->kind;
    entry[1] = (uint8_t)slot->index_width;
    sfd_store_u16(entry + 2u, 0u);
    sfd_store_u32(entry + 4u, slot->rows);
    sfd_store_u32(entry + 8u, slot->columns);
    sfd_store_u32(entry + 12u, count);
}

static void put_header(const struct sfd_session *session, const struct layout *layout,
                       uint32_t round, uint8_t *out, size_t bytes)
{
    sfd_store_u32(out, SFD_CONTAINER_MAGIC);
    sfd_store_u16(out + 4u, SFD_CONTAINER_VERSION);
    sfd_store_u16(out + 6u, SFD_CONTENT_UPDATE | SFD_CODEC_CSR << SFD_CODEC_SHIFT);
    sfd_store_u32(out + 8u, round);
    memcpy(out + 12u, session->support_id, sizeof session->support_id);
    sfd_store_u32(out + 20u, session->positions);
    sfd_store_u32(out + 24u, layout->nonzeros);
    out[28] = 0u;
    out[29] = SFD_VALUE_FP32;
    sfd_store_u16(out + 30u, session->parameter_count);
    sfd_store_u32(out + 32u, (uint32_t)layout->index_bytes);
    sfd_store_u32(out + 36u, sfd_crc32_without(out, bytes, 36u));
}

/* One pass over all parameters: measures the layout, or writes with the layout of a pass before. */
static void encode_pass(struct sfd_session *session, const uint32_t *keep, uint32_t keep_entries,
                        struct layout *layout, uint8_t *out)
{
    size_t table = SFD_CONTAINER_HEADER_BYTES;
    size_t start = table + (size_t)session->parameter_count * SFD_TABLE_ENTRY_BYTES;
    struct writer index = {out, start}, values = {out, start + layout->index_bytes};
    size_t values_start = values.at;
    struct selector selector = {0u, 0u};
    uint32_t i, k;

    if (keep_entries == 1u)
        selector = select_over(session, 0u, session->parameter_count, keep[0]);
    layout->nonzeros = 0u;
    for (i = 0u; i < session->parameter_count; ++i, table += SFD_TABLE_ENTRY_BYTES) {
        const struct sfd_slot *slot = &session->slots[i];
        uint32_t count = slot->count;
        if (slot->kind == SFD_PARAMETER_WEIGHT) {
            if (keep_entries != 1u)
                selector = select_over(session, i, i + 1u, keep[i]);
            count = put_layer(session, slot, &selector, &index, &values);
            layout->nonzeros += count;
        } else {
            const float *value = sfd_region_data(session, slot->value);
            for (k = 0u; k < slot->count; ++k)
                put_f32(&values, value[k]);
        }
        if (out)
            put_table_entry(slot, count, out + table);
    }
    layout->index_bytes = index.at - start;
    layout->value_bytes = values.at - values_start;
}

int sfd_update_encode(struct sfd_session *session, const uint32_t *keep, uint32_t keep_entries,
                      uint32_t round, uint8_t *out, size_t capacity, size_t *bytes)
{
    struct layout layout = {0u, 0u, 0u};
    size_t total;

    if (session == NULL || keep == NULL || bytes == NULL ||
        (keep_entries != 1u && keep_entries != session->parameter_count))
        return SFD_ERR_ARGUMENT;
    if (session->has_failed)
        return SFD_ERR_DIVERGED;
    encode_pass(session, keep, keep_entries, &layout, NULL);
    total = SFD_CONTAINER_HEADER_BYTES + (size_t)session->parameter_count * SFD_TABLE_ENTRY_BYTES +
            layout.index_bytes + layout.value_bytes;
    *bytes = total;
    if (out == NULL)
        return SFD_OK;
    if (capacity < total)
        return SFD_ERR_CAPACITY;
    encode_pass(session, keep, keep_entries, &layout, out);
    put_header(session, &layout, round, out, total);
    return SFD_OK;
}
