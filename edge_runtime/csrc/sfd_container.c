/* States and updates: docs/format.md, section 2. */
#include "sfd_parse.h"

enum {
    AT_VERSION = 4,
    AT_FLAGS = 6,
    AT_ROUND = 8,
    AT_SUPPORT_ID = 12,
    AT_POSITIONS = 20,
    AT_NONZEROS = 24,
    AT_RICE_PARAMETER = 28,
    AT_VALUE_TYPE = 29,
    AT_TENSORS = 30,
    AT_INDEX_BYTES = 32,
    AT_CRC = 36
};

enum {
    ENTRY_INDEX_WIDTH = 1,
    ENTRY_RESERVED = 2,
    ENTRY_ROWS = 4,
    ENTRY_COLUMNS = 8,
    ENTRY_COUNT = 12
};

static size_t table_position(uint32_t index)
{
    return SFD_CONTAINER_HEADER_BYTES + (size_t)index * SFD_TABLE_ENTRY_BYTES;
}

static uint64_t column_bytes(uint32_t count, uint32_t index_width)
{
    return ((uint64_t)count * index_width + 3u) & ~UINT64_C(3);
}

static void load_entry(const struct sfd_container_view *view, uint32_t index,
                       struct sfd_entry *entry)
{
    const uint8_t *record = view->bytes + table_position(index);

    entry->kind = record[0];
    entry->index_width = record[ENTRY_INDEX_WIDTH];
    entry->rows = sfd_load_u32(record + ENTRY_ROWS);
    entry->columns = sfd_load_u32(record + ENTRY_COLUMNS);
    entry->count = sfd_load_u32(record + ENTRY_COUNT);
    entry->column_offset = entry->row_pointer_offset;
    if (entry->kind == SFD_PARAMETER_WEIGHT)
        entry->column_offset += 4u * (entry->rows + 1u);
}

void sfd_container_entry_first(const struct sfd_container_view *view, struct sfd_entry *entry)
{
    entry->row_pointer_offset = view->index_offset;
    entry->value_offset = view->value_offset;
    load_entry(view, 0, entry);
}

void sfd_container_entry_next(const struct sfd_container_view *view, uint32_t index,
                              struct sfd_entry *entry)
{
    entry->row_pointer_offset = entry->column_offset;
    if (entry->kind == SFD_PARAMETER_WEIGHT)
        entry->row_pointer_offset += (uint32_t)column_bytes(entry->count, entry->index_width);
    entry->value_offset += 4u * entry->count;
    load_entry(view, index, entry);
}

/* The lengths of the sections add up to the length of the data. No other field is trusted yet. */
static int check_length(struct sfd_container_view *view, struct sfd_problem *problem)
{
    const uint8_t *bytes = view->bytes;
    uint64_t end;

    view->tensors = sfd_load_u16(bytes + AT_TENSORS);
    view->index_bytes = sfd_load_u32(bytes + AT_INDEX_BYTES);
    end = table_position(view->tensors);
    if (view->size < end)
        return sfd_fail(problem, SFD_ERR_LENGTH, AT_TENSORS, (uint32_t)view->size, (uint32_t)end);
    view->index_offset = (uint32_t)end;
    end += view->index_bytes;
    view->value_offset = (uint32_t)end;
    for (uint32_t i = 0; i < view->tensors; ++i)
        end += UINT64_C(4) * sfd_load_u32(bytes + table_position(i) + ENTRY_COUNT);
    if ((sfd_load_u16(bytes + AT_FLAGS) & SFD_FLAG_NAMES) != 0) {
        if (view->size < end + 4u) {
            return sfd_fail(problem, SFD_ERR_LENGTH, view->size, (uint32_t)view->size,
                            end + 4u > UINT32_MAX ? UINT32_MAX : (uint32_t)end + 4u);
        }
        end += 4u + (uint64_t)sfd_load_u32(bytes + (size_t)end);
    }
    if (view->size != end) {
        return sfd_fail(problem, SFD_ERR_LENGTH, view->size < end ? view->size : (size_t)end,
                        (uint32_t)view->size, end > UINT32_MAX ? UINT32_MAX : (uint32_t)end);
    }
    return SFD_OK;
}

