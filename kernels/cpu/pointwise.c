#define KERNEL "pointwise_impl.h"
#include "typed.h"
