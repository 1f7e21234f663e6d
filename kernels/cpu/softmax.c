#define KERNEL "softmax_impl.h"
#include "typed.h"