static int check_header(const uint8_t *bytes, struct sfd_container_view *view,
                        struct sfd_problem *problem)
{
    const uint32_t flags = sfd_load_u16(bytes + AT_FLAGS);
    const uint32_t allowed = SFD_CONTENT_MASK | SFD_CODEC_MASK << SFD_CODEC_SHIFT | SFD_FLAG_NAMES;

    view->content = flags & SFD_CONTENT_MASK;
    view->round = sfd_load_u32(bytes + AT_ROUND);
    view->positions = sfd_load_u32(bytes + AT_POSITIONS);
    view->nonzeros = sfd_load_u32(bytes + AT_NONZEROS);
    memcpy(view->support_id, bytes + AT_SUPPORT_ID, sizeof view->support_id);
    if ((flags >> SFD_CODEC_SHIFT & SFD_CODEC_MASK) != SFD_CODEC_CSR) {
        return sfd_fail(problem, SFD_ERR_CODEC, AT_FLAGS, flags >> SFD_CODEC_SHIFT & SFD_CODEC_MASK,
                        SFD_CODEC_CSR);
    }
    if (view->content != SFD_CONTENT_STATE && view->content != SFD_CONTENT_UPDATE)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_FLAGS, view->content, SFD_CONTENT_STATE);
    if ((flags & ~allowed) != 0)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_FLAGS, flags, flags & allowed);
    if (bytes[AT_RICE_PARAMETER] != 0)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_RICE_PARAMETER, bytes[AT_RICE_PARAMETER], 0);
    if (view->tensors < 1 || view->tensors > SFD_MAX_RECORDS)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_TENSORS, view->tensors, SFD_MAX_RECORDS);
    return SFD_OK;
}

/* One table entry: a dense tensor has one row, all of it stored, and no columns. */
static int check_entry(const uint8_t *record, size_t at, struct sfd_problem *problem)
{
    const int is_sparse = record[0] == SFD_PARAMETER_WEIGHT;
    const uint32_t rows = sfd_load_u32(record + ENTRY_ROWS);
    const uint32_t columns = sfd_load_u32(record + ENTRY_COLUMNS);
    const uint32_t count = sfd_load_u32(record + ENTRY_COUNT);
    const uint32_t width = !is_sparse ? 0u : columns <= 65536u ? 2u : 4u;

    if (rows < 1 || (!is_sparse && rows > 1))
        return sfd_fail(problem, SFD_ERR_STRUCTURE, at + ENTRY_ROWS, rows, 1);
    if (columns < 1)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, at + ENTRY_COLUMNS, columns, 1);
    if ((uint64_t)rows * columns > SFD_MAX_PARAMETER_SIZE) {
        return sfd_fail(problem, SFD_ERR_LIMIT, at + (is_sparse ? ENTRY_ROWS : ENTRY_COLUMNS),
                        is_sparse ? rows : columns,
                        is_sparse ? SFD_MAX_PARAMETER_SIZE / columns : SFD_MAX_PARAMETER_SIZE);
    }
    if (is_sparse ? count > rows * columns : count != columns)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, at + ENTRY_COUNT, count, rows * columns);
    if (record[ENTRY_INDEX_WIDTH] != width) {
        return sfd_fail(problem, SFD_ERR_STRUCTURE, at + ENTRY_INDEX_WIDTH,
                        record[ENTRY_INDEX_WIDTH], width);
    }
    return SFD_OK;
}

