/* Max, average and adaptive average pools. */
#include "sfd_internal.h"

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

struct cell {
    uint32_t y_low, y_high, x_low, x_high;
};

static struct cell cell_find(const struct sfd_operation *operation, const struct sfd_view *in,
                             const struct sfd_view *out, uint32_t y, uint32_t x)
{
    struct cell cell;

    axis_window(operation, 1, in->height, out->height, y, &cell.y_low, &cell.y_high);
    axis_window(operation, 0, in->width, out->width, x, &cell.x_low, &cell.x_high);
    return cell;
}

/* The winner is kept as its place inside the window; the first one wins a tie. */
void sfd_max_pool_forward(const struct sfd_operation *operation, const struct sfd_view *x,
                          const struct sfd_view *y, uint32_t n, uint16_t *winner)
{
    uint32_t plane, planes = n * y->channels, oy, ox, iy, ix;
    size_t out = 0u;

    for (plane = 0u; plane < planes; ++plane) {
        const float *in = x->data + (size_t)plane * x->channel_stride;
        for (oy = 0u; oy < y->height; ++oy)
            for (ox = 0u; ox < y->width; ++ox, ++out) {
                struct cell cell = cell_find(operation, x, y, oy, ox);
                uint32_t best_y = cell.y_low, best_x = cell.x_low;
                float best = in[best_y * x->row_stride + best_x];
                for (iy = cell.y_low; iy < cell.y_high; ++iy)
                    for (ix = cell.x_low; ix < cell.x_high; ++ix)
                        if (in[iy * x->row_stride + ix] > best) {
                            best = in[iy * x->row_stride + ix];
                            best_y = iy;
                            best_x = ix;
                        }
                y->data[out] = best;
                if (winner)
                    winner[out] = (uint16_t)((best_y - cell.y_low) * (cell.x_high - cell.x_low) +
                                             best_x - cell.x_low);
            }
    }
}

void sfd_max_pool_backward(const struct sfd_operation *operation, const struct sfd_view *dy,
                           const struct sfd_view *dx, uint32_t n, const uint16_t *winner)
{
    uint32_t plane, planes = n * dy->channels, oy, ox;
    size_t out = 0u;

    for (plane = 0u; plane < planes; ++plane) {
        float *in = dx->data + (size_t)plane * dx->channel_stride;
        for (oy = 0u; oy < dy->height; ++oy)
            for (ox = 0u; ox < dy->width; ++ox, ++out) {
                struct cell cell = cell_find(operation, dx, dy, oy, ox);
                uint32_t width = cell.x_high - cell.x_low;
                uint32_t iy = cell.y_low + winner[out] / width,
                         ix = cell.x_low + winner[out] % width;
                in[iy * dx->row_stride + ix] += dy->data[out];
            }
    }
}

static float cell_weight(const struct sfd_operation *operation, const struct cell *cell)
{
    uint32_t area = (cell->y_high - cell->y_low) * (cell->x_high - cell->x_low);

    if (operation->flags & SFD_FLAG_COUNT_PADDING)
        area = operation->kernel_h * operation->kernel_w;
    return 1.0f / (float)area;
}

void sfd_average_pool_forward(const struct sfd_operation *operation, const struct sfd_view *x,
                              const struct sfd_view *y, uint32_t n)
{
    uint32_t plane, planes = n * y->channels, oy, ox, iy, ix;
    size_t out = 0u;

    for (plane = 0u; plane < planes; ++plane) {
        const float *in = x->data + (size_t)plane * x->channel_stride;
        for (oy = 0u; oy < y->height; ++oy)
            for (ox = 0u; ox < y->width; ++ox, ++out) {
                struct cell cell = cell_find(operation, x, y, oy, ox);
                float sum = 0.0f;
                for (iy = cell.y_low; iy < cell.y_high; ++iy)
                    for (ix = cell.x_low; ix < cell.x_high; ++ix)
                        sum += in[iy * x->row_stride + ix];
                y->data[out] = sum * cell_weight(operation, &cell);
            }
    }
}

void sfd_average_pool_backward(const struct sfd_operation *operation, const struct sfd_view *dy,
                               const struct sfd_view *dx, uint32_t n)
{
    uint32_t plane, planes = n * dy->channels, oy, ox, iy, ix;
    size_t out = 0u;

    for (plane = 0u; plane < planes; ++plane) {
        float *in = dx->data + (size_t)plane * dx->channel_stride;
        for (oy = 0u; oy < dy->height; ++oy)
            for (ox = 0u; ox < dy->width; ++ox, ++out) {
                struct cell cell = cell_find(operation, dx, dy, oy, ox);
                float share = dy->data[out] * cell_weight(operation, &cell);
                for (iy = cell.y_low; iy < cell.y_high; ++iy)
                    for (ix = cell.x_low; ix < cell.x_high; ++ix)
                        in[iy * dx->row_stride + ix] += share;
            }
    }
}
