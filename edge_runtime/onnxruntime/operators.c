/* The core's operators in ONNX Runtime: arguments are taken from the runtime, scratch from its
 * allocator. The work is done by sfd_operators.h.
 *
 * Activations are in the core's order. export/onnx_kernels.py writes the calls. */
#include "operators.h"

#include <stddef.h>

#include "arguments.h"
#include "checks.h"
#include "sfd_format.h"
#include "sfd_operators.h"

void sfd_ort_to_blocks(struct call *call)
{
    const struct tensor x = sfd_ort_activation(call, 0u);
    float *y = sfd_ort_output_like(call, 0u, &x);

    if (call->status == NULL)
        sfd_to_blocks(x.data, sfd_ort_example_size(&x), sfd_ort_images(&x), y);
}

void sfd_ort_to_rows(struct call *call)
{
    const struct tensor x = sfd_ort_activation(call, 0u);
    float *y = sfd_ort_output_like(call, 0u, &x);

    if (call->status == NULL)
        sfd_to_rows(x.data, sfd_ort_example_size(&x), sfd_ort_images(&x), y);
}

/* integers: groups, then kernel, stride, padding and dilation as height and width. */
static struct sfd_layer_geometry layer_geometry(const struct call *call, const struct tensor *x,
                                                const struct tensor *y)
{
    const struct sfd_layer_geometry geometry = {
        sfd_ort_channels(x),       sfd_ort_height(x),         sfd_ort_width(x),
        sfd_ort_channels(y),       sfd_ort_height(y),         sfd_ort_width(y),
        sfd_ort_integer(call, 0u), sfd_ort_integer(call, 1u), sfd_ort_integer(call, 2u),
        sfd_ort_integer(call, 3u), sfd_ort_integer(call, 4u), sfd_ort_integer(call, 5u),
        sfd_ort_integer(call, 6u), sfd_ort_integer(call, 7u), sfd_ort_integer(call, 8u)};

    return geometry;
}

/* x, v, bias; y. numbers: beta */
void sfd_ort_layer(struct call *call)
{
    const struct tensor x = sfd_ort_activation(call, 0u), v = sfd_ort_input(call, 1u);
    const struct tensor bias = sfd_ort_optional_input(call, 2u),
                        y = sfd_ort_shaped_output(call, &x);
    const struct sfd_layer_geometry geometry = layer_geometry(call, &x, &y);
    struct scratch scratch = {0};

    sfd_ort_require_image(call, &x, &y);
    sfd_ort_require_layer(call, &geometry, &v);
    sfd_ort_require_optional_count(call, &bias, geometry.out_channels);
    if (call->status == NULL)
        scratch = sfd_ort_take_scratch(
            call, sfd_layer_forward_bytes(&geometry, v.data, sfd_ort_images(&x)));
    if (call->status == NULL)
        sfd_layer_forward(&geometry, v.data, sfd_ort_number(call, 0u), bias.data, x.data,
                          sfd_ort_images(&x), y.data, scratch.aligned);
    sfd_ort_give_back(call, &scratch);
}

/* A layer's own count in keep; more than there are inputs is all of them. */
static uint32_t kept_inputs(struct call *call, const struct tensor *keep)
{
    const uint32_t place = sfd_ort_integer(call, 9u);
    int64_t kept;

    if (!sfd_ort_require(call, place < keep->count, "keep has no count for a layer"))
        return 0u;
    kept = ((const int64_t *)keep->data)[place];
    sfd_ort_require(call, kept >= 0, "keep has a count below 0");
    return kept > UINT32_MAX ? UINT32_MAX : (uint32_t)kept;
}

/* dy, x, v, keep; dx, dv, d_bias. integers: those of layer, place in keep. numbers: beta */
void sfd_ort_layer_backward(struct call *call)
{
    const struct tensor dy = sfd_ort_activation(call, 0u), x = sfd_ort_activation(call, 1u),
                        v = sfd_ort_input(call, 2u), keep = sfd_ort_input(call, 3u);
    const struct sfd_layer_geometry geometry = layer_geometry(call, &x, &dy);
    const uint32_t kept = kept_inputs(call, &keep);
    float *dx = sfd_ort_optional_output(call, 0u, x.shape, x.rank),
          *dv = sfd_ort_output_like(call, 1u, &v);
    float *d_bias = sfd_ort_optional_vector(call, 2u, geometry.out_channels);
    struct scratch scratch = {0};

    sfd_ort_require_image(call, &x, &dy);
    sfd_ort_require_layer(call, &geometry, &v);
    if (call->status == NULL)
        scratch = sfd_ort_take_scratch(
            call, sfd_layer_backward_bytes(&geometry, v.data, sfd_ort_images(&x), kept));
    if (call->status == NULL)
        sfd_layer_backward(&geometry, v.data, sfd_ort_number(call, 0u), x.data, dy.data,
                           sfd_ort_images(&x), kept, dx, dv, d_bias, scratch.aligned);
    sfd_ort_give_back(call, &scratch);
}

