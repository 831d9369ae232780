/* Portable sparse kernels: convolution and linear over the nonzeros of the weight.
 *
 * The images of a batch are interleaved: the n values of one pixel lie side by side, so that a row
 * of pixels is one run of floats and each nonzero does a long, plain loop whatever the image's
 * size. Each output element is the sum over the nonzeros of its row in CSR order, so that the
 * result does not depend on how a loop is vectorised. */
#include "sfd_internal.h"

/* Partial sums of a dot product: fixed, so that the order of additions is the same everywhere. */
#define LANES 8u

void sfd_valid_range(uint32_t in, uint32_t out, uint32_t stride, uint32_t padding, uint32_t offset,
                     uint32_t *low, uint32_t *high)
{
    uint64_t reach = (uint64_t)in + padding; /* y * stride + offset must be in [padding, reach) */
    uint64_t last;

    *low = offset >= padding ? 0u : (padding - offset + stride - 1u) / stride;
    last = offset < reach ? (reach - offset - 1u) / stride + 1u : 0u;
    *high = last < out ? (uint32_t)last : out;
    if (*low > *high)
        *low = *high;
}

/* The pixels that one nonzero touches: `lines` rows of `count` pixels, from an offset in the input
 * and one in the output. */
struct window {
    uint32_t count, lines;
    size_t in_start, out_start;
};

static void window_find(const struct sfd_convolution *shape, const struct sfd_support *support,
                        uint32_t row, uint32_t column, const struct sfd_view *in,
                        const struct sfd_view *out, uint32_t n, struct window *window)
{
    uint32_t area = shape->kernel_h * shape->kernel_w, rest = column % area;
    uint32_t group = row / (support->rows / shape->groups);
    uint32_t channel = group * (in->channels / shape->groups) + column / area;
    uint32_t offset_y = rest / shape->kernel_w * shape->dilation_h;
    uint32_t offset_x = rest % shape->kernel_w * shape->dilation_w;
    uint32_t y_low, y_high, x_low, x_high;

    sfd_valid_range(in->height, out->height, shape->stride_h, shape->padding_h, offset_y, &y_low,
                    &y_high);
    sfd_valid_range(in->width, out->width, shape->stride_w, shape->padding_w, offset_x, &x_low,
                    &x_high);
    window->count = x_high - x_low;
    window->lines = y_high - y_low;
    window->in_start = window->out_start = 0u;
    if (window->count == 0u || window->lines == 0u) {
        window->lines = 0u;
        return;
    }
    window->in_start =
        (size_t)channel * in->channel_stride +
        (size_t)(y_low * shape->stride_h + offset_y - shape->padding_h) * in->row_stride +
        (size_t)(x_low * shape->stride_w + offset_x - shape->padding_w) * n;
    window->out_start =
        (size_t)row * out->channel_stride + (size_t)y_low * out->row_stride + (size_t)x_low * n;
    if (shape->stride_h == 1u && shape->stride_w == 1u && window->count == out->width &&
        in->row_stride == out->width * n && out->row_stride == out->width * n) {
        window->count *= window->lines; /* the rows lie end to end in both images: one long row */
        window->lines = 1u;
    }
}

/* y += w * x over `count` pixels; the pixels of x are `step` floats apart. */
static void row_add(float *restrict y, const float *restrict x, uint32_t count, uint32_t n,
                    size_t step, float w)
{
    uint32_t i, j;

    if (step == n)
        for (i = 0u; i < count * n; ++i)
            y[i] += w * x[i];
    else if (n == 1u)
        for (i = 0u; i < count; ++i)
            y[i] += w * x[i * step];
    else
        for (i = 0u; i < count; ++i)
            for (j = 0u; j < n; ++j)
                y[(size_t)i * n + j] += w * x[i * step + j];
}

/* x += w * y, the other way round. */
static void row_scatter(float *restrict x, const float *restrict y, uint32_t count, uint32_t n,
                        size_t step, float w)
{
    uint32_t i, j;

    if (step == n)
        for (i = 0u; i < count * n; ++i)
            x[i] += w * y[i];
    else if (n == 1u)
        for (i = 0u; i < count; ++i)
            x[i * step] += w * y[i];
    else
        for (i = 0u; i < count; ++i)
            for (j = 0u; j < n; ++j)
                x[i * step + j] += w * y[(size_t)i * n + j];
}

/* Add the products of two runs to the partial sums; element i goes to sum i % LANES. */
static void run_dot(const float *restrict y, const float *restrict x, uint32_t count,
                    float *restrict lane)
{
    uint32_t i, j, whole = count - count % LANES;

    for (i = 0u; i < whole; i += LANES)
        for (j = 0u; j < LANES; ++j)
            lane[j] += y[i + j] * x[i + j];
    for (j = 0u; i + j < count; ++j)
        lane[j] += y[i + j] * x[i + j];
}

static void row_dot(const float *y, const float *x, uint32_t count, uint32_t n, size_t step,
                    float *lane)
{
    uint32_t i;

    if (step == n)
        run_dot(y, x, count * n, lane);
    else if (n == 1u)
        for (i = 0u; i < count; ++i)
            lane[i % LANES] += y[i] * x[i * step];
    else
        for (i = 0u; i < count; ++i)
            run_dot(y + (size_t)i * n, x + i * step, n, lane);
}

static float lanes_sum(const float *lane)
{
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) +
           ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

/* First nonzero of [low, high) in a row whose column is not below `column`. */
static uint32_t row_search(const struct sfd_support *support, uint32_t low, uint32_t high,
                           uint32_t column)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2u;
        if (sfd_column(support, middle) < column)
            low = middle + 1u;
        else
            high = middle;
    }
    return low;
}

