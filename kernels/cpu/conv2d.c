#define KERNEL "conv2d_impl.h"
#include "typed.h"
