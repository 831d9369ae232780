/* The loops over what a nonzero of a convolution touches. A row of pixels of a block is one run of
 * floats, so that each nonzero does long, plain loops: along the lines of a window, or where these are
 * short, in strips across them. */
#include "kernels_windows.h"

/* Partial sums of a dot product: fixed, so that the order of additions is the same everywhere. */
#define LANES 8u

/* Floats of the longest line of a window that is taken in strips. Longer ones lie too far apart: the
 * pixels of a strip would share few places in a cache. */
#define SHORT 64u

/* Outputs whose input lies before `end`, counted from that of output 0. */
static uint32_t outputs_before(uint32_t end, uint32_t stride)
{
    return stride == 1u ? end : end / stride + (end % stride != 0u);
}

void sfd_valid_range(uint32_t in, uint32_t out, uint32_t stride, uint32_t padding, uint32_t offset,
                     uint32_t *low, uint32_t *high)
{
    /* y * stride + offset must be in [padding, padding + in) */
    const uint32_t before = offset < padding ? padding - offset : 0u;
    const uint32_t beyond = offset > padding ? offset - padding : 0u;

    *low = outputs_before(before, stride);
    *high = 0u;
    if (beyond < in)
        *high = in < UINT32_MAX - before ? outputs_before(before + (in - beyond), stride) : out;
    if (*high > out)
        *high = out;
    if (*low > *high)
        *low = *high;
}

/* Add to a window, whose lines are known, the pixels of each. */
static void window_widen(const struct pass *pass, uint32_t offset_x, struct window *window)
{
    const struct sfd_layer *layer = pass->layer;
    const struct sfd_convolution *shape = &layer->shape;
    uint32_t low, high;

    sfd_valid_range(layer->in_width, layer->out_width, shape->stride_w, shape->padding_w, offset_x,
                    &low, &high);
    window->count = (high - low) * pass->images;
    window->in += (size_t)(low * shape->stride_w + offset_x - shape->padding_w) * pass->images;
    window->out += low * pass->out.step;
    if (window->count == 0u)
        window->lines = 0u;
    if (window->count == pass->out.line && pass->in.line == pass->out.line &&
        pass->in.step == pass->out.step) {
        window->count *= window->lines; /* the rows lie end to end: one long row */
        window->lines = window->lines > 0u;
    }
}

static void windows_find(const struct pass *pass, struct window *window)
{
    const struct sfd_layer *layer = pass->layer;
    const struct sfd_convolution *shape = &layer->shape;
    uint32_t ky, kx, low, high;

    for (ky = 0u; ky < shape->kernel_h; ++ky) {
        const uint32_t offset_y = ky * shape->dilation_h;
        sfd_valid_range(layer->in_height, layer->out_height, shape->stride_h, shape->padding_h,
                        offset_y, &low, &high);
        for (kx = 0u; kx < shape->kernel_w; ++kx, ++window) {
            window->lines = high - low;
            window->in = (size_t)(low * shape->stride_h + offset_y - shape->padding_h) *
                         layer->in_width * pass->images;
            window->out = low * pass->out.line;
            window_widen(pass, kx * shape->dilation_w, window);
        }
    }
}

struct pass sfd_pass_begin(const struct sfd_layer *layer, uint32_t images, void *scratch)
{
    const struct sfd_convolution *shape = &layer->shape;
    struct pass pass;

    pass.layer = layer;
    pass.windows = scratch;
    pass.images = images;
    pass.area = sfd_kernel_area(layer);
    pass.group_rows = layer->support.rows / shape->groups;
    pass.in.run = (size_t)layer->in_height * layer->in_width * images;
    pass.in.step = (size_t)shape->stride_w * images;
    pass.in.line = (size_t)shape->stride_h * layer->in_width * images;
    pass.out.run = (size_t)layer->out_height * layer->out_width * images;
    pass.out.step = images;
    pass.out.line = (size_t)layer->out_width * images;
    pass.group_run = layer->in_channels / shape->groups * pass.in.run;
    windows_find(&pass, scratch);
    return pass;
}

/* y += w * x for pixels that lie apart, one at least. */
static void pixels_add(float *restrict y, size_t y_step, const float *restrict x, size_t x_step,
                       uint32_t count, float w)
{
    do {
        *y += w * *x;
        y += y_step;
        x += x_step;
    } while (--count > 0u);
}

/* The same for fours, written out: what is built for size has no loop unrolled. */
static void fours_add(float *restrict y, size_t y_step, const float *restrict x, size_t x_step,
                      uint32_t count, float w)
{
    do {
        y[0] += w * x[0];
        y[1] += w * x[1];
        y[2] += w * x[2];
        y[3] += w * x[3];
        y += y_step;
        x += x_step;
    } while (--count > 0u);
}

/* The same for eights. */
static void eights_add(float *restrict y, size_t y_step, const float *restrict x, size_t x_step,
                       uint32_t count, float w)
{
    do {
        y[0] += w * x[0];
        y[1] += w * x[1];
        y[2] += w * x[2];
        y[3] += w * x[3];
        y[4] += w * x[4];
        y[5] += w * x[5];
        y[6] += w * x[6];
        y[7] += w * x[7];
        y += y_step;
        x += x_step;
    } while (--count > 0u);
}

