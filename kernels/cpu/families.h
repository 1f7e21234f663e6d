/* Included by kernels.c once for each element type. What others use comes first. */
#include "math_impl.h"
#include "tile.h"

#include "activation_impl.h"
#include "columns_impl.h"
#include "embedding_impl.h"
#include "gemm_impl.h"
#include "loss_impl.h"
#include "norm_impl.h"
#include "optim_impl.h"
#include "pointwise_impl.h"
#include "pool2d_impl.h"
#include "pooling_impl.h"
#include "recurrent_impl.h"
#include "softmax_impl.h"

#include "attention_impl.h"
#include "winograd_impl.h"

#include "conv2d_impl.h"

#undef LANES
#undef PANEL
#undef PANELS
