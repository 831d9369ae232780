/* The fast kernels for aarch64. */
#define SFD_LANES 4u
#include "fast_layer.h"
#include "fast_tensors.h"

const struct sfd_kernels sfd_kernels_neon = {
    "neon",
    &fast_tensors,
    FAST_ELEMENT_WORK,
    .forwards_rows = 0,
    fast_skips_zeros,
    fast_forward_scratch_bytes,
    fast_backward_scratch_bytes,
    fast_forward,
    fast_backward,
};
