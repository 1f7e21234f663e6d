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