/* Every table entry by itself, then the sums over the table against the header. */
static int check_table(const struct sfd_container_view *view, struct sfd_problem *problem)
{
    uint64_t positions = 0, nonzeros = 0, index_bytes = 0;

    for (uint32_t i = 0; i < view->tensors; ++i) {
        const size_t at = table_position(i);
        const uint8_t *record = view->bytes + at;
        const uint32_t rows = sfd_load_u32(record + ENTRY_ROWS);
        const uint32_t count = sfd_load_u32(record + ENTRY_COUNT);
        int error;

        if (record[0] < SFD_PARAMETER_WEIGHT || record[0] > SFD_PARAMETER_STATISTIC)
            return sfd_fail(problem, SFD_ERR_STRUCTURE, at, record[0], SFD_PARAMETER_STATISTIC);
        if (sfd_load_u16(record + ENTRY_RESERVED) != 0) {
            return sfd_fail(problem, SFD_ERR_STRUCTURE, at + ENTRY_RESERVED,
                            sfd_load_u16(record + ENTRY_RESERVED), 0);
        }
        error = check_entry(record, at, problem);
        if (error != SFD_OK)
            return error;
        if (record[0] == SFD_PARAMETER_WEIGHT) {
            positions += (uint64_t)rows * sfd_load_u32(record + ENTRY_COLUMNS);
            nonzeros += count;
            index_bytes += 4u * ((uint64_t)rows + 1u);
            index_bytes += column_bytes(count, record[ENTRY_INDEX_WIDTH]);
        }
    }
    if (positions != view->positions) {
        return sfd_fail(problem, positions > UINT32_MAX ? SFD_ERR_LIMIT : SFD_ERR_STRUCTURE,
                        AT_POSITIONS, view->positions,
                        positions > UINT32_MAX ? UINT32_MAX : (uint32_t)positions);
    }
    if (nonzeros != view->nonzeros) {
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_NONZEROS, view->nonzeros,
                        (uint32_t)nonzeros);
    }
    if (index_bytes != view->index_bytes) {
        return sfd_fail(problem, SFD_ERR_LENGTH, AT_INDEX_BYTES, view->index_bytes,
                        index_bytes > UINT32_MAX ? UINT32_MAX : (uint32_t)index_bytes);
    }
    return SFD_OK;
}

static int check_row(const uint8_t *bytes, const struct sfd_entry *entry, uint32_t begin,
                     uint32_t end, struct sfd_problem *problem)
{
    uint32_t least = 0;

    for (uint32_t k = begin; k < end; ++k) {
        const uint32_t column = sfd_container_column(bytes, entry, k);
        if (column < least || column >= entry->columns) {
            return sfd_fail(problem, SFD_ERR_INDEX,
                            entry->column_offset + (size_t)k * entry->index_width, column,
                            column < least ? least : entry->columns - 1u);
        }
        least = column + 1u;
    }
    return SFD_OK;
}

static int check_indices(const uint8_t *bytes, const struct sfd_entry *entry,
                         struct sfd_problem *problem)
{
    const uint8_t *pointers = bytes + entry->row_pointer_offset;
    const size_t used = (size_t)entry->count * entry->index_width;
    const size_t padded = (size_t)column_bytes(entry->count, entry->index_width);
    uint32_t begin = sfd_load_u32(pointers);

    if (begin != 0)
        return sfd_fail(problem, SFD_ERR_INDEX, entry->row_pointer_offset, begin, 0);
    for (uint32_t row = 0; row < entry->rows; ++row) {
        const size_t at = ((size_t)row + 1u) * 4u;
        const uint32_t end = sfd_load_u32(pointers + at);
        int error;

        if (end < begin || end > entry->count || (row + 1u == entry->rows && end != entry->count)) {
            return sfd_fail(problem, SFD_ERR_INDEX, entry->row_pointer_offset + at, end,
                            end < begin ? begin : entry->count);
        }
        error = check_row(bytes, entry, begin, end, problem);
        if (error != SFD_OK)
            return error;
        begin = end;
    }
    for (size_t i = used; i < padded; ++i) {
        const size_t at = entry->column_offset + i;
        if (bytes[at] != 0)
            return sfd_fail(problem, SFD_ERR_STRUCTURE, at, bytes[at], 0);
    }
    return SFD_OK;
}

static int check_values(const uint8_t *bytes, const struct sfd_entry *entry,
                        struct sfd_problem *problem)
{
    for (uint32_t i = 0; i < entry->count; ++i) {
        const size_t at = entry->value_offset + (size_t)i * 4u;
        const uint32_t bits = sfd_load_u32(bytes + at);
        if ((bits & 0x7f800000u) == 0x7f800000u)
            return sfd_fail(problem, SFD_ERR_VALUE, at, bits, 0);
    }
    return SFD_OK;
}

