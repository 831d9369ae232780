/* The operators that the library adds to ONNX Runtime. Inputs and outputs stand above each one. */
#ifndef OPERATORS_H
#define OPERATORS_H

struct call;

void sfd_ort_to_blocks(struct call *call);
void sfd_ort_to_rows(struct call *call);
void sfd_ort_layer(struct call *call);
void sfd_ort_layer_backward(struct call *call);
void sfd_ort_batch_norm(struct call *call);
void sfd_ort_batch_norm_evaluated(struct call *call);
void sfd_ort_batch_norm_backward(struct call *call);
void sfd_ort_norm(struct call *call);
void sfd_ort_norm_backward(struct call *call);
void sfd_ort_rectifier(struct call *call);
void sfd_ort_rectifier_backward(struct call *call);
void sfd_ort_smooth(struct call *call);
void sfd_ort_smooth_backward(struct call *call);
void sfd_ort_pool(struct call *call);
void sfd_ort_pool_backward(struct call *call);
void sfd_ort_descend(struct call *call);

#endif
