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

void sfd_max_pool_backward(const struct sfd_operation *operation, const struct sfd_view *dy,
                           const struct sfd_view *dx, uint32_t n, const uint16_t *winner)
{
    struct cell cell = {0};
    uint32_t channel, j;

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

/* What most pools have: two by two pixels, of one image in all channels. */
static SFD_HOT void squares_sum(const float *x, size_t x_run, size_t line, float weight,
                                uint32_t channels, float *y, size_t y_run)
{
    do {
        *y = (0.0f + x[0] + x[1] + x[line] + x[line + 1u]) * weight;
        x += x_run;
        y += y_run;
    } while (--channels > 0u);
}

static int is_square(const struct cell *cell, uint32_t n)
{
    return n == 1u && cell->height == 2u && cell->width == 2u;
}

void sfd_average_pool_forward(const struct sfd_operation *operation, const struct sfd_view *x,
                              const struct sfd_view *y, uint32_t n)
{
    struct cell cell = {0};
    uint32_t channel;

    while (cell_next(operation, x, y, n, &cell)) {
        const float weight = cell_weight(operation, &cell);
        if (is_square(&cell, n))
            squares_sum(x->data + cell.in, x->channel_stride, x->row_stride, weight, y->channels,
                        y->data + cell.out, y->channel_stride);
        else
            for (channel = 0u; channel < y->channels; ++channel)
                cell_sum(&cell, x->data + cell.in + (size_t)channel * x->channel_stride,
                         x->row_stride, n, weight,
                         y->data + cell.out + (size_t)channel * y->channel_stride);
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

/* The same for two by two pixels of one image in all channels. */
static SFD_HOT void squares_spread(const float *dy, size_t y_run, float weight, uint32_t channels,
                                   float *dx, size_t x_run, size_t line)
{
    do {
        const float part = *dy * weight;
        dx[0] += part;
        dx[1] += part;
        dx[line] += part;
        dx[line + 1u] += part;
        dx += x_run;
        dy += y_run;
    } while (--channels > 0u);
}

void sfd_average_pool_backward(const struct sfd_operation *operation, const struct sfd_view *dy,
                               const struct sfd_view *dx, uint32_t n)
{
    struct cell cell = {0};
    uint32_t channel;

    while (cell_next(operation, dx, dy, n, &cell)) {
        const float weight = cell_weight(operation, &cell);
        if (is_square(&cell, n))
            squares_spread(dy->data + cell.out, dy->channel_stride, weight, dy->channels,
                           dx->data + cell.in, dx->channel_stride, dx->row_stride);
        else
            for (channel = 0u; channel < dy->channels; ++channel)
                cell_spread(&cell, dx->data + cell.in + (size_t)channel * dx->channel_stride,
                            dx->row_stride, n, weight,
                            dy->data + cell.out + (size_t)channel * dy->channel_stride);
    }
}
