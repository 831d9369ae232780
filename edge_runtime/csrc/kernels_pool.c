/* Max, average and adaptive average pools. */
#include "sfd_kernels.h"

/* Where one output reads: [low, high) of the input along one axis. */
static void axis_window(const struct sfd_operation *operation, int vertical, uint32_t in,
                        uint32_t out, uint32_t index, uint32_t *low, uint32_t *high)
{
    uint32_t kernel = vertical ? operation->kernel_h : operation->kernel_w;
    uint32_t stride = vertical ? operation->stride_h : operation->stride_w;
    uint32_t padding = vertical ? operation->padding_h : operation->padding_w;
    uint32_t start, end;

    if (operation->kind == SFD_OPERATION_ADAPTIVE_AVERAGE_POOL) {
        *low = (uint32_t)((uint64_t)index * in / out);
        *high = (uint32_t)((((uint64_t)index + 1u) * in + out - 1u) / out);
        return;
    }
    start = index * stride;
    end = start + kernel;
    *low = start > padding ? start - padding : 0u;
    *high = end > padding ? (end - padding < in ? end - padding : in) : 0u;
}

/* Where an output reads in each channel: pixels of a corner, and where that and the output lie. */
struct cell {
    uint32_t height, width;
    size_t in, out;
    uint32_t row, column; /* of the next output */
    size_t line;          /* where the rows of the corner begin */
};

/* Go to the next output, or to the first one from zeros; returns 0 behind the last one. */
static int cell_next(const struct sfd_operation *operation, const struct sfd_view *in,
                     const struct sfd_view *out, uint32_t n, struct cell *cell)
{
    uint32_t low, high;

    if (cell->column == 0u) {
        if (cell->row == out->height)
            return 0;
        axis_window(operation, 1, in->height, out->height, cell->row, &low, &high);
        cell->height = high - low;
        cell->line = (size_t)low * in->row_stride;
    }
    axis_window(operation, 0, in->width, out->width, cell->column, &low, &high);
    cell->width = high - low;
    cell->in = cell->line + (size_t)low * n;
    cell->out = (size_t)cell->row * out->row_stride + (size_t)cell->column * n;
    if (++cell->column == out->width) {
        cell->column = 0u;
        ++cell->row;
    }
    return 1;
}

/* The winner is kept as its place inside the window; the first one wins a tie. */
static void cell_maximum(const struct cell *cell, const float *x, size_t row_stride, uint32_t n,
                         float *y, uint16_t *winner)
{
    uint32_t iy, ix, j;
    uint16_t place = 0u;

    for (j = 0u; j < n; ++j) {
        y[j] = x[j];
        if (winner)
            winner[j] = 0u;
    }
    for (iy = 0u; iy < cell->height; ++iy)
        for (ix = 0u; ix < cell->width; ++ix, ++place) {
            const float *pixel = x + iy * row_stride + (size_t)ix * n;
            for (j = 0u; j < n; ++j)
                if (pixel[j] > y[j]) {
                    y[j] = pixel[j];
                    if (winner)
                        winner[j] = place;
                }
        }
}

void sfd_max_pool_forward(const struct sfd_operation *operation, const struct sfd_view *x,
                          const struct sfd_view *y, uint32_t n, uint16_t *winner)
{
    struct cell cell = {0};
    uint32_t channel;

    while (cell_next(operation, x, y, n, &cell)) {
        for (channel = 0u; channel < y->channels; ++channel) {
            const size_t out = cell.out + (size_t)channel * y->channel_stride;
            cell_maximum(&cell, x->data + cell.in + (size_t)channel * x->channel_stride,
                         x->row_stride, n, y->data + out, winner ? winner + out : NULL);
        }
    }
}

static void view_zero(const struct sfd_view *view)
{
    memset(view->data, 0, (size_t)view->channels * view->channel_stride * sizeof *view->data);
}

void sfd_max_pool_backward(const struct sfd_operation *operation, const struct sfd_view *dy,
                           const struct sfd_view *dx, uint32_t n, const uint16_t *winner,
                           int accumulate)
{
    struct cell cell = {0};
    uint32_t channel, j;

    if (!accumulate)
        view_zero(dx);
    while (cell_next(operation, dx, dy, n, &cell)) {
        for (channel = 0u; channel < dy->channels; ++channel) {
            const size_t out = cell.out + (size_t)channel * dy->channel_stride;
            float *in = dx->data + cell.in + (size_t)channel * dx->channel_stride;
            for (j = 0u; j < n; ++j) {
                const uint32_t place = winner[out + j], iy = place / cell.width;
                in[(size_t)iy * dx->row_stride + (size_t)(place - iy * cell.width) * n + j] +=
                    dy->data[out + j];
            }
        }
    }
}

