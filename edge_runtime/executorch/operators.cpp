// The core's operators in ExecuTorch, namespace sparsyfed: arguments are taken from the runtime,
// results sized, scratch taken from its temporary allocator. The work is done by sfd_operators.h.
//
// Activations are in the core's order; export/core_operators.py has the schemas, in the order
// of which the arguments lie on the stack, results last.
#include <cstdint>

#include <executorch/runtime/kernel/operator_registry.h>

#include "arguments.h"
#include "sfd_operators.h"

namespace
{

using executorch::runtime::Kernel;
using executorch::runtime::Span;
using namespace sparsyfed;
using Stack = Span<EValue *>;

void to_blocks(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &x = stack[0]->toTensor();
    Tensor &y = stack[1]->toTensor();

    if (resize_like(context, y, x))
        sfd_to_blocks(floats(x), example_size(x), images(x), floats_of(y));
}

void to_rows(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &x = stack[0]->toTensor();
    Tensor &y = stack[1]->toTensor();

    if (resize_like(context, y, x))
        sfd_to_rows(floats(x), example_size(x), images(x), floats_of(y));
}

// geometry: groups, then kernel, stride, padding and dilation as height and width.
sfd_layer_geometry layer_geometry(const Tensor &x, const Tensor &y, EValue *value)
{
    const auto numbers = value->toIntList();
    const auto number = [&](size_t i) { return static_cast<uint32_t>(numbers[i]); };

    return {channels(x), height(x), width(x),  channels(y), height(y),
            width(y),    number(0), number(1), number(2),   number(3),
            number(4),   number(5), number(6), number(7),   number(8)};
}

// x, v, bias, geometry, beta; y
void layer(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &x = stack[0]->toTensor();
    const float *v = floats(stack[1]->toTensor());
    const auto beta = static_cast<float>(stack[4]->toDouble());
    Tensor &y = stack[5]->toTensor();

    if (!resize_batch(context, y, x))
        return;
    const sfd_layer_geometry geometry = layer_geometry(x, y, stack[3]);
    void *memory = scratch(context, sfd_layer_forward_bytes(&geometry, v, images(x)));
    if (memory != nullptr)
        sfd_layer_forward(&geometry, v, beta, optional_floats(stack[2]), floats(x), images(x),
                          floats_of(y), memory);
}

// dy, x, v, keep, place, geometry, beta, wants dx, wants d_bias; dx, dv, d_bias
void layer_backward(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &dy = stack[0]->toTensor();
    const Tensor &x = stack[1]->toTensor();
    const float *v = floats(stack[2]->toTensor());
    const auto beta = static_cast<float>(stack[6]->toDouble());
    const sfd_layer_geometry geometry = layer_geometry(x, dy, stack[5]);
    Tensor &dx = stack[9]->toTensor();
    uint32_t kept;

    if (!kept_inputs(context, stack[3]->toTensor(), stack[4]->toInt(), kept) ||
        !is_countable(context, x) || (stack[7]->toBool() && !resize_like(context, dx, x)))
        return;
    void *memory = scratch(context, sfd_layer_backward_bytes(&geometry, v, images(x), kept));
    if (memory != nullptr)
        sfd_layer_backward(&geometry, v, beta, floats(x), floats(dy), images(x), kept, wanted(dx),
                           floats_of(stack[10]->toTensor()), wanted(stack[11]->toTensor()), memory);
}

sfd_batch_norm_geometry batch_norm_geometry(const Tensor &x, EValue *weight, EValue *bias,
                                            EValue *epsilon)
{
    return {channels(x), height(x) * width(x), static_cast<float>(epsilon->toDouble()),
            weight ? optional_floats(weight) : nullptr, bias ? optional_floats(bias) : nullptr};
}

// x, weight, bias, mean, variance, momentum, epsilon; y, moments, new mean, new variance
void batch_norm(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &x = stack[0]->toTensor();
    const float *const running[] = {floats(stack[3]->toTensor()), floats(stack[4]->toTensor())};
    float *const next[] = {floats_of(stack[9]->toTensor()), floats_of(stack[10]->toTensor())};
    const auto geometry = batch_norm_geometry(x, stack[1], stack[2], stack[6]);
    Tensor &y = stack[7]->toTensor();

    if (resize_like(context, y, x))
        sfd_batch_norm_train(&geometry, floats(x), images(x),
                             static_cast<float>(stack[5]->toDouble()), running, floats_of(y),
                             floats_of(stack[8]->toTensor()), next);
}

// x, weight, bias, mean, variance, epsilon; y
void batch_norm_evaluated(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &x = stack[0]->toTensor();
    const auto geometry = batch_norm_geometry(x, stack[1], stack[2], stack[5]);
    Tensor &y = stack[6]->toTensor();

    if (resize_like(context, y, x))
        sfd_batch_norm_evaluate(&geometry, floats(x), images(x), floats(stack[3]->toTensor()),
                                floats(stack[4]->toTensor()), floats_of(y));
}

// dy, x, weight, moments, epsilon; dx, d_weight, d_bias
void batch_norm_backward(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &dy = stack[0]->toTensor();
    const Tensor &x = stack[1]->toTensor();
    const auto geometry = batch_norm_geometry(x, stack[2], nullptr, stack[4]);
    Tensor &dx = stack[5]->toTensor();

    if (resize_like(context, dx, x))
        sfd_batch_norm_gradients(&geometry, floats(x), floats(dy), images(x),
                                 floats(stack[3]->toTensor()), floats_of(dx),
                                 floats_of(stack[6]->toTensor()), floats_of(stack[7]->toTensor()));
}

// shape: sets, elements, span, affine_step.
sfd_norm_geometry norm_geometry(EValue *shape, EValue *weight, EValue *bias, EValue *epsilon)
{
    const auto numbers = shape->toIntList();
    const auto number = [&](size_t i) { return static_cast<uint32_t>(numbers[i]); };

    return {number(0),
            number(1),
            number(2),
            number(3),
            epsilon ? static_cast<float>(epsilon->toDouble()) : 0.0f,
            weight ? optional_floats(weight) : nullptr,
            bias ? optional_floats(bias) : nullptr};
}

// x, weight, bias, shape, epsilon; y, moments
void norm(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &x = stack[0]->toTensor();
    const auto geometry = norm_geometry(stack[3], stack[1], stack[2], stack[4]);
    Tensor &y = stack[5]->toTensor();
    Tensor &moments = stack[6]->toTensor();

    if (resize_like(context, y, x) && resize_batch(context, moments, x))
        sfd_norm(&geometry, floats(x), images(x), floats_of(y), floats_of(moments));
}

// dy, x, weight, moments, shape, coefficients; dx, d_weight, d_bias
void norm_backward(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &dy = stack[0]->toTensor();
    const Tensor &x = stack[1]->toTensor();
    const auto geometry = norm_geometry(stack[4], stack[2], nullptr, nullptr);
    Tensor &dx = stack[6]->toTensor();

    if (resize_like(context, dx, x))
        sfd_norm_gradients(&geometry, floats(x), floats(dy), images(x),
                           floats(stack[3]->toTensor()), floats_of(dx),
                           wanted(stack[7]->toTensor()), wanted(stack[8]->toTensor()));
}

// x, ceiling; y
void rectifier(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &x = stack[0]->toTensor();
    Tensor &y = stack[2]->toTensor();

    if (resize_like(context, y, x))
        sfd_rectifier(floats(x), static_cast<uint32_t>(x.numel()),
                      static_cast<float>(stack[1]->toDouble()), floats_of(y));
}

// dy, x, ceiling; dx
void rectifier_backward(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &dy = stack[0]->toTensor();
    Tensor &dx = stack[3]->toTensor();

    if (resize_like(context, dx, dy))
        sfd_rectifier_gradient(floats(stack[1]->toTensor()), floats(dy),
                               static_cast<uint32_t>(dy.numel()),
                               static_cast<float>(stack[2]->toDouble()), floats_of(dx));
}

// x, kind, flags; y
void smooth(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &x = stack[0]->toTensor();
    Tensor &y = stack[3]->toTensor();

    if (resize_like(context, y, x))
        sfd_smooth(static_cast<uint32_t>(stack[1]->toInt()),
                   static_cast<uint32_t>(stack[2]->toInt()), floats(x),
                   static_cast<uint32_t>(x.numel()), floats_of(y));
}

// dy, x, kind, flags; dx
void smooth_backward(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &dy = stack[0]->toTensor();
    Tensor &dx = stack[4]->toTensor();

    if (resize_like(context, dx, dy))
        sfd_smooth_gradient(static_cast<uint32_t>(stack[2]->toInt()),
                            static_cast<uint32_t>(stack[3]->toInt()), floats(stack[1]->toTensor()),
                            floats(dy), static_cast<uint32_t>(dy.numel()), floats_of(dx));
}

// geometry: kind, flags, kernel, stride and padding as height and width.
sfd_pool_geometry pool_geometry(const Tensor &x, const Tensor &y, EValue *value)
{
    const auto numbers = value->toIntList();
    const auto number = [&](size_t i) { return static_cast<uint32_t>(numbers[i]); };

    return {number(0), number(1), channels(x), height(x), width(x),  height(y), width(y),
            number(2), number(3), number(4),   number(5), number(6), number(7)};
}

// 16 bits of any type: the places inside a window.
uint16_t *winners(const Tensor &tensor)
{
    return static_cast<uint16_t *>(tensor.mutable_data_ptr());
}

// x, geometry, size of the output; y, winners (empty for averages)
void pool(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &x = stack[0]->toTensor();
    Tensor &y = stack[3]->toTensor();
    Tensor &winner = stack[4]->toTensor();

    if (!resize_batch(context, y, x) || (winner.dim() > 1 && !resize_batch(context, winner, x)))
        return;
    const sfd_pool_geometry geometry = pool_geometry(x, y, stack[1]);
    sfd_pool(&geometry, floats(x), images(x), floats_of(y),
             winner.dim() > 1 ? winners(winner) : nullptr);
}

// dy, winners, geometry, size of the input; dx
void pool_backward(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &dy = stack[0]->toTensor();
    Tensor &dx = stack[4]->toTensor();

    if (!resize_batch(context, dx, dy))
        return;
    const sfd_pool_geometry geometry = pool_geometry(dx, dy, stack[2]);
    sfd_pool_gradient(&geometry, floats(dy), winners(stack[1]->toTensor()), images(dy),
                      floats_of(dx));
}

// p, gradient, rate, decay; next
void descend(KernelRuntimeContext &context, Stack stack)
{
    const Tensor &p = stack[0]->toTensor();
    Tensor &next = stack[4]->toTensor();

    if (is_countable(context, p))
        sfd_descend(floats(p), floats(stack[1]->toTensor()), static_cast<uint32_t>(p.numel()),
                    *floats(stack[2]->toTensor()), *floats(stack[3]->toTensor()), floats_of(next));
}

const Kernel kernels[] = {
    Kernel("sparsyfed::to_blocks.out", to_blocks),
    Kernel("sparsyfed::to_rows.out", to_rows),
    Kernel("sparsyfed::layer.out", layer),
    Kernel("sparsyfed::layer_backward.out", layer_backward),
    Kernel("sparsyfed::batch_norm.out", batch_norm),
    Kernel("sparsyfed::batch_norm_evaluated.out", batch_norm_evaluated),
    Kernel("sparsyfed::batch_norm_backward.out", batch_norm_backward),
    Kernel("sparsyfed::norm.out", norm),
    Kernel("sparsyfed::norm_backward.out", norm_backward),
    Kernel("sparsyfed::rectifier.out", rectifier),
    Kernel("sparsyfed::rectifier_backward.out", rectifier_backward),
    Kernel("sparsyfed::smooth.out", smooth),
    Kernel("sparsyfed::smooth_backward.out", smooth_backward),
    Kernel("sparsyfed::pool.out", pool),
    Kernel("sparsyfed::pool_backward.out", pool_backward),
    Kernel("sparsyfed::descend.out", descend),
};

[[maybe_unused]] const Error registered =
    executorch::runtime::register_kernels(Span<const Kernel>(kernels, std::size(kernels)));

} // namespace