static void fill_channel(const struct sfd_view *y, uint32_t channel, uint32_t n, float value)
{
    float *out = y->data + (size_t)channel * y->channel_stride;
    uint32_t line, i;

    for (line = 0u; line < y->height; ++line)
        for (i = 0u; i < y->width * n; ++i)
            out[(size_t)line * y->row_stride + i] = value;
}

static uint64_t convolution_forward(const struct sfd_convolution *shape,
                                    const struct sfd_support *support, const float *w,
                                    const float *bias, const struct sfd_view *x,
                                    const struct sfd_view *y, uint32_t n)
{
    const size_t line_step = (size_t)shape->stride_h * x->row_stride;
    const size_t step = (size_t)shape->stride_w * n;
    uint64_t done = 0u;
    uint32_t row, k, line;

    for (row = 0u; row < support->rows; ++row) {
        fill_channel(y, row, n, bias ? bias[row] : 0.0f);
        for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k) {
            struct window window;
            window_find(shape, support, row, sfd_column(support, k), x, y, n, &window);
            for (line = 0u; line < window.lines; ++line)
                row_add(y->data + window.out_start + line * (size_t)y->row_stride,
                        x->data + window.in_start + line * line_step, window.count, n, step, w[k]);
            done += (uint64_t)window.count * window.lines * n;
        }
    }
    return done;
}

static uint64_t convolution_d_input(const struct sfd_convolution *shape,
                                    const struct sfd_support *support, const float *w,
                                    const struct sfd_view *dy, const struct sfd_view *dx,
                                    uint32_t n)
{
    const size_t line_step = (size_t)shape->stride_h * dx->row_stride;
    const size_t step = (size_t)shape->stride_w * n;
    uint64_t done = 0u;
    uint32_t row, k, line;

    for (row = 0u; row < support->rows; ++row)
        for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k) {
            struct window window;
            window_find(shape, support, row, sfd_column(support, k), dx, dy, n, &window);
            for (line = 0u; line < window.lines; ++line)
                row_scatter(dx->data + window.in_start + line * line_step,
                            dy->data + window.out_start + line * (size_t)dy->row_stride,
                            window.count, n, step, w[k]);
            done += (uint64_t)window.count * window.lines * n;
        }
    return done;
}

static uint64_t convolution_d_weight(const struct sfd_convolution *shape,
                                     const struct sfd_support *support, const struct sfd_view *x,
                                     uint32_t first_channel, uint32_t last_channel,
                                     const struct sfd_view *dy, float *gradient, uint32_t n)
{
    const size_t line_step = (size_t)shape->stride_h * x->row_stride;
    const size_t step = (size_t)shape->stride_w * n;
    const size_t before = (size_t)first_channel * x->channel_stride;
    uint32_t area = shape->kernel_h * shape->kernel_w, channels = x->channels / shape->groups;
    uint64_t done = 0u;
    uint32_t row, k, line;

    for (row = 0u; row < support->rows; ++row) {
        uint32_t group_start = row / (support->rows / shape->groups) * channels;
        uint32_t low = first_channel > group_start ? first_channel - group_start : 0u;
        uint32_t high = last_channel > group_start ? last_channel - group_start : 0u;
        uint32_t end = support->row_pointer[row + 1u];
        high = high < channels ? high : channels;
        if (low >= high)
            continue;
        for (k = row_search(support, support->row_pointer[row], end, low * area);
             k < end && sfd_column(support, k) < high * area; ++k) {
            struct window window;
            float lane[LANES] = {0.0f};
            window_find(shape, support, row, sfd_column(support, k), x, dy, n, &window);
            for (line = 0u; line < window.lines; ++line)
                row_dot(dy->data + window.out_start + line * (size_t)dy->row_stride,
                        x->data + (window.in_start - before) + line * line_step, window.count, n,
                        step, lane);
            gradient[k] = lanes_sum(lane);
            done += (uint64_t)window.count * window.lines * n;
        }
    }
    return done;
}

static uint64_t linear_forward(const struct sfd_support *support, const float *w, const float *bias,
                               const float *x, float *y, uint32_t n)
{
    uint32_t row, k, i;

    for (row = 0u; row < support->rows; ++row) {
        float *out = y + (size_t)row * n;
        for (i = 0u; i < n; ++i)
            out[i] = bias ? bias[row] : 0.0f;
        for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k)
            row_add(out, x + (size_t)sfd_column(support, k) * n, 1u, n, n, w[k]);
    }
    return (uint64_t)support->count * n;
}

static uint64_t linear_d_input(const struct sfd_support *support, const float *w, const float *dy,
                               float *dx, uint32_t n)
{
    uint32_t row, k;

    for (row = 0u; row < support->rows; ++row)
        for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k)
            row_add(dx + (size_t)sfd_column(support, k) * n, dy + (size_t)row * n, 1u, n, n, w[k]);
    return (uint64_t)support->count * n;
}

static uint64_t linear_d_weight(const struct sfd_support *support, const float *x, uint32_t first,
                                uint32_t last, const float *dy, float *gradient, uint32_t n)
{
    uint64_t done = 0u;
    uint32_t row, k;

    for (row = 0u; row < support->rows; ++row) {
        uint32_t end = support->row_pointer[row + 1u];
        for (k = row_search(support, support->row_pointer[row], end, first);
             k < end && sfd_column(support, k) < last; ++k) {
            float lane[LANES] = {0.0f};
            run_dot(dy + (size_t)row * n, x + (size_t)(sfd_column(support, k) - first) * n, n,
                    lane);
            gradient[k] = lanes_sum(lane);
            done += n;
        }
    }
    return done;
}

const struct sfd_sparse_kernels sfd_kernels_portable = {
    convolution_forward, convolution_d_input, convolution_d_weight,
    linear_forward,      linear_d_input,      linear_d_weight,
};