static struct sfd_batch_norm_geometry batch_norm_geometry(const struct call *call,
                                                          const struct tensor *x,
                                                          const float *weight, const float *bias)
{
    const struct sfd_batch_norm_geometry geometry = {sfd_ort_channels(x),
                                                     sfd_ort_height(x) * sfd_ort_width(x),
                                                     sfd_ort_number(call, 0u), weight, bias};

    return geometry;
}

/* x, weight, bias, mean, variance; y, moments, new mean, new variance. numbers: epsilon, momentum */
void sfd_ort_batch_norm(struct call *call)
{
    const struct tensor x = sfd_ort_activation(call, 0u), weight = sfd_ort_optional_input(call, 1u),
                        bias = sfd_ort_optional_input(call, 2u), mean = sfd_ort_input(call, 3u),
                        variance = sfd_ort_input(call, 4u);
    const struct sfd_batch_norm_geometry geometry =
        batch_norm_geometry(call, &x, weight.data, bias.data);
    const float *const running[2] = {mean.data, variance.data};
    float *y = sfd_ort_output_like(call, 0u, &x);
    float *moments = sfd_ort_vector(call, 1u, 2u * geometry.channels);
    float *const next[2] = {sfd_ort_output_like(call, 2u, &mean),
                            sfd_ort_output_like(call, 3u, &variance)};

    sfd_ort_require_image(call, &x, &x);
    sfd_ort_require_optional_count(call, &weight, geometry.channels);
    sfd_ort_require_optional_count(call, &bias, geometry.channels);
    sfd_ort_require_count(call, &mean, geometry.channels);
    sfd_ort_require_count(call, &variance, geometry.channels);
    if (call->status == NULL)
        sfd_batch_norm_train(&geometry, x.data, sfd_ort_images(&x), sfd_ort_number(call, 1u),
                             running, y, moments, next);
}

/* x, weight, bias, mean, variance; y. numbers: epsilon */
void sfd_ort_batch_norm_evaluated(struct call *call)
{
    const struct tensor x = sfd_ort_activation(call, 0u), weight = sfd_ort_optional_input(call, 1u),
                        bias = sfd_ort_optional_input(call, 2u), mean = sfd_ort_input(call, 3u),
                        variance = sfd_ort_input(call, 4u);
    const struct sfd_batch_norm_geometry geometry =
        batch_norm_geometry(call, &x, weight.data, bias.data);
    float *y = sfd_ort_output_like(call, 0u, &x);

    sfd_ort_require_image(call, &x, &x);
    sfd_ort_require_optional_count(call, &weight, geometry.channels);
    sfd_ort_require_optional_count(call, &bias, geometry.channels);
    sfd_ort_require_count(call, &mean, geometry.channels);
    sfd_ort_require_count(call, &variance, geometry.channels);
    if (call->status == NULL)
        sfd_batch_norm_evaluate(&geometry, x.data, sfd_ort_images(&x), mean.data, variance.data, y);
}

/* dy, x, weight, moments; dx, d_weight, d_bias. numbers: epsilon */
void sfd_ort_batch_norm_backward(struct call *call)
{
    const struct tensor dy = sfd_ort_input(call, 0u), x = sfd_ort_activation(call, 1u),
                        weight = sfd_ort_optional_input(call, 2u),
                        moments = sfd_ort_input(call, 3u);
    const struct sfd_batch_norm_geometry geometry =
        batch_norm_geometry(call, &x, weight.data, NULL);
    float *dx = sfd_ort_output_like(call, 0u, &x);
    float *d_weight = sfd_ort_vector(call, 1u, geometry.channels);
    float *d_bias = sfd_ort_vector(call, 2u, geometry.channels);

    sfd_ort_require_image(call, &x, &x);
    sfd_ort_require_count(call, &dy, x.count);
    sfd_ort_require_optional_count(call, &weight, geometry.channels);
    sfd_ort_require_count(call, &moments, 2u * (uint64_t)geometry.channels);
    if (call->status == NULL)
        sfd_batch_norm_gradients(&geometry, x.data, dy.data, sfd_ort_images(&x), moments.data, dx,
                                 d_weight, d_bias);
}

