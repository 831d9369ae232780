/* The fast kernels for x86-64 with AVX-512. */
#include <immintrin.h>

#define SFD_LANES 16u
#include "fast_layer.h"
#include "fast_tensors.h"

const struct sfd_kernels sfd_kernels_avx512 = {
    "avx512",
    &fast_tensors,
    FAST_ELEMENT_WORK,
    .forwards_rows = 0,
    fast_skips_zeros,
    fast_forward_scratch_bytes,
    fast_backward_scratch_bytes,
    fast_forward,
    fast_backward,
};
