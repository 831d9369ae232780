/* Portable kernels of linear layers over the nonzeros alone. A pixel is one run of floats, as long as a
 * block has images: a few of them meet all nonzeros of a row. */
#include "kernels_linear.h"

/* A row of nonzeros. */
struct row {
    const float *w;
    uint32_t first, count;
};

static struct row row_find(const struct sfd_support *support, uint32_t index, const float *w)
{
    struct row row;

    row.first = support->row_pointer[index];
    row.count = support->row_pointer[index + 1u] - row.first;
    row.w = w + row.first;
    return row;
}

/* One image and columns of 16 bits are what boards have most: for them a row takes loops of its own. */
static int is_short(const struct sfd_support *support, uint32_t n)
{
    return n == 1u && support->index_width == 2u;
}

static SFD_HOT void short_gather(const struct row *row, const uint16_t *column,
                                 const float *restrict x, float *restrict y)
{
    const float *w = row->w;
    uint32_t count = row->count;
    float sum = *y;

    do
        sum += *w++ * x[*column++];
    while (--count > 0u);
    *y = sum;
}

static SFD_HOT void short_scatter(const struct row *row, const uint16_t *column,
                                  const float *restrict dy, float *restrict dx)
{
    const float *w = row->w, factor = *dy;
    uint32_t count = row->count;

    do
        dx[*column++] += *w++ * factor;
    while (--count > 0u);
}

/* The row of a layer, of n images: y[image] += sum over its nonzeros of w * x[image]. */
static void row_gather(const struct sfd_support *support, const struct row *row,
                       const float *restrict x, uint32_t n, float *restrict y)
{
    const float *const w = row->w;
    uint32_t i = 0u, k;

    for (; i + 4u <= n; i += 4u) {
        float a = y[i], b = y[i + 1u], c = y[i + 2u], d = y[i + 3u];
        for (k = 0u; k < row->count; ++k) {
            const float *in = x + (size_t)sfd_column(support, row->first + k) * n + i;
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
        for (k = 0u; k < row->count; ++k)
            sum += w[k] * x[(size_t)sfd_column(support, row->first + k) * n + i];
        y[i] = sum;
    }
}

/* The other way round: dx[image] += w * dy[image] for each of its nonzeros. */
static void row_scatter(const struct sfd_support *support, const struct row *row,
                        const float *restrict dy, uint32_t n, float *restrict dx)
{
    const float *const w = row->w;
    uint32_t i = 0u, k;

    for (; i + 4u <= n; i += 4u) {
        const float a = dy[i], b = dy[i + 1u], c = dy[i + 2u], d = dy[i + 3u];
        for (k = 0u; k < row->count; ++k) {
            float *out = dx + (size_t)sfd_column(support, row->first + k) * n + i;
            out[0] += w[k] * a;
            out[1] += w[k] * b;
            out[2] += w[k] * c;
            out[3] += w[k] * d;
        }
    }
    for (; i < n; ++i)
        for (k = 0u; k < row->count; ++k)
            dx[(size_t)sfd_column(support, row->first + k) * n + i] += w[k] * dy[i];
}

uint64_t sfd_linear_forward(const struct sfd_layer *layer, const float *w, const float *bias,
                            const float *x, float *y, uint32_t n)
{
    const struct sfd_support *support = &layer->support;
    const uint16_t *const column = support->column;
    uint32_t first, index, i, images;

    for (first = 0u; first < n; first += images, x += layer->in_channels * images) {
        images = sfd_block_images(n, first);
        for (index = 0u; index < support->rows; ++index, y += images) {
            const struct row row = row_find(support, index, w);
            for (i = 0u; i < images; ++i)
                y[i] = bias ? bias[index] : 0.0f;
            if (row.count > 0u && is_short(support, images))
                short_gather(&row, column + row.first, x, y);
            else
                row_gather(support, &row, x, images, y);
        }
    }
    return (uint64_t)support->count * n;
}

uint64_t sfd_linear_d_input(const struct sfd_layer *layer, const float *w, const float *dy,
                            float *dx, uint32_t n)
{
    const struct sfd_support *support = &layer->support;
    const uint16_t *const column = support->column;
    uint32_t first, index, images;

    for (first = 0u; first < n; first += images, dx += layer->in_channels * images) {
        images = sfd_block_images(n, first);
        for (index = 0u; index < support->rows; ++index, dy += images) {
            const struct row row = row_find(support, index, w);
            if (row.count > 0u && is_short(support, images))
                short_scatter(&row, column + row.first, dy, dx);
            else
                row_scatter(support, &row, dy, images, dx);
        }
    }
    return (uint64_t)support->count * n;
}