/* One name a tensor: the section holds one line feed less than there are tensors. */
static int check_names(const struct sfd_container_view *view, size_t names,
                       struct sfd_problem *problem)
{
    uint32_t lines = 1;
    size_t bad;

    if (!SFD_WITH_NAMES || (sfd_load_u16(view->bytes + AT_FLAGS) & SFD_FLAG_NAMES) == 0)
        return SFD_OK;
    bad = names + 4u + sfd_text_check(view->bytes + names + 4u, view->size - names - 4u, &lines);
    if (bad != view->size)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, bad, view->bytes[bad], 0);
    if (lines != view->tensors)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, names, lines, view->tensors);
    return SFD_OK;
}

static int check_tensors(const struct sfd_container_view *view, struct sfd_problem *problem)
{
    struct sfd_entry entry;
    int error = SFD_OK;

    sfd_container_entry_first(view, &entry);
    for (uint32_t i = 0; i < view->tensors && error == SFD_OK; ++i) {
        if (i > 0)
            sfd_container_entry_next(view, i, &entry);
        if (entry.kind == SFD_PARAMETER_WEIGHT)
            error = check_indices(view->bytes, &entry, problem);
        if (error == SFD_OK)
            error = check_values(view->bytes, &entry, problem);
    }
    if (error != SFD_OK)
        return error;
    return check_names(view, entry.value_offset + (size_t)entry.count * 4u, problem);
}

int sfd_container_open(const uint8_t *data, size_t data_bytes, struct sfd_container_view *view,
                       struct sfd_problem *problem)
{
    uint32_t crc;
    int error;

    if (data == NULL && data_bytes > 0)
        return sfd_fail(problem, SFD_ERR_ARGUMENT, 0, 0, SFD_CONTAINER_HEADER_BYTES);
    if ((uint32_t)data_bytes != data_bytes)
        return sfd_fail(problem, SFD_ERR_LIMIT, 0, UINT32_MAX, UINT32_MAX);
    if (data_bytes >= 4u && sfd_load_u32(data) != SFD_CONTAINER_MAGIC)
        return sfd_fail(problem, SFD_ERR_MAGIC, 0, sfd_load_u32(data), SFD_CONTAINER_MAGIC);
    if (data_bytes < SFD_CONTAINER_HEADER_BYTES) {
        return sfd_fail(problem, SFD_ERR_LENGTH, data_bytes, (uint32_t)data_bytes,
                        SFD_CONTAINER_HEADER_BYTES);
    }
    if (sfd_load_u16(data + AT_VERSION) >> 8 != SFD_CONTAINER_VERSION >> 8) {
        return sfd_fail(problem, SFD_ERR_VERSION, AT_VERSION, sfd_load_u16(data + AT_VERSION),
                        SFD_CONTAINER_VERSION);
    }
    /* The width of a value decides the length, so this code comes before the length. */
    if (data[AT_VALUE_TYPE] != SFD_VALUE_FP32)
        return sfd_fail(problem, SFD_ERR_CODEC, AT_VALUE_TYPE, data[AT_VALUE_TYPE], SFD_VALUE_FP32);
    view->bytes = data;
    view->size = data_bytes;
    error = check_length(view, problem);
    if (error != SFD_OK)
        return error;
    crc = sfd_crc32_without(data, data_bytes, AT_CRC);
    if (crc != sfd_load_u32(data + AT_CRC))
        return sfd_fail(problem, SFD_ERR_CRC, AT_CRC, crc, sfd_load_u32(data + AT_CRC));
    error = check_header(data, view, problem);
    if (error == SFD_OK)
        error = check_table(view, problem);
    if (error == SFD_OK)
        error = check_tensors(view, problem);
    return error;
}

int sfd_container_check(const uint8_t *data, size_t data_bytes, struct sfd_problem *problem)
{
    struct sfd_container_view view;
    return sfd_container_open(data, data_bytes, &view, problem);
}
