/* Do an artifact, a state and an update belong together? */
#include "sfd_parse.h"

/* Where the header and a table entry keep what is compared here. */
enum { AT_FLAGS = 6, AT_SUPPORT_ID = 12, AT_TENSORS = 30 };

static size_t entry_position(uint32_t index)
{
    return SFD_CONTAINER_HEADER_BYTES + (size_t)index * SFD_TABLE_ENTRY_BYTES;
}

static int check_content(const struct sfd_container_view *view, uint32_t content,
                         struct sfd_problem *problem)
{
    if (view->content != content)
        return sfd_fail(problem, SFD_ERR_STRUCTURE, AT_FLAGS, view->content, content);
    return SFD_OK;
}

/* Kind, rows and columns of tensor `index` are those wanted. */
static int check_shape(const struct sfd_entry *entry, uint32_t index, uint32_t kind, uint32_t rows,
                       uint32_t columns, struct sfd_problem *problem)
{
    const size_t at = entry_position(index);

    if (entry->kind != kind)
        return sfd_fail(problem, SFD_ERR_MISMATCH, at, entry->kind, kind);
    if (entry->rows != rows)
        return sfd_fail(problem, SFD_ERR_MISMATCH, at + 4u, entry->rows, rows);
    if (entry->columns != columns)
        return sfd_fail(problem, SFD_ERR_MISMATCH, at + 8u, entry->columns, columns);
    return SFD_OK;
}

int sfd_state_matches(const struct sfd_artifact_view *artifact,
                      const struct sfd_container_view *state, struct sfd_problem *problem)
{
    struct sfd_entry entry;
    int error = check_content(state, SFD_CONTENT_STATE, problem);

    if (error != SFD_OK)
        return error;
    if (state->tensors != artifact->parameter_count) {
        return sfd_fail(problem, SFD_ERR_MISMATCH, AT_TENSORS, state->tensors,
                        artifact->parameter_count);
    }
    sfd_container_entry_first(state, &entry);
    for (uint32_t i = 0; i < state->tensors && error == SFD_OK; ++i) {
        struct sfd_parameter parameter;
        if (i > 0)
            sfd_container_entry_next(state, i, &entry);
        sfd_artifact_parameter(artifact, i, &parameter);
        error = check_shape(&entry, i, parameter.kind, parameter.rows, parameter.columns, problem);
    }
    return error;
}

int sfd_state_check(const uint8_t *artifact, size_t artifact_bytes, const uint8_t *state,
                    size_t state_bytes, struct sfd_problem *problem)
{
    struct sfd_artifact_view structure;
    struct sfd_container_view values;
    int error = sfd_artifact_open(artifact, artifact_bytes, &structure, problem);

    if (error == SFD_OK)
        error = sfd_container_open(state, state_bytes, &values, problem);
    if (error == SFD_OK)
        error = sfd_state_matches(&structure, &values, problem);
    return error;
}

/* Each column of a row of the update is one of the same row of the base: both rise strictly. */
static int check_support(const uint8_t *update, const struct sfd_entry *part, const uint8_t *base,
                         const struct sfd_entry *whole, struct sfd_problem *problem)
{
    uint32_t k = 0, b = 0;

    for (uint32_t row = 1; row <= part->rows; ++row) {
        const uint32_t end = sfd_load_u32(update + part->row_pointer_offset + (size_t)row * 4u);
        const uint32_t base_end = sfd_load_u32(base + whole->row_pointer_offset + (size_t)row * 4u);

        for (; k < end; ++k) {
            const uint32_t column = sfd_container_column(update, part, k);
            while (b < base_end && sfd_container_column(base, whole, b) < column)
                ++b;
            if (b == base_end || sfd_container_column(base, whole, b) != column) {
                return sfd_fail(problem, SFD_ERR_SUPPORT,
                                part->column_offset + (size_t)k * part->index_width, column, 0u);
            }
            ++b;
        }
        b = base_end;
    }
    return SFD_OK;
}

static int check_tensors(const struct sfd_container_view *update,
                         const struct sfd_container_view *base, struct sfd_problem *problem)
{
    struct sfd_entry part, whole;
    int error = SFD_OK;

    sfd_container_entry_first(update, &part);
    sfd_container_entry_first(base, &whole);
    for (uint32_t i = 0; i < update->tensors && error == SFD_OK; ++i) {
        if (i > 0) {
            sfd_container_entry_next(update, i, &part);
            sfd_container_entry_next(base, i, &whole);
        }
        error = check_shape(&part, i, whole.kind, whole.rows, whole.columns, problem);
        if (error == SFD_OK && part.kind == SFD_PARAMETER_WEIGHT)
            error = check_support(update->bytes, &part, base->bytes, &whole, problem);
    }
    return error;
}

int sfd_update_check(const uint8_t *update, size_t update_bytes, const uint8_t *base,
                     size_t base_bytes, struct sfd_problem *problem)
{
    struct sfd_container_view part, whole;
    int error = sfd_container_open(update, update_bytes, &part, problem);

    if (error == SFD_OK)
        error = check_content(&part, SFD_CONTENT_UPDATE, problem);
    if (error == SFD_OK)
        error = sfd_container_open(base, base_bytes, &whole, problem);
    if (error == SFD_OK)
        error = check_content(&whole, SFD_CONTENT_STATE, problem);
    if (error != SFD_OK)
        return error;
    if (part.tensors != whole.tensors)
        return sfd_fail(problem, SFD_ERR_MISMATCH, AT_TENSORS, part.tensors, whole.tensors);
    if (!sfd_same_support(part.support_id, whole.support_id)) {
        return sfd_fail(problem, SFD_ERR_MISMATCH, AT_SUPPORT_ID, sfd_load_u32(part.support_id),
                        sfd_load_u32(whole.support_id));
    }
    return check_tensors(&part, &whole, problem);
}
