/* What the forward and the backward of a batch share. */
#ifndef SFD_RUN_H
#define SFD_RUN_H

#include "sfd_session.h"

/* Run a step that computes a result, for the first time or again, or that packs an input. */
void sfd_run_step(struct sfd_session *session, const struct sfd_step *step, uint32_t n,
                  int training);

/* Interleave the caller's batch where a step reads it, and has a region for it. Before the step runs. */
void sfd_read_input(const struct sfd_session *session, const struct sfd_step *step, uint32_t n);

/* NULL for SFD_NONE. */
const float *sfd_parameter_data(const struct sfd_session *session, uint32_t parameter);

/* Powerprop over the entries of a slot, from its values to a working copy. */
typedef void (*sfd_powerprop)(const float *v, float *working, uint32_t count, float beta);
void sfd_powerprop_slot(struct sfd_session *session, const struct sfd_slot *slot, float *working,
                        sfd_powerprop pass);

/* Memory that a kernel may write in part only; NULL for SFD_NONE. Its last word is written here, so
 * that a measured arena counts the region whole. */
void *sfd_working_data(const struct sfd_session *session, uint32_t region);

/* One block of a tensor that lies at `data`. */
struct sfd_view sfd_block_view(const struct sfd_session *session, uint32_t tensor, float *data,
                               uint32_t n, uint32_t first);

struct sfd_channels sfd_channels_of(const struct sfd_value *value);
struct sfd_norm sfd_norm_shape(const struct sfd_operation *operation, const struct sfd_value *in);

/* A batch norm with the statistics of the batch. */
struct sfd_batch_norm sfd_batch_norm_of(const struct sfd_session *session,
                                        const struct sfd_node *node);

#endif
