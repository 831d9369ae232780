/* The operators that the library adds to ONNX Runtime. Inputs and outputs stand above each one. */
#ifndef OPERATORS_H
#define OPERATORS_H

struct call;

void to_blocks(struct call *call);
void to_rows(struct call *call);
void layer(struct call *call);
void layer_backward(struct call *call);
void batch_norm(struct call *call);
void batch_norm_evaluated(struct call *call);
void batch_norm_backward(struct call *call);
void norm(struct call *call);
void norm_backward(struct call *call);
void rectifier(struct call *call);
void rectifier_backward(struct call *call);
void smooth(struct call *call);
void smooth_backward(struct call *call);
void pool(struct call *call);
void pool_backward(struct call *call);
void descend(struct call *call);

#endif
