#define KERNEL "gemm_impl.h"
#include "typed.h"
