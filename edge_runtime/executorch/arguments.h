// What operators take from ExecuTorch: arguments, results of the right size, scratch. A function that
// returns false, or NULL for scratch, has told the runtime of the fault.
#ifndef SPARSYFED_EXECUTORCH_ARGUMENTS_H
#define SPARSYFED_EXECUTORCH_ARGUMENTS_H

#include <algorithm>
#include <array>
#include <cstdint>

#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>

#include "sfd_operators.h"

namespace sparsyfed
{

using executorch::aten::ArrayRef;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::KernelRuntimeContext;

inline const float *floats(const Tensor &tensor)
{
    return tensor.const_data_ptr<float>();
}

inline float *floats_of(Tensor &tensor)
{
    return tensor.mutable_data_ptr<float>();
}

// NULL where the argument is None.
inline const float *optional_floats(EValue *value)
{
    return value->isNone() ? nullptr : floats(value->toTensor());
}

// NULL for a result that is not wanted, which has no elements.
inline float *wanted(Tensor &tensor)
{
    return tensor.numel() == 0 ? nullptr : floats_of(tensor);
}

inline uint32_t images(const Tensor &x)
{
    return static_cast<uint32_t>(x.size(0));
}

inline uint32_t example_size(const Tensor &x)
{
    return static_cast<uint32_t>(x.numel() / x.size(0));
}

// Dimension 1 are the channels; a signal has height 1, a vector width 1 as well.
inline uint32_t height(const Tensor &x)
{
    return x.dim() == 4 ? static_cast<uint32_t>(x.size(2)) : 1u;
}

inline uint32_t width(const Tensor &x)
{
    return x.dim() > 2 ? static_cast<uint32_t>(x.size(x.dim() - 1)) : 1u;
}

inline uint32_t channels(const Tensor &x)
{
    return static_cast<uint32_t>(x.size(1));
}

// The core counts elements in 32 bits, and divides by the number of examples.
inline bool is_countable(KernelRuntimeContext &context, const Tensor &x)
{
    if (x.numel() > 0 && static_cast<uint64_t>(x.numel()) <= UINT32_MAX)
        return true;
    context.fail(Error::InvalidArgument);
    return false;
}

inline bool resize_like(KernelRuntimeContext &context, Tensor &out, const Tensor &like)
{
    if (!is_countable(context, like))
        return false;
    if (executorch::runtime::resize_tensor(out, like.sizes()) == Error::Ok)
        return true;
    context.fail(Error::InvalidArgument);
    return false;
}

// The planned sizes, with as many examples as `like`.
inline bool resize_batch(KernelRuntimeContext &context, Tensor &out, const Tensor &like)
{
    std::array<SizesType, 8> sizes{};
    const auto rank = static_cast<size_t>(out.dim());

    if (!is_countable(context, like))
        return false;
    if (rank == 0 || rank > sizes.size()) {
        context.fail(Error::InvalidArgument);
        return false;
    }
    for (size_t i = 0; i < rank; ++i)
        sizes[i] = static_cast<SizesType>(out.size(static_cast<ssize_t>(i)));
    sizes[0] = static_cast<SizesType>(like.size(0));
    if (executorch::runtime::resize_tensor(out, ArrayRef<SizesType>(sizes.data(), rank)) ==
        Error::Ok)
        return true;
    context.fail(Error::InvalidArgument);
    return false;
}

inline void *scratch(KernelRuntimeContext &context, uint64_t bytes)
{
    auto memory = context.allocate_temp(static_cast<size_t>(bytes), SFD_ALIGNMENT);

    if (memory.ok())
        return memory.get();
    context.fail(memory.error());
    return nullptr;
}

// A layer's own count in keep; more than there are inputs is all of them.
inline bool kept_inputs(KernelRuntimeContext &context, const Tensor &keep, int64_t place,
                        uint32_t &kept)
{
    if (place >= 0 && place < keep.numel()) {
        const int64_t count = keep.const_data_ptr<int64_t>()[place];

        kept = static_cast<uint32_t>(std::min<int64_t>(count, UINT32_MAX));
        if (count >= 0)
            return true;
    }
    context.fail(Error::InvalidArgument);
    return false;
}

} // namespace sparsyfed

#endif