/* integers: sets, elements, span, affine_step. */
static struct sfd_norm_geometry norm_geometry(const struct call *call, const float *weight,
                                              const float *bias)
{
    const struct sfd_norm_geometry geometry = {sfd_ort_integer(call, 0u),
                                               sfd_ort_integer(call, 1u),
                                               sfd_ort_integer(call, 2u),
                                               sfd_ort_integer(call, 3u),
                                               sfd_ort_number(call, 0u),
                                               weight,
                                               bias};

    return geometry;
}

/* How many coefficients weight and bias have. */
static uint32_t coefficients(const struct sfd_norm_geometry *geometry)
{
    const uint32_t sets = geometry->affine_step == 0u ? 1u : geometry->sets;

    return geometry->span == 0u ? 0u : geometry->elements / geometry->span * sets;
}

/* x, weight, bias; y, moments. numbers: epsilon */
void sfd_ort_norm(struct call *call)
{
    const struct tensor x = sfd_ort_activation(call, 0u), weight = sfd_ort_optional_input(call, 1u),
                        bias = sfd_ort_optional_input(call, 2u);
    const struct sfd_norm_geometry geometry = norm_geometry(call, weight.data, bias.data);
    const int64_t shape[2] = {x.shape[0], 2 * (int64_t)geometry.sets};
    float *y, *moments;

    sfd_ort_require_norm(call, &geometry, &x);
    sfd_ort_require_optional_count(call, &weight, coefficients(&geometry));
    sfd_ort_require_optional_count(call, &bias, coefficients(&geometry));
    y = sfd_ort_output_like(call, 0u, &x);
    moments = sfd_ort_output(call, 1u, shape, 2u);
    if (call->status == NULL)
        sfd_norm(&geometry, x.data, sfd_ort_images(&x), y, moments);
}

/* dy, x, weight, moments; dx, d_weight, d_bias. integers: those of norm, number of coefficients, 0 if
 * their gradients are not wanted */
void sfd_ort_norm_backward(struct call *call)
{
    const struct tensor dy = sfd_ort_input(call, 0u), x = sfd_ort_activation(call, 1u),
                        weight = sfd_ort_optional_input(call, 2u),
                        moments = sfd_ort_input(call, 3u);
    const struct sfd_norm_geometry geometry = norm_geometry(call, weight.data, NULL);
    const uint32_t wanted = sfd_ort_integer(call, 4u);
    float *dx, *d_weight, *d_bias;

    sfd_ort_require_norm(call, &geometry, &x);
    sfd_ort_require(call, wanted == 0u || wanted == coefficients(&geometry),
                    "a norm has another number of coefficients");
    sfd_ort_require_count(call, &dy, x.count);
    sfd_ort_require_optional_count(call, &weight, coefficients(&geometry));
    sfd_ort_require_count(call, &moments, 2u * (uint64_t)geometry.sets * (uint64_t)x.shape[0]);
    dx = sfd_ort_output_like(call, 0u, &x);
    d_weight = sfd_ort_optional_vector(call, 1u, wanted);
    d_bias = sfd_ort_optional_vector(call, 2u, wanted);
    if (call->status == NULL)
        sfd_norm_gradients(&geometry, x.data, dy.data, sfd_ort_images(&x), moments.data, dx,
                           d_weight, d_bias);
}

/* x; y. numbers: ceiling */
void sfd_ort_rectifier(struct call *call)
{
    const struct tensor x = sfd_ort_input(call, 0u);
    float *y = sfd_ort_output_like(call, 0u, &x);

    if (call->status == NULL)
        sfd_rectifier(x.data, (uint32_t)x.count, sfd_ort_number(call, 0u), y);
}

/* dy, x; dx. numbers: ceiling */
void sfd_ort_rectifier_backward(struct call *call)
{
    const struct tensor dy = sfd_ort_input(call, 0u), x = sfd_ort_input(call, 1u);
    float *dx = sfd_ort_output_like(call, 0u, &dy);

    sfd_ort_require_count(call, &x, dy.count);
    if (call->status == NULL)
        sfd_rectifier_gradient(x.data, dy.data, (uint32_t)dy.count, sfd_ort_number(call, 0u), dx);
}

static void require_smooth(struct call *call)
{
    const uint32_t kind = sfd_ort_integer(call, 0u);

    sfd_ort_require(call, kind == SFD_OPERATION_SILU || kind == SFD_OPERATION_GELU,
                    "an activation of no kind");
}