/* The same for lines, one at least, of floats that lie side by side. */
static void lines_add(float *restrict y, size_t y_line, const float *restrict x, size_t x_line,
                      uint32_t count, uint32_t lines, float w)
{
    const uint32_t rest = count % 8u, whole = count - rest;

    if (lines > 1u && count <= SHORT) {
        for (; count >= 8u; count -= 8u, y += 8, x += 8)
            eights_add(y, y_line, x, x_line, lines, w);
        if (count >= 4u) {
            fours_add(y, y_line, x, x_line, lines, w);
            count -= 4u, y += 4, x += 4;
        }
        for (; count > 0u; --count)
            pixels_add(y++, y_line, x++, x_line, lines, w);
        return;
    }
    for (; lines > 0u; --lines, y += y_line, x += x_line) {
        if (whole > 0u)
            eights_add(y, 8u, x, 8u, whole / 8u, w);
        if (rest > 0u)
            pixels_add(y + whole, 1u, x + whole, 1u, rest, w);
    }
}

void sfd_window_add(const struct window *window, uint32_t n, float *y, const struct side *to,
                    const float *x, const struct side *from, float w)
{
    const uint32_t count = window->count;
    uint32_t lines = window->lines;

    if (lines > 0u && to->step == from->step) {
        lines_add(y, to->line, x, from->line, count, lines, w);
        return;
    }
    for (; lines > 0u; --lines, y += to->line, x += from->line)
        if (n == 1u)
            pixels_add(y, to->step, x, from->step, count, w);
        else /* the pixels of a line are lines of n floats */
            lines_add(y, to->step, x, from->step, n, count / n, w);
}

/* The sum and the products of pixels that lie apart, one at least. */
static float pixels_dot(const float *y, size_t y_step, const float *x, size_t x_step,
                        uint32_t count, float sum)
{
    do {
        sum += *y * *x;
        y += y_step;
        x += x_step;
    } while (--count > 0u);
    return sum;
}

/* The same for two side by side. */
static void pairs_dot(const float *y, size_t y_step, const float *x, size_t x_step, uint32_t count,
                      float *lane)
{
    float a = lane[0], b = lane[1];

    do {
        a += y[0] * x[0];
        b += y[1] * x[1];
        y += y_step;
        x += x_step;
    } while (--count > 0u);
    lane[0] = a, lane[1] = b;
}

/* The same for LANES side by side. */
static void lanes_dot(const float *y, size_t y_step, const float *x, size_t x_step, uint32_t count,
                      float *lane)
{
    float a = lane[0], b = lane[1], c = lane[2], d = lane[3];
    float e = lane[4], f = lane[5], g = lane[6], h = lane[7];

    do {
        a += y[0] * x[0];
        b += y[1] * x[1];
        c += y[2] * x[2];
        d += y[3] * x[3];
        e += y[4] * x[4];
        f += y[5] * x[5];
        g += y[6] * x[6];
        h += y[7] * x[7];
        y += y_step;
        x += x_step;
    } while (--count > 0u);
    lane[0] = a, lane[1] = b, lane[2] = c, lane[3] = d;
    lane[4] = e, lane[5] = f, lane[6] = g, lane[7] = h;
}

/* Add the products of lines to the partial sums; element i of a line goes to sum i % LANES. */
static void lines_dot(const float *y, size_t y_line, const float *x, size_t x_line, uint32_t count,
                      uint32_t lines, float *lane)
{
    const uint32_t rest = count % LANES, whole = count - rest;
    const int is_long = lines == 1u || count > SHORT;
    uint32_t i;

    for (i = 0u; i < whole && !is_long; i += LANES)
        lanes_dot(y + i, y_line, x + i, x_line, lines, lane);
    for (i = 0u; i < lines && whole > 0u && is_long; ++i)
        lanes_dot(y + i * y_line, LANES, x + i * x_line, LANES, whole / LANES, lane);
    for (i = 0u; i + 2u <= rest; i += 2u)
        pairs_dot(y + whole + i, y_line, x + whole + i, x_line, lines, lane + i);
    if (i < rest)
        lane[i] = pixels_dot(y + whole + i, y_line, x + whole + i, x_line, lines, lane[i]);
}

float sfd_window_dot(const struct pass *pass, const struct window *window, const float *y,
                     const float *x)
{
    const uint32_t n = pass->images, count = window->count;
    float lane[LANES] = {0.0f};
    uint32_t line;

    if (pass->in.step == n && window->lines > 0u)
        lines_dot(y, pass->out.line, x, pass->in.line, count, window->lines, lane);
    else
        for (line = 0u; line < window->lines; ++line, y += pass->out.line, x += pass->in.line)
            if (n == 1u)
                lane[line % LANES] = pixels_dot(y, 1u, x, pass->in.step, count, lane[line % LANES]);
            else /* the pixels of a line are lines of n floats */
                lines_dot(y, n, x, pass->in.step, n, count / n, lane);
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) +
           ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}
