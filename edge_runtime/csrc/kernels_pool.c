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
    uint32_t channel, oy, ox, iy, ix, j;
    size_t at = 0u;

    for (channel = 0u; channel < y->channels; ++channel) {
        const float *in = x->data + (size_t)channel * x->channel_stride;
        for (oy = 0u; oy < y->height; ++oy)
            for (ox = 0u; ox < y->width; ++ox, at += n) {
                struct cell cell = cell_find(operation, x, y, oy, ox);
                const float *corner =
                    in + (size_t)cell.y_low * x->row_stride + (size_t)cell.x_low * n;
                uint16_t place = 0u;
                for (j = 0u; j < n; ++j) {
                    y->data[at + j] = corner[j];
                    if (winner)
                        winner[at + j] = 0u;
                }
                for (iy = 0u; iy < cell.y_high - cell.y_low; ++iy)
                    for (ix = 0u; ix < cell.x_high - cell.x_low; ++ix, ++place) {
                        const float *pixel = corner + (size_t)iy * x->row_stride + (size_t)ix * n;
                        for (j = 0u; j < n; ++j)
                            if (pixel[j] > y->data[at + j]) {
                                y->data[at + j] = pixel[j];
                                if (winner)
                                    winner[at + j] = place;
                            }
                    }
            }
    }
}

void sfd_max_pool_backward(const struct sfd_operation *operation, const struct sfd_view *dy,
                           const struct sfd_view *dx, uint32_t n, const uint16_t *winner)
{
    uint32_t channel, oy, ox, j;
    size_t at = 0u;

    for (channel = 0u; channel < dy->channels; ++channel) {
        float *in = dx->data + (size_t)channel * dx->channel_stride;
        for (oy = 0u; oy < dy->height; ++oy)
            for (ox = 0u; ox < dy->width; ++ox, at += n) {
                struct cell cell = cell_find(operation, dx, dy, oy, ox);
                uint32_t width = cell.x_high - cell.x_low;
                for (j = 0u; j < n; ++j) {
                    uint32_t iy = cell.y_low + winner[at + j] / width;
                    uint32_t ix = cell.x_low + winner[at + j] % width;
                    in[(size_t)iy * dx->row_stride + (size_t)ix * n + j] += dy->data[at + j];
                }
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
    uint32_t channel, oy, ox, iy, ix, j;
    float *out = y->data;

    for (channel = 0u; channel < y->channels; ++channel) {
        const float *in = x->data + (size_t)channel * x->channel_stride;
        for (oy = 0u; oy < y->height; ++oy)
            for (ox = 0u; ox < y->width; ++ox, out += n) {
                struct cell cell = cell_find(operation, x, y, oy, ox);
                float weight = cell_weight(operation, &cell);
                for (j = 0u; j < n; ++j)
                    out[j] = 0.0f;
                for (iy = cell.y_low; iy < cell.y_high; ++iy)
                    for (ix = cell.x_low; ix < cell.x_high; ++ix)
                        for (j = 0u; j < n; ++j)
                            out[j] += in[(size_t)iy * x->row_stride + (size_t)ix * n + j];
                for (j = 0u; j < n; ++j)
                    out[j] *= weight;
            }
    }
}

void sfd_average_pool_backward(const struct sfd_operation *operation, const struct sfd_view *dy,
                               const struct sfd_view *dx, uint32_t n)
{
    uint32_t channel, oy, ox, iy, ix, j;
    const float *out = dy->data;

    for (channel = 0u; channel < dy->channels; ++channel) {
        float *in = dx->data + (size_t)channel * dx->channel_stride;
        for (oy = 0u; oy < dy->height; ++oy)
            for (ox = 0u; ox < dy->width; ++ox, out += n) {
                struct cell cell = cell_find(operation, dx, dy, oy, ox);
                float weight = cell_weight(operation, &cell);
                for (iy = cell.y_low; iy < cell.y_high; ++iy)
                    for (ix = cell.x_low; ix < cell.x_high; ++ix)
                        for (j = 0u; j < n; ++j)
                            in[(size_t)iy * dx->row_stride + (size_t)ix * n + j] += out[j] * weight;
            }
    }
}
