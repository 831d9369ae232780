#include "checks.h"

#include "sfd_format.h"

#define WINDOW_LIMIT 0xffffu /* as in an artifact: docs/format.md */
#define PLACES_LIMIT 65536u  /* a winner is a place in its window, in 16 bits */
#define BLOCK 16u            /* images: the core's order, see sfd_operators.h */

void sfd_ort_require_count(struct call *call, const struct tensor *tensor, uint64_t count)
{
    sfd_ort_require(call, tensor->count == count, "an input has another size than the others want");
}

void sfd_ort_require_optional_count(struct call *call, const struct tensor *tensor, uint64_t count)
{
    if (tensor->data != NULL)
        sfd_ort_require_count(call, tensor, count);
}

void sfd_ort_require_image(struct call *call, const struct tensor *x, const struct tensor *like)
{
    sfd_ort_require(call, x->rank <= 4u && x->rank == like->rank && x->shape[0] == like->shape[0],
                    "inputs and output are no batches of as many images each");
}

struct window {
    uint32_t in, out, kernel, stride, padding, dilation;
};

/* The output extent is floor((in + 2 padding - span) / stride) + 1. */
static bool is_window(const struct window *window)
{
    const struct window w = *window;
    const uint64_t span = (uint64_t)w.dilation * (w.kernel - 1u) + 1u;
    const uint64_t padded = (uint64_t)w.in + 2u * (uint64_t)w.padding;

    return w.kernel >= 1u && w.kernel <= WINDOW_LIMIT && w.stride >= 1u &&
           w.stride <= WINDOW_LIMIT && w.dilation >= 1u && w.dilation <= WINDOW_LIMIT &&
           w.padding <= WINDOW_LIMIT && span <= padded && (padded - span) / w.stride + 1u == w.out;
}

void sfd_ort_require_layer(struct call *call, const struct sfd_layer_geometry *geometry,
                           const struct tensor *v)
{
    const struct sfd_layer_geometry g = *geometry;
    const struct window down = {g.in_height, g.out_height, g.kernel_h,
                                g.stride_h,  g.padding_h,  g.dilation_h};
    const struct window across = {g.in_width, g.out_width, g.kernel_w,
                                  g.stride_w, g.padding_w, g.dilation_w};
    uint64_t columns;

    if (!sfd_ort_require(call, is_window(&down) && is_window(&across),
                         "the output of a layer has not the size that its windows give") ||
        !sfd_ort_require(call,
                         g.groups >= 1u && g.in_channels % g.groups == 0u &&
                             g.out_channels % g.groups == 0u,
                         "the groups of a layer do not divide its channels"))
        return;
    columns = (uint64_t)(g.in_channels / g.groups) * g.kernel_h * g.kernel_w;
    sfd_ort_require(call, v->count % g.out_channels == 0u && v->count / g.out_channels == columns,
                    "the weight of a layer has not the size that its geometry gives");
}

void sfd_ort_require_norm(struct call *call, const struct sfd_norm_geometry *geometry,
                          const struct tensor *x)
{
    const struct sfd_norm_geometry g = *geometry;

    if (call->status != NULL)
        return;
    sfd_ort_require(call,
                    (uint64_t)g.sets * g.elements == sfd_ort_example_size(x) && g.span >= 1u &&
                        g.elements % g.span == 0u &&
                        (g.affine_step == 0u || g.affine_step == g.elements / g.span),
                    "a norm does not divide its examples");
}

static struct window pool_window(const struct sfd_pool_geometry *g, bool is_down)
{
    const struct window down = {g->in_height, g->out_height, g->kernel_h,
                                g->stride_h,  g->padding_h,  1u};
    const struct window across = {g->in_width, g->out_width, g->kernel_w,
                                  g->stride_w, g->padding_w, 1u};

    return is_down ? down : across;
}

void sfd_ort_require_pool(struct call *call, const struct sfd_pool_geometry *geometry)
{
    const struct window down = pool_window(geometry, true), across = pool_window(geometry, false);
    const bool is_max = geometry->kind == SFD_OPERATION_MAX_POOL;

    if (geometry->kind == SFD_OPERATION_ADAPTIVE_AVERAGE_POOL)
        return;
    sfd_ort_require(call, is_max || geometry->kind == SFD_OPERATION_AVERAGE_POOL,
                    "a pool of no kind");
    sfd_ort_require(call,
                    is_window(&down) && is_window(&across) && down.padding <= down.kernel / 2u &&
                        across.padding <= across.kernel / 2u,
                    "the output of a pool has not the size that its windows give");
    sfd_ort_require(call, !is_max || (uint64_t)down.kernel * across.kernel <= PLACES_LIMIT,
                    "the window of a max pool is too large");
}

/* How much of a window lies on the image. */
static uint32_t extent(const struct window *window, uint32_t index)
{
    const int64_t start = (int64_t)index * window->stride - (int64_t)window->padding;
    const int64_t end = start + window->kernel;

    return (uint32_t)((end < window->in ? end : window->in) - (start > 0 ? start : 0));
}

void sfd_ort_require_winners(struct call *call, const struct sfd_pool_geometry *geometry,
                             const struct tensor *winners, uint32_t n)
{
    const struct window down = pool_window(geometry, true), across = pool_window(geometry, false);
    const uint16_t *winner = winners->data;
    uint32_t first, images, row, y, x, j;
    bool holds = true;

    if (call->status != NULL)
        return;
    for (first = 0u; first < n; first += images) {
        images = n - first < BLOCK ? n - first : BLOCK;
        for (row = 0u; row < geometry->channels * down.out; ++row) {
            y = extent(&down, row % down.out);
            for (x = 0u; x < across.out; ++x, winner += images)
                for (j = 0u; j < images; ++j)
                    holds &= winner[j] < y * extent(&across, x);
        }
    }
    sfd_ort_require(call, holds, "a winner of a max pool lies outside of its window");
}
