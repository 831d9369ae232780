/* What the core takes for granted of an operator's arguments: each function notes a fault of the call
 * unless it holds. */
#ifndef CHECKS_H
#define CHECKS_H

#include "arguments.h"
#include "sfd_operators.h"

/* `count` elements; an optional tensor may be absent. */
void sfd_ort_require_count(struct call *call, const struct tensor *tensor, uint64_t count);
void sfd_ort_require_optional_count(struct call *call, const struct tensor *tensor, uint64_t count);

/* As many examples as x, in up to four dimensions as x. */
void sfd_ort_require_image(struct call *call, const struct tensor *x, const struct tensor *like);

void sfd_ort_require_layer(struct call *call, const struct sfd_layer_geometry *geometry,
                           const struct tensor *v);
void sfd_ort_require_norm(struct call *call, const struct sfd_norm_geometry *geometry,
                          const struct tensor *x);
void sfd_ort_require_pool(struct call *call, const struct sfd_pool_geometry *geometry);

/* Winners that a max pool of this geometry can have written. */
void sfd_ort_require_winners(struct call *call, const struct sfd_pool_geometry *geometry,
                             const struct tensor *winners, uint32_t n);

#endif
