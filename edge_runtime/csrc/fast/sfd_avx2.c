/* The fast kernels for x86-64 with AVX2 and FMA. */
#define SFD_LANES 8
#include "fast_layer.h"

const struct sfd_kernels sfd_kernels_avx2 = {"avx2", fast_scratch_bytes, fast_forward,
                                             fast_backward};
