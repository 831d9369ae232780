/* The table of the fast kernels over whole tensors. */
#ifndef SFD_FAST_TENSORS_H
#define SFD_FAST_TENSORS_H

#include "fast_norm.h"
#include "fast_set_norm.h"
#include "fast_smooth.h"
#include "fast_topk.h"

static const struct sfd_tensor_kernels fast_tensors = {
    fast_batch_norm_forward, fast_batch_norm_backward, fast_norm_forward,
    fast_norm_backward,      fast_rectifier_forward,   fast_rectifier_backward,
    fast_smooth_forward,     fast_smooth_backward,     fast_add_forward,
    fast_add_into,           fast_bias_backward,       fast_pack,
    fast_powerprop_forward,  fast_powerprop_backward,
};

#endif
