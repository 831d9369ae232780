/* Single layers: the weight's nonzeros are collected, the kernels called, gradients put in their
 * places. */
#include "sfd_kernels.h"
#include "sfd_operators.h"

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + SFD_ALIGNMENT - 1u) / SFD_ALIGNMENT * SFD_ALIGNMENT;
}

/* Without its nonzeros. */
static struct sfd_layer layer_sizes(const struct sfd_layer_geometry *geometry)
{
    const struct sfd_layer_geometry g = *geometry;
    const struct sfd_layer layer = {
        .shape = {g.groups, g.kernel_h, g.kernel_w, g.stride_h, g.stride_w, g.padding_h,
                  g.padding_w, g.dilation_h, g.dilation_w},
        .support = {.rows = g.out_channels,
                    .columns = g.in_channels / g.groups * g.kernel_h * g.kernel_w},
        .in_channels = g.in_channels,
        .in_height = g.in_height,
        .in_width = g.in_width,
        .out_height = g.out_height,
        .out_width = g.out_width,
        .threads = 1u,
    };

    return layer;
}

/* The sizes, with the number of nonzeros. */
static struct sfd_layer layer_counted(const struct sfd_layer_geometry *geometry, const float *v)
{
    struct sfd_layer layer = layer_sizes(geometry);
    const size_t positions = (size_t)layer.support.rows * layer.support.columns;
    uint32_t count = 0u;
    size_t i;

    for (i = 0u; i < positions; ++i)
        count += v[i] != 0.0f;
    layer.support.count = count;
    layer.support.index_width = layer.support.columns > 0x10000u ? 4u : 2u;
    return layer;
}

/* One more than the nonzeros: what is collected is written before it is known to be one. */
static uint64_t support_bytes(const struct sfd_support *support)
{
    return aligned(((uint64_t)support->rows + 1u) * 4u) +
           aligned(((uint64_t)support->count + 1u) * support->index_width) +
           2u * aligned(((uint64_t)support->count + 1u) * 4u);
}

/* The nonzeros of v in CSR. */
static void collect(const float *v, struct sfd_support *support, uint8_t *scratch, float **values,
                    float **working)
{
    uint32_t *row_pointer = (void *)scratch, row, j, k = 0u;
    uint16_t *narrow = (void *)(scratch + aligned(((uint64_t)support->rows + 1u) * 4u));
    uint32_t *wide = (void *)narrow;
    float *value = (void *)((uint8_t *)narrow +
                            aligned(((uint64_t)support->count + 1u) * support->index_width));

    for (row = 0u; row < support->rows; ++row, v += support->columns) {
        row_pointer[row] = k;
        if (support->index_width == 2u)
            for (j = 0u; j < support->columns; ++j) {
                narrow[k] = (uint16_t)j;
                value[k] = v[j];
                k += v[j] != 0.0f;
            }
        else
            for (j = 0u; j < support->columns; ++j) {
                wide[k] = j;
                value[k] = v[j];
                k += v[j] != 0.0f;
            }
    }
    row_pointer[row] = k;
    support->row_pointer = row_pointer;
    support->column = narrow;
    *values = value;
    *working = (void *)((uint8_t *)value + aligned(((uint64_t)support->count + 1u) * 4u));
}

uint64_t sfd_layer_forward_bytes(const struct sfd_layer_geometry *geometry, const float *v,
                                 uint32_t n)
{
    const struct sfd_kernels *kernels = sfd_kernels_find(SFD_KERNELS_AUTOMATIC);
    const struct sfd_layer layer = layer_counted(geometry, v);

    return support_bytes(&layer.support) + kernels->forward_scratch_bytes(&layer, n);
}

void sfd_layer_forward(const struct sfd_layer_geometry *geometry, const float *v, float beta,
                       const float *bias, const float *x, uint32_t n, float *y, void *scratch)
{
    const struct sfd_kernels *kernels = sfd_kernels_find(SFD_KERNELS_AUTOMATIC);
    struct sfd_layer layer = layer_counted(geometry, v);
    uint8_t *cursor = scratch;
    float *values, *w;

    collect(v, &layer.support, cursor, &values, &w);
    cursor += support_bytes(&layer.support);
    kernels->tensors->powerprop_forward(values, w, layer.support.count, beta);
    kernels->forward(&layer, w, bias, x, y, n, cursor);
}

