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
};

static struct cell cell_find(const struct sfd_operation *operation, const struct sfd_view *in,
                             const struct sfd_view *out, uint32_t pixel, uint32_t n)
{
    const uint32_t y = pixel / out->width, x = pixel % out->width;
    uint32_t y_low, y_high, x_low, x_high;
    struct cell cell;

    axis_window(operation, 1, in->height, out->height, y, &y_low, &y_high);
    axis_window(operation, 0, in->width, out->width, x, &x_low, &x_high);
    cell.height = y_high - y_low;
    cell.width = x_high - x_low;
    cell.in = (size_t)y_low * in->row_stride + (size_t)x_low * n;
    cell.out = (size_t)pixel * n;
    return cell;
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
    uint32_t pixel, channel;

    for (pixel = 0u; pixel < y->height * y->width; ++pixel) {
        const struct cell cell = cell_find(operation, x, y, pixel, n);
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
    uint32_t pixel, channel, j;

    for (pixel = 0u; pixel < dy->height * dy->width; ++pixel) {
        const struct cell cell = cell_find(operation, dx, dy, pixel, n);
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

/* What most pools have. */
static int is_two_by_two(const struct cell *cell)
{
    return cell->height == 2u && cell->width == 2u;
}

/* The same of one image in all channels. */
static void pixels_sum(const struct cell *cell, const struct sfd_view *x, const struct sfd_view *y,
                       float weight)
{
    const size_t x_run = x->channel_stride, y_run = y->channel_stride, line = x->row_stride;
    const float *in = x->data + cell->in;
    float *out = y->data + cell->out;
    uint32_t channel = y->channels, iy, ix;

    if (is_two_by_two(cell))
        for (; channel > 0u; --channel, in += x_run, out += y_run)
            *out = (0.0f + in[0] + in[1] + in[line] + in[line + 1u]) * weight;
    for (; channel > 0u; --channel, in += x_run, out += y_run) {
        const float *row = in;
        float sum = 0.0f;
        for (iy = cell->height; iy > 0u; --iy, row += line)
            for (ix = 0u; ix < cell->width; ++ix)
                sum += row[ix];
        *out = sum * weight;
    }
}

void sfd_average_pool_forward(const struct sfd_operation *operation, const struct sfd_view *x,
                              const struct sfd_view *y, uint32_t n)
{
    uint32_t pixel, channel;

    for (pixel = 0u; pixel < y->height * y->width; ++pixel) {
        const struct cell cell = cell_find(operation, x, y, pixel, n);
        const float weight = cell_weight(operation, &cell);
        if (n == 1u)
            pixels_sum(&cell, x, y, weight);
        for (channel = 0u; channel < y->channels && n > 1u; ++channel)
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

/* The same of one image in all channels. */
static void pixels_spread(const struct cell *cell, const struct sfd_view *dy,
                          const struct sfd_view *dx, float weight)
{
    const size_t x_run = dx->channel_stride, y_run = dy->channel_stride, line = dx->row_stride;
    const uint32_t height = cell->height, width = cell->width; /* no store changes them */
    const float *out = dy->data + cell->out;
    float *in = dx->data + cell->in;
    uint32_t channel = dy->channels, iy, ix;

    if (is_two_by_two(cell))
        for (; channel > 0u; --channel, in += x_run, out += y_run) {
            const float part = *out * weight;
            in[0] += part;
            in[1] += part;
            in[line] += part;
            in[line + 1u] += part;
        }
    for (; channel > 0u; --channel, in += x_run, out += y_run) {
        const float part = *out * weight;
        float *row = in;
        for (iy = height; iy > 0u; --iy, row += line)
            for (ix = 0u; ix < width; ++ix)
                row[ix] += part;
    }
}

void sfd_average_pool_backward(const struct sfd_operation *operation, const struct sfd_view *dy,
                               const struct sfd_view *dx, uint32_t n)
{
    uint32_t pixel, channel;

    for (pixel = 0u; pixel < dy->height * dy->width; ++pixel) {
        const struct cell cell = cell_find(operation, dx, dy, pixel, n);
        const float weight = cell_weight(operation, &cell);
        if (n == 1u)
            pixels_spread(&cell, dy, dx, weight);
        for (channel = 0u; channel < dy->channels && n > 1u; ++channel)
            cell_spread(&cell, dx->data + cell.in + (size_t)channel * dx->channel_stride,
                        dx->row_stride, n, weight,
                        dy->data + cell.out + (size_t)channel * dy->channel_stride);
    }
}