/* x; y. integers: kind, flags */
void sfd_ort_smooth(struct call *call)
{
    const struct tensor x = sfd_ort_input(call, 0u);
    float *y = sfd_ort_output_like(call, 0u, &x);

    require_smooth(call);
    if (call->status == NULL)
        sfd_smooth(sfd_ort_integer(call, 0u), sfd_ort_integer(call, 1u), x.data, (uint32_t)x.count,
                   y);
}

/* dy, x; dx. integers: kind, flags */
void sfd_ort_smooth_backward(struct call *call)
{
    const struct tensor dy = sfd_ort_input(call, 0u), x = sfd_ort_input(call, 1u);
    float *dx = sfd_ort_output_like(call, 0u, &dy);

    require_smooth(call);
    sfd_ort_require_count(call, &x, dy.count);
    if (call->status == NULL)
        sfd_smooth_gradient(sfd_ort_integer(call, 0u), sfd_ort_integer(call, 1u), x.data, dy.data,
                            (uint32_t)dy.count, dx);
}

/* integers: kind, flags, kernel, stride and padding as height and width. */
static struct sfd_pool_geometry pool_geometry(const struct call *call, const struct tensor *x,
                                              const struct tensor *y)
{
    const struct sfd_pool_geometry geometry = {
        sfd_ort_integer(call, 0u), sfd_ort_integer(call, 1u), sfd_ort_channels(x),
        sfd_ort_height(x),         sfd_ort_width(x),          sfd_ort_height(y),
        sfd_ort_width(y),          sfd_ort_integer(call, 2u), sfd_ort_integer(call, 3u),
        sfd_ort_integer(call, 4u), sfd_ort_integer(call, 5u), sfd_ort_integer(call, 6u),
        sfd_ort_integer(call, 7u)};

    return geometry;
}

/* x; y, winners (absent for averages) */
void sfd_ort_pool(struct call *call)
{
    const struct tensor x = sfd_ort_activation(call, 0u), y = sfd_ort_shaped_output(call, &x);
    const struct sfd_pool_geometry geometry = pool_geometry(call, &x, &y);
    uint16_t *winners = NULL;

    sfd_ort_require_image(call, &x, &y);
    sfd_ort_require(call, sfd_ort_channels(&x) == sfd_ort_channels(&y),
                    "a pool changes the number of channels");
    sfd_ort_require_pool(call, &geometry);
    if (geometry.kind == SFD_OPERATION_MAX_POOL)
        winners = sfd_ort_output(call, 1u, y.shape, y.rank);
    if (call->status == NULL)
        sfd_pool(&geometry, x.data, sfd_ort_images(&x), y.data, winners);
}

/* dy, winners (absent for averages); dx */
void sfd_ort_pool_backward(struct call *call)
{
    const struct tensor dy = sfd_ort_activation(call, 0u),
                        winners = sfd_ort_optional_input(call, 1u);
    const struct tensor dx = sfd_ort_shaped_output(call, &dy);
    const struct sfd_pool_geometry geometry = pool_geometry(call, &dx, &dy);

    sfd_ort_require_image(call, &dx, &dy);
    sfd_ort_require(call, sfd_ort_channels(&dx) == sfd_ort_channels(&dy),
                    "a pool changes the number of channels");
    sfd_ort_require_pool(call, &geometry);
    if (geometry.kind == SFD_OPERATION_MAX_POOL) {
        sfd_ort_require_count(call, &winners, dy.count);
        sfd_ort_require_winners(call, &geometry, &winners, sfd_ort_images(&dy));
    }
    if (call->status == NULL)
        sfd_pool_gradient(&geometry, dy.data, winners.data, sfd_ort_images(&dy), dx.data);
}

/* p, gradient, rate, decay; next */
void sfd_ort_descend(struct call *call)
{
    const struct tensor p = sfd_ort_input(call, 0u), gradient = sfd_ort_input(call, 1u),
                        rate = sfd_ort_input(call, 2u), decay = sfd_ort_input(call, 3u);
    float *next = sfd_ort_output_like(call, 0u, &p);

    sfd_ort_require_count(call, &gradient, p.count);
    sfd_ort_require_count(call, &rate, 1u);
    sfd_ort_require_count(call, &decay, 1u);
    if (call->status == NULL)
        sfd_descend(p.data, gradient.data, (uint32_t)p.count, *(const float *)rate.data,
                    *(const float *)decay.data, next);
}
