/* Numbers that kernels take for a choice: read by C, by CUDA and by Python (mpidl.backend.headers).
 */
enum {
    ACT_RELU = 0,
    ACT_GELU = 1, /* by erf */
    ACT_GELU_TANH = 2,
    ACT_SILU = 3,
    ACT_TANH = 4,
    ACT_SIGMOID = 5,
};

enum {
    LOSS_MSE = 0,
    LOSS_HUBER = 1,
    LOSS_BCE = 2, /* binary cross-entropy of logits */
    LOSS_MAE = 3,
    LOSS_RELATIVE_L2 = 4,
};

/* What lies beyond the edge of an image or a field. */
enum {
    EDGE_FILL = 0, /* one number */
    EDGE_WRAP = 1, /* the other side: periodic */
    EDGE_REFLECT = 2, /* the inside, mirrored at the outermost element */
    EDGE_NEAREST = 3, /* the outermost element */
};