/* All of it, or nothing: neither has to be searched for. */
static int is_packed(const struct sfd_layer *layer, uint32_t n, uint32_t keep)
{
    return keep < sfd_in_elements(layer) * n;
}

static uint64_t packed_bytes(const struct sfd_layer *layer, uint32_t n, uint32_t keep)
{
    const uint64_t elements = sfd_in_elements(layer) * n;

    if (!is_packed(layer, n, keep))
        return 0u;
    return aligned(4u * (keep + (elements + 31u) / 32u)) + SFD_HISTOGRAM_BINS * 4u;
}

uint64_t sfd_layer_backward_bytes(const struct sfd_layer_geometry *geometry, const float *v,
                                  uint32_t n, uint32_t keep)
{
    const struct sfd_kernels *kernels = sfd_kernels_find(SFD_KERNELS_AUTOMATIC);
    const struct sfd_layer layer = layer_counted(geometry, v);

    return support_bytes(&layer.support) + packed_bytes(&layer, n, keep) +
           kernels->backward_scratch_bytes(&layer, n);
}

static struct sfd_saved_input saved_input(const struct sfd_layer *layer, const float *x, uint32_t n,
                                          uint32_t keep, uint8_t *scratch)
{
    const struct sfd_kernels *kernels = sfd_kernels_find(SFD_KERNELS_AUTOMATIC);
    const uint64_t elements = sfd_in_elements(layer) * n;
    struct sfd_saved_input saved = {.dense = x, .kept = (uint32_t)elements};
    uint32_t *histogram = (void *)scratch;
    float *packed = (void *)(scratch + SFD_HISTOGRAM_BINS * 4u);

    if (!is_packed(layer, n, keep))
        return saved;
    saved.dense = NULL;
    saved.values = packed;
    saved.mask = (const uint32_t *)(const void *)packed + keep;
    saved.kept = keep;
    if (keep == 0u)
        memset(packed, 0, (size_t)((elements + 31u) / 32u) * 4u);
    else
        kernels->tensors->pack(x, (uint32_t)sfd_in_elements(layer), n, keep, histogram, packed,
                               NULL);
    return saved;
}

static void put_in_place(const struct sfd_support *support, const float *gradient, float *dv)
{
    uint32_t row, k;

    memset(dv, 0, (size_t)support->rows * support->columns * sizeof *dv);
    for (row = 0u; row < support->rows; ++row, dv += support->columns)
        for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k)
            dv[sfd_column(support, k)] = gradient[k];
}

void sfd_layer_backward(const struct sfd_layer_geometry *geometry, const float *v, float beta,
                        const float *x, const float *dy, uint32_t n, uint32_t keep, float *dx,
                        float *dv, float *d_bias, void *scratch)
{
    const struct sfd_kernels *kernels = sfd_kernels_find(SFD_KERNELS_AUTOMATIC);
    struct sfd_layer layer = layer_counted(geometry, v);
    const struct sfd_channels out = {layer.support.rows, layer.out_height * layer.out_width};
    struct sfd_multiply_adds done = {0};
    struct sfd_saved_input saved;
    uint8_t *cursor = scratch;
    float *values, *working;

    collect(v, &layer.support, cursor, &values, &working);
    cursor += support_bytes(&layer.support);
    saved = saved_input(&layer, x, n, keep, cursor);
    cursor += packed_bytes(&layer, n, keep);
    kernels->tensors->powerprop_forward(values, working, layer.support.count, beta);
    kernels->backward(&layer, working, &saved, dy, dx, 0, working, n, cursor, &done);
    kernels->tensors->powerprop_backward(values, working, layer.support.count, beta);
    put_in_place(&layer.support, working, dv);
    if (d_bias)
        kernels->tensors->bias_backward(&out, dy, n, d_bias);
}