static float cell_weight(const struct sfd_operation *operation, const struct cell *cell)
{
    uint32_t area = cell->height * cell->width;

    if (operation->flags & SFD_FLAG_COUNT_PADDING)
        area = operation->kernel_h * operation->kernel_w;
    return 1.0f / (float)area;
}

/* y = weight * the sum over the cell, image by image. */
static void cell_sum(const struct cell *cell, const float *x, size_t row_stride, uint32_t n,
                     float weight, float *y)
{
    uint32_t iy, ix, j;

    for (j = 0u; j < n; ++j)
        y[j] = 0.0f;
    for (iy = 0u; iy < cell->height; ++iy)
        for (ix = 0u; ix < cell->width; ++ix)
            for (j = 0u; j < n; ++j)
                y[j] += x[iy * row_stride + (size_t)ix * n + j];
    for (j = 0u; j < n; ++j)
        y[j] *= weight;
}

/* Where a row of a channel begins. */
static float *row_at(const struct sfd_view *view, uint32_t channel, uint32_t row)
{
    return view->data + (size_t)channel * view->channel_stride + (size_t)row * view->row_stride;
}

/* What most average pools are: two by two pixels, side by side, here of one image. */
static int takes_squares(const struct sfd_operation *operation, const struct sfd_view *in,
                         const struct sfd_view *out, uint32_t n)
{
    return SFD_HAS(AVERAGE_POOL) && n == 1u && operation->kind == SFD_OPERATION_AVERAGE_POOL &&
           operation->kernel_h == 2u && operation->kernel_w == 2u && operation->stride_h == 2u &&
           operation->stride_w == 2u && operation->padding_h == 0u && operation->padding_w == 0u &&
           in->height == 2u * out->height && in->width == 2u * out->width;
}

/* A row of outputs, from two of the input. */
static SFD_HOT void squares_average(const float *x, size_t line, float *y, uint32_t count)
{
    const float *below = x + line;

    do {
        *y++ = (0.0f + x[0] + x[1] + below[0] + below[1]) * 0.25f;
        x += 2;
        below += 2;
    } while (--count > 0u);
}

static SFD_HOT void squares_write(const float *y, uint32_t count, float *x, size_t line)
{
    float *below = x + line;

    do {
        x[0] = x[1] = below[0] = below[1] = *y++ * 0.25f;
        x += 2;
        below += 2;
    } while (--count > 0u);
}

void sfd_average_pool_forward(const struct sfd_operation *operation, const struct sfd_view *x,
                              const struct sfd_view *y, uint32_t n)
{
    struct cell cell = {0};
    uint32_t channel, row;

    if (takes_squares(operation, x, y, n)) {
        for (channel = 0u; channel < y->channels; ++channel)
            for (row = 0u; row < y->height; ++row)
                squares_average(row_at(x, channel, 2u * row), x->row_stride,
                                row_at(y, channel, row), y->width);
        return;
    }
    while (cell_next(operation, x, y, n, &cell)) {
        const float weight = cell_weight(operation, &cell);
        for (channel = 0u; channel < y->channels; ++channel)
            cell_sum(&cell, x->data + cell.in + (size_t)channel * x->channel_stride, x->row_stride,
                     n, weight, y->data + cell.out + (size_t)channel * y->channel_stride);
    }
}

/* x += weight * y at each pixel of the cell. */
static void cell_spread(const struct cell *cell, float *x, size_t row_stride, uint32_t n,
                        float weight, const float *y)
{
    uint32_t iy, ix, j;

    for (iy = 0u; iy < cell->height; ++iy)
        for (ix = 0u; ix < cell->width; ++ix)
            for (j = 0u; j < n; ++j)
                x[iy * row_stride + (size_t)ix * n + j] += y[j] * weight;
}

void sfd_average_pool_backward(const struct sfd_operation *operation, const struct sfd_view *dy,
                               const struct sfd_view *dx, uint32_t n, int accumulate)
{
    struct cell cell = {0};
    uint32_t channel, row;

    if (!accumulate && takes_squares(operation, dx, dy, n)) {
        for (channel = 0u; channel < dy->channels; ++channel)
            for (row = 0u; row < dy->height; ++row)
                squares_write(row_at(dy, channel, row), dy->width, row_at(dx, channel, 2u * row),
                              dx->row_stride);
        return;
    }
    if (!accumulate)
        view_zero(dx);
    while (cell_next(operation, dx, dy, n, &cell)) {
        const float weight = cell_weight(operation, &cell);
        for (channel = 0u; channel < dy->channels; ++channel)
            cell_spread(&cell, dx->data + cell.in + (size_t)channel * dx->channel_stride,
                        dx->row_stride, n, weight,
                        dy->data + cell.out + (size_t)channel * dy->channel_stride);
    }
}
