/* Portable sparse kernels: convolution and linear over the nonzeros of the weight.
 *
 * Each output element is the sum over the nonzeros of its row in CSR order, so that the result does
 * not depend on how a loop is vectorised. The inner loops run over pixels: a nonzero adds a scaled
 * row of the input to a row of the output. */
#include "sfd_internal.h"

#define LANES                                                                              \
    8u /* partial sums of a dot product: fixed, so that the order of additions is the same \
          everywhere */

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
                        const struct sfd_view *out, struct window *window)
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
        (x_low * shape->stride_w + offset_x - shape->padding_w);
    window->out_start = (size_t)row * out->channel_stride + (size_t)y_low * out->row_stride + x_low;
    if (shape->stride_h == 1u && shape->stride_w == 1u && window->count == out->width &&
        in->row_stride == out->width && out->row_stride == out->width) {
        window->count *= window->lines; /* the rows lie end to end in both images: one long row */
        window->lines = 1u;
    }
}

static void row_add(float *restrict y, const float *restrict x, uint32_t count, uint32_t stride,
                    float w)
{
    uint32_t i;

    if (stride == 1u)
        for (i = 0u; i < count; ++i)
            y[i] += w * x[i];
    else if (stride == 2u)
        for (i = 0u; i < count; ++i)
            y[i] += w * x[2u * i];
    else
        for (i = 0u; i < count; ++i)
            y[i] += w * x[(size_t)i * stride];
}

static void row_scatter(float *restrict x, const float *restrict y, uint32_t count, uint32_t stride,
                        float w)
{
    uint32_t i;

    if (stride == 1u)
        for (i = 0u; i < count; ++i)
            x[i] += w * y[i];
    else
        for (i = 0u; i < count; ++i)
            x[(size_t)i * stride] += w * y[i];
}

static float row_dot(const float *restrict y, const float *restrict x, uint32_t count,
                     uint32_t stride)
{
    float lane[LANES] = {0.0f};
    uint32_t i, j, whole = count - count % LANES;

    for (i = 0u; i < whole; i += LANES)
        for (j = 0u; j < LANES; ++j)
            lane[j] += y[i + j] * x[(size_t)(i + j) * stride];
    for (j = 0u; i + j < count; ++j)
        lane[j] += y[i + j] * x[(size_t)(i + j) * stride];
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) +
           ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

static void fill_channel(const struct sfd_view *y, uint32_t channel, uint32_t n, float value)
{
    uint32_t image, line, pixel;

    for (image = 0u; image < n; ++image)
        for (line = 0u; line < y->height; ++line) {
            float *out = y->data + (size_t)image * y->image_stride +
                         (size_t)channel * y->channel_stride + (size_t)line * y->row_stride;
            for (pixel = 0u; pixel < y->width; ++pixel)
                out[pixel] = value;
        }
}

static uint64_t convolution_forward(const struct sfd_convolution *shape,
                                    const struct sfd_support *support, const float *w,
                                    const float *bias, const struct sfd_view *x,
                                    const struct sfd_view *y, uint32_t n)
{
    const size_t in_step = (size_t)shape->stride_h * x->row_stride;
    uint64_t done = 0u;
    uint32_t row, k, image, line;

    for (row = 0u; row < support->rows; ++row) {
        fill_channel(y, row, n, bias ? bias[row] : 0.0f);
        for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k) {
            struct window window;
            window_find(shape, support, row, sfd_column(support, k), x, y, &window);
            for (image = 0u; image < n; ++image) {
                const float *in = x->data + (size_t)image * x->image_stride + window.in_start;
                float *out = y->data + (size_t)image * y->image_stride + window.out_start;
                for (line = 0u; line < window.lines; ++line)
                    row_add(out + line * (size_t)y->row_stride, in + line * in_step, window.count,
                            shape->stride_w, w[k]);
            }
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
    const size_t in_step = (size_t)shape->stride_h * dx->row_stride;
    uint64_t done = 0u;
    uint32_t row, k, image, line;

    for (row = 0u; row < support->rows; ++row)
        for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k) {
            struct window window;
            window_find(shape, support, row, sfd_column(support, k), dx, dy, &window);
            for (image = 0u; image < n; ++image) {
                float *in = dx->data + (size_t)image * dx->image_stride + window.in_start;
                const float *out = dy->data + (size_t)image * dy->image_stride + window.out_start;
                for (line = 0u; line < window.lines; ++line)
                    row_scatter(in + line * in_step, out + line * (size_t)dy->row_stride,
                                window.count, shape->stride_w, w[k]);
            }
            done += (uint64_t)window.count * window.lines * n;
        }
    return done;
}

static uint64_t convolution_d_weight(const struct sfd_convolution *shape,
                                     const struct sfd_support *support, const struct sfd_view *x,
                                     const struct sfd_view *dy, float *gradient, uint32_t n)
{
    const size_t in_step = (size_t)shape->stride_h * x->row_stride;
    uint64_t done = 0u;
    uint32_t row, k, image, line;

    for (row = 0u; row < support->rows; ++row)
        for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k) {
            struct window window;
            float sum = gradient[k];
            window_find(shape, support, row, sfd_column(support, k), x, dy, &window);
            for (image = 0u; image < n; ++image) {
                const float *in = x->data + (size_t)image * x->image_stride + window.in_start;
                const float *out = dy->data + (size_t)image * dy->image_stride + window.out_start;
                for (line = 0u; line < window.lines; ++line)
                    sum += row_dot(out + line * (size_t)dy->row_stride, in + line * in_step,
                                   window.count, shape->stride_w);
            }
            gradient[k] = sum;
            done += (uint64_t)window.count * window.lines * n;
        }
    return done;
}

static uint64_t linear_forward(const struct sfd_support *support, const float *w, const float *bias,
                               const float *x, float *y, uint32_t n)
{
    uint32_t row, k, image;

    for (image = 0u; image < n; ++image) {
        const float *in = x + (size_t)image * support->columns;
        for (row = 0u; row < support->rows; ++row) {
            float sum = bias ? bias[row] : 0.0f;
            for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k)
                sum += w[k] * in[sfd_column(support, k)];
            y[(size_t)image * support->rows + row] = sum;
        }
    }
    return (uint64_t)support->count * n;
}

static uint64_t linear_d_input(const struct sfd_support *support, const float *w, const float *dy,
                               float *dx, uint32_t n)
{
    uint32_t row, k, image;

    for (image = 0u; image < n; ++image) {
        float *in = dx + (size_t)image * support->columns;
        for (row = 0u; row < support->rows; ++row) {
            float out = dy[(size_t)image * support->rows + row];
            for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k)
                in[sfd_column(support, k)] += w[k] * out;
        }
    }
    return (uint64_t)support->count * n;
}

static uint64_t linear_d_weight(const struct sfd_support *support, const float *x, const float *dy,
                                float *gradient, uint32_t n)
{
    uint32_t row, k, image;

    for (image = 0u; image < n; ++image) {
        const float *in = x + (size_t)image * support->columns;
        for (row = 0u; row < support->rows; ++row) {
            float out = dy[(size_t)image * support->rows + row];
            for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k)
                gradient[k] += out * in[sfd_column(support, k)];
        }
    }
    return (uint64_t)support->count * n;
}

const struct sfd_sparse_kernels sfd_kernels_portable = {
    convolution_forward, convolution_d_input, convolution_d_weight,
    linear_forward,      linear_d_input,      linear_d_weight,
};
