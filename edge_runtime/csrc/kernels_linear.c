/* Portable kernels of linear layers over the nonzeros alone. A pixel is one run of floats, as long as a
 * block has images: a few of them meet all nonzeros of a row. */
#include "kernels_linear.h"

/* One image and columns of 16 bits are what boards have most: for them a row takes loops of its own. */
static int is_short(const struct sfd_support *support, uint32_t n)
{
    return n == 1u && support->index_width == 2u;
}

/* The row of a linear layer, of n images: y[image] += sum over its nonzeros of w * x[image]. */
static void linear_gather(const struct sfd_support *support, uint32_t row, const float *w,
                          const float *restrict x, uint32_t n, float *restrict y)
{
    const uint32_t begin = support->row_pointer[row], end = support->row_pointer[row + 1u];
    const uint16_t *const column = support->column;
    uint32_t i = 0u, k;

    for (; i + 4u <= n; i += 4u) {
        float a = y[i], b = y[i + 1u], c = y[i + 2u], d = y[i + 3u];
        for (k = begin; k < end; ++k) {
            const float *in = x + (size_t)sfd_column(support, k) * n + i;
            a += w[k] * in[0];
            b += w[k] * in[1];
            c += w[k] * in[2];
            d += w[k] * in[3];
        }
        y[i] = a;
        y[i + 1u] = b;
        y[i + 2u] = c;
        y[i + 3u] = d;
    }
    for (; i < n; ++i) {
        float sum = y[i];
        if (is_short(support, n))
            for (k = begin; k < end; ++k)
                sum += w[k] * x[column[k]];
        else
            for (k = begin; k < end; ++k)
                sum += w[k] * x[(size_t)sfd_column(support, k) * n + i];
        y[i] = sum;
    }
}

/* The other way round: dx[image] += w * dy[image] for each of its nonzeros. */
static void linear_scatter(const struct sfd_support *support, uint32_t row, const float *w,
                           const float *restrict dy, uint32_t n, float *restrict dx)
{
    const uint32_t begin = support->row_pointer[row], end = support->row_pointer[row + 1u];
    const uint16_t *const column = support->column;
    uint32_t i = 0u, k;

    for (; i + 4u <= n; i += 4u) {
        const float a = dy[i], b = dy[i + 1u], c = dy[i + 2u], d = dy[i + 3u];
        for (k = begin; k < end; ++k) {
            float *out = dx + (size_t)sfd_column(support, k) * n + i;
            out[0] += w[k] * a;
            out[1] += w[k] * b;
            out[2] += w[k] * c;
            out[3] += w[k] * d;
        }
    }
    for (; i < n; ++i)
        if (is_short(support, n))
            for (k = begin; k < end; ++k)
                dx[column[k]] += w[k] * *dy;
        else
            for (k = begin; k < end; ++k)
                dx[(size_t)sfd_column(support, k) * n + i] += w[k] * dy[i];
}

uint64_t sfd_linear_forward(const struct sfd_layer *layer, const float *w, const float *bias,
                            const float *x, float *y, uint32_t n)
{
    const struct sfd_support *support = &layer->support;
    uint32_t first, row, i, images;

    for (first = 0u; first < n; first += images, x += layer->in_channels * images) {
        images = sfd_block_images(n, first);
        for (row = 0u; row < support->rows; ++row, y += images) {
            for (i = 0u; i < images; ++i)
                y[i] = bias ? bias[row] : 0.0f;
            linear_gather(support, row, w, x, images, y);
        }
    }
    return (uint64_t)support->count * n;
}

uint64_t sfd_linear_d_input(const struct sfd_layer *layer, const float *w, const float *dy,
                            float *dx, uint32_t n)
{
    const struct sfd_support *support = &layer->support;
    uint32_t first, row, images;

    for (first = 0u; first < n; first += images, dx += layer->in_channels * images) {
        images = sfd_block_images(n, first);
        for (row = 0u; row < support->rows; ++row, dy += images)
            linear_scatter(support, row, w, dy, images, dx);
    }
    return (uint64_t)support->count * n;
}
